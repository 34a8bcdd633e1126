/* optim.h - one parameter's update, in place, from the gradient that it holds.
 *
 * A bf16 parameter has an f32 `master` that the update is computed on; the
 * parameter becomes its rounded copy. Or it has none, and is rounded up or
 * down at random, with the update as the mean. Without a gradient nothing changes.
 * grad_scale multiplies the gradient first (clipping, or the mean over tokens). */
#ifndef LM_OPTIM_H
#define LM_OPTIM_H

#include "runtime/tensor.h"

/* Where the random bits of a bf16 parameter without a master, and of bf16 moments, come from: a
 * stream of this parameter and step (lm_random_stream), in which each element of the whole
 * parameter has its place, whoever holds it. p is a part from element `first` on of what this
 * rank has of it; that lies in the whole as blocks of `unit` elements with these numbers (i64),
 * or in one piece. */
typedef struct lm_rounding {
    uint64_t stream;
    double first, unit;
    const lm_tensor *blocks;
} lm_rounding;

/* Loshchilov & Hutter 2019, Algorithm 2. m, v: f32 of p's shape, or bf16, which are rounded at
 * random whatever p is. step counts from 1. */
LM_API int lm_optim_adamw(lm_tensor *p, LM_MAYBE lm_tensor *master, lm_tensor *m, lm_tensor *v,
                          double lr, double beta1, double beta2, double eps,
                          double weight_decay, int64_t step, double grad_scale,
                          LM_MAYBE const lm_rounding *rounding);
/* momentum NULL: plain descent. */
LM_API int lm_optim_sgd(lm_tensor *p, LM_MAYBE lm_tensor *master, LM_MAYBE lm_tensor *momentum,
                        double lr, double factor, double weight_decay, int nesterov,
                        double grad_scale, LM_MAYBE const lm_rounding *rounding);
/* Shazeer & Stern 2018, Algorithm 4. p [.., rows, cols] is a stack of matrices (experts), each
 * with moments and clipping of its own: row [.., rows], col [.., cols]. col NULL: not factored,
 * row has p's shape. */
LM_API int lm_optim_adafactor(lm_tensor *p, LM_MAYBE lm_tensor *master, lm_tensor *row,
                              LM_MAYBE lm_tensor *col, double lr, double beta2, double eps,
                              double clip, double weight_decay, double grad_scale,
                              LM_MAYBE const lm_rounding *rounding);
/* Sum of squares of the gradient; 0 without one. */
LM_API int lm_optim_grad_sqsum(lm_tensor *p, double *out);

#endif
