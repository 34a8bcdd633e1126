/* sort_test.c - order, stability, NaN; topk is the head of the descending sort. */
#include "tests/kernels/check.h"

/* whether a may stand before b */
static int in_order(double a, double b, int descending) {
    if (descending) return a != a || b <= a;
    return b != b || a <= b;
}

static void sort_case(int dtype, int64_t rows, int64_t n, int descending) {
    void *x = random_array(dtype, rows * n), *v = array(dtype, rows * n),
         *top = array(dtype, rows * n);
    int64_t *index = array(LM_I64, rows * n), *top_index = array(LM_I64, rows * n);
    if (dtype == LM_F32 && n > 3 && rows > 0)
        set(dtype, x, 1, NAN), set(dtype, x, 2, NAN), set(dtype, x, 0, INFINITY),
            set(dtype, x, 3, -0.0);
    ok(lm_cpu_sort(dtype, rows, n, descending, v, index, x));
    for (int64_t r = 0; r < rows; r++) {
        int64_t sum = 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t at = r * n + i;
            sum += index[at];
            near(get(dtype, v, at), get(dtype, x, r * n + index[at]), 0);
            if (i == 0) continue;
            double a = get(dtype, v, at - 1), b = get(dtype, v, at);
            near(in_order(a, b, descending), 1, 0);
            if (a == b || (a != a && b != b)) near(index[at - 1] < index[at], 1, 0);
        }
        near((double)sum, (double)(n * (n - 1) / 2), 0);
    }
    const int64_t ks[] = {0, 1, 2, 8, 100, n};
    for (int i = 0; i < 6 && descending; i++) {
        if (ks[i] > n) continue;
        ok(lm_cpu_topk(dtype, rows, n, ks[i], top, top_index, x));
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < ks[i]; j++) {
                near((double)top_index[r * ks[i] + j], (double)index[r * n + j], 0);
                near(get(dtype, top, r * ks[i] + j), get(dtype, v, r * n + j), 0);
            }
    }
    free(x), free(v), free(top), free(index), free(top_index);
}

static void rope_case(int dtype, int64_t tokens, int64_t heads, int64_t dim, int interleaved) {
    int64_t half = dim / 2, n = tokens * heads * dim;
    void *x = random_array(dtype, n), *y = array(dtype, n), *back = array(dtype, n);
    float *c = array(LM_F32, 50 * half), *s = array(LM_F32, 50 * half);
    int32_t *position = array(LM_I32, tokens);
    for (int64_t t = 0; t < tokens; t++) position[t] = (int32_t)(t * 7 % 50);
    ok(lm_cpu_rope_table(c, s, 50, dim, 10000));
    ok(lm_cpu_rope(dtype, tokens, heads, dim, y, x, c, s, position, interleaved, 0));
    ok(lm_cpu_rope(dtype, tokens, heads, dim, back, y, c, s, position, interleaved, 1));
    for (int64_t th = 0; th < tokens * heads; th++)
        for (int64_t i = 0; i < half; i++) {
            double angle = position[th / heads] * pow(10000, -2.0 * (double)i / (double)dim);
            int64_t p = th * dim + (interleaved ? 2 * i : i),
                    q = th * dim + (interleaved ? 2 * i + 1 : i + half);
            double a = get(dtype, x, p), b = get(dtype, x, q);
            near(get(dtype, y, p), a * cos(angle) - b * sin(angle), epsilon(dtype));
            near(get(dtype, y, q), b * cos(angle) + a * sin(angle), epsilon(dtype));
            near(get(dtype, back, p), a, 2 * epsilon(dtype));
            near(get(dtype, back, q), b, 2 * epsilon(dtype));
        }
    free(x), free(y), free(back), free(c), free(s), free(position);
}

TEST(test_sort) {
    for (int dtype = 0; dtype < LM_DTYPES; dtype++)
        for (int s = 0; s < NSIZES; s++)
            for (int descending = 0; descending < 2; descending++) {
                sort_case(dtype, 3, sizes[s], descending);
                sort_case(dtype, sizes[s], 9, descending);
            }
}

TEST(test_rope) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int interleaved = 0; interleaved < 2; interleaved++)
            for (int s = 0; s < NSIZES; s++) {
                rope_case(dtype, sizes[s], 3, 40, interleaved);
                rope_case(dtype, 3, sizes[s], 2, interleaved);
            }
}
