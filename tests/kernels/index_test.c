/* index_test.c - rows and elements by number, and combine. */
#include "tests/kernels/check.h"

static void rows_case(int dtype, int ids_dtype, int64_t n, int64_t dim, int64_t table_rows) {
    void *table = random_array(dtype, table_rows * dim), *out = array(dtype, n * dim);
    void *ids = array(ids_dtype, n);
    int64_t bad;
    for (int64_t i = 0; i < n; i++)
        set(ids_dtype, ids, i, i % 4 == 3 ? -1 : (double)(i * i % table_rows));
    ok(lm_cpu_gather_rows(dtype, n, dim, table_rows, out, table, ids_dtype, ids, &bad));
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < dim; j++) {
            int64_t id = (int64_t)get(ids_dtype, ids, i);
            near(get(dtype, out, i * dim + j), id < 0 ? 0 : get(dtype, table, id * dim + j), 0);
        }
    if (dtype <= LM_BF16) {
        float *sum = array(LM_F32, table_rows * dim);
        double *want = calloc((size_t)(table_rows * dim) + 1, 8);
        ok(lm_cpu_scatter_add_rows(dtype, n, dim, table_rows, sum, out, ids_dtype, ids));
        for (int64_t i = 0; i < n * dim; i++) {
            int64_t id = (int64_t)get(ids_dtype, ids, i / dim);
            if (id >= 0) want[id * dim + i % dim] += get(dtype, out, i);
        }
        for (int64_t i = 0; i < table_rows * dim; i++) near((double)sum[i], want[i], 1e-4);
        free(sum), free(want);
    }
    if (n > 0) {
        set(ids_dtype, ids, n - 1, (double)table_rows);
        near(lm_cpu_gather_rows(dtype, n, dim, table_rows, out, table, ids_dtype, ids, &bad),
             LM_KERNEL_EARG, 0);
        near((double)bad, (double)(n - 1), 0);
    }
    free(table), free(out), free(ids);
}

static void gather_case(int dtype, int64_t outer, int64_t n, int64_t m, int64_t inner) {
    void *x = random_array(dtype, outer * n * inner), *out = array(dtype, outer * m * inner);
    int32_t *ids = array(LM_I32, outer * m * inner);
    int64_t bad;
    for (int64_t i = 0; i < outer * m * inner; i++)
        ids[i] = (int32_t)(random_uniform() * (double)n);
    ok(lm_cpu_gather(dtype, outer, n, inner, m, out, x, LM_I32, ids, &bad));
    double *want = calloc((size_t)(outer * n * inner) + 1, 8);
    for (int64_t i = 0; i < outer * m * inner; i++) {
        int64_t at = (i / inner / m * n + ids[i]) * inner + i % inner;
        near(get(dtype, out, i), get(dtype, x, at), 0);
        want[at] += get(dtype, out, i);
    }
    if (dtype <= LM_BF16) {
        float *sum = array(LM_F32, outer * n * inner);
        ok(lm_cpu_scatter_add(dtype, outer, n, inner, m, sum, out, LM_I32, ids, &bad));
        for (int64_t i = 0; i < outer * n * inner; i++) near((double)sum[i], want[i], 1e-4);
        free(sum);
    }
    free(x), free(out), free(ids), free(want);
}

static void select_case(int dtype, int ids_dtype, int64_t outer, int64_t n, int64_t inner,
                        int64_t m) {
    void *x = random_array(dtype, outer * n * inner), *out = array(dtype, outer * m * inner);
    void *ids = array(ids_dtype, m);
    int64_t bad;
    for (int64_t i = 0; i < m; i++) set(ids_dtype, ids, i, (double)(i * i % n));
    ok(lm_cpu_index_select(dtype, outer, n, inner, m, out, x, ids_dtype, ids, &bad));
    for (int64_t i = 0; i < outer * m * inner; i++) {
        int64_t id = (int64_t)get(ids_dtype, ids, i / inner % m);
        near(get(dtype, out, i), get(dtype, x, (i / inner / m * n + id) * inner + i % inner),
             0);
    }
    for (int wrong = -1; wrong <= 1 && m > 0; wrong += 2) { /* one under, one over */
        set(ids_dtype, ids, m - 1, wrong < 0 ? -1 : (double)n);
        near(lm_cpu_index_select(dtype, outer, n, inner, m, out, x, ids_dtype, ids, &bad),
             LM_KERNEL_EARG, 0);
        near((double)bad, (double)(m - 1), 0);
    }
    free(x), free(out), free(ids);
}

static void combine_case(int dtype, int64_t tokens, int64_t slots, int64_t dim, int weighted) {
    int64_t rows = tokens * slots;
    int32_t *inv = array(LM_I32, rows);
    for (int64_t i = 0; i < rows; i++) inv[i] = i % 5 == 4 ? -1 : (int32_t)(rows - 1 - i);
    void *x = random_array(dtype, rows * dim), *y = array(dtype, tokens * dim);
    void *dy = random_array(dtype, tokens * dim), *dx = array(dtype, rows * dim);
    float *w = weighted ? random_array(LM_F32, rows) : NULL, *dw = array(LM_F32, rows);
    ok(lm_cpu_combine_fwd(dtype, tokens, slots, dim, y, x, w, inv));
    ok(lm_cpu_combine_bwd(dtype, tokens, slots, dim, dx, dw, dy, x, w, inv));
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = 0; j < dim; j++) {
            double want = 0;
            for (int64_t s = 0; s < slots; s++) {
                int64_t i = t * slots + s;
                if (inv[i] < 0) continue;
                double by = w ? (double)w[i] : 1;
                want += by * get(dtype, x, inv[i] * dim + j);
                near(get(dtype, dx, inv[i] * dim + j), by * get(dtype, dy, t * dim + j),
                     epsilon(dtype));
            }
            near(get(dtype, y, t * dim + j), want, 2 * epsilon(dtype));
        }
    for (int64_t i = 0; i < rows; i++) {
        double want = 0;
        for (int64_t j = 0; j < dim && inv[i] >= 0; j++)
            want += get(dtype, dy, i / slots * dim + j) * get(dtype, x, inv[i] * dim + j);
        near((double)dw[i], want, 1e-4);
    }
    free(inv), free(x), free(y), free(dy), free(dx), free(w), free(dw);
}

TEST(test_index) {
    for (int s = 0; s < NSIZES; s++) {
        for (int dtype = 0; dtype < LM_DTYPES; dtype++) {
            rows_case(dtype, LM_I32, sizes[s], 33, 10);
            rows_case(dtype, LM_I64, 12, sizes[s], 100);
            gather_case(dtype, 3, 8, sizes[s], 2);
            select_case(dtype, LM_I64, 3, 7, 1, sizes[s]);
            select_case(dtype, LM_I32, sizes[s], 7, 5, 3);
            gather_case(dtype, sizes[s], 8, 2, 1);
        }
        for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
            for (int weighted = 0; weighted < 2; weighted++) {
                combine_case(dtype, sizes[s], 2, 40, weighted);
                combine_case(dtype, 7, 1, sizes[s], weighted);
                combine_case(dtype, 5, 3, 1100, weighted);
            }
    }
    rows_case(LM_BF16, LM_I32, 700, 160, 300);
}
