/* arena_impl.h - large buffers out of one range of addresses (runtime/arena.c). */
#ifndef LM_ARENA_IMPL_H
#define LM_ARENA_IMPL_H

#include <stdint.h>

/* 64-byte aligned, of undefined contents; NULL when there is no memory. */
void *lm__arena_alloc(int64_t bytes);
void lm__arena_free(void *p);
/* Bytes that it holds and nobody uses. */
int64_t lm__arena_idle(void);
/* Gives them back to the system. */
void lm__arena_trim(void);

#endif
