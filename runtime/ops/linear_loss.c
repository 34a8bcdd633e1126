/* linear_loss.c - the summed cross entropy of logits x W', without the logits in memory.
 *
 * Rows are taken in chunks: their logits, their losses, and at once, in the same buffer, the
 * gradient of their sum with respect to the logits, which becomes the chunk's dx and its part
 * of dW. So a chunk stays in the cache, where [rows, classes] logits and their gradient would
 * be the largest tensors of a translator's step. Backward only multiplies by its one number. */
#include "runtime/ops/classes.h"
#include "runtime/parallel.h"

enum { X, WEIGHT }; /* inputs */
enum { DX, DW };    /* saved: gradients of the sum */
enum { CHUNK_ROWS = 512 };

typedef struct {
    lm_tensor *x, *w, *t, *logits, *losses, *lse, *ones, *dx, *dw;
    lm__loss_rule rule;
    double sum;
} work;

static char *row(const lm_tensor *t, int64_t r, int64_t width) {
    return t->data + r * width * (int64_t)lm_dtype_size(t->dtype);
}

/* Losses of rows from, from + 1, ..; their gradients where they are wanted. */
static int chunk(work *k, int64_t from, int64_t rows) {
    int64_t in = lm__width(k->x), classes = k->w->shape[0];
    int dtype = k->x->dtype;
    const char *op = "linear_cross_entropy";
    const lm_kernels *run = lm__kernels(k->x);
    float *losses = (float *)(void *)k->losses->data, *lse = (float *)(void *)k->lse->data;
    lm_matrix x = {row(k->x, from, in), dtype, 0, in, 1}, w = {k->w->data, dtype, 0, in, 1};
    lm_matrix wt = {k->w->data, dtype, 0, 1, in}, y = {k->logits->data, dtype, 0, classes, 1};
    lm_matrix yt = {k->logits->data, dtype, 0, 1, classes};
    int st = lm__ran(op, run->gemm(1, rows, classes, in, 1, &x, &wt, 0, &y, NULL, 0));
    if (st == LM_OK)
        st = lm__class_losses(op, &k->rule, dtype, rows, classes, y.data, k->t, from, losses,
                              lse);
    for (int64_t r = 0; st == LM_OK && r < rows; r++) k->sum += (double)losses[r];
    if (st == LM_OK && (k->dx || k->dw))
        st = lm__class_gradients(op, &k->rule, dtype, rows, classes, y.data, y.data, lse, k->t,
                                 from, (float *)(void *)k->ones->data);
    if (st == LM_OK && k->dx) {
        lm_matrix dx = {row(k->dx, from, in), dtype, 0, in, 1};
        st = lm__ran(op, run->gemm(1, rows, in, classes, 1, &y, &w, 0, &dx, NULL, 0));
    }
    if (st == LM_OK && k->dw) {
        lm_matrix dw = {k->dw->data, LM_F32, 0, in, 1};
        st = lm__ran(op, run->gemm(1, classes, in, rows, 1, &yt, &x, from > 0, &dw, NULL, 0));
    }
    return st;
}

static int linear_loss_backward(lm_node *n) {
    for (int i = X; i <= WEIGHT; i++) {
        lm_tensor *unit, *g;
        int st = lm__saved(n, i == X ? DX : DW, &unit);
        if (st == LM_OK && unit) {
            st = lm_mul(unit, lm__grad(n, 0), &g);
            if (st == LM_OK) st = lm__give(n, i, g);
        }
        if (st != LM_OK) return st;
    }
    return LM_OK;
}

static int check(const lm_tensor *x, const lm_tensor *w, const lm_tensor *t) {
    char xs[96], ws[96], ts[96];
    int st = lm__floating("linear_cross_entropy", x);
    if (st == LM_OK) st = lm__floating("linear_cross_entropy", w);
    if (st == LM_OK) st = lm__ids("linear_cross_entropy", t);
    if (st != LM_OK) return st;
    bool fit = w->ndim == 2 && x->ndim == t->ndim + 1 && lm__width(x) == w->shape[1];
    for (int d = 0; fit && d < t->ndim; d++) fit = x->shape[d] == t->shape[d];
    if (fit) return LM_OK;
    return lm_fail(LM_ESHAPE,
                   "linear_cross_entropy: x is %s, weight %s, targets %s; wants [.., in], "
                   "[classes, in] and [..]",
                   lm__describe(x, xs), lm__describe(w, ws), lm__describe(t, ts));
}

