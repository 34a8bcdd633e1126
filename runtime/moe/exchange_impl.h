/* exchange_impl.h - the steps of which dispatch and combine are made. */
#ifndef LM_EXCHANGE_IMPL_H
#define LM_EXCHANGE_IMPL_H

#include "runtime/moe/plan_impl.h"
#include "runtime/ops/op.h"

void lm__hold_plan(lm_node *n, lm_plan *p); /* n may be NULL */
int lm__check_rows(const char *op, const lm_tensor *x, int64_t rows, const char *what);

/* A new [rows, dim]. */
int lm__rows_new(int dtype, int64_t rows, int64_t dim, lm_tensor **out);
/* out[i] = x[ids[i]]; ids NULL: x's rows as they are. */
int lm__rows_gather(lm_tensor *x, const int32_t *ids, int64_t count, lm_tensor **out);
/* out[i] = the sum over slots s of weights[i, s] x[at[i, s]]; weights NULL: ones. */
int lm__rows_sum(lm_tensor *x, int64_t count, int slots, const float *weights,
                 const int32_t *at, lm_tensor **out);
/* Copies at home -> parcels of home: of each the sum of its copies. */
int lm__sum_copies(const lm_plan *p, lm_tensor *copies, lm_tensor **out);

/* From rank to rank, in two steps; p->flight remembers in between. depart gives what will hold
 * the things that arrive, and must not be read until land, which gives the same tensor again.
 * Alone, it is x's rows. */
enum { LM__WEIGHTS = LM_LEGS }; /* added to a leg: what goes along with its parcels */
int lm__depart(lm_plan *p, int leg, bool back, lm_tensor *x, lm_tensor **out);
int lm__land(lm_plan *p, int leg, lm_tensor **out);
/* Waits for a leg that nobody will finish, if it is under way; keeps the error there is. */
void lm__settle(lm_plan *p, int leg);
/* For the backward of a half that ends a leg: sends x, the gradient of input 0, on its way; the
 * half that began the leg takes from land what arrives. Where nobody wants it, this rank takes
 * part all the same: others may wait for its rows. */
int lm__depart_gradient(lm_node *n, int leg, bool back, lm_tensor *x);

/* weigh.c: [tokens, top_k] -> those of each parcel received, [received, width]. */
int lm__check_weights(const lm_plan *p, const lm_tensor *weights);
int lm__weights_start(lm_plan *p, lm_tensor *weights);
bool lm__weights_under_way(const lm_plan *p);
int lm__weights_finish(lm_plan *p, lm_tensor **out);

/* experts.c: the gradient of an input to write to: the leaf's own (*own NULL), or a new one.
 * fresh: it holds nothing yet; if it may be `narrow` then, it is of the leaf's grad_dtype, and
 * f32 otherwise. Then the end of it, of st too: what is new is given. */
int lm__gradient_of(lm_node *n, int input, const lm_tensor *like, bool narrow, lm_tensor **grad,
                    lm_tensor **own, bool *fresh);
int lm__finish_gradient(int st, lm_node *n, int input, lm_tensor *own);

#endif
