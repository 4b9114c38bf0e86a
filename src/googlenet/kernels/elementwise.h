/* Elementwise kernels and max pooling, written once for the storage type VALUE of a map. kernels.c includes this
 * file once for each type and defines NAME, load, store, load_lanes and store_lanes. Sums are in float and double,
 * never in VALUE.
 */

/* dst = max(src, 0) */
void NAME(relu_forward)(long rows, long channels, const VALUE *src, long ld_src, VALUE *dst, long ld_dst) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const VALUE *a = src + r * ld_src;
        VALUE *b = dst + r * ld_dst;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float v = load(a[c]);
            b[c] = store(v < 0 ? 0 : v);
        }
    }
}

/* dst = grad if the output was positive, else 0; bias_grad = its sum over the rows */
void NAME(relu_backward)(long rows, long channels, const VALUE *grad, long ld_grad, const VALUE *out, long ld_out, VALUE *dst,
                   long ld_dst, float *bias_grad, double *workspace) {
    double *partial = workspace, *sums = workspace + CHUNKS * channels;
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
                VALUE *t = dst + r * ld_dst;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float g_c = load(g[c]), v = load(o[c]) <= 0 ? 0 : g_c; /* a conditional load would be slow */
                    t[c] = store(v);
                    sum[c] += v;
                }
            }
            for (long c = 0; c < channels; c++) total[c] += sum[c];
        }
    }
    add_chunks(partial, channels, sums);
    for (long c = 0; c < channels; c++) bias_grad[c] = (float)sums[c];
}

/* Mean and biased variance of each channel. Differences from the first row are summed, which is more accurate. */
void NAME(channel_stats)(long rows, long channels, const VALUE *src, long ld_src, float *mean, float *variance,
                   double *workspace) {
    double *partial = workspace, *sums = workspace + 2 * CHUNKS * channels;
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
                const VALUE *a = src + r * ld_src;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float v = load(a[c]) - load(src[c]);
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
        mean[c] = (float)(shift + load(src[c]));
        variance[c] = var > 0 ? (float)var : 0;
    }
}

/* dst = max(scale * src + shift, 0): batch normalization with folded statistics, and ReLU */
void NAME(scale_relu_forward)(long rows, long channels, const VALUE *src, long ld_src, const float *scale,
                        const float *shift, VALUE *dst, long ld_dst) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const VALUE *a = src + r * ld_src;
        VALUE *b = dst + r * ld_dst;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float v = load(a[c]) * scale[c] + shift[c];
            b[c] = store(v < 0 ? 0 : v);
        }
    }
}

/* Batch normalization and ReLU. Computes mean, variance and, per channel, invstd = 1 / sqrt(variance + eps), scale = weight *
 * invstd, shift = bias - mean * scale; updates the running statistics; writes the columns to the maps of `parts`.
 * stats = scale, shift, mean, invstd of all channels, one after the other.
 */
void NAME(batch_norm_relu_forward)(long rows, long channels, const VALUE *src, long ld_src, const float *weight,
                                   const float *bias, double eps, double momentum, float *stats, long num_parts,
                                   const struct norm_part *parts, double *workspace) {
    float *scale = stats, *shift = stats + channels, *mean = stats + 2 * channels, *invstd = stats + 3 * channels;
    NAME(channel_stats)(rows, channels, src, ld_src, mean, invstd, workspace);
    const double unbiased = rows > 1 ? rows / (rows - 1.0) : 1;
    long c = 0;
    for (long part = 0; part < num_parts; part++) {
        const struct norm_part *to = parts + part;
        for (long k = 0; k < to->channels; k++, c++) {
            const float variance = invstd[c];
            to->running_mean[k] += (float)momentum * (mean[c] - to->running_mean[k]);
            to->running_var[k] += (float)momentum * ((float)(variance * unbiased) - to->running_var[k]);
            invstd[c] = 1 / sqrtf(variance + (float)eps);
            scale[c] = weight[c] * invstd[c];
            shift[c] = bias[c] - mean[c] * scale[c];
        }
        ++*to->num_batches;
        const long first = c - to->channels;
        NAME(scale_relu_forward)(rows, to->channels, src + first, ld_src, scale + first, shift + first, to->map, to->ld);
    }
}

/* Backward of batch normalization and ReLU: dst = gradient of src, and the gradients of the normalization's weight
 * and bias. scale = weight * invstd, shift = bias - mean * scale.
 */
