/* loss.c - cross entropy of logits [.., classes] with class ids [..]: one f32 loss a row, 0
 * where the id is ignore_index. Backward makes the probabilities again from the row's
 * logsumexp, which is all that is kept besides the logits. */
#include "runtime/ops/classes.h"
#include "runtime/parallel.h"

enum { LOGITS, TARGETS, LSE };   /* saved */
enum { IGNORE, FIRST, CLASSES }; /* of i */
enum { SMOOTHING, Z_LOSS };      /* of f */

static int cross_entropy_backward(lm_node *n) {
    lm_tensor *x, *t, *lse, *scale = NULL, *dx = NULL;
    lm__loss_rule rule = {.classes = {NULL, n->i[FIRST], n->i[CLASSES]},
                          .ignore = n->i[IGNORE],
                          .smoothing = n->f[SMOOTHING],
                          .z_loss = n->f[Z_LOSS]};
    int st = lm__saved(n, LOGITS, &x);
    if (st == LM_OK) st = lm__saved(n, TARGETS, &t);
    if (st == LM_OK) st = lm__saved(n, LSE, &lse);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), LM_F32, &scale);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &dx);
    if (st == LM_OK)
        st = lm__class_gradients(n->op, &rule, x->dtype, lm__rows(x), lm__width(x), dx->data,
                                 x->data, (float *)(void *)lse->data, t, 0,
                                 (float *)(void *)scale->data);
    lm_tensor_release(scale);
    return lm__give_result(st, n, 0, dx);
}

static int check(const lm_tensor *logits, const lm_tensor *targets) {
    char xs[96], ts[96];
    int st = lm__floating("cross_entropy", logits);
    if (st == LM_OK) st = lm__ids("cross_entropy", targets);
    if (st != LM_OK) return st;
    bool fit = logits->ndim == targets->ndim + 1;
    for (int d = 0; fit && d < targets->ndim; d++) fit = logits->shape[d] == targets->shape[d];
    if (fit) return LM_OK;
    return lm_fail(LM_ESHAPE, "cross_entropy: logits are %s, but targets are %s",
                   lm__describe(logits, xs), lm__describe(targets, ts));
}

static int cross_entropy(const lm__loss_rule *rule, lm_tensor *logits, lm_tensor *targets,
                         lm_tensor **out) {
    int64_t rows = targets->numel;
    lm_tensor *x = NULL, *t = NULL, *lse = NULL, *loss = NULL;
    lm_node *n = NULL;
    int st = lm__check_loss("cross_entropy", rule, lm__width(logits));
    if (st == LM_OK) st = lm__tensor_dense(logits, logits->dtype, &x);
    if (st == LM_OK) st = lm__tensor_dense(targets, targets->dtype, &t);
    if (st == LM_OK) st = lm_tensor_new(LM_F32, 1, &rows, &lse);
    if (st == LM_OK) st = lm__tensor_like(targets, LM_F32, &loss);
    if (st == LM_OK)
        st = lm__class_losses("cross_entropy", rule, x->dtype, rows, lm__width(x), x->data, t,
                              0, (float *)(void *)loss->data, (float *)(void *)lse->data);
    if (st == LM_OK)
        st = lm__record("cross_entropy", cross_entropy_backward, 1, &logits, 1, &loss, &n);
    if (n) {
        n->i[IGNORE] = rule->ignore;
        n->i[FIRST] = rule->classes.first, n->i[CLASSES] = rule->classes.count;
        n->f[SMOOTHING] = rule->smoothing, n->f[Z_LOSS] = rule->z_loss;
    }
    if (st == LM_OK) st = lm__save(n, LOGITS, x);
    if (st == LM_OK) st = lm__save(n, TARGETS, t);
    if (st == LM_OK) st = lm__save(n, LSE, lse);
    lm_tensor_release(x), lm_tensor_release(t), lm_tensor_release(lse);
    return lm__finish(st, loss, out);
}

int lm_cross_entropy(lm_tensor *logits, lm_tensor *targets, int64_t ignore_index,
                     double label_smoothing, double z_loss, lm_tensor **out) {
    int st = check(logits, targets);
    if (st != LM_OK) return st;
    lm__loss_rule rule = {{NULL, 0, lm__width(logits)}, ignore_index, label_smoothing, z_loss};
    return cross_entropy(&rule, logits, targets, out);
}

int lm_cut_cross_entropy(lm_group *g, int64_t first, int64_t classes, lm_tensor *logits,
                         lm_tensor *targets, int64_t ignore_index, double label_smoothing,
                         double z_loss, lm_tensor **out) {
    int st = check(logits, targets);
    if (st != LM_OK) return st;
    lm__loss_rule rule = {{g, first, classes}, ignore_index, label_smoothing, z_loss};
    return cross_entropy(&rule, logits, targets, out);
}
