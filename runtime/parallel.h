/* parallel.h - collectives that gradients flow through: tensor parallelism.
 *
 * The ranks of a group hold the same activations, bit by bit, and each a part of
 * a layer (Shoeybi et al. 2019, section 3). Activations enter the layer's parts by
 * copy_to and leave them by reduce_from; in between they differ. Where each rank is
 * to take rows of its own instead, slice_rows and gather_rows are the way in and out.
 *
 *                 forward                         backward
 *   copy_to       x                               sum over the group
 *   reduce_from   sum over the group              dy
 *   slice_rows    this rank's share of the rows   all shares, one after the other
 *   gather_rows   all shares, one after the other this rank's
 *
 * Every member calls them alike, on tensors that want a gradient on all or on none. */
#ifndef LM_PARALLEL_H
#define LM_PARALLEL_H

#include "runtime/dist.h"
#include "runtime/tensor.h"

LM_API int lm_copy_to(lm_group *g, lm_tensor *x, lm_tensor **out);
LM_API int lm_reduce_from(lm_group *g, lm_tensor *x, lm_tensor **out);
/* Rank r's share of n rows begins at floor(n r / size): of the first dim, as narrow gives it.
 */
LM_API int lm_slice_rows(lm_group *g, lm_tensor *x, lm_tensor **out);
/* x has rows[rank] rows. */
LM_API int lm_gather_rows(lm_group *g, lm_tensor *x, const int64_t *rows, lm_tensor **out);

/* The losses of ops.h where the classes are cut over the group: this rank has those from
 * `first` on, as many as the logits' last dim or the weight's first, of `classes` in all. The
 * loss is the same on every rank; gradients are those of this rank's logits, and x's part of
 * the gradient, which copy_to adds up. */
LM_API int lm_cut_cross_entropy(lm_group *g, int64_t first, int64_t classes, lm_tensor *logits,
                                lm_tensor *targets, int64_t ignore_index,
                                double label_smoothing, double z_loss, lm_tensor **out);
LM_API int lm_cut_linear_cross_entropy(lm_group *g, int64_t first, int64_t classes,
                                       lm_tensor *x, lm_tensor *weight, lm_tensor *targets,
                                       int64_t ignore_index, double label_smoothing,
                                       double z_loss, lm_tensor **out);

#endif
