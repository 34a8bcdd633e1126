/* dropout.h - what dropout alone and dropout before a residual share. */
#ifndef LM_OPS_DROPOUT_H
#define LM_OPS_DROPOUT_H

#include "runtime/ops/op.h"

/* The draw for x's rows, the last dim each; *ids, which it points into, holds their ids or is
 * NULL. An LM_E* and a sentence when p or rows do not fit. */
int lm__dropout_draw(const char *op, const lm_tensor *x, double p, double high, double low,
                     lm_tensor *rows, lm_tensor **ids, lm_draw *draw);
/* Room for the mask of x. */
int lm__dropout_mask(const lm_tensor *x, lm_tensor **out);
/* The gradient of what was dropped out, by the mask. */
int lm__dropout_gradient(const char *op, lm_tensor *dy, const lm_tensor *mask, double p,
                         lm_tensor **out);

/* h and x, which want one shape, in their common dtype. */
int lm__residual(const char *op, lm_tensor *h, lm_tensor *x, lm_tensor **dense_h,
                 lm_tensor **dense_x);

static inline uint8_t *lm__mask_bits(const lm_tensor *mask) {
    return mask ? (uint8_t *)mask->data : NULL;
}

#endif
