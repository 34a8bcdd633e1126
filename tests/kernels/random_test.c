/* random_test.c - Philox against the published vectors, moments, dropout, and independence of
 * the slice: row r of a big array is the same as that row drawn alone. */
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
                   : lm_cpu_dropout(LM_F32, rows, n, out, one, 0.3, d))
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
    ok(lm_cpu_dropout(dtype, 1, N, y, x, 0.25, &d));
    for (int i = 0; i < N; i++) kept += get(dtype, y, i) != 0;
    near(kept / N, 0.75, 0.005);
    for (int i = 0; i < N; i++)
        if (get(dtype, y, i) != 0) near(get(dtype, y, i), 4.0 / 3, epsilon(dtype));
    ok(lm_cpu_dropout(dtype, 1, N, y, x, 0, &d));
    near(memcmp(x, y, N * size_of(dtype)), 0, 0);
    ok(lm_cpu_dropout(dtype, 1, N, y, x, 1, &d));
    for (int i = 0; i < N; i++) near(get(dtype, y, i), 0, 0);
    free(x), free(y);
}

TEST(test_random) {
    published();
    for (int s = 1; s < NSIZES; s++) slices(sizes[s]);
    slices(1030);
    moments(LM_F32), moments(LM_BF16);
    const lm_draw d = {1, 2, 0, NULL};
    ok(lm_cpu_rand(1, LM_F32, 0, 5, NULL, 0, 1, &d));
    ok(lm_cpu_dropout(LM_F32, 5, 0, NULL, NULL, 0.5, &d));
}
