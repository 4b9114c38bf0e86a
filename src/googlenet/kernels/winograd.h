/* Winograd's minimal filtering for padded 3x3 convolutions of stride 1, in float32: the transforms around the matrix
 * products.
 *
 * The output is cut into tiles of MxM pixels. Each belongs to a tile of (M+2)x(M+2) input pixels, which is
 * transformed to as many elements. On transformed tiles the convolution is one matrix product per element: (M+2)^2
 * multiplications per tile and pair of channels instead of 9 M^2. With the matrices B, G and A of Lavin and Gray
 * ("Fast Algorithms for Convolutional Neural Networks", 2016), for input d, weights g and output Y of a tile:
 *
 *     Y = A' [(G g G') * (B' d B)] A
 *
 * All transforms are linear, so the backward of each is its transpose. Transformed tiles are stored by element, then
 * tile, then channel: one matrix (tiles, channels) per element. kernels.c includes this file for M = 2, 3 and 4 and
 * defines TILED.
 */

#define TILE (M + 2)
#define TILE_ELEMENTS (TILE * TILE)
#define AT(element, tile) (((element) * tiles + (tile)) * channels + c)

/* dst = B' d B for every tile of the map, padded with zeros */
void TILED(input_transform)(long images, long height, long width, long channels, const float *src, float *dst) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = images * down * across;
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < images; n++)
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[TILE_ELEMENTS], out[TILE_ELEMENTS];
                    for (long k = 0; k < TILE; k++)
                        for (long l = 0; l < TILE; l++) {
                            long y = i * M - 1 + k, x = j * M - 1 + l;
                            int inside = y >= 0 && y < height && x >= 0 && x < width;
                            in[k * TILE + l] = inside ? *(const floats *)(src + ((n * height + y) * width + x) * channels + c)
                                                      : (floats){0};
                        }
                    transform_tile(TILE, TILE, TILED(INPUT), 0, in, out);
                    for (long p = 0; p < TILE_ELEMENTS; p++) *(floats *)(dst + AT(p, (n * down + i) * across + j)) = out[p];
                }
}

/* Backward of input_transform: tiles overlap, so a pixel's gradient is a sum. */
void TILED(input_transform_backward)(long images, long height, long width, long channels, const float *src, float *dst) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = images * down * across;
#pragma omp parallel for schedule(static)
    for (long n = 0; n < images; n++) {
        memset(dst + n * height * width * channels, 0, height * width * channels * sizeof(float));
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[TILE_ELEMENTS], out[TILE_ELEMENTS];
                    for (long p = 0; p < TILE_ELEMENTS; p++) in[p] = *(const floats *)(src + AT(p, (n * down + i) * across + j));
                    transform_tile(TILE, TILE, TILED(INPUT), 1, in, out);
                    for (long k = 0; k < TILE; k++)
                        for (long l = 0; l < TILE; l++) {
                            long y = i * M - 1 + k, x = j * M - 1 + l;
                            if (y < 0 || y >= height || x < 0 || x >= width) continue;
                            *(floats *)(dst + ((n * height + y) * width + x) * channels + c) += out[k * TILE + l];
                        }
                }
    }
}

/* dst = A' m A inside the map, plus the bias of each channel unless it is NULL */
void TILED(output_transform)(long images, long height, long width, long channels, const float *src, const float *bias,
                         float *dst) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = images * down * across;
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < images; n++)
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[TILE_ELEMENTS], out[M * M], bias_c = bias ? *(const floats *)(bias + c) : (floats){0};
                    for (long p = 0; p < TILE_ELEMENTS; p++) in[p] = *(const floats *)(src + AT(p, (n * down + i) * across + j));
                    transform_tile(M, TILE, TILED(OUTPUT), 0, in, out);
                    for (long k = 0; k < M && i * M + k < height; k++)
                        for (long l = 0; l < M && j * M + l < width; l++)
                            *(floats *)(dst + ((n * height + i * M + k) * width + j * M + l) * channels + c) =
                                out[k * M + l] + bias_c;
                }
}

/* Backward of output_transform. */
void TILED(output_transform_backward)(long images, long height, long width, long channels, const float *src, float *dst) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = images * down * across;
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < images; n++)
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[M * M], out[TILE_ELEMENTS];
                    for (long k = 0; k < M; k++)
                        for (long l = 0; l < M; l++) {
                            long y = i * M + k, x = j * M + l;
                            in[k * M + l] = y < height && x < width
                                                ? *(const floats *)(src + ((n * height + y) * width + x) * channels + c)
                                                : (floats){0};
                        }
                    transform_tile(TILE, M, TILED(OUTPUT), 1, in, out);
                    for (long p = 0; p < TILE_ELEMENTS; p++) *(floats *)(dst + AT(p, (n * down + i) * across + j)) = out[p];
                }
}

/* dst = G g G' for weights of `filters` outputs and `channels` inputs, stored by output, row, column, input */
void TILED(filter_transform)(long filters, long channels, const float *src, float *dst) {
    long tiles = filters;
#pragma omp parallel for schedule(static)
    for (long o = 0; o < filters; o++)
        for (long c = 0; c < channels; c += LANES) {
            floats in[9], out[TILE_ELEMENTS];
            for (long q = 0; q < 9; q++) in[q] = *(const floats *)(src + (o * 9 + q) * channels + c);
            transform_tile(TILE, 3, TILED(WEIGHT), 0, in, out);
            for (long p = 0; p < TILE_ELEMENTS; p++) *(floats *)(dst + AT(p, o)) = out[p];
        }
}

/* Backward of filter_transform. */
void TILED(filter_transform_backward)(long filters, long channels, const float *src, float *dst) {
    long tiles = filters;
#pragma omp parallel for schedule(static)
    for (long o = 0; o < filters; o++)
        for (long c = 0; c < channels; c += LANES) {
            floats in[TILE_ELEMENTS], out[9];
            for (long p = 0; p < TILE_ELEMENTS; p++) in[p] = *(const floats *)(src + AT(p, o));
            transform_tile(3, TILE, TILED(WEIGHT), 1, in, out);
            for (long q = 0; q < 9; q++) *(floats *)(dst + (o * 9 + q) * channels + c) = out[q];
        }
}

#undef TILE
#undef TILE_ELEMENTS
#undef AT
