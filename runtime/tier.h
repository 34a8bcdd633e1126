/* tier.h - a second place for bytes: slower than memory, and much larger.
 *
 * What a rank does not need at the moment (optimizer state, gradients, parameters
 * of other layers) lies in a tier and passes through memory in pieces. Space is
 * reserved before it is used, so that what does not fit fails at the start.
 *
 * Reads and writes are begun here and done by one worker thread, in the order in
 * which they were begun: a read sees every write begun before it. The memory
 * given to them belongs to the worker until lm_tier_wait has returned for them. */
#ifndef LM_TIER_H
#define LM_TIER_H

#include "runtime/status.h"

typedef struct lm_tier lm_tier;

/* A file in a directory. It has no name: when the process ends, however that happens, its space
 * is free again. mapped: not 0 when bytes move through a mapping of it, instead of by reading
 * and writing. */
LM_API int lm_tier_file(const char *dir, int mapped, lm_tier **out);
/* Space for `bytes` more; offset: where they lie. */
LM_API int lm_tier_reserve(lm_tier *t, int64_t bytes, int64_t *offset);

/* Begin. Only an earlier failure of the worker, or a range that was not reserved, is an error.
 */
LM_API int lm_tier_write(lm_tier *t, int64_t offset, LM_MAYBE const void *src, int64_t bytes);
LM_API int lm_tier_read(lm_tier *t, int64_t offset, LM_MAYBE void *dst, int64_t bytes);
/* How many reads and writes were begun so far: after one, its number. */
LM_API double lm_tier_begun(const lm_tier *t);
/* Returns when the first `number` of them are done. What the worker failed at is reported here.
 */
LM_API int lm_tier_wait(lm_tier *t, double number);

/* Bytes reserved, and bytes moved since it was opened. */
LM_API double lm_tier_reserved(const lm_tier *t);
LM_API double lm_tier_bytes_written(const lm_tier *t);
LM_API double lm_tier_bytes_read(const lm_tier *t);
LM_API void lm_tier_retain(lm_tier *t);
/* The last one waits for what was begun, then gives the space back. NULL is a no-op. */
LM_API void lm_tier_release(lm_tier *t);

#endif
