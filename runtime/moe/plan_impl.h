/* plan_impl.h - what the files of this folder know of a plan. */
#ifndef LM_PLAN_IMPL_H
#define LM_PLAN_IMPL_H

#include "runtime/moe.h"

#include <stdbool.h>

enum { LM_PLAN_BLOCKS = 20 };

typedef struct lm__plan_block {
    void *data;
    int64_t bytes;
    int purpose;
} lm__plan_block;

struct lm_plan {
    int refs;
    int64_t tokens, rows, arrivals;
    int64_t copies; /* what leaves: each row once for every rank of its place */
    int top_k, experts, local_experts, etp;
    int64_t capacity, valid_tokens;
    bool over; /* some expert is over its capacity */
    char hash[17];

    int64_t *routed, *kept; /* [experts], all ranks */

    int32_t *expert_id;  /* [tokens, top_k]: -1 where padding or not routed */
    uint8_t *dropped;    /* [tokens, top_k] */
    int64_t *token_id;   /* [tokens] */
    int32_t *by_token;   /* [tokens]: local tokens by rising token_id; NULL: as they are */
    int32_t *row_of;     /* [tokens, top_k] */
    int32_t *route_of;   /* [rows] */
    int32_t *token_of;   /* [copies]: the local token */
    int32_t *row_at;     /* [copies]: the row; NULL when etp is 1 */
    int32_t *copy_of;    /* [rows, etp]: its copies, by rank; NULL when etp is 1 */
    int32_t *owner;      /* [experts]: the place */
    int64_t *sends;      /* [ranks of expert group] */
    int64_t *receives;   /* [ranks of expert group] */
    int32_t *expert_of;  /* [local_experts] */
    int64_t *offsets;    /* [local_experts + 1] */
    int32_t *arrival_of; /* [arrivals] or NULL */
    int32_t *arrival_at; /* [arrivals] or NULL: its inverse */
    lm_group *expert;    /* NULL: this process alone */

    int blocks;
    lm__plan_block block[LM_PLAN_BLOCKS];
};

/* What each rank of the data group says first, followed by its routes per expert. */
typedef struct lm__plan_head {
    int64_t status, valid_tokens, tokens, first_id, last_id;
} lm__plan_head;

/* The heads of the data group: head(r) and counts(r). */
typedef struct lm__plan_heads {
    int ranks, experts;
    int64_t *words;
} lm__plan_heads;

static inline lm__plan_head *lm__head(const lm__plan_heads *h, int rank) {
    return (lm__plan_head *)(void *)(h->words + (int64_t)rank * (5 + h->experts));
}
static inline int64_t *lm__head_counts(const lm__plan_heads *h, int rank) {
    return h->words + (int64_t)rank * (5 + h->experts) + 5;
}

/* Stirs x into h (splitmix64). */
static inline uint64_t lm__mix(uint64_t h, uint64_t x) {
    h += x + 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9u;
    h = (h ^ h >> 27) * 0x94D049BB133111EBu;
    return h ^ h >> 31;
}

/* An array that lives as long as the plan; zeroed; never NULL when it succeeds. */
int lm__plan_array(lm_plan *p, int64_t count, size_t size, void *out);

/* select.c: marks the routes over capacity in p->dropped. */
int lm__plan_select(lm_plan *p, const lm_plan_spec *spec, lm_group *data);
/* layout.c: rows, sends, receives, arrivals. */
int lm__plan_layout(lm_plan *p, const lm__plan_heads *heads, lm_group *data, lm_group *expert);

#endif
