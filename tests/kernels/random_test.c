/* random_test.c - Philox against the published vectors, moments, dropout, and independence of
 * the slice: row r of a big array is the same as that row drawn alone. */
#include "kernels/cpu/dropout.h"
#include "tests/kernels/check.h"

static void published(void) { /* Random123's kat_vectors for philox4x32-10 */
    uint32_t out[4];
    lm_philox(0, 0, 0, out);
    near(out[0], 0x6627e8d5, 0), near(out[1], 0xe169c58d, 0);
    near(out[2], 0xbc57ac4c, 0), near(out[3], 0x9b00dbd8, 0);
    lm_philox(UINT64_MAX, UINT64_MAX, UINT64_MAX, out);
    near(out[0], 0x408f276d, 0), near(out[1], 0x41c83b0e, 0);
    near(out[2], 0xa20bc7c6, 0), near(out[3], 0x6d5451fd, 0);
}

static void slices(int64_t n) {
    enum { ROWS = 37 };
    float *all = array(LM_F32, ROWS * n), *part = array(LM_F32, ROWS * n);
    float *one = array(LM_F32, ROWS * n);
    int64_t ids[ROWS];
    for (int i = 0; i < ROWS; i++) one[i] = 0, ids[i] = ROWS - 1 - i;
    for (int64_t i = 0; i < ROWS * n; i++) one[i] = 1;
    const lm_draw whole = {7, 9, 0, NULL}, tail = {7, 9, 5, NULL}, turned = {7, 9, 0, ids};
    for (int kind = 0; kind < 3; kind++) {
#define DRAW(rows, out, d)                                                                     \
    ok(kind == 0   ? lm_cpu_rand(0, LM_F32, rows, n, out, 0, 1, d)                             \
       : kind == 1 ? lm_cpu_rand(1, LM_F32, rows, n, out, 0, 1, d)                             \
                   : lm_cpu_dropout_fwd(LM_F32, rows, n, out, NULL, one, 0.3, d))
        DRAW(ROWS, all, &whole);
        DRAW(ROWS - 5, part, &tail);
        near(memcmp(part, all + 5 * n, (size_t)((ROWS - 5) * n) * 4), 0, 0);
        DRAW(ROWS, part, &turned);
        for (int64_t r = 0; r < ROWS; r++)
            near(memcmp(part + r * n, all + (ROWS - 1 - r) * n, (size_t)n * 4), 0, 0);
    }
    uint32_t *bits = array(LM_I32, ROWS * n);
    ok(lm_cpu_random_bits(ROWS, n, bits, &tail));
    for (int64_t i = 0; i < ROWS * n; i++)
        near(bits[i], lm_philox_at(7, 9, (uint64_t)(i + 5 * n)), 0);
    free(all), free(part), free(one), free(bits);
}

static void moments(int dtype) {
    enum { N = 200001 };
    void *x = array(dtype, N), *y = array(dtype, N);
    const lm_draw d = {1, 2, 0, NULL};
    double mean = 0, square = 0, kept = 0;
    ok(lm_cpu_rand(1, dtype, 1, N, x, 3, 2, &d));
    for (int i = 0; i < N; i++) mean += get(dtype, x, i) / N;
    for (int i = 0; i < N; i++) square += pow(get(dtype, x, i) - mean, 2) / N;
    near(mean, 3, 0.01), near(square, 4, 0.01);
    ok(lm_cpu_rand(0, dtype, 1, N, x, -1, 1, &d));
    mean = 0;
    for (int i = 0; i < N; i++) mean += get(dtype, x, i) / N;
    near(mean, 0, 0.01);
    ok(lm_cpu_fill(x, dtype, N, 1));
    ok(lm_cpu_dropout_fwd(dtype, 1, N, y, NULL, x, 0.25, &d));
    for (int i = 0; i < N; i++) kept += get(dtype, y, i) != 0;
    near(kept / N, 0.75, 0.005);
    for (int i = 0; i < N; i++)
        if (get(dtype, y, i) != 0) near(get(dtype, y, i), 4.0 / 3, epsilon(dtype));
    ok(lm_cpu_dropout_fwd(dtype, 1, N, y, NULL, x, 0, &d));
    near(memcmp(x, y, N * size_of(dtype)), 0, 0);
    ok(lm_cpu_dropout_fwd(dtype, 1, N, y, NULL, x, 1, &d));
    for (int i = 0; i < N; i++) near(get(dtype, y, i), 0, 0);
    free(x), free(y);
}

