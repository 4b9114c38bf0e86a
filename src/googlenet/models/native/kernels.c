/* The passes of a training step that PyTorch runs slowly on a CPU, over float32 maps stored with their channels last.
 *
 * A map is a matrix: one row per pixel of the batch, one column per channel. ld_* is the distance between two rows in
 * floats, so that a pass can read from, or write into, some of the columns of a wider matrix: that is how the paths of
 * an Inception block are concatenated without a copy.
 *
 * A NaN goes through every pass as it does in PyTorch (hence "< 0 ? 0 : x"), so that a diverging run is noticed.
 * Sums over rows are taken chunk by chunk and the chunks added in order, so the bits do not depend on the threads.
 * build.py compiles this file on first use; step.py is the only caller.
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

/* to = max(from, 0) */
void relu_forward(long rows, long channels, const float *from, long ld_from, float *to, long ld_to) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *a = from + r * ld_from;
        float *b = to + r * ld_to;
#pragma omp simd
        for (long c = 0; c < channels; c++) b[c] = a[c] < 0 ? 0 : a[c];
    }
}

/* to = grad where the output was positive, else 0; bias_grad = its sum over the rows */
void relu_backward(long rows, long channels, const float *grad, long ld_grad, const float *out, long ld_out, float *to,
                   long ld_to, float *bias_grad) {
    double *partial = malloc(CHUNKS * channels * sizeof(double)), sums[CHANNELS];
#pragma omp parallel for schedule(static)
    for (long chunk = 0; chunk < CHUNKS; chunk++) {
        float sum[CHANNELS];
        double *total = partial + chunk * channels;
        memset(total, 0, channels * sizeof(double));
        for (long start = first_row(rows, chunk); start < first_row(rows, chunk + 1); start += BLOCK) {
            long stop = start + BLOCK < first_row(rows, chunk + 1) ? start + BLOCK : first_row(rows, chunk + 1);
            memset(sum, 0, channels * sizeof(float));
            for (long r = start; r < stop; r++) {
                const float *g = grad + r * ld_grad, *o = out + r * ld_out;
                float *t = to + r * ld_to;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float v = o[c] <= 0 ? 0 : g[c];
                    t[c] = v;
                    sum[c] += v;
                }
            }
            for (long c = 0; c < channels; c++) total[c] += sum[c];
        }
    }
    add_chunks(partial, channels, sums);
    for (long c = 0; c < channels; c++) bias_grad[c] = (float)sums[c];
    free(partial);
}

/* Mean and biased variance of each column. Sums are of differences from the first row, which keeps them accurate. */
void column_statistics(long rows, long channels, const float *from, long ld_from, float *mean, float *variance) {
    double *partial = malloc(2 * CHUNKS * channels * sizeof(double)), sums[2 * CHANNELS];
#pragma omp parallel for schedule(static)
    for (long chunk = 0; chunk < CHUNKS; chunk++) {
        float sum[CHANNELS], square[CHANNELS];
        double *total = partial + chunk * 2 * channels;
        memset(total, 0, 2 * channels * sizeof(double));
        for (long start = first_row(rows, chunk); start < first_row(rows, chunk + 1); start += BLOCK) {
            long stop = start + BLOCK < first_row(rows, chunk + 1) ? start + BLOCK : first_row(rows, chunk + 1);
            memset(sum, 0, channels * sizeof(float));
            memset(square, 0, channels * sizeof(float));
            for (long r = start; r < stop; r++) {
                const float *a = from + r * ld_from;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float v = a[c] - from[c];
                    sum[c] += v;
                    square[c] += v * v;
                }
            }
            for (long c = 0; c < channels; c++) {
                total[c] += sum[c];
                total[channels + c] += square[c];
            }
        }
    }
    add_chunks(partial, 2 * channels, sums);
    for (long c = 0; c < channels; c++) {
        double shift = sums[c] / rows, var = sums[channels + c] / rows - shift * shift;
        mean[c] = (float)(shift + from[c]);
        variance[c] = var > 0 ? (float)var : 0;
    }
    free(partial);
}

/* to = max(scale * from + shift, 0): batch normalisation, its statistics folded in, and ReLU */
void scale_relu_forward(long rows, long channels, const float *from, long ld_from, const float *scale,
                        const float *shift, float *to, long ld_to) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *a = from + r * ld_from;
        float *b = to + r * ld_to;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float v = a[c] * scale[c] + shift[c];
            b[c] = v < 0 ? 0 : v;
        }
    }
}

/* Through ReLU and batch normalisation: to = gradient of `from`, and those of the normalisation's gain and bias.
 * scale = gain / deviation, shift = bias - mean * scale, inverse = 1 / deviation.
 */
