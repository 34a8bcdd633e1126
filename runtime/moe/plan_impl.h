/* plan_impl.h - what the files of this folder know of a plan. */
#ifndef LM_PLAN_IMPL_H
#define LM_PLAN_IMPL_H

#include "runtime/moe.h"

#include <stdbool.h>

enum { LM_PLAN_BLOCKS = 40 };

typedef struct lm__plan_block {
    void *data;
    int64_t bytes;
    int purpose;
} lm__plan_block;

/* Things that go from each rank to each, side by side in the order of the ranks. */
typedef struct lm__wire {
    int64_t *sends, *receives; /* [ranks]: how many */
    int64_t *pairs;            /* [ranks, ranks]: every rank's sends; NULL: way direct */
    int64_t leaving, arriving; /* sums of sends, of receives */
} lm__wire;

/* What crosses between hosts when a row crosses once (per_host.c). */
typedef struct lm__per_host {
    int64_t *sends, *receives; /* [ranks]: rows across */
    int64_t leaving, arriving; /* sums */
    int64_t *inside;           /* [2, ranks]: sends and receives inside the host */
    int64_t inside_out, inside_in;
    int32_t *across_at; /* [leaving]: the first copy of each row */
    int32_t *inside_at; /* [inside_out]: a row that came across, or our copy c as -c - 1 */
    int32_t *to_at;     /* [received]: where each parcel is in what comes inside */
    int32_t *sum_of;    /* [arriving, slots]: of inside_out, -1 after the last */
    int slots;
} lm__per_host;

/* One leg under way, between its start and its finish (exchange.c). */
typedef struct lm__flight {
    struct lm__carry *carry;
    lm_tensor *from, *to;
} lm__flight;

struct lm_plan {
    int refs;
    int64_t tokens, rows, arrivals;
    int top_k, experts, local_experts, etp;
    int64_t capacity, valid_tokens;
    bool over; /* some expert is over its capacity */
    char hash[17];

    int64_t *routed, *kept; /* [experts], all ranks */

    int32_t *expert_id; /* [tokens, top_k]: -1 where padding or not routed */
    uint8_t *dropped;   /* [tokens, top_k] */
    int64_t *token_id;  /* [tokens] */
    int32_t *by_token;  /* [tokens]: local tokens by rising token_id; NULL: as they are */
    int32_t *row_of;    /* [tokens, top_k] */
    int32_t *route_of;  /* [rows] */
    int32_t *owner;     /* [experts]: the place */
    int place;          /* this rank's */
    int32_t *expert_of; /* [local_experts]: its own by id, then shadows of others by id */
    int own_experts;
    uint8_t *shadow;  /* [experts]: kept at home by every rank; NULL: none */
    int shadows;      /* of all ranks */
    int64_t *offsets; /* [local_experts + 1] */

    /* Parcels leave as copies, one for each rank of their place. */
    bool once;
    int64_t parcels;    /* of this rank's tokens */
    int fan;            /* parcels of a token, at most */
    lm__wire wire;      /* of copies */
    int32_t *token_of;  /* [copies]: the local token */
    int32_t *parcel_at; /* [copies]: the parcel; NULL when etp is 1 */
    int32_t *copy_of;   /* [parcels, etp]: its copies, by rank; NULL when etp is 1 */
    int32_t *parcel_of; /* [tokens, fan]: by place, -1 after the last; row_of unless once */

    /* From parcels received to arrivals: one each, or with once up to `width`. */
    int width;
    int32_t *arrival_of; /* [arrivals] the parcel, or NULL: in order */
    int32_t
        *arrival_at; /* [received, width]: its arrivals, by slot, -1 after the last; or NULL */
    lm__wire routes; /* once: of weights, each parcel's by slot, parcel after parcel */
    int32_t *route_at;     /* once: [copies of routes]: the route */
    lm__per_host per_host; /* once, over two levels */

    lm_group *expert; /* NULL: this process alone */
    int way;
    int32_t *host;                  /* [ranks of expert group] */
    int64_t *traffic;               /* [LM_LEGS, ranks, 3] */
    lm__flight flight[2 * LM_LEGS]; /* parcels on their way, and what is no parcel */

