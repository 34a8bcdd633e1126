/* moe.h - the plan of a Mixture-of-Experts layer, and moving tokens by it.
 *
 * A router says which experts each token wants. The plan turns that into what
 * happens: which routes exceed an expert's capacity and are dropped, in which
 * order the rows leave this rank, and in which order they reach each expert. It
 * is made once per layer and micro-batch, by all ranks together, and never
 * changes: forward, backward, recomputation and replay read the same plan.
 *
 * Words: a route is one (token, slot), slot < top_k, numbered token * top_k +
 * slot. A row is a route that was kept, at its place in the send order. An
 * arrival is a row that this rank receives for its own experts, counted in
 * expert order.
 *
 * A place is where an expert lives: one rank of the expert group, or, when each
 * expert is cut into etp slices, etp neighbouring ranks, place-major. A row then
 * travels to every rank of its place; each returns a partial sum.
 *
 * A parcel is what travels: a row; or, with `once`, one row of a token for all its
 * routes to one place, which spreads it to its experts, weighs what they give, and
 * returns one partial sum. */
#ifndef LM_MOE_H
#define LM_MOE_H

#include "runtime/dist.h"
#include "runtime/tensor.h"

typedef struct lm_plan lm_plan;

/* Whose routes survive when an expert is over its capacity. Ties: lower token, then slot. */
enum {
    LM_SELECT_RANDOM = 0,      /* smallest random key: Random Token Selection, for any k */
    LM_SELECT_POSITION = 1,    /* lower slot, then lower token */
    LM_SELECT_PROBABILITY = 2, /* higher score */
    LM_SELECT_PRIORITY = 3     /* higher priority, as given */
};

/* How parcels get from rank to rank. */
enum {
    LM_WAY_DIRECT = 0,   /* each rank to each, exactly what there is */
    LM_WAY_PADDED = 1,   /* as direct, but as much between any two as between the busiest two:
                            what exact rows save, for comparison */
    LM_WAY_TWO_LEVEL = 2 /* to another host in one message, to the rank with the same number
                            there, which hands on inside the host; with once, one row of a
                            token for all its parcels there */
};

typedef struct lm_plan_spec {
    const char *router; /* its name, for errors */
    int64_t tokens;     /* of this rank */
    int32_t top_k;
    int32_t experts;

    const void *expert_ids; /* [tokens, top_k] i32 or i64; -1: no route in this slot */
    int32_t expert_ids_dtype;
    int32_t select;
    const int64_t *token_ids; /* [tokens], unique over all ranks; NULL: 0, 1, 2, ... */
    const uint8_t *valid;     /* [tokens], 0 = padding: never routed, never counted; or NULL */
    const float *scores;      /* [tokens, experts], checked for NaN; or NULL */
    const double *priorities; /* [tokens, top_k], for LM_SELECT_PRIORITY */

    const int32_t *owner; /* [experts] -> place, 0 .. ranks / etp - 1; NULL: even blocks */
    int32_t etp;          /* slices that an expert is cut into; 0 is 1 */
    int32_t once;         /* one parcel for all of a token's routes to a place */
    int32_t way;          /* LM_WAY_* */
    const int32_t *hosts; /* [ranks of the expert group], for two levels; NULL: as they are */
    int32_t parts; /* of the plan, by tokens: rows of one travel while those of another are
                      with the experts; 0 or 1: it stays whole */
    double shadow; /* experts with more than so many times the mean load are on every rank for
                      this plan, and their rows stay at home; 0: none. Needs etp 1 */
    double capacity_factor; /* capacity = ceil(factor * top_k * T / experts), T = valid tokens
                               of all ranks; negative: dropless */

    uint64_t seed, stream; /* what random keys are drawn from: lm_random_stream(site, call) */

    int32_t status; /* a failure of this rank before the plan: all ranks then get this error */
    const char *error; /* its sentence */
} lm_plan_spec;

