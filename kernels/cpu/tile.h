/* tile.h - products of small f32 tiles in scratch: what attention is made of. Tiles are padded
 * with zeros, so that rows come in multiples of 8 and columns in multiples of 16. */
#ifndef LM_TILE_H
#define LM_TILE_H

#include "kernels/cpu/cpu.h"

enum { LM_TILE_ROWS = 8, LM_TILE_COLS = 16 };

static inline int64_t lm__pad_rows(int64_t n) { return (n + 7) / 8 * 8; }
static inline int64_t lm__pad_cols(int64_t n) { return (n + 15) / 16 * 16; }

/* An operand read element by element: (i, k) is at data[i * row + k * col]. */
typedef struct lm_tile {
    const float *data;
    int64_t row, col;
} lm_tile;

/* c[m, n] = a[m, k] b[k, n], added to c when accumulate; c and b are row-major */
void lm__tile_product(float *c, int64_t ldc, lm_tile a, const float *b, int64_t ldb, int64_t m,
                      int64_t n, int64_t k, int accumulate);

/* dst[cols, rows] = transpose of src[rows, cols]; both counts multiples of 4 */
void lm__tile_transpose(float *dst, int64_t ldd, const float *src, int64_t lds, int64_t rows,
                        int64_t cols);

#endif
