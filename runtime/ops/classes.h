/* classes.h - losses of rows whose classes are all here, or cut over the ranks of a group. */
#ifndef LM_OPS_CLASSES_H
#define LM_OPS_CLASSES_H

#include "runtime/dist.h"
#include "runtime/ops/op.h"

typedef struct {
    lm_group *group; /* NULL: all classes are here */
    int64_t first;   /* of those here */
    int64_t count;   /* of them all */
} lm__classes;

/* What the losses have in common. */
typedef struct {
    lm__classes classes;
    int64_t ignore;
    double smoothing, z_loss;
} lm__loss_rule;

int lm__check_loss(const char *op, const lm__loss_rule *rule, int64_t classes_here);
/* loss and lse [rows] of dense logits [rows, classes here]; targets are rows from, from + 1, ..
 * of t. The same numbers on every rank of the group. */
int lm__class_losses(const char *op, const lm__loss_rule *rule, int dtype, int64_t rows,
                     int64_t here, const void *logits, const lm_tensor *t, int64_t from,
                     float *loss, float *lse);
/* Their gradients, each times scale[row]; dlogits may be logits. */
int lm__class_gradients(const char *op, const lm__loss_rule *rule, int dtype, int64_t rows,
                        int64_t here, void *dlogits, const void *logits, const float *lse,
                        const lm_tensor *t, int64_t from, const float *scale);

#endif
