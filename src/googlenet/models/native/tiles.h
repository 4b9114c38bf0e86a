/* Winograd's minimal filtering for padded 3x3 convolutions of stride 1, in float32: the parts around the matrix products.
 *
 * A map is cut into tiles of MxM pixels of the output. To each belong (M+2)x(M+2) pixels of the input, and as many
 * numbers instead: transformed, the convolution is a product of matrices for each of these places, which takes (M+2)^2
 * multiplications a tile and pair of channels where 9 M^2 are usual. With the matrices B, G and A of Lavin and Gray ("Fast
 * Algorithms for Convolutional Neural Networks", 2016), for input d, weights g and output Y of a tile:
 *
 *     Y = A' [(G g G') * (B' d B)] A
 *
 * Everything here is linear, so the way back is each step's transpose. Tiles are stored by place, then tile, then channel:
 * one matrix (tiles, channels) for each place. kernels.c includes this file for M = 2, 3 and 4 and says what TILED is.
 */

#define SIDE (M + 2)
#define PLACES (SIDE * SIDE)
#define AT(place, tile) (((place) * tiles + (tile)) * channels + c)

/* to = B' d B for every tile of the map, zeros around it */
void TILED(tiles_of_map)(long pictures, long height, long width, long channels, const float *from, float *to) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = pictures * down * across;
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < pictures; n++)
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[PLACES], out[PLACES];
                    for (long k = 0; k < SIDE; k++)
                        for (long l = 0; l < SIDE; l++) {
                            long y = i * M - 1 + k, x = j * M - 1 + l;
                            int inside = y >= 0 && y < height && x >= 0 && x < width;
                            in[k * SIDE + l] = inside ? *(const floats *)(from + ((n * height + y) * width + x) * channels + c)
                                                      : (floats){0};
                        }
                    sandwich(SIDE, SIDE, TILED(INPUT), 0, in, out);
                    for (long p = 0; p < PLACES; p++) *(floats *)(to + AT(p, (n * down + i) * across + j)) = out[p];
                }
}

/* The way back of tiles_of_map: tiles overlap, so a pixel's gradient is a sum. */
void TILED(tiles_of_map_backward)(long pictures, long height, long width, long channels, const float *from, float *to) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = pictures * down * across;
#pragma omp parallel for schedule(static)
    for (long n = 0; n < pictures; n++) {
        memset(to + n * height * width * channels, 0, height * width * channels * sizeof(float));
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[PLACES], out[PLACES];
                    for (long p = 0; p < PLACES; p++) in[p] = *(const floats *)(from + AT(p, (n * down + i) * across + j));
                    sandwich(SIDE, SIDE, TILED(INPUT), 1, in, out);
                    for (long k = 0; k < SIDE; k++)
                        for (long l = 0; l < SIDE; l++) {
                            long y = i * M - 1 + k, x = j * M - 1 + l;
                            if (y < 0 || y >= height || x < 0 || x >= width) continue;
                            *(floats *)(to + ((n * height + y) * width + x) * channels + c) += out[k * SIDE + l];
                        }
                }
    }
}

/* to = A' m A, without what lies outside of the map, plus a bias for each channel where there is one */
void TILED(map_of_tiles)(long pictures, long height, long width, long channels, const float *from, const float *bias,
                         float *to) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = pictures * down * across;
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < pictures; n++)
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[PLACES], out[M * M], more = bias ? *(const floats *)(bias + c) : (floats){0};
                    for (long p = 0; p < PLACES; p++) in[p] = *(const floats *)(from + AT(p, (n * down + i) * across + j));
                    sandwich(M, SIDE, TILED(OUTPUT), 0, in, out);
                    for (long k = 0; k < M && i * M + k < height; k++)
                        for (long l = 0; l < M && j * M + l < width; l++)
                            *(floats *)(to + ((n * height + i * M + k) * width + j * M + l) * channels + c) =
                                out[k * M + l] + more;
                }
}

/* The way back of map_of_tiles. */
void TILED(map_of_tiles_backward)(long pictures, long height, long width, long channels, const float *from, float *to) {
    long down = (height + M - 1) / M, across = (width + M - 1) / M, tiles = pictures * down * across;
#pragma omp parallel for schedule(static) collapse(2)
    for (long n = 0; n < pictures; n++)
        for (long i = 0; i < down; i++)
            for (long j = 0; j < across; j++)
                for (long c = 0; c < channels; c += LANES) {
                    floats in[M * M], out[PLACES];
                    for (long k = 0; k < M; k++)
                        for (long l = 0; l < M; l++) {
                            long y = i * M + k, x = j * M + l;
                            in[k * M + l] = y < height && x < width
                                                ? *(const floats *)(from + ((n * height + y) * width + x) * channels + c)
                                                : (floats){0};
                        }
                    sandwich(SIDE, M, TILED(OUTPUT), 1, in, out);
                    for (long p = 0; p < PLACES; p++) *(floats *)(to + AT(p, (n * down + i) * across + j)) = out[p];
                }
}

/* to = G g G' for weights of `filters` outputs and `channels` inputs, stored by output, row, column, input */
void TILED(tiles_of_weight)(long filters, long channels, const float *from, float *to) {
    long tiles = filters;
#pragma omp parallel for schedule(static)
    for (long o = 0; o < filters; o++)
        for (long c = 0; c < channels; c += LANES) {
            floats in[9], out[PLACES];
            for (long q = 0; q < 9; q++) in[q] = *(const floats *)(from + (o * 9 + q) * channels + c);
            sandwich(SIDE, 3, TILED(WEIGHT), 0, in, out);
            for (long p = 0; p < PLACES; p++) *(floats *)(to + AT(p, o)) = out[p];
        }
}

/* The way back of tiles_of_weight. */
void TILED(tiles_of_weight_backward)(long filters, long channels, const float *from, float *to) {
    long tiles = filters;
#pragma omp parallel for schedule(static)
    for (long o = 0; o < filters; o++)
        for (long c = 0; c < channels; c += LANES) {
            floats in[PLACES], out[9];
            for (long p = 0; p < PLACES; p++) in[p] = *(const floats *)(from + AT(p, o));
            sandwich(3, SIDE, TILED(WEIGHT), 1, in, out);
            for (long q = 0; q < 9; q++) *(floats *)(to + (o * 9 + q) * channels + c) = out[q];
        }
}

#undef SIDE
#undef PLACES
#undef AT