void norm_relu_backward(long rows, long channels, const float *grad, long ld_grad, const float *from, long ld_from,
                        const float *scale, const float *shift, const float *mean, const float *inverse, float *to,
                        long ld_to, float *gain_grad, float *bias_grad) {
    double *partial = malloc(2 * CHUNKS * channels * sizeof(double)), sums[2 * CHANNELS];
    float constant[CHANNELS], slope[CHANNELS];
#pragma omp parallel for schedule(static)
    for (long chunk = 0; chunk < CHUNKS; chunk++) {
        float sum[CHANNELS], product[CHANNELS];
        double *total = partial + chunk * 2 * channels;
        memset(total, 0, 2 * channels * sizeof(double));
        for (long start = first_row(rows, chunk); start < first_row(rows, chunk + 1); start += BLOCK) {
            long stop = start + BLOCK < first_row(rows, chunk + 1) ? start + BLOCK : first_row(rows, chunk + 1);
            memset(sum, 0, channels * sizeof(float));
            memset(product, 0, channels * sizeof(float));
            for (long r = start; r < stop; r++) {
                const float *a = from + r * ld_from, *g = grad + r * ld_grad;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float v = a[c] * scale[c] + shift[c] <= 0 ? 0 : g[c];
                    sum[c] += v;
                    product[c] += v * (a[c] - mean[c]);
                }
            }
            for (long c = 0; c < channels; c++) {
                total[c] += sum[c];
                total[channels + c] += product[c];
            }
        }
    }
    add_chunks(partial, 2 * channels, sums);
    free(partial);
    /* to = scale * (g - mean(g) - (from - mean) * inverse^2 * mean(g * (from - mean))) = scale * g - constant - slope * from */
    for (long c = 0; c < channels; c++) {
        bias_grad[c] = (float)sums[c];
        gain_grad[c] = (float)(sums[channels + c] * inverse[c]);
        double s = (double)scale[c] * inverse[c] * inverse[c] * sums[channels + c] / rows;
        slope[c] = (float)s;
        constant[c] = (float)(scale[c] * sums[c] / rows - s * mean[c]);
    }
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *a = from + r * ld_from, *g = grad + r * ld_grad;
        float *t = to + r * ld_to;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float v = a[c] * scale[c] + shift[c] <= 0 ? 0 : g[c];
            t[c] = scale[c] * v - constant[c] - slope[c] * a[c];
        }
    }
}

/* A pool's window is 3x3. Eight bits remember which of its pixels was the largest: the first one, as in PyTorch. */
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t ints __attribute__((vector_size(64), aligned(4)));
typedef int8_t bytes __attribute__((vector_size(16), aligned(1)));
#define LANES 16 /* channels handled at once; a map's channels are a multiple of it */

void pool_forward(long pictures, long height, long width, long channels, long stride, long padding, long out_height,
                  long out_width, const float *from, float *to, int8_t *choice) {
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < pictures; n++)
        for (long i = 0; i < out_height; i++)
            for (long j = 0; j < out_width; j++) {
                long top = i * stride - padding, left = j * stride - padding, out = (n * out_height + i) * out_width + j;
                long k0 = top < 0 ? -top : 0, k1 = top + 3 > height ? height - top : 3;
                long l0 = left < 0 ? -left : 0, l1 = left + 3 > width ? width - left : 3;
                for (long c = 0; c < channels; c += LANES) {
                    floats best = (floats){0} - INFINITY;
                    ints chosen = {0};
                    for (long k = k0; k < k1; k++)
                        for (long l = l0; l < l1; l++) {
                            const float *at = from + ((n * height + top + k) * width + left + l) * channels + c;
                            floats v = *(const floats *)at;
                            ints larger = (v > best) | (v != v);
                            best = (floats)(((ints)v & larger) | ((ints)best & ~larger));
                            chosen = (((ints){0} + (int)(k * 3 + l)) & larger) | (chosen & ~larger);
                        }
                    *(floats *)(to + out * channels + c) = best;
                    *(bytes *)(choice + out * channels + c) = __builtin_convertvector(chosen, bytes);
                }
            }
}

/* to (+)= the gradients of the windows that chose each pixel; adds to what is there where `add` says so */
void pool_backward(long pictures, long height, long width, long channels, long stride, long padding, long out_height,
                   long out_width, long add, const float *grad, const int8_t *choice, float *to) {
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < pictures; n++)
        for (long h = 0; h < height; h++)
            for (long w = 0; w < width; w++) {
                long window[9];
                int place[9], windows = 0;
                for (long k = 0; k < 3; k++) {
                    long i = h + padding - k;
                    if (i < 0 || i % stride || i / stride >= out_height) continue;
                    for (long l = 0; l < 3; l++) {
                        long j = w + padding - l;
                        if (j < 0 || j % stride || j / stride >= out_width) continue;
                        window[windows] = (n * out_height + i / stride) * out_width + j / stride;
                        place[windows++] = (int)(k * 3 + l);
                    }
                }
                float *t = to + ((n * height + h) * width + w) * channels;
                for (long c = 0; c < channels; c += LANES) {
                    floats sum = add ? *(floats *)(t + c) : (floats){0};
                    for (int q = 0; q < windows; q++) {
                        ints chosen = __builtin_convertvector(*(const bytes *)(choice + window[q] * channels + c), ints);
                        sum += (floats)((ints)(*(const floats *)(grad + window[q] * channels + c)) & (chosen == place[q]));
                    }
                    *(floats *)(t + c) = sum;
                }
            }
}
