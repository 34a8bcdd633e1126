/* tier_impl.h - what a kind of tier fills in. tier.c queues, waits and counts for all kinds. */
#ifndef LM_TIER_IMPL_H
#define LM_TIER_IMPL_H

#include "runtime/tier.h"

#include <pthread.h>
#include <stdbool.h>

typedef struct lm_tier_kind {
    /* The first `size` bytes exist from now on; `before` of them did already. */
    int (*grow)(lm_tier *t, int64_t before, int64_t size);
    /* On the worker thread, which may touch nothing but these bytes: 0 or an errno; -1: the
     * tier ends too early. */
    int (*write)(lm_tier *t, int64_t offset, const char *src, int64_t bytes);
    int (*read)(lm_tier *t, int64_t offset, char *dst, int64_t bytes);
    void (*free)(lm_tier *t);
} lm_tier_kind;

enum { LM_TIER_QUEUE = 64 }; /* begun and not done; one more waits for the first */

typedef struct lm_tier_job {
    int64_t offset, bytes;
    char *dst;       /* a read's */
    const char *src; /* a write's */
} lm_tier_job;

struct lm_tier {
    int refs;
    const lm_tier_kind *kind;
    const char *place; /* for sentences: "a file in /tmp" */
    int64_t reserved, written, read, begun;
    pthread_t worker;
    pthread_mutex_t lock; /* over what follows */
    pthread_cond_t changed;
    lm_tier_job queue[LM_TIER_QUEUE]; /* number n is at n % LM_TIER_QUEUE */
    int64_t last, done;
    bool closing;
    int error; /* of the first job that failed; those after it are passed over */
    lm_tier_job failed;
};

/* Starts the worker of a tier whose kind and place are set, and which is zero otherwise. */
int lm__tier_start(lm_tier *t);

#endif
