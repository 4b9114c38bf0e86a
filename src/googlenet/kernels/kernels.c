/* Parts of a training step that PyTorch runs slowly on a CPU, for maps stored with channels last, in float32 or
 * bfloat16.
 *
 * A map is a matrix: one row per pixel of the batch, one column per channel. ld_* is the distance between two rows
 * in elements, so that a kernel can read or write some of the columns of a wider matrix: the branches of an
 * Inception block are concatenated without a copy.
 *
 * NaN propagates through every kernel as in PyTorch (hence "< 0 ? 0 : x"), so that a diverging run is noticed; in
 * winograd.h it spreads over its whole tile. Sums over rows are computed chunk by chunk, and the chunks are added in
 * order, so the result does not depend on the number of threads. The caller allocates the `workspace` of these sums,
 * for CHUNKS + 1 times the sums of all channels; its constants CHANNELS (the maximum number of channels) and CHUNKS (the
 * number of chunks) are flags of the compiler. build.py compiles this file on first use; ffi.py calls it.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define SHORT_RUN 8 /* values that `im2col` copies at once */
#define BLOCK 64 /* rows summed in float before they are added in double */

static long first_row(long rows, long chunk) { return rows * chunk / CHUNKS; }

/* Some columns of a normalized map, in a map of their own: their BatchNorm2d's buffers and the output */
struct norm_part {
    long channels;
    void *map;
    long ld;
    float *running_mean, *running_var;
    int64_t *num_batches;
};

/* Some columns of a map: the gradient of the output */
struct grad_part {
    long channels;
    const void *grad;
    long ld;
};

/* sums[c] = the partial sums of all chunks for column c, added in order */
static void add_chunks(const double *partial, long channels, double *sums) {
    memset(sums, 0, channels * sizeof(double));
    for (long chunk = 0; chunk < CHUNKS; chunk++)
        for (long c = 0; c < channels; c++) sums[c] += partial[chunk * channels + c];
}

/* Vectors of LANES channels. The position of the maximum in a 3x3 window (the first one, as in PyTorch) is stored in
 * 16 bits: compilers convert 8 bits to 32 one by one.
 */
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t ints __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2)));
#define LANES 16 /* channels per vector; the channels of a pooled map are a multiple of it */

static inline float load_float(float x) { return x; }
static inline float store_float(float x) { return x; }
static inline floats load_lanes_float(const float *src) { return *(const floats *)src; }
static inline void store_lanes_float(float *dst, floats x) { *(floats *)dst = x; }

#define VALUE float
#define NAME(kernel) kernel##_float32
#define load load_float
#define store store_float
#define load_lanes load_lanes_float
#define store_lanes store_lanes_float
#include "elementwise.h"
#undef VALUE
#undef NAME
#undef load
#undef store
#undef load_lanes
#undef store_lanes

/* out = matrix * in * matrix' for a square tile of values of LANES channels each. matrix has `rows` rows and `cols`
 * columns; if `transposed` it is stored as its transpose. matrix is a compile-time constant, so its zeros and ones
 * cost nothing.
 */
static inline __attribute__((always_inline)) void transform_tile(const int rows, const int cols, const float *matrix,
                                                                 const int transposed, const floats *in, floats *out) {
    floats half[36];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 6
        for (int l = 0; l < cols; l++) {
            floats sum = {0};
#pragma GCC unroll 6
            for (int k = 0; k < cols; k++) {
                const float factor = transposed ? matrix[k * rows + i] : matrix[i * cols + k];
                if (factor != 0) sum += factor * in[k * cols + l];
            }
            half[i * cols + l] = sum;
        }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 6
        for (int j = 0; j < rows; j++) {
            floats sum = {0};
#pragma GCC unroll 6
            for (int l = 0; l < cols; l++) {
                const float factor = transposed ? matrix[l * rows + j] : matrix[j * cols + l];
                if (factor != 0) sum += factor * half[i * cols + l];
            }
            out[i * rows + j] = sum;
        }
}

/* The matrices B', G and A' of winograd.h, row by row */
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
#include "winograd.h"
#undef M
#undef TILED
#define M 3
#define TILED(name) name##_3_float32
#include "winograd.h"
#undef M
#undef TILED
#define M 4
#define TILED(name) name##_4_float32
#include "winograd.h"
#undef M
#undef TILED

/* bfloat16 is the upper half of a float32; values are rounded to the nearest, ties to even. */
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
static inline floats load_lanes_bfloat16(const uint16_t *src) {
    return (floats)(__builtin_convertvector(*(const halves *)src, words) << 16);
}
static inline void store_lanes_bfloat16(uint16_t *dst, floats x) {
    words bits = (words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (words)(x != x);
    *(halves *)dst = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), halves);
}

#define VALUE uint16_t
#define NAME(kernel) kernel##_bfloat16
#define load load_bfloat16
#define store store_bfloat16
#define load_lanes load_lanes_bfloat16
#define store_lanes store_lanes_bfloat16
#include "elementwise.h"

/* One tensor's step of SGD with momentum. The gradient is first scaled to the norm of the weights (at least 1; to
 * norm 1 unless `matrix`, for biases and normalization). Weight, gradient and momentum buffer have the same order in
 * memory.
 */
static void layerwise_sgd_tensor(long size, long matrix, float *weight, const float *grad, float *momentum_buffer, float lr,
                   float weight_decay, float momentum, long nesterov) {
    double weight_square = 0, grad_square = 0, partial[2 * CHUNKS];
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
        weight_square += partial[2 * chunk];
        grad_square += partial[2 * chunk + 1];
    }
    float norm = (float)sqrt(weight_square);
    float ratio = (matrix && norm > 1 ? norm : 1) / ((float)sqrt(grad_square) + 1e-8f);
#pragma omp parallel for simd schedule(static) if (parallel : size > 16384)
    for (long i = 0; i < size; i++) {
        float g = ratio * grad[i] + weight_decay * weight[i];
        momentum_buffer[i] = momentum * momentum_buffer[i] + g;
        weight[i] -= lr * (nesterov ? g + momentum * momentum_buffer[i] : momentum_buffer[i]);
    }
}

/* A tensor and its gradient. matrix: 1 for weights of convolutions and linear layers, 0 for biases and normalization */
struct sgd_tensor {
    long size, matrix;
    float *weight;
    const float *grad;
    float *momentum_buffer;
};

void layerwise_sgd(long count, const struct sgd_tensor *tensors, double lr, double weight_decay, double momentum,
                   long nesterov) {
    for (const struct sgd_tensor *t = tensors; t < tensors + count; t++)
        layerwise_sgd_tensor(t->size, t->matrix, t->weight, t->grad, t->momentum_buffer, (float)lr, (float)weight_decay,
                             (float)momentum, nesterov);
}
