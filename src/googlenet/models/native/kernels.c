/* The passes of a training step that PyTorch runs slowly on a CPU, over maps stored with their channels last, in float32
 * or in bfloat16.
 *
 * A map is a matrix: one row per pixel of the batch, one column per channel. ld_* is the distance between two rows in
 * numbers, so that a pass can read from, or write into, some of the columns of a wider matrix: that is how the paths of
 * an Inception block are concatenated without a copy.
 *
 * A NaN goes through every pass as it does in PyTorch (hence "< 0 ? 0 : x"), so that a diverging run is noticed; in
 * tiles.h it reaches the whole of its tile.
 * Sums over rows are taken chunk by chunk and the chunks added in order, so the bits do not depend on the threads.
 * build.py compiles this file on first use; passes.py is the only caller.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHUNKS 32     /* parts of the rows that are summed apart */
#define BLOCK 64      /* rows summed in float before they are added up in double */
#define CHANNELS 2048 /* the most that a map may have */

static long first_row(long rows, long chunk) { return rows * chunk / CHUNKS; }

/* sums[c] = the chunks' partial sums of column c, added in order */
static void add_chunks(const double *partial, long channels, double *sums) {
    memset(sums, 0, channels * sizeof(double));
    for (long chunk = 0; chunk < CHUNKS; chunk++)
        for (long c = 0; c < channels; c++) sums[c] += partial[chunk * channels + c];
}

/* A pool's window is 3x3. Sixteen bits remember which of its pixels was the largest: the first one, as in PyTorch.
 * (Eight would do, but compilers widen eight bits to thirty-two one by one.)
 */
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t ints __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2)));
#define LANES 16 /* channels handled at once; a map's channels are a multiple of it */

static inline float load_float(float x) { return x; }
static inline float store_float(float x) { return x; }
static inline floats load_lanes_float(const float *from) { return *(const floats *)from; }
static inline void store_lanes_float(float *to, floats x) { *(floats *)to = x; }

#define VALUE float
#define NAME(pass) pass##_float32
#define load load_float
#define store store_float
#define load_lanes load_lanes_float
#define store_lanes store_lanes_float
#include "maps.h"
#undef VALUE
#undef NAME
#undef load
#undef store
#undef load_lanes
#undef store_lanes

/* out = L in L' for a square of numbers, each of LANES channels. L has `to` rows and `from` columns, or, `transposed`, lies
 * the other way round. It is known when this is compiled, so its zeros and ones cost nothing.
 */
static inline __attribute__((always_inline)) void sandwich(const int to, const int from, const float *L,
                                                           const int transposed, const floats *in, floats *out) {
    floats half[36];
#pragma GCC unroll 6
    for (int i = 0; i < to; i++)
#pragma GCC unroll 6
        for (int l = 0; l < from; l++) {
            floats sum = {0};
#pragma GCC unroll 6
            for (int k = 0; k < from; k++) {
                const float factor = transposed ? L[k * to + i] : L[i * from + k];
                if (factor != 0) sum += factor * in[k * from + l];
            }
            half[i * from + l] = sum;
        }
#pragma GCC unroll 6
    for (int i = 0; i < to; i++)
#pragma GCC unroll 6
        for (int j = 0; j < to; j++) {
            floats sum = {0};
#pragma GCC unroll 6
            for (int l = 0; l < from; l++) {
                const float factor = transposed ? L[l * to + j] : L[j * from + l];
                if (factor != 0) sum += factor * half[i * from + l];
            }
            out[i * to + j] = sum;
        }
}

/* B', G and A' of tiles.h, row by row */
static const float INPUT_2_float32[] = {1, 0, -1, 0,  0, 1, 1, 0,  0, -1, 1, 0,  0, 1, 0, -1};
static const float WEIGHT_2_float32[] = {1, 0, 0,  1.f / 2, 1.f / 2, 1.f / 2,  1.f / 2, -1.f / 2, 1.f / 2,  0, 0, 1};
static const float OUTPUT_2_float32[] = {1, 1, 1, 0,  0, 1, -1, -1};
static const float INPUT_3_float32[] = {
    2, -1, -2, 1, 0,
    0, -2, -1, 1, 0,
    0, 2, -3, 1, 0,
    0, -1, 0, 1, 0,
    0, 2, -1, -2, 1};