/* Collective over `data` (the ranks that hold the tokens of the micro-batch) and `expert` (the
 * ranks over which one set of experts is spread; part of data). NULL: this process alone. */
LM_API int lm_plan_new(const lm_plan_spec *spec, LM_MAYBE lm_group *data,
                       LM_MAYBE lm_group *expert, lm_plan **out);
LM_API void lm_plan_retain(lm_plan *p);
LM_API void lm_plan_release(lm_plan *p); /* NULL is a no-op */

/* Parts: plans of their own for tokens * i / parts .. tokens * (i + 1) / parts of this rank.
 * They live as long as the whole; retaining one retains it. */
LM_API int lm_plan_parts(const lm_plan *p); /* 0: it is whole */
LM_API lm_plan *lm_plan_part(const lm_plan *p, int part);

/* Sizes. All arrays below belong to the plan and must not be written. */
LM_API double lm_plan_tokens(const lm_plan *p);
LM_API int lm_plan_top_k(const lm_plan *p);
LM_API int lm_plan_experts(const lm_plan *p);
LM_API int lm_plan_local_experts(const lm_plan *p); /* its own, then shadows of others' */
LM_API int lm_plan_own_experts(const lm_plan *p);
LM_API int lm_plan_shadows(const lm_plan *p); /* of all ranks */
LM_API int lm_plan_is_shadow(const lm_plan *p, int expert);
LM_API double lm_plan_rows(const lm_plan *p);
LM_API double lm_plan_arrivals(const lm_plan *p);
LM_API double lm_plan_capacity(const lm_plan *p);     /* -1: dropless */
LM_API double lm_plan_valid_tokens(const lm_plan *p); /* of all ranks */
LM_API const char *lm_plan_hash(const lm_plan *p);    /* 16 hex digits: of this rank's part */

/* Over all ranks. */
LM_API const int64_t *lm_plan_routed(const lm_plan *p); /* [experts], before dropping */
LM_API const int64_t *lm_plan_kept(const lm_plan *p);   /* [experts] */

/* What this rank has sent so far: [LM_LEGS, ranks of the expert group] of { rows, bytes,
 * messages }; nothing goes to itself. What is not rows (weights, which expert a row is for)
 * counts in bytes and messages. */
enum {
    LM_LEG_PLAN = 0, /* making the plan, without the counts that all ranks exchange first */
    LM_LEG_DISPATCH = 1,
    LM_LEG_COMBINE = 2,
    LM_LEG_DISPATCH_BACKWARD = 3,
    LM_LEG_COMBINE_BACKWARD = 4,
    LM_LEG_SHADOW = 5, /* weights of experts, by tensor */
    LM_LEG_SHADOW_BACKWARD = 6,
    LM_LEGS = 7
};
LM_API const int64_t *lm_plan_traffic(const lm_plan *p);

/* This rank's tokens. */
LM_API const int32_t *lm_plan_expert_ids(const lm_plan *p); /* [tokens, top_k]; -1: none */
LM_API const int32_t *lm_plan_row_of(const lm_plan *p); /* [tokens, top_k]; -1: dropped, none */
LM_API const int32_t *lm_plan_route_of(const lm_plan *p); /* [rows] */
LM_API const int64_t *lm_plan_sends(const lm_plan *p); /* parcels to each rank of the group */

/* This rank's experts: local expert i is expert_of[i]; its arrivals are
 * offsets[i] .. offsets[i + 1]. Arrival a is parcel arrival_of[a] of those received. */
LM_API const int32_t *lm_plan_expert_of(const lm_plan *p);
LM_API const int64_t *lm_plan_offsets(const lm_plan *p);    /* [local experts + 1] */
LM_API const int64_t *lm_plan_receives(const lm_plan *p);   /* parcels from each rank */
LM_API const int32_t *lm_plan_arrival_of(const lm_plan *p); /* [arrivals]; NULL: in order */