static void NAME(normalized_backward)(long rows, long channels, const VALUE *grad, long ld_grad, const VALUE *src, long ld_src,
                        const float *scale, const float *shift, const float *mean, const float *invstd, VALUE *dst,
                        long ld_dst, float *weight_grad, float *bias_grad, double *workspace) {
    double *partial = workspace, *sums = workspace + 2 * CHUNKS * channels;
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
                const VALUE *a = src + r * ld_src, *g = grad + r * ld_grad;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float src_c = load(a[c]), g_c = load(g[c]), v = src_c * scale[c] + shift[c] <= 0 ? 0 : g_c;
                    sum[c] += v;
                    product[c] += v * (src_c - mean[c]);
                }
            }
            for (long c = 0; c < channels; c++) {
                total[c] += sum[c];
                total[channels + c] += product[c];
            }
        }
    }
    add_chunks(partial, 2 * channels, sums);
    /* dst = scale * (g - mean(g) - (src - mean) * invstd^2 * mean(g * (src - mean))) = scale * g - constant - slope * src */
    for (long c = 0; c < channels; c++) {
        bias_grad[c] = (float)sums[c];
        weight_grad[c] = (float)(sums[channels + c] * invstd[c]);
        double s = (double)scale[c] * invstd[c] * invstd[c] * sums[channels + c] / rows;
        slope[c] = (float)s;
        constant[c] = (float)(scale[c] * sums[c] / rows - s * mean[c]);
    }
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const VALUE *a = src + r * ld_src, *g = grad + r * ld_grad;
        VALUE *t = dst + r * ld_dst;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float src_c = load(a[c]), g_c = load(g[c]), v = src_c * scale[c] + shift[c] <= 0 ? 0 : g_c;
            t[c] = store(scale[c] * v - constant[c] - slope[c] * src_c);
        }
    }
}

/* The same for several maps whose channels are consecutive columns of src and dst; `stats` as in the forward kernel */
void NAME(batch_norm_relu_backward)(long rows, long channels, const VALUE *src, const float *stats, VALUE *dst,
                                    float *weight_grad, float *bias_grad, long num_parts, const struct grad_part *parts,
                                    double *workspace) {
    long first = 0;
    for (const struct grad_part *from = parts; from < parts + num_parts; first += from->channels, from++)
        NAME(normalized_backward)(rows, from->channels, from->grad, from->ld, src + first, channels, stats + first,
                                  stats + channels + first, stats + 2 * channels + first, stats + 3 * channels + first,
                                  dst + first, channels, weight_grad + first, bias_grad + first, workspace);
}

/* dense = a padded k x k convolution on maps of size x size, whose weight is stored as (out, k, k, in), as a matrix of
 * (size, size, out) rows and (size, size, in) columns. The map is smaller than the filter: size <= k / 2 + 1.
 */
void NAME(dense_weight)(long size, long k, long out_channels, long in_channels, const VALUE *weight, VALUE *dense) {
    const long pixels = size * size;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < pixels * out_channels; row++) {
        const long to = row / out_channels, o = row % out_channels;
        for (long from = 0; from < pixels; from++) {
            const long i = k / 2 + from / size - to / size, j = k / 2 + from % size - to % size;
            memcpy(dense + (row * pixels + from) * in_channels, weight + ((o * k + i) * k + j) * in_channels,
                   in_channels * sizeof(VALUE));
        }
    }
}

/* weight_grad = the gradient of the weight, (out, k, k, in), from that of `dense` */
void NAME(dense_weight_backward)(long size, long k, long out_channels, long in_channels, const VALUE *dense_grad,
                                 VALUE *weight_grad) {
    const long pixels = size * size;
#pragma omp parallel for schedule(static)
    for (long o = 0; o < out_channels; o++)
        for (long i = 0; i < k; i++)
            for (long j = 0; j < k; j++) {
                float sum[CHANNELS];
                memset(sum, 0, in_channels * sizeof(float));
                for (long to = 0; to < pixels; to++) {
                    const long y = to / size + i - k / 2, x = to % size + j - k / 2;
                    if (y < 0 || y >= size || x < 0 || x >= size) continue;
                    const VALUE *grad = dense_grad + ((to * out_channels + o) * pixels + y * size + x) * in_channels;
                    for (long c = 0; c < in_channels; c++) sum[c] += load(grad[c]);
                }
                VALUE *t = weight_grad + ((o * k + i) * k + j) * in_channels;
                for (long c = 0; c < in_channels; c++) t[c] = store(sum[c]);
            }
}

