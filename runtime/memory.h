/* memory.h - every byte a tensor holds: where it comes from, what it is for,
 * how much there may be.
 *
 * Buffers come from a pool and go back to it, so that a training loop soon asks
 * the system for nothing. Each buffer is
 * booked under a purpose; lm_memory_live and lm_memory_peak report them. */
#ifndef LM_MEMORY_H
#define LM_MEMORY_H

#include "runtime/status.h"

enum {
    LM_MEM_ACTIVATIONS = 0,
    LM_MEM_PARAMETERS = 1,
    LM_MEM_GRADIENTS = 2,
    LM_MEM_OPTIMIZER = 3,
    LM_MEM_EXCHANGE = 4,
    LM_MEM_PURPOSES = 5
};

/* Bytes in use (not those that the pool keeps for reuse). purpose -1: all. */
LM_API double lm_memory_live(int purpose);
/* The most that was ever in use since the start or lm_memory_reset_peak. */
LM_API double lm_memory_peak(int purpose);
LM_API void lm_memory_reset_peak(void);
/* Bytes that the pool holds for reuse. */
LM_API double lm_memory_pooled(void);
/* Gives the pool's bytes back to the system. */
LM_API void lm_memory_trim(void);
/* No more than `bytes` may be live; 0 lifts the limit. Over it: LM_EOOM. */
LM_API void lm_memory_set_limit(double bytes);
LM_API double lm_memory_limit(void);
/* Above so many, what is under way or read ahead gives way as it would at the limit, but
 * nothing fails; 0 lifts it. So a peak can be measured as it would be under a limit. */
LM_API void lm_memory_set_soft_limit(double bytes);
/* New buffers are booked under this purpose. Returns the one before. */
LM_API int lm_memory_set_purpose(int purpose);

/* Pieces of memory that messages of failed collectives may still touch (runtime/pin.c). */
LM_API int lm_memory_pins(void);

/* Headers, storages and tape nodes in use. */
LM_API double lm_memory_objects(void);

/* Tests: the n-th allocation from now fails, and all after it; -n: that one alone; 0 disarms.
 */
LM_API void lm_test_fail_alloc(int n);

#endif
