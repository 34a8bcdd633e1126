/* grouped_gemm.c - the experts' matrix products: one per group of rows, by lm_cpu_gemm.
 *
 * A group with more than its share of the rows gets all threads, inside the product; the others
 * then go one to a thread, largest first. Empty groups cost nothing. */
#include "kernels/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

typedef int group_fn(const void *job, int64_t group, int64_t first, int64_t rows);

typedef struct {
    int64_t group, rows;
} load;

static int larger_first(const void *a, const void *b) {
    const load *x = a, *y = b;
    if (x->rows != y->rows) return x->rows < y->rows ? 1 : -1;
    return x->group < y->group ? -1 : 1;
}

/* with_empty: groups without rows are called too */
static int for_groups(int64_t groups, const int64_t *offset, int with_empty, group_fn *f,
                      const void *job) {
    load *order = lm__scratch(LM_SCRATCH_PARTIAL, (size_t)groups * sizeof *order);
    if (!order && groups > 0) return LM_KERNEL_EOOM;
    int64_t n = 0, total = groups > 0 ? offset[groups] - offset[0] : 0;
    for (int64_t g = 0; g < groups; g++) {
        int64_t rows = offset[g + 1] - offset[g];
        if (rows > 0 || with_empty) order[n++] = (load){g, rows};
    }
    qsort(order, (size_t)n, sizeof *order, larger_first);
    int threads = omp_in_parallel() ? 1 : omp_get_max_threads(), st = LM_KERNEL_OK;
    int64_t i = 0;
    for (; i < n && st == LM_KERNEL_OK; i++) {
        if (threads > 1 && order[i].rows * threads <= total && n - i >= threads) break;
        st = f(job, order[i].group, offset[order[i].group], order[i].rows);
    }
    if (st != LM_KERNEL_OK || i == n) return st;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(min : st)
    for (int64_t j = i; j < n; j++) {
        int one = f(job, order[j].group, offset[order[j].group], order[j].rows);
        if (one < st) st = one;
    }
    return st;
}

typedef struct {
    int64_t n, k;
    lm_matrix x, w, y; /* of group 0; strides */
    const char *bias;
    int bias_dtype, accumulate;
} job;

static void *at(const lm_matrix *m, int64_t elements) {
    return (char *)m->data + elements * (int64_t)lm__size(m->dtype);
}

static lm_matrix matrix(const void *data, int dtype, int64_t row_stride, int64_t col_stride) {
    lm_matrix m = {NULL, dtype, 0, row_stride, col_stride};
    memcpy(&m.data, &data, sizeof data); /* inputs are never written through it */
    return m;
}

static int forward_group(const void *p, int64_t g, int64_t first, int64_t rows) {
    const job *j = p;
    lm_matrix x = j->x, w = j->w, y = j->y;
    x.data = at(&x, first * j->k);
    w.data = at(&w, g * j->n * j->k);
    y.data = at(&y, first * j->n);
    const void *bias = j->bias ? j->bias + (size_t)(g * j->n) * lm__size(j->bias_dtype) : NULL;
    return lm_cpu_gemm(1, rows, j->n, j->k, 1, &x, &w, 0, &y, bias, j->bias_dtype);
}

int lm_cpu_grouped_gemm(int64_t groups, const int64_t *offset, int64_t n, int64_t k, void *y,
                        int y_dtype, const void *x, int x_dtype, const void *w, int w_dtype,
                        int w_turned, const void *bias, int bias_dtype) {
    job j = {.n = n, .k = k, .bias = bias, .bias_dtype = bias_dtype};
    j.x = matrix(x, x_dtype, k, 1);
    j.w = w_turned ? matrix(w, w_dtype, 1, k) : matrix(w, w_dtype, n, 1);
    j.y = matrix(y, y_dtype, n, 1);
    return for_groups(groups, offset, 0, forward_group, &j);
}

/* dw [k, n] = x^T dy; stored turned [n, k] it is dy^T x, so that the result is row-major */
static int weight_group(const void *p, int64_t g, int64_t first, int64_t rows) {
    const job *j = p;
    lm_matrix x = j->x, w = j->w, y = j->y;
    x.data = at(&x, first * j->k);
    y.data = at(&y, first * j->n);
    w.data = at(&w, g * j->n * j->k);
    return lm_cpu_gemm(1, j->k, j->n, rows, 1, &x, &y, j->accumulate, &w, NULL, LM_F32);
}

int lm_cpu_grouped_gemm_dw(int64_t groups, const int64_t *offset, int64_t n, int64_t k,
                           void *dw, int dw_dtype, const void *x, int x_dtype, const void *dy,
                           int dy_dtype, int w_turned, int accumulate) {
    job j = {.accumulate = accumulate};
    const void *left = w_turned ? dy : x, *right = w_turned ? x : dy;
    j.k = w_turned ? n : k; /* rows of dw as stored */
    j.n = w_turned ? k : n;
    j.x = matrix(left, w_turned ? dy_dtype : x_dtype, 1, j.k);
    j.y = matrix(right, w_turned ? x_dtype : dy_dtype, j.n, 1);
    j.w = matrix(dw, dw_dtype, j.n, 1);
    return for_groups(groups, offset, !accumulate, weight_group, &j);
}

int lm_cpu_grouped_sum(int64_t groups, const int64_t *offset, int64_t n, float *out,
                       const void *x, int dtype, int accumulate) {
    for (int64_t g = 0; g < groups; g++) {
        float *to = out + g * n;
        int64_t first = offset[g] * n, rows = offset[g + 1] - offset[g];
        if (!accumulate) memset(to, 0, (size_t)n * sizeof *to);
        if (rows == 0) continue;
        float *sum = lm__scratch(LM_SCRATCH_ROW2, (size_t)n * sizeof *sum);
        if (!sum) return LM_KERNEL_EOOM;
        const void *from = (const char *)x + (size_t)first * lm__size(dtype);
        int st = lm_cpu_reduce(LM_SUM, dtype, 1, rows, n, sum, LM_F32, from);
        if (st != LM_KERNEL_OK) return st;
        for (int64_t i = 0; i < n; i++) to[i] += sum[i];
    }
    return LM_KERNEL_OK;
}