static const float WEIGHT_3_float32[] = {
    1.f / 2, 0, 0,
    -1.f / 2, -1.f / 2, -1.f / 2,
    -1.f / 6, 1.f / 6, -1.f / 6,
    1.f / 6, 1.f / 3, 2.f / 3,
    0, 0, 1};
static const float OUTPUT_3_float32[] = {1, 1, 1, 1, 0,  0, 1, -1, 2, 0,  0, 1, 1, 4, 1};
static const float INPUT_4_float32[] = {
    4, 0, -5, 0, 1, 0,
    0, -4, -4, 1, 1, 0,
    0, 4, -4, -1, 1, 0,
    0, -2, -1, 2, 1, 0,
    0, 2, -1, -2, 1, 0,
    0, 4, 0, -5, 0, 1};
static const float WEIGHT_4_float32[] = {
    1.f / 4, 0, 0,
    -1.f / 6, -1.f / 6, -1.f / 6,
    -1.f / 6, 1.f / 6, -1.f / 6,
    1.f / 24, 1.f / 12, 1.f / 6,
    1.f / 24, -1.f / 12, 1.f / 6,
    0, 0, 1};
static const float OUTPUT_4_float32[] = {
    1, 1, 1, 1, 1, 0,
    0, 1, -1, 2, -2, 0,
    0, 1, 1, 4, 4, 0,
    0, 1, -1, 8, -8, 1};

#define M 2
#define TILED(name) name##_2_float32
#include "tiles.h"
#undef M
#undef TILED
#define M 3
#define TILED(name) name##_3_float32
#include "tiles.h"
#undef M
#undef TILED
#define M 4
#define TILED(name) name##_4_float32
#include "tiles.h"
#undef M
#undef TILED

/* bfloat16 is the upper half of a float32; stored, a number is rounded to the nearest, ties to even. */
static inline float load_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
static inline uint16_t store_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline floats load_lanes_bfloat16(const uint16_t *from) {
    return (floats)(__builtin_convertvector(*(const halves *)from, words) << 16);
}
static inline void store_lanes_bfloat16(uint16_t *to, floats x) {
    words bits = (words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (words)(x != x);
    *(halves *)to = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), halves);
}

#define VALUE uint16_t
#define NAME(pass) pass##_bfloat16
#define load load_bfloat16
#define store store_bfloat16
#define load_lanes load_lanes_bfloat16
#define store_lanes store_lanes_bfloat16
#include "maps.h"

/* One tensor of a step of SGD with momentum, its gradient first scaled to the weights' norm (at least 1; taken as 1 where
 * `scaled` is 0, for biases and normalisations). Weights, gradient and momentum lie in the same order in memory.
 */
void layerwise_sgd(long size, long scaled, float *weight, const float *grad, float *momentum, float rate, float decay,
                   float friction, long nesterov) {
    double weights = 0, grads = 0, partial[2 * CHUNKS];
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long chunk = 0; chunk < CHUNKS; chunk++) {
        double w = 0, g = 0;
        for (long start = first_row(size, chunk); start < first_row(size, chunk + 1); start += 1024) {
            long stop = start + 1024 < first_row(size, chunk + 1) ? start + 1024 : first_row(size, chunk + 1);
            float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
            for (long i = start; i < stop; i++) {
                a += weight[i] * weight[i];
                b += grad[i] * grad[i];
            }
            w += a;
            g += b;
        }
        partial[2 * chunk] = w;
        partial[2 * chunk + 1] = g;
    }
    for (long chunk = 0; chunk < CHUNKS; chunk++) {
        weights += partial[2 * chunk];
        grads += partial[2 * chunk + 1];
    }
    float length = (float)sqrt(weights);
    float ratio = (scaled && length > 1 ? length : 1) / ((float)sqrt(grads) + 1e-8f);
#pragma omp parallel for simd schedule(static) if (parallel : size > 16384)
    for (long i = 0; i < size; i++) {
        float g = ratio * grad[i] + decay * weight[i];
        momentum[i] = friction * momentum[i] + g;
        weight[i] -= rate * (nesterov ? g + friction * momentum[i] : momentum[i]);
    }
}