/* Every instruction set's bits are those of the words drawn one by one, counters over 32 bits
 * included. */
static void kept_bits(void) {
    enum { GROUPS = 5 };
    const lm_draw d = {0x123456789abcdef0u, 0xfedcba9876543210u, 0, NULL};
    const uint64_t blocks[] = {0, 7, 0xfffffffcu, 0x1fffffff00u};
    const double rates[] = {0, 1e-9, 0.1, 0.5, 0.999, 1};
    for (int isa = 0; isa < LM_KEEP64_COUNT; isa++)
        for (int b = 0; b < 4 && lm__keep64(isa); b++)
            for (int r = 0; r < 6; r++) {
                uint64_t bits[GROUPS];
                lm__keep64(isa)(bits, &d, blocks[b], GROUPS, lm__drop_below(rates[r]));
                for (uint64_t i = 0; i < 64 * GROUPS; i++)
                    near((double)(bits[i / 64] >> i % 64 & 1),
                         lm_philox_at(d.seed, d.stream, 4 * blocks[b] + i) >=
                             lm__drop_below(rates[r]),
                         0);
            }
}

/* The mask is what forward kept, rows of any width, and backward goes by it. */
static void masks(int dtype, int64_t n, int by_id) {
    enum { ROWS = 9 };
    int64_t ids[ROWS], row = (n + 7) / 8;
    for (int i = 0; i < ROWS; i++) ids[i] = 7 * i % ROWS;
    const lm_draw d = {7, 9, 3, by_id ? ids : NULL};
    void *x = random_array(dtype, ROWS * n), *y = array(dtype, ROWS * n),
         *g = array(dtype, ROWS * n);
    uint8_t *mask = array(LM_U8, ROWS * row);
    ok(lm_cpu_dropout_fwd(dtype, ROWS, n, y, mask, x, 0.3, &d));
    ok(lm_cpu_dropout_bwd(dtype, ROWS, n, g, x, mask, 0.3));
    near(memcmp(y, g, (size_t)(ROWS * n) * size_of(dtype)), 0, 0);
    for (int64_t i = 0; i < ROWS * n; i++) {
        uint64_t number = (uint64_t)((by_id ? ids[i / n] : 3 + i / n) * n + i % n);
        int kept = lm_philox_at(7, 9, number) >= (uint32_t)(0.3 * 4294967296.0);
        near(mask[i / n * row + i % n / 8] >> (i % n % 8) & 1, kept, 0);
        near(get(dtype, y, i), kept ? get(dtype, x, i) / 0.7 : 0, epsilon(dtype));
    }
    free(x), free(y), free(g), free(mask);
}

TEST(test_random) {
    published();
    kept_bits();
    for (int s = 1; s < NSIZES; s++)
        for (int flags = 0; flags < 4; flags++) masks(flags & 1, sizes[s], flags >> 1);
    masks(LM_F32, 1030, 0), masks(LM_BF16, 1030, 1), masks(LM_F32, 2056, 0);
    for (int s = 1; s < NSIZES; s++) slices(sizes[s]);
    slices(1030);
    moments(LM_F32), moments(LM_BF16);
    const lm_draw d = {1, 2, 0, NULL};
    ok(lm_cpu_rand(1, LM_F32, 0, 5, NULL, 0, 1, &d));
    ok(lm_cpu_dropout_fwd(LM_F32, 5, 0, NULL, NULL, NULL, 0.5, &d));
}
