/* offload.h - what a rank owns of a unit's parameters (shard.h), in a tier instead of memory.
 *
 * The gradient of a parameter at stage 2 or 3 goes to the tier as soon as it is summed, and is
 * added there to those of earlier backwards. At stage 3 the chunk can live there too: it is
 * read when its unit is entered, and the unit that came next the last time is read ahead while
 * this one is at work, where memory allows. */
#ifndef LM_OFFLOAD_H
#define LM_OFFLOAD_H

#include "runtime/tensor.h"
#include "runtime/tier.h"

typedef struct lm_offload lm_offload;

/* Places in the tier, reserved and kept by the caller, as is the tier: of the chunk's gradient,
 * in f32, and of the chunk, which is written there and leaves memory; negative: it stays. */
LM_API int lm_offload_new(lm_tensor *p, lm_tier *tier, int64_t gradient, int64_t chunk,
                          lm_offload **out);
/* 1, and its sum of squares, when there is a gradient; 0 when there is none. */
LM_API int lm_offload_gradient(const lm_offload *o, double *squares);
/* The next gradient is the first again. */
LM_API void lm_offload_forget(lm_offload *o);
/* Chunks are about to be written in their tiers: what was read ahead is of no more use. */
LM_API int lm_offload_discard(void);
LM_API void lm_offload_release(lm_offload *o); /* NULL is a no-op */

#endif
