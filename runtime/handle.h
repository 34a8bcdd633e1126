/* handle.h - what Lua holds of a tensor: a slot number and its generation.
 *
 * A handle owns one reference. Dropping it raises the slot's generation, so a
 * stale handle is noticed instead of followed. Inside a scope handles need no
 * finalizer: lm_scope_leave drops all that the scope made and nobody kept. */
#ifndef LM_HANDLE_H
#define LM_HANDLE_H

#include "runtime/tensor.h"

typedef struct lm_handle {
    uint32_t slot, gen;
} lm_handle;

typedef struct lm_slot {
    lm_tensor *tensor;
    uint32_t gen;
    uint32_t scope; /* the depth it belongs to; 0: to none */
} lm_slot;

/* The table never moves, so Lua reads it directly. Slot 0 is never used. */
LM_API lm_slot *lm_handle_slots(void);
/* Takes over the caller's reference. Returns 1 when the handle belongs to a scope, 0 when
 * it is outside of any (Lua then gives it a finalizer), negative when there is no slot left. */
LM_API int lm_handle_new(lm_tensor *t, lm_handle *out);
LM_API void lm_handle_drop(lm_handle *h); /* a stale handle is a no-op */
LM_API int lm_scope_enter(void);          /* the depth, from 1 */
LM_API void lm_scope_leave(void);
LM_API int lm_scope_depth(void);
/* The handle outlives its scopes. Returns 1 if it belonged to one. */
LM_API int lm_scope_keep(const lm_handle *h);
/* The handle outlives the innermost scope, if it belongs to that, and belongs to the one
 * around it from then on. Returns 1 when there is none around: it is outside of any now. */
LM_API int lm_scope_lift(const lm_handle *h);

#endif