/* columns = the k x k windows of a padded map as rows (image, output pixel) of (k, k, channels), zero outside the map */
void NAME(im2col)(long images, long height, long width, long channels, long k, long stride, long out_height,
                          long out_width, const VALUE *src, VALUE *columns) {
    const long run = k * channels;
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < images; n++)
        for (long i = 0; i < out_height; i++)
            for (long j = 0; j < out_width; j++) {
                VALUE *to = columns + ((n * out_height + i) * out_width + j) * k * run;
                const long left = j * stride - k / 2;
                const long first = left < 0 ? -left : 0, last = left + k > width ? width - left : k;
                const long top = i * stride - k / 2;
                for (long y = top; y < top + k; y++, to += run) {
                    if (y < 0 || y >= height) {
                        for (long c = 0; c < run; c++) to[c] = 0;
                        continue;
                    }
                    const VALUE *from = src + ((n * height + y) * width + left) * channels;
                    /* A short run is copied with a few values that follow it, which the next row of the window replaces. */
                    if (first == 0 && run <= SHORT_RUN && y + 1 < top + k && left * channels + SHORT_RUN <= width * channels) {
                        memcpy(to, from, SHORT_RUN * sizeof(VALUE));
                        continue;
                    }
                    for (long c = 0; c < first * channels; c++) to[c] = 0;
                    for (long c = first * channels; c < last * channels; c++) to[c] = from[c];
                    for (long c = last * channels; c < run; c++) to[c] = 0;
                }
            }
}

/* dst = the maxima of 3x3 windows; argmax = their position in the window, 0 to 8 */
void NAME(max_pool_forward)(long images, long height, long width, long channels, long stride, long padding, long out_height,
                  long out_width, const VALUE *src, VALUE *dst, int16_t *argmax) {
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < images; n++)
        for (long i = 0; i < out_height; i++)
            for (long j = 0; j < out_width; j++) {
                long top = i * stride - padding, left = j * stride - padding, out = (n * out_height + i) * out_width + j;
                long k0 = top < 0 ? -top : 0, k1 = top + 3 > height ? height - top : 3;
                long l0 = left < 0 ? -left : 0, l1 = left + 3 > width ? width - left : 3;
                for (long c = 0; c < channels; c += LANES) {
                    floats max = (floats){0} - INFINITY;
                    ints index = {0};
                    for (long k = k0; k < k1; k++)
                        for (long l = l0; l < l1; l++) {
                            const VALUE *at = src + ((n * height + top + k) * width + left + l) * channels + c;
                            floats v = load_lanes(at);
                            ints larger = (v > max) | (v != v);
                            max = (floats)(((ints)v & larger) | ((ints)max & ~larger));
                            index = (((ints){0} + (int)(k * 3 + l)) & larger) | (index & ~larger);
                        }
                    store_lanes(dst + out * channels + c, max);
                    *(shorts *)(argmax + out * channels + c) = __builtin_convertvector(index, shorts);
                }
            }
}

/* dst = the sum of the gradients of the windows whose maximum each pixel is, added to dst if `accumulate` */
void NAME(max_pool_backward)(long images, long height, long width, long channels, long stride, long padding, long out_height,
                   long out_width, long accumulate, const VALUE *grad, const int16_t *argmax, VALUE *dst) {
    long shift = stride - 1; /* the stride is 1 or 2; a division would be slow */
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < images; n++)
        for (long h = 0; h < height; h++)
            for (long w = 0; w < width; w++) {
                long window[9];
                int offset[9], windows = 0;
                for (long k = 0; k < 3; k++) {
                    long i = h + padding - k;
                    if (i < 0 || i & shift || i >> shift >= out_height) continue;
                    for (long l = 0; l < 3; l++) {
                        long j = w + padding - l;
                        if (j < 0 || j & shift || j >> shift >= out_width) continue;
                        window[windows] = (n * out_height + (i >> shift)) * out_width + (j >> shift);
                        offset[windows++] = (int)(k * 3 + l);
                    }
                }
                VALUE *t = dst + ((n * height + h) * width + w) * channels;
                for (long c = 0; c < channels; c += LANES) {
                    floats sum = accumulate ? load_lanes(t + c) : (floats){0};
                    for (int q = 0; q < windows; q++) {
                        ints index = __builtin_convertvector(*(const shorts *)(argmax + window[q] * channels + c), ints);
                        sum += (floats)((ints)load_lanes(grad + window[q] * channels + c) & (index == offset[q]));
                    }
                    store_lanes(t + c, sum);
                }
            }
}
