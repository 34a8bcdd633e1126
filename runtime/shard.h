/* shard.h - parameters, gradients and optimizer state divided between the ranks that hold the
 * same parameters (ZeRO, Rajbhandari et al. 2020), and gradients that travel during backward.
 *
 * A unit is a part of a model that runs at one go - a Transformer layer, a set of experts -
 * with its parameters. Of each parameter a rank owns a chunk: `count` elements from `first` on
 * of the flattened tensor; each is ceil(numel / ranks) long, the last ones shorter or empty.
 *
 *   stage 0  nothing is divided; gradients are all-reduced
 *   stage 1  the optimizer sees chunks; what it changed is gathered afterwards
 *   stage 2  so it is with gradients: full ones are gone once their unit's are reduced
 *   stage 3  parameters too: outside of its unit's regions only the chunk is there
 *
 * A region is a unit being run. Lua enters it around the unit's forward; every node of the tape
 * remembers the region it was recorded in, and backward enters it again (tape.c), gathers and
 * drops. Regions nest; a unit may be run twice.
 *
 * A unit's gradients leave as soon as backward can give no more of them. At stages 2 and 3 they
 * do so in every backward, and the sums are added to the chunk's gradient; at stages 0 and 1 in
 * the backward that is told to be a step's last (LM_BACKWARD_LAST), or else in lm_shard_reduce.
 * To take a parameter's gradient away (lm_tensor_set_grad with NULL) takes the chunk's too.
 *
 * All of it is collective: every rank runs the same units in the same order, whatever its
 * tokens are. Sums are in the order of the ranks: the bits are those of lm_all_reduce. */
#ifndef LM_SHARD_H
#define LM_SHARD_H

#include "runtime/dist.h"
#include "runtime/tensor.h"

typedef struct lm_unit lm_unit;

LM_API int lm_unit_new(const char *name, lm_unit **out);
LM_API void lm_unit_retain(lm_unit *u);
LM_API void lm_unit_release(LM_MAYBE lm_unit *u);
/* Puts a contiguous parameter with bytes of its own under the unit. replicas: the ranks that
 * hold the same elements, over whom its gradient is summed. At stage 3 its bytes are dropped
 * here. */
LM_API int lm_unit_add(lm_unit *u, lm_tensor *p, const char *name, LM_MAYBE lm_group *replicas,
                       int stage);
/* Undoes that: parameters are whole again (collective at stage 3), their chunks are gone. */
LM_API int lm_unit_dissolve(lm_unit *u);

/* ---- regions ---- */

/* eager 0: its parameters are gathered at the first use of one of them instead of now. */
LM_API int lm_region_enter(lm_unit *u, int eager);
/* The one entered last. A write to a gathered parameter is taken over into the chunk, so all
 * ranks must have written the same. */
LM_API int lm_region_leave(void);
LM_API int lm_unit_inside(const lm_unit *u); /* how many regions of it are open */

/* ---- chunks: what the optimizer updates ---- */

/* [count], of the parameter's dtype, a new reference; NULL when p is not divided. Its grad is
 * the chunk's gradient, f32, after lm_shard_reduce. */
LM_API int lm_shard_chunk(lm_tensor *p, lm_tensor **out);
LM_API double lm_shard_first(const lm_tensor *p); /* its first element; 0 when not divided */
LM_API int lm_shard_stage(const lm_tensor *p);    /* -1: under no unit */
LM_API int lm_shard_ranks(const lm_tensor *p);    /* between which it is divided; 1 */
/* The chunk was written: the other ranks get it (stages 1, 2). lm_shard_settle waits for it. */
LM_API int lm_shard_updated(lm_tensor *p);

/* ---- gradients ---- */

/* Sends what was not sent yet and waits for all. Then a parameter's gradient is the sum over
 * its replicas: whole at stages 0 and 1 and seen through the chunk's at 1, in the chunk alone
 * at 2, 3. */
LM_API int lm_shard_reduce(lm_unit **units, int count);
/* Waits for everything that is under way. */
LM_API int lm_shard_settle(void);
/* Gradients travel in buckets of at most so many bytes, unless one alone is larger. Returns
 * what it was. */
LM_API double lm_shard_set_bucket(double bytes);

#endif
