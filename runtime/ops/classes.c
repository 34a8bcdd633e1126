/* classes.c - the loss of a row from its parts on several ranks: each rank's log sum exp, the
 * target's logit where it is, and the sum of the logits, gathered and put together in the
 * order of the ranks, by every rank alike. One message a rank; the logits stay where they are.
 */
#include "runtime/ops/classes.h"

#include <math.h>

enum { LSE, PICKED, SUM, PARTS }; /* of a row, as the kernel leaves them */

static const void *target_row(const lm_tensor *t, int64_t row) {
    return t->data + row * lm_dtype_size(t->dtype);
}

static int64_t target(const lm_tensor *t, int64_t row) {
    const void *p = target_row(t, row);
    return t->dtype == LM_I32 ? *(const int32_t *)p : *(const int64_t *)p;
}

int lm__check_loss(const char *op, const lm__loss_rule *rule, int64_t classes_here) {
    const lm__classes *c = &rule->classes;
    if (!(rule->smoothing >= 0 && rule->smoothing <= 1))
        return lm_fail(LM_EARG, "%s: label_smoothing is %g, wants 0 to 1", op, rule->smoothing);
    if (c->first < 0 || c->first + classes_here > c->count)
        return lm_fail(LM_ESHAPE, "%s: %lld classes from %lld on, of %lld in all", op,
                       (long long)classes_here, (long long)c->first, (long long)c->count);
    return LM_OK;
}

/* parts [size, rows, PARTS] */
static void put_together(const lm__loss_rule *rule, int size, int64_t rows, const float *parts,
                         const lm_tensor *t, int64_t from, float *loss, float *lse) {
    for (int64_t r = 0; r < rows; r++) {
        double most = -INFINITY, total = 0, picked = 0, sum = 0;
        loss[r] = lse[r] = 0;
        if (target(t, from + r) == rule->ignore) continue;
        for (int p = 0; p < size; p++) {
            const float *part = parts + (p * rows + r) * PARTS;
            most = fmax(most, (double)part[LSE]);
            picked += (double)part[PICKED];
            sum += (double)part[SUM];
        }
        for (int p = 0; p < size; p++)
            total += exp((double)parts[(p * rows + r) * PARTS + LSE] - most);
        double l = most + log(total), s = rule->smoothing;
        double value = (1 - s) * (l - picked) + rule->z_loss * l * l;
        if (s > 0) value += s * (l - sum / (double)rule->classes.count);
        loss[r] = (float)value;
        lse[r] = (float)l;
    }
}

static int cut_losses(const char *op, const lm__loss_rule *rule, int dtype, int64_t rows,
                      int64_t here, const void *logits, const lm_tensor *t, int64_t from,
                      float *loss, float *lse) {
    lm_group *g = rule->classes.group;
    int size = lm_group_size(g), rank = lm_group_rank(g);
    int64_t shape[3] = {size, rows, PARTS}, mine = rows * PARTS;
    for (int64_t r = 0; r < rows; r++) { /* alike on all ranks, so none is left waiting */
        int64_t id = target(t, from + r);
        if (id != rule->ignore && (id < 0 || id >= rule->classes.count))
            return lm__id_out_of_range(op, t, from + r, rule->classes.count);
    }
    lm_tensor *all = NULL;
    int st = lm_tensor_new(LM_F32, 3, shape, &all);
    if (st != LM_OK) return st;
    float *parts = (float *)(void *)all->data;
    st = lm__ran(op, lm__kernels(all)->cross_entropy_part(
                         dtype, rows, here, parts + rank * mine, logits, target_row(t, from),
                         t->dtype, rule->ignore, rule->classes.first));
    if (st == LM_OK)
        st = lm_all_gather(g, parts + rank * mine, mine * (int64_t)sizeof *parts, parts);
    if (st == LM_OK) put_together(rule, size, rows, parts, t, from, loss, lse);
    lm_tensor_release(all);
    return st;
}

int lm__class_losses(const char *op, const lm__loss_rule *rule, int dtype, int64_t rows,
                     int64_t here, const void *logits, const lm_tensor *t, int64_t from,
                     float *loss, float *lse) {
    int64_t bad = 0;
    if (rule->classes.group)
        return cut_losses(op, rule, dtype, rows, here, logits, t, from, loss, lse);
    int st = lm__kernels(t)->cross_entropy_fwd(dtype, rows, here, loss, lse, logits,
                                               target_row(t, from), t->dtype, rule->ignore,
                                               rule->smoothing, rule->z_loss, &bad);
    if (st == LM_EARG) return lm__id_out_of_range(op, t, from + bad, here);
    return lm__ran(op, st);
}

int lm__class_gradients(const char *op, const lm__loss_rule *rule, int dtype, int64_t rows,
                        int64_t here, void *dlogits, const void *logits, const float *lse,
                        const lm_tensor *t, int64_t from, const float *scale) {
    return lm__ran(op, lm__kernels(t)->cross_entropy_bwd(
                           dtype, rows, here, dlogits, logits, lse, target_row(t, from),
                           t->dtype, rule->ignore, rule->smoothing, rule->z_loss, scale,
                           rule->classes.first, rule->classes.count));
}