    lm_plan *whole; /* of a part: the plan that it is a part of, and that owns it */
    int parts;      /* of a whole, or 0 */
    lm_plan **part; /* [parts]: the same for some of the tokens each */

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

static inline int lm__plan_ranks(const lm_plan *p) {
    return p->expert ? lm_group_size(p->expert) : 1;
}

/* Where this rank's rows for an expert go. */
static inline int lm__place_of(const lm_plan *p, int expert) {
    return p->shadow && p->shadow[expert] ? p->place : p->owner[expert];
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

/* layout.c: rows, parcels, arrivals. */
typedef struct lm__layout { /* what is known of the expert group */
    int ranks, rank;
    int64_t *kept;   /* [ranks, experts]: rows of each rank for each expert */
    int *order;      /* the ranks that have tokens, by their first id ... */
    int with_tokens; /* ... so many; */
    bool in_turn;    /* or, when their ranges overlap, false */
} lm__layout;

int lm__plan_layout(lm_plan *p, const lm__plan_heads *heads, const lm_plan_spec *spec,
                    lm_group *data, lm_group *expert);
int lm__plan_order(lm_plan *p, const lm__layout *l);  /* the same, once that is known */
void lm__count_kept(const lm_plan *p, int64_t *mine); /* [experts]: this rank's rows */
/* Other ranks' rows for shadows do not come here. */
void lm__keep_home(const lm_plan *p, lm__layout *l);
/* shadow.c: which experts are more than `over` times as busy as the mean; 0: none. */
int lm__plan_shadow(lm_plan *p, double over);
/* part.c: p in n parts by its tokens. */
int lm__plan_divide(lm_plan *p, int parts, lm__layout *l, const lm_plan_spec *spec);
/* once.c: the same when a token goes to a place once. */
int lm__once_layout(lm_plan *p, const lm__layout *l);
/* For both: parcel i is of local token token[i], and parcels lie by place. */
int lm__parcels_leave(lm_plan *p, const int32_t *token, const int64_t *parcels_of_place);
/* The global token of each parcel received; free it. */
int lm__parcel_tokens(lm_plan *p, int64_t **out);

/* wire.c: moves things of `each` bytes, or back to where they came from. */
typedef struct lm__load {
    int leg;
    bool rows; /* they count as rows */
    bool back;
    int64_t each;
    int dtype; /* of rows: dim numbers each */
    int64_t dim;
} lm__load;

/* Things on their way. */
typedef struct lm__carry {
    lm_plan *plan; /* borrowed */
    const lm__wire *wire;
    lm__load load;
    const char *from;
    char *to;
    lm_async *flight;
    int (*then)(struct lm__carry *); /* after the flight; or NULL */
    void *room;                      /* for what is packed */
    int64_t room_bytes, arrived_at;  /* arrived_at: in room */
    int room_purpose;
} lm__carry;

int lm__wire_new(lm_plan *p, lm__wire *w); /* its arrays, all 0 */
/* Once sends and receives are known: sums; and pairs, where the way needs them (collective). */
int lm__wire_ready(lm_plan *p, lm__wire *w);
/* from and to stay as they are until the wait. */
int lm__carry_start(lm_plan *p, const lm__wire *w, const lm__load *load, const void *from,
                    void *to, lm__carry **out);
int lm__carry_wait(lm__carry *c);  /* frees it, as does */
void lm__carry_drop(lm__carry *c); /* NULL is a no-op */
/* For those that nobody will finish: waits for what is under way, which all ranks have started,
 * and goes no further. */
void lm__carry_settle(lm__carry *c);
/* Memory for messages, zeroed, for a while. (A message's memory is the runtime's: dist.h.) */
int lm__room_new(int64_t count, size_t size, void *out);
void lm__room_free(void *p); /* NULL is a no-op */
/* sends[r] things to each rank, exactly; counted. */
int lm__wire_swap(lm_plan *p, const lm__load *load, const void *from, const int64_t *sends,
                  void *to, const int64_t *receives);
/* For the ways: the same without waiting; and room. */
int lm__carry_swap(lm__carry *c, const void *from, const int64_t *sends, void *to,
                   const int64_t *receives);
int lm__carry_room(lm__carry *c, int64_t bytes);
/* two_level.c */
int lm__carry_two_level(lm__carry *c);
/* per_host.c */
int lm__per_host_new(lm_plan *p);
int lm__carry_per_host(lm__carry *c);

#endif
