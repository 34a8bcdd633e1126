/* part.c - a plan in parts: some of the tokens each, with an order of rows of their own.
 *
 * What was decided (who goes where, who is dropped) is the whole plan's, and so are
 * the arrays that say it: a part looks at its stretch of them. Only rows and arrivals
 * are ordered anew, for which the ranks tell each other once how many rows each part
 * has for each expert. */
#include "runtime/moe/plan_impl.h"

#include <stdlib.h>

static int order_tokens(lm_plan *part, const lm_plan *whole, int64_t first) {
    if (!whole->by_token) return LM_OK;
    int st = lm__plan_array(part, part->tokens, sizeof *part->by_token, &part->by_token);
    int64_t n = 0;
    for (int64_t i = 0; i < whole->tokens && st == LM_OK; i++) {
        int64_t t = whole->by_token[i] - first;
        if (t >= 0 && t < part->tokens) part->by_token[n++] = (int32_t)t;
    }
    return st;
}

static int part_new(lm_plan *whole, int i, int parts, const lm_plan_spec *spec, lm_plan **out) {
    lm_plan *p = calloc(1, sizeof *p);
    if (!p) return lm_fail(LM_EOOM, "plan: no memory");
    int64_t first = whole->tokens * i / parts;
    *p = (lm_plan){.whole = whole,
                   .tokens = whole->tokens * (i + 1) / parts - first,
                   .top_k = whole->top_k,
                   .experts = whole->experts,
                   .local_experts = whole->local_experts,
                   .own_experts = whole->own_experts,
                   .place = whole->place,
                   .shadow = whole->shadow,
                   .shadows = whole->shadows,
                   .etp = whole->etp,
                   .capacity = whole->capacity,
                   .valid_tokens = whole->valid_tokens,
                   .over = whole->over,
                   .routed = whole->routed,
                   .kept = whole->kept,
                   .expert_id = whole->expert_id + first * whole->top_k,
                   .dropped = whole->dropped + first * whole->top_k,
                   .token_id = whole->token_id + first,
                   .owner = whole->owner,
                   .expert_of = whole->expert_of,
                   .once = spec->once && whole->expert,
                   .expert = whole->expert,
                   .way = whole->way,
                   .host = whole->host,
                   .traffic = whole->traffic};
    *out = p;
    int st = lm__plan_array(p, p->tokens * p->top_k, sizeof *p->row_of, &p->row_of);
    return st == LM_OK ? order_tokens(p, whole, first) : st;
}

int lm__plan_divide(lm_plan *p, int parts, lm__layout *l, const lm_plan_spec *spec) {
    int64_t all = (int64_t)parts * p->experts, *kept = NULL;
    p->part = calloc((size_t)parts, sizeof *p->part);
    int st = p->part ? LM_OK : lm_fail(LM_EOOM, "plan: no memory");
    p->parts = st == LM_OK ? parts : 0;
    for (int i = 0; i < parts && st == LM_OK; i++)
        st = part_new(p, i, parts, spec, &p->part[i]);
    if (st == LM_OK) st = lm__room_new(all * l->ranks, sizeof *kept, &kept);
    for (int i = 0; i < parts && st == LM_OK; i++)
        lm__count_kept(p->part[i], kept + l->rank * all + (int64_t)i * p->experts);
    if (st == LM_OK && l->ranks > 1)
        st = lm_all_gather(p->expert, kept + l->rank * all, all * (int64_t)sizeof *kept, kept);
    for (int i = 0; i < parts && st == LM_OK; i++) {
        for (int r = 0; r < l->ranks; r++)
            for (int e = 0; e < p->experts; e++)
                l->kept[(int64_t)r * p->experts + e] =
                    kept[r * all + (int64_t)i * p->experts + e];
        lm__keep_home(p, l);
        st = lm__plan_order(p->part[i], l);
    }
    lm__room_free(kept);
    return st;
}
