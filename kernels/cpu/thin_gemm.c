/* thin_gemm.c - a few rows times a weight that lies [n, k]: linear layers when tokens are
 * decoded.
 *
 * What takes time is that the weight arrives. It is read once, in the order in which it lies,
 * by the strip for few columns (strip.h), which takes 8 rows: the others find it in the cache.
 * Each element of C is one sum in order, whatever the number of rows or threads. */
#include "kernels/cpu/strip.h"
#include "kernels/cpu/thin_gemm.h"

enum {
    MOST = 2 * LM_FEW,  /* rows */
    GROUP = LM_FEW_OUT, /* columns of C at a time */
    INNER = 512         /* words of a sum at a time */
};

/* Rows up to which this is faster than the library. */
static int64_t most_rows(int dtype) { return lm__words(dtype).pairs ? MOST : LM_FEW; }

int lm__gemm_is_thin(int64_t batch, int64_t m, int64_t n, int64_t k, const lm_matrix *a,
                     const lm_matrix *b, const lm_matrix *c) {
    return batch == 1 && m > 0 && n >= LM_FEW_OUT && k >= LM_FEW_OUT &&
           m <= most_rows(a->dtype) && a->dtype == b->dtype && a->col_stride == 1 &&
           b->row_stride == 1 && b->col_stride >= k && c->col_stride == 1;
}

typedef struct {
    lm_words w;
    int64_t n, k;
    const lm_matrix *b, *c;
    const void *bias;
    int rows, bias_dtype, activation;
    float alpha, beta;
    const uint32_t *a[MOST];
} thin;

static const void *element(const lm_matrix *x, int64_t i) {
    return (const char *)x->data + (size_t)i * lm__size(x->dtype);
}

/* Columns j .. j + n - 1 of C. */
static void columns(const thin *t, int64_t j, int64_t n, uint32_t *room) {
    float sum[MOST * GROUP], buf[GROUP], was[GROUP];
    int64_t inner = t->w.pairs ? 2 * INNER : INNER;
    for (int64_t p = 0; p < t->k; p += inner) {
        lm_part part = {element(t->b, j * t->b->col_stride + p), t->b->col_stride, n,
                        lm__min(inner, t->k - p)};
        for (int first = 0; first < t->rows; first += LM_FEW) {
            const uint32_t *at[LM_FEW];
            int rows = (int)lm__min(LM_FEW, t->rows - first);
            for (int r = 0; r < rows; r++) at[r] = t->a[first + r] + lm__words_of(t->w, p);
            lm__few_product(t->w, part, p, at, lm__few_rows(rows, at), sum + first * GROUP,
                            GROUP, p > 0, room);
        }
    }
    const float *bias = t->bias ? lm__load(t->bias_dtype, t->bias, j, n, buf) : NULL;
    for (int r = 0; r < t->rows; r++) {
        float *y = sum + r * GROUP;
        int64_t to = r * t->c->row_stride + j;
        for (int64_t i = 0; i < n; i++) y[i] = t->alpha * y[i] + (bias ? bias[i] : 0.0f);
        if (t->beta != 0) {
            const float *old = lm__load(t->c->dtype, t->c->data, to, n, was);
            for (int64_t i = 0; i < n; i++) y[i] += t->beta * old[i];
        }
    }
    if (t->activation >= 0) lm_cpu_unary(t->activation, LM_F32, t->rows * GROUP, sum, sum);
    for (int r = 0; r < t->rows; r++) {
        const float *y = sum + r * GROUP;
        int64_t to = r * t->c->row_stride + j;
        if (t->c->dtype == LM_F32)
            for (int64_t i = 0; i < n; i++) ((float *)t->c->data)[to + i] = y[i];
        else lm__to_bf16((uint16_t *)t->c->data + to, y, n);
    }
}

int lm__gemm_thin(int64_t m, int64_t n, int64_t k, double alpha, const lm_matrix *a,
                  const lm_matrix *b, double beta, const lm_matrix *c, const void *bias,
                  int bias_dtype, int activation) {
    thin t = {
        lm__words(a->dtype), n,           k,     b, c, bias, (int)m, bias_dtype, activation,
        (float)alpha,        (float)beta, {NULL}};
    int64_t words = lm__words_of(t.w, k) + 1;
    uint32_t *room = lm__scratch(LM_SCRATCH_B, (size_t)(MOST * words) * sizeof *room);
    if (!room) return LM_KERNEL_EOOM;
    for (int r = 0; r < t.rows; r++)
        t.a[r] = lm__row_words(t.w, element(a, r * a->row_stride), k, room + r * words);
    int64_t groups = lm__ceil_div(n, GROUP);
    int st = LM_KERNEL_OK;
#pragma omp parallel num_threads(lm__threads(n *k)) reduction(min : st)
    {
        int64_t g, last;
        lm__share(groups, &g, &last);
        uint32_t *left = lm__scratch(
            LM_SCRATCH_A, (size_t)(LM_FEW_OUT * lm__min(words, INNER + 1)) * sizeof *left);
        if (!left) st = LM_KERNEL_EOOM;
        for (; g < last && left; g++)
            columns(&t, g * GROUP, lm__min(GROUP, n - g * GROUP), left);
    }
    return st;
}
