/* The passes themselves, written once over the type VALUE that a map's numbers are stored in. kernels.c includes this
 * file once for each type and says what NAME, load, store, load_lanes and store_lanes are. Sums are never in VALUE.
 */

/* to = max(from, 0) */
void NAME(relu_forward)(long rows, long channels, const VALUE *from, long ld_from, VALUE *to, long ld_to) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const VALUE *a = from + r * ld_from;
        VALUE *b = to + r * ld_to;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float v = load(a[c]);
            b[c] = store(v < 0 ? 0 : v);
        }
    }
}

/* to = grad where the output was positive, else 0; bias_grad = its sum over the rows */
void NAME(relu_backward)(long rows, long channels, const VALUE *grad, long ld_grad, const VALUE *out, long ld_out, VALUE *to,
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
                const VALUE *g = grad + r * ld_grad, *o = out + r * ld_out;
                VALUE *t = to + r * ld_to;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float g_c = load(g[c]), v = load(o[c]) <= 0 ? 0 : g_c; /* a load under a condition is slow */
                    t[c] = store(v);
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
void NAME(column_statistics)(long rows, long channels, const VALUE *from, long ld_from, float *mean, float *variance) {
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
                const VALUE *a = from + r * ld_from;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float v = load(a[c]) - load(from[c]);
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
        mean[c] = (float)(shift + load(from[c]));
        variance[c] = var > 0 ? (float)var : 0;
    }
    free(partial);
}

/* to = max(scale * from + shift, 0): batch normalisation, its statistics folded in, and ReLU */
void NAME(scale_relu_forward)(long rows, long channels, const VALUE *from, long ld_from, const float *scale,
                        const float *shift, VALUE *to, long ld_to) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const VALUE *a = from + r * ld_from;
        VALUE *b = to + r * ld_to;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float v = load(a[c]) * scale[c] + shift[c];
            b[c] = store(v < 0 ? 0 : v);
        }
    }
}

/* Through ReLU and batch normalisation: to = gradient of `from`, and those of the normalisation's gain and bias.
 * scale = gain / deviation, shift = bias - mean * scale, inverse = 1 / deviation.
 */
void NAME(norm_relu_backward)(long rows, long channels, const VALUE *grad, long ld_grad, const VALUE *from, long ld_from,
                        const float *scale, const float *shift, const float *mean, const float *inverse, VALUE *to,
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
                const VALUE *a = from + r * ld_from, *g = grad + r * ld_grad;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float from_c = load(a[c]), g_c = load(g[c]), v = from_c * scale[c] + shift[c] <= 0 ? 0 : g_c;
                    sum[c] += v;
                    product[c] += v * (from_c - mean[c]);
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
        const VALUE *a = from + r * ld_from, *g = grad + r * ld_grad;
        VALUE *t = to + r * ld_to;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float from_c = load(a[c]), g_c = load(g[c]), v = from_c * scale[c] + shift[c] <= 0 ? 0 : g_c;
            t[c] = store(scale[c] * v - constant[c] - slope[c] * from_c);
        }
    }
}

void NAME(pool_forward)(long pictures, long height, long width, long channels, long stride, long padding, long out_height,
                  long out_width, const VALUE *from, VALUE *to, int16_t *choice) {
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
                            const VALUE *at = from + ((n * height + top + k) * width + left + l) * channels + c;
                            floats v = load_lanes(at);
                            ints larger = (v > best) | (v != v);
                            best = (floats)(((ints)v & larger) | ((ints)best & ~larger));
                            chosen = (((ints){0} + (int)(k * 3 + l)) & larger) | (chosen & ~larger);
                        }
                    store_lanes(to + out * channels + c, best);
                    *(shorts *)(choice + out * channels + c) = __builtin_convertvector(chosen, shorts);
                }
            }
}

/* to (+)= the gradients of the windows that chose each pixel; adds to what is there where `add` says so */
void NAME(pool_backward)(long pictures, long height, long width, long channels, long stride, long padding, long out_height,
                   long out_width, long add, const VALUE *grad, const int16_t *choice, VALUE *to) {
    long shift = stride - 1; /* a stride is 1 or 2, and a division is slow */
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < pictures; n++)
        for (long h = 0; h < height; h++)
            for (long w = 0; w < width; w++) {
                long window[9];
                int place[9], windows = 0;
                for (long k = 0; k < 3; k++) {
                    long i = h + padding - k;
                    if (i < 0 || i & shift || i >> shift >= out_height) continue;
                    for (long l = 0; l < 3; l++) {
                        long j = w + padding - l;
                        if (j < 0 || j & shift || j >> shift >= out_width) continue;
                        window[windows] = (n * out_height + (i >> shift)) * out_width + (j >> shift);
                        place[windows++] = (int)(k * 3 + l);
                    }
                }
                VALUE *t = to + ((n * height + h) * width + w) * channels;
                for (long c = 0; c < channels; c += LANES) {
                    floats sum = add ? load_lanes(t + c) : (floats){0};
                    for (int q = 0; q < windows; q++) {
                        ints chosen = __builtin_convertvector(*(const shorts *)(choice + window[q] * channels + c), ints);
                        sum += (floats)((ints)load_lanes(grad + window[q] * channels + c) & (chosen == place[q]));
                    }
                    store_lanes(t + c, sum);
                }
            }
}
