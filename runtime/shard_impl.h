/* shard_impl.h - units, chunks and regions as the runtime's own files know them. */
#ifndef LM_SHARD_IMPL_H
#define LM_SHARD_IMPL_H

#include "runtime/shard.h"
#include "runtime/tape.h"

/* Another place for what a rank owns (an offload tier), instead of memory. Each returns 0 or a
 * failure. */
typedef struct lm__lodging {
    void *self;
    /* The chunk's bytes, in the parameter's dtype, into memory that is there already. */
    int (*fetch)(void *self, const lm_shard *s, void *dst);
    /* The same bytes in a buffer that was allocated as a storage's are and is the caller's from
     * now on; NULL when none is ready, or the chunk is not the whole. */
    char *(*hand_over)(void *self, const lm_shard *s);
    /* The chunk's bytes changed in memory (a write inside a region): keep them. */
    int (*store)(void *self, const lm_shard *s, const void *src);
    /* The summed f32 gradient of the chunk, to be added to what came before in this step. */
    int (*take)(void *self, const lm_shard *s, const float *grad);
    /* That sum is of no more use; the next gradient is the first. */
    void (*forget)(void *self);
} lm__lodging;

/* One parameter. */
struct lm_shard {
    lm_unit *unit; /* borrowed: it holds us */
    lm_tensor *param;
    char *name;
    lm_group *group; /* its replicas; NULL: this rank alone */
    int stage, ranks, rank;
    int64_t first, count; /* elements of our chunk */
    int64_t *bytes;       /* [ranks] of each chunk */
    lm_tensor *chunk;     /* stages 1, 2: a view of the parameter; 3: all that stays of it */
    uint32_t version;     /* of the parameter when it was gathered */
    lm_async *arrival;    /* of the others' chunks, while `next` is in the list of those */
    lm_shard *next;
    bool sent;            /* its gradient has left since the last lm_shard_reduce */
    lm__lodging *lodging; /* borrowed; NULL: memory */
};

struct lm_unit {
    int refs;
    char *name;
    lm_shard **shard;
    int count, room;
    int inside;    /* open regions of it, in forward and in walks */
    bool here;     /* parameters of stage 3 are gathered */
    int64_t left;  /* nodes and uses of parameters that backward has still to go through */
    bool done;     /* it got to 0, and the gradients wait to be sent */
    lm_unit *next; /* in the list of those */
};

typedef struct lm_region {
    int refs;
    lm_unit *unit;
    struct lm_region *parent; /* NULL: the outermost */
} lm_region;

/* The shard of a parameter (not of a view of it), or NULL. */
static inline lm_shard *lm__shard_of(const lm_tensor *p) {
    lm_shard *s = p->storage ? p->storage->shard : NULL;
    return s && s->param == p ? s : NULL;
}
/* Bytes that are away are about to be used: gathers the unit inside its region, else fails. */
int lm__shard_needed(const char *op, lm_storage *s);
/* Nobody else's gradient is added to p's, nor is it divided. */
static inline bool lm__shard_alone(const lm_tensor *p) {
    const lm_shard *s = lm__shard_of(p);
    return !s || (s->ranks == 1 && s->stage == 0);
}
/* The parameter's gradient was taken away: so is the chunk's. */
int lm__shard_forget(lm_tensor *p);
/* LM_EGRAD when a gradient for p comes although its sum is under way or done. */
int lm__shard_late(const char *op, const lm_tensor *p);
/* The chunk's summed gradient, from f32 [count]; added to what is there. */
int lm__shard_take(lm_shard *s, const float *grad);
int lm__unit_gather(lm_unit *u);
int lm__chunks_settle(void); /* waits for parameters under way */
void lm__unit_drop(lm_unit *u);

/* The region that new nodes belong to: a new reference, or NULL. */
lm_region *lm__region_now(void);
void lm__region_set(lm_region *r); /* borrowed */
void lm__region_release(lm_region *r);
/* From *at, and all regions around it, into `to`; NULL is outside of all. Takes over what was
 * written, sends what is done, gathers. On failure *at is still `to`. */
int lm__region_cross(lm_region **at, lm_region *to, bool last);

/* A walk will go through n; it did; it was given up. */
void lm__unit_expect(const lm_node *n);
void lm__unit_passed(const lm_node *n);
void lm__unit_abandon(const lm_node *n);
void lm__units_give_up(void); /* those that wait to be sent are not */

/* Sends the unit's gradients: those of stages 2 and 3, of all stages when `all`, and none that
 * was sent before when `once`. */
int lm__unit_send(lm_unit *u, bool all, bool once);
/* Takes in what has arrived, without waiting. */
int lm__buckets_progress(void);

#endif
