/* exchange_impl.h - the steps of which dispatch and combine are made. */
#ifndef LM_EXCHANGE_IMPL_H
#define LM_EXCHANGE_IMPL_H

#include "runtime/moe/plan_impl.h"
#include "runtime/ops/op.h"

void lm__hold_plan(lm_node *n, lm_plan *p); /* n may be NULL */

/* A new [rows, dim]. */
int lm__rows_new(int dtype, int64_t rows, int64_t dim, lm_tensor **out);
/* out[i] = x[ids[i]]; ids NULL: x itself. */
int lm__rows_gather(lm_tensor *x, const int32_t *ids, int64_t count, lm_tensor **out);
/* out[i] = the sum over slots s of weights[i, s] x[at[i, s]]; weights NULL: ones. */
int lm__rows_sum(lm_tensor *x, int64_t count, int slots, const float *weights,
                 const int32_t *at, lm_tensor **out);

/* From rank to rank. Leg 0: not at all, x itself (one rank alone). */
int lm__rows_carry(lm_plan *p, const lm__wire *w, const lm__load *load, lm_tensor *x,
                   lm_tensor **out);
/* Copies in send order -> parcels received; and parcels received -> parcels of home, of each
 * the sum of its copies. */
int lm__parcels_forth(lm_plan *p, int leg, lm_tensor *copies, lm_tensor **out);
int lm__parcels_back(lm_plan *p, int leg, lm_tensor *received, lm_tensor **out);

/* once.c's side of combine (weigh.c). */
int lm__combine_once(lm_plan *p, lm_tensor *x, lm_tensor *weights, lm_tensor **out,
                     lm_tensor **table);
int lm__combine_once_backward(lm_plan *p, lm_tensor *dy, lm_tensor *x, lm_tensor *table,
                              lm_tensor *dw, lm_tensor **dx);

#endif
