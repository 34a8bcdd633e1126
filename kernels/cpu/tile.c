/* tile.c - a register block of 8 rows by 16 columns, written with the compiler's vectors: one
 * AVX-512 register a row, two of AVX2, four of SSE. */
#include "kernels/cpu/tile.h"

typedef float vec16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec4 __attribute__((vector_size(16)));

LM_INLINE void block(float *c, int64_t ldc, lm_tile a, const float *b, int64_t ldb, int64_t k,
                     int accumulate) {
    vec16 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0};
    const float *p = a.data, *q = a.data + 4 * a.row;
    int64_t r = a.row;
    for (int64_t i = 0; i < k; i++) {
        vec16 v = *(const vec16 *)(b + i * ldb);
        s0 += p[0] * v;
        s1 += p[r] * v;
        s2 += p[2 * r] * v;
        s3 += p[3 * r] * v;
        s4 += q[0] * v;
        s5 += q[r] * v;
        s6 += q[2 * r] * v;
        s7 += q[3 * r] * v;
        p += a.col;
        q += a.col;
    }
#define STORE(i)                                                                               \
    {                                                                                          \
        vec16 *to = (vec16 *)(c + i * ldc);                                                    \
        if (accumulate) s##i += *to;                                                           \
        *to = s##i;                                                                            \
    }
    STORE(0) STORE(1) STORE(2) STORE(3) STORE(4) STORE(5) STORE(6) STORE(7)
#undef STORE
}

LM_CLONES static void product_of_blocks(float *c, int64_t ldc, lm_tile a, const float *b,
                                        int64_t ldb, int64_t m, int64_t n, int64_t k,
                                        int accumulate) {
    for (int64_t i = 0; i < m; i += LM_TILE_ROWS)
        for (int64_t j = 0; j < n; j += LM_TILE_COLS) {
            lm_tile rows = {a.data + i * a.row, a.row, a.col};
            block(c + i * ldc + j, ldc, rows, b + j, ldb, k, accumulate);
        }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
/* With 32 registers, three columns of blocks share what is read of a. */
__attribute__((target("arch=x86-64-v4"))) static void
product_of_threes(float *c, int64_t ldc, lm_tile a, const float *b, int64_t ldb, int64_t m,
                  int64_t k, int accumulate) {
    for (int64_t i = 0; i < m; i += LM_TILE_ROWS) {
        vec16 sum[LM_TILE_ROWS][3] = {{{0}}};
        for (int64_t l = 0; l < k; l++) {
            const float *row = b + l * ldb, *p = a.data + i * a.row + l * a.col;
            vec16 v[3];
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++) v[j] = *(const vec16 *)(row + 16 * j);
#pragma GCC unroll 8
            for (int r = 0; r < LM_TILE_ROWS; r++)
#pragma GCC unroll 3
                for (int j = 0; j < 3; j++) sum[r][j] += p[r * a.row] * v[j];
        }
#pragma GCC unroll 8
        for (int r = 0; r < LM_TILE_ROWS; r++)
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++) {
                vec16 *to = (vec16 *)(c + (i + r) * ldc + 16 * j);
                if (accumulate) sum[r][j] += *to;
                *to = sum[r][j];
            }
    }
}

static int has_threes(void) {
    static int answer = -1;
    if (answer < 0)
        answer = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return answer;
}
#else
static void product_of_threes(float *c, int64_t ldc, lm_tile a, const float *b, int64_t ldb,
                              int64_t m, int64_t k, int accumulate) {
    product_of_blocks(c, ldc, a, b, ldb, m, 3 * LM_TILE_COLS, k, accumulate);
}
static int has_threes(void) { return 0; }
#endif

void lm__tile_product(float *c, int64_t ldc, lm_tile a, const float *b, int64_t ldb, int64_t m,
                      int64_t n, int64_t k, int accumulate) {
    enum { WIDE = 3 * LM_TILE_COLS };
    for (; has_threes() && n >= WIDE; n -= WIDE, b += WIDE, c += WIDE)
        product_of_threes(c, ldc, a, b, ldb, m, k, accumulate);
    if (n > 0) product_of_blocks(c, ldc, a, b, ldb, m, n, k, accumulate);
}

void lm__tile_transpose(float *dst, int64_t ldd, const float *src, int64_t lds, int64_t rows,
                        int64_t cols) {
    for (int64_t i = 0; i < rows; i += 4)
        for (int64_t j = 0; j < cols; j += 4) {
            const float *s = src + i * lds + j;
            float *d = dst + j * ldd + i;
            vec4 a = *(const vec4 *)s, b = *(const vec4 *)(s + lds);
            vec4 e = *(const vec4 *)(s + 2 * lds), f = *(const vec4 *)(s + 3 * lds);
            vec4 ab0 = __builtin_shuffle(a, b, (ivec4){0, 4, 1, 5});
            vec4 ab1 = __builtin_shuffle(a, b, (ivec4){2, 6, 3, 7});
            vec4 ef0 = __builtin_shuffle(e, f, (ivec4){0, 4, 1, 5});
            vec4 ef1 = __builtin_shuffle(e, f, (ivec4){2, 6, 3, 7});
            *(vec4 *)d = __builtin_shuffle(ab0, ef0, (ivec4){0, 1, 4, 5});
            *(vec4 *)(d + ldd) = __builtin_shuffle(ab0, ef0, (ivec4){2, 3, 6, 7});
            *(vec4 *)(d + 2 * ldd) = __builtin_shuffle(ab1, ef1, (ivec4){0, 1, 4, 5});
            *(vec4 *)(d + 3 * ldd) = __builtin_shuffle(ab1, ef1, (ivec4){2, 3, 6, 7});
        }
}
