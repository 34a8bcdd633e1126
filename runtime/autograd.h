/* autograd.h - gradients by recording what was computed.
 *
 * Every differentiable operation on a tensor that requires a gradient leaves a
 * node behind; lm_backward walks the nodes from the loss, latest first, and
 * frees what each one saved as soon as it is done. Only first derivatives. */
#ifndef LM_AUTOGRAD_H
#define LM_AUTOGRAD_H

#include "runtime/tensor.h"

/* Recording on or off (no_grad). Returns what it was. */
LM_API int lm_grad_set_enabled(int on);

/* RETAIN: the graph stays, for another walk. LAST: the last backward of a step, so that
 * gradients may leave for the other ranks as soon as they are complete (shard.h). */
enum { LM_BACKWARD_RETAIN = 1, LM_BACKWARD_LAST = 2 };

/* Gradients of `root` into the leaves. grad NULL: root has one element, 1.
 * A custom function needs its Lua, and C never calls Lua, so the walk is a loop:
 *   begin; while next == 1: the function `lm_backward_custom` is due: read its
 *   outputs' gradients, give its inputs'. next == 0: finished. < 0: failed, and
 *   the walk is over. Walks may nest (a custom function that recomputes). */
LM_API int lm_backward_begin(lm_tensor *root, LM_MAYBE lm_tensor *grad, int flags);
LM_API int lm_backward_next(void);
LM_API void lm_backward_cancel(void);
LM_API int lm_backward_custom(void); /* the id given to lm_custom_record */
LM_API int lm_backward_custom_grad(int output, lm_tensor **out); /* NULL: none reached it */
LM_API int lm_backward_custom_wants(int input);
LM_API int lm_backward_custom_give(int input, lm_tensor *grad);

/* Ties outputs that Lua computed to inputs, under an id of Lua's. *recorded: whether
 * any input requires a gradient. Lua asks lm_custom_freed for ids no longer needed (0: none).
 */
LM_API int lm_custom_record(int id, int inputs, lm_tensor **in, int outputs, lm_tensor **out,
                            int *recorded);
LM_API int lm_custom_freed(void);

#endif