static int linear_cross_entropy(const lm__loss_rule *rule, lm_tensor *x, lm_tensor *weight,
                                lm_tensor *targets, lm_tensor **out) {
    work k = {.rule = *rule};
    lm_tensor *loss = NULL;
    lm_node *n = NULL;
    int dtype = lm__promote(x, weight);
    int64_t rows = targets->numel, most = rows < CHUNK_ROWS ? rows : CHUNK_ROWS;
    int64_t shape[2] = {most, weight->shape[0]};
    int st = lm__check_loss("linear_cross_entropy", rule, weight->shape[0]);
    if (st == LM_OK) st = lm__tensor_dense(x, dtype, &k.x);
    if (st == LM_OK) st = lm__tensor_dense(weight, dtype, &k.w);
    if (st == LM_OK) st = lm__tensor_dense(targets, targets->dtype, &k.t);
    if (st == LM_OK) st = lm_tensor_new(dtype, 2, shape, &k.logits);
    if (st == LM_OK) st = lm_tensor_new(LM_F32, 1, &most, &k.losses);
    if (st == LM_OK) st = lm_tensor_new(LM_F32, 1, &most, &k.lse);
    if (st == LM_OK) st = lm_tensor_full(LM_F32, 1, &most, 1.0, &k.ones);
    if (st == LM_OK && lm__grad_enabled() && x->requires_grad)
        st = lm__tensor_like(k.x, dtype, &k.dx);
    if (st == LM_OK && lm__grad_enabled() && weight->requires_grad) {
        if (rows > 0) st = lm__tensor_like(k.w, LM_F32, &k.dw);
        else st = lm_tensor_full(LM_F32, 2, weight->shape, 0.0, &k.dw);
    }
    for (int64_t r = 0; st == LM_OK && r < rows; r += most)
        st = chunk(&k, r, rows - r < most ? rows - r : most);
    if (st == LM_OK) st = lm_tensor_full(LM_F32, 0, NULL, k.sum, &loss);
    if (st == LM_OK)
        st = lm__record("linear_cross_entropy", linear_loss_backward, 2,
                        (lm_tensor *[]){x, weight}, 1, &loss, &n);
    if (st == LM_OK) st = lm__save(n, DX, k.dx);
    if (st == LM_OK) st = lm__save(n, DW, k.dw);
    lm_tensor_release(k.x), lm_tensor_release(k.w), lm_tensor_release(k.t);
    lm_tensor_release(k.logits), lm_tensor_release(k.losses), lm_tensor_release(k.lse);
    lm_tensor_release(k.ones), lm_tensor_release(k.dx), lm_tensor_release(k.dw);
    return lm__finish(st, loss, out);
}

int lm_linear_cross_entropy(lm_tensor *x, lm_tensor *weight, lm_tensor *targets,
                            int64_t ignore_index, double label_smoothing, double z_loss,
                            lm_tensor **out) {
    int st = check(x, weight, targets);
    if (st != LM_OK) return st;
    lm__loss_rule rule = {{NULL, 0, weight->shape[0]}, ignore_index, label_smoothing, z_loss};
    return linear_cross_entropy(&rule, x, weight, targets, out);
}

int lm_cut_linear_cross_entropy(lm_group *g, int64_t first, int64_t classes, lm_tensor *x,
                                lm_tensor *weight, lm_tensor *targets, int64_t ignore_index,
                                double label_smoothing, double z_loss, lm_tensor **out) {
    int st = check(x, weight, targets);
    if (st != LM_OK) return st;
    lm__loss_rule rule = {{g, first, classes}, ignore_index, label_smoothing, z_loss};
    return linear_cross_entropy(&rule, x, weight, targets, out);
}