/* x's rows, of which each token has top_k, as they reach this rank's experts:
 * [tokens, dim] -> [arrivals, dim], in the order (expert, token, slot). */
LM_API int lm_moe_dispatch(lm_plan *p, lm_tensor *x, lm_tensor **out);
/* Each expert's own linear map of its arrivals: x [arrivals, in], weight [local experts, out,
 * in], bias [local experts, out] -> [arrivals, out]. */
LM_API int lm_moe_linear(lm_plan *p, lm_tensor *x, lm_tensor *weight, LM_MAYBE lm_tensor *bias,
                         lm_tensor **out);
/* Experts that are feed-forward networks, down(f(up(x))), in one: up [local experts, hidden,
 * dim], or twice hidden for LM_FFN_SWIGLU, gate above up: silu(gate) up; down [local experts,
 * dim, hidden]; biases [local experts, ..]. x [arrivals, dim] -> [arrivals, dim]. With weights
 * [tokens, top_k], which wants a plan at home, x are the tokens, and so is what comes out: both
 * dispatch and combine. recompute: what is between the products is not kept for backward. */
enum { LM_FFN_RELU, LM_FFN_GELU, LM_FFN_GELU_TANH, LM_FFN_SILU, LM_FFN_SWIGLU };
LM_API int lm_moe_ffn(lm_plan *p, lm_tensor *x, lm_tensor *up, LM_MAYBE lm_tensor *up_bias,
                      lm_tensor *down, LM_MAYBE lm_tensor *down_bias,
                      LM_MAYBE lm_tensor *weights, int activation, int recompute,
                      lm_tensor **out);
/* All experts are this process's own, and the plan is whole. */
LM_API int lm_plan_at_home(const lm_plan *p);
/* Weights of this rank's own experts [own experts, ...] -> of its local ones [local experts,
 * ...]: those of shadows come from their owners, and their gradients go there. Collective when
 * there are any. */
LM_API int lm_moe_shadow(lm_plan *p, lm_tensor *weight, lm_tensor **out);
/* The way back: x [arrivals, dim] -> [tokens, dim], each token the sum of weights [tokens,
 * top_k] times its rows, in the order of the slots; dropped routes add nothing. */
LM_API int lm_moe_combine(lm_plan *p, lm_tensor *x, lm_tensor *weights, lm_tensor **out);

/* Both in two halves, for what computes while rows are on their way; weights NULL: they go
 * along with combine_start. A leg of a plan is under way once at a time. */
LM_API int lm_moe_dispatch_start(lm_plan *p, lm_tensor *x, LM_MAYBE lm_tensor *weights);
LM_API int lm_moe_dispatch_finish(lm_plan *p, lm_tensor **out);
LM_API int lm_moe_combine_start(lm_plan *p, lm_tensor *x, lm_tensor *weights);
LM_API int lm_moe_combine_finish(lm_plan *p, lm_tensor *weights, lm_tensor **out);
/* After an error in between: waits for what is under way, of all parts, and forgets it. */
LM_API int lm_moe_abandon(lm_plan *p);

/* How much of each expert: gathers [tokens, top_k] from scores [tokens, experts], in f32.
 * Divided by a token's sum over the routes it chose, over those that were kept, or not at all.
 */
enum { LM_NORMALIZE_NONE = 0, LM_NORMALIZE_CHOSEN = 1, LM_NORMALIZE_KEPT = 2 };
LM_API int lm_moe_weights(lm_plan *p, lm_tensor *scores, int normalize, lm_tensor **out);

/* The largest of n tags, -1 for none. */
LM_API int lm_max_tag(const int32_t *tag_of, int64_t n);
/* Adds this rank's routes to counts by tag: routed and dropped are [tags, experts]. Tags
 * outside 0 .. tags - 1 are not counted. */
LM_API int lm_plan_count_by_tag(const lm_plan *p, const int32_t *tag_of, int tags,
                                int64_t *routed, int64_t *dropped);

#endif
