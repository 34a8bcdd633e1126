/* loss.c - cross entropy of logits [.., classes] with class ids [..]: one f32 loss a row, 0
 * where the id is ignore_index. Backward makes the probabilities again from the row's
 * logsumexp, which is all that is kept besides the logits. */
#include "runtime/ops/op.h"

enum { LOGITS, TARGETS, LSE }; /* saved */

static int cross_entropy_backward(lm_node *n) { /* i[0]: ignore_index; f: smoothing, z_loss */
    lm_tensor *x, *t, *lse, *scale = NULL, *dx = NULL;
    int st = lm__saved(n, LOGITS, &x);
    if (st == LM_OK) st = lm__saved(n, TARGETS, &t);
    if (st == LM_OK) st = lm__saved(n, LSE, &lse);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), LM_F32, &scale);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &dx);
    if (st == LM_OK)
        st = lm__ran(n->op, lm__kernels(x)->cross_entropy_bwd(
                                x->dtype, lm__rows(x), lm__width(x), dx->data, x->data,
                                (float *)(void *)lse->data, t->data, t->dtype, n->i[0], n->f[0],
                                n->f[1], (float *)(void *)scale->data));
    lm_tensor_release(scale);
    return lm__give_result(st, n, 0, dx);
}

int lm_cross_entropy(lm_tensor *logits, lm_tensor *targets, int64_t ignore_index,
                     double label_smoothing, double z_loss, lm_tensor **out) {
    char xs[96], ts[96];
    int st = lm__floating("cross_entropy", logits);
    if (st == LM_OK) st = lm__ids("cross_entropy", targets);
    if (st != LM_OK) return st;
    bool fit = logits->ndim == targets->ndim + 1;
    for (int d = 0; fit && d < targets->ndim; d++) fit = logits->shape[d] == targets->shape[d];
    if (!fit)
        return lm_fail(LM_ESHAPE, "cross_entropy: logits are %s, but targets are %s",
                       lm__describe(logits, xs), lm__describe(targets, ts));
    if (!(label_smoothing >= 0 && label_smoothing <= 1))
        return lm_fail(LM_EARG, "cross_entropy: label_smoothing is %g, wants 0 to 1",
                       label_smoothing);
    int64_t rows = targets->numel, classes = lm__width(logits), bad = 0;
    lm_tensor *x = NULL, *t = NULL, *lse = NULL, *loss = NULL;
    lm_node *n = NULL;
    st = lm__tensor_dense(logits, logits->dtype, &x);
    if (st == LM_OK) st = lm__tensor_dense(targets, targets->dtype, &t);
    if (st == LM_OK) st = lm_tensor_new(LM_F32, 1, &rows, &lse);
    if (st == LM_OK) st = lm__tensor_like(targets, LM_F32, &loss);
    if (st == LM_OK) {
        st =
            lm__ran("cross_entropy", lm__kernels(x)->cross_entropy_fwd(
                                         x->dtype, rows, classes, (float *)(void *)loss->data,
                                         (float *)(void *)lse->data, x->data, t->data, t->dtype,
                                         ignore_index, label_smoothing, z_loss, &bad));
        if (st == LM_EARG) st = lm__id_out_of_range("cross_entropy", t, bad, classes);
    }
    if (st == LM_OK)
        st = lm__record("cross_entropy", cross_entropy_backward, 1, &logits, 1, &loss, &n);
    if (n) n->i[0] = ignore_index, n->f[0] = label_smoothing, n->f[1] = z_loss;
    if (st == LM_OK) st = lm__save(n, LOGITS, x);
    if (st == LM_OK) st = lm__save(n, TARGETS, t);
    if (st == LM_OK) st = lm__save(n, LSE, lse);
    lm_tensor_release(x), lm_tensor_release(t), lm_tensor_release(lse);
    return lm__finish(st, loss, out);
}
