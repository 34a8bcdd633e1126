/* layout.c - the order of the rows, from tokens to experts.
 *
 * Rows leave sorted by (place, expert, token, slot): a counting sort over the
 * tokens in the order of their ids. They arrive rank by rank, and are put in the
 * order (expert, token, slot): the one that a single rank would have, so that
 * every layout adds up the same rows in the same order. (Where a token goes to a
 * place only once, see once.c.) */
#include "runtime/moe/plan_impl.h"

#include <stdlib.h>
#include <string.h>

static int no_memory(void) {
    return lm_fail(LM_EOOM, "plan: no memory for the order of the rows");
}

/* ---- leaving ---- */

int lm__parcels_leave(lm_plan *p, const int32_t *token, const int64_t *parcels_of_place) {
    int ranks = lm__plan_ranks(p), etp = p->etp;
    int st = lm__plan_array(p, p->parcels * etp, sizeof *p->token_of, &p->token_of);
    if (st == LM_OK && etp > 1)
        st = lm__plan_array(p, p->parcels * etp, sizeof *p->parcel_at, &p->parcel_at);
    if (st == LM_OK && etp > 1)
        st = lm__plan_array(p, p->parcels * etp, sizeof *p->copy_of, &p->copy_of);
    if (st != LM_OK) return st;
    int64_t first = 0, copy = 0;
    for (int r = 0; r < ranks; r++) { /* every rank of a place gets the place's parcels */
        p->wire.sends[r] = parcels_of_place[r / etp];
        for (int64_t i = first; i < first + p->wire.sends[r]; i++, copy++) {
            p->token_of[copy] = token[i];
            if (etp == 1) continue;
            p->parcel_at[copy] = (int32_t)i;
            p->copy_of[i * etp + r % etp] = (int32_t)copy;
        }
        if ((r + 1) % etp == 0) first += p->wire.sends[r];
    }
    return LM_OK;
}

/* Where each expert's rows begin; how many go to each place. At a place, experts lie as it
 * counts them: its own, then shadows. */
static void place_rows(lm_plan *p, const lm__layout *l, int64_t *next, int64_t *of_place) {
    const int64_t *mine = l->kept + (int64_t)l->rank * p->experts;
    for (int place = 0; place < l->ranks / p->etp; place++)
        for (int i = 0; i < 2 * p->experts; i++) {
            int e = i % p->experts;
            bool own = i < p->experts;
            if (lm__place_of(p, e) != place || (p->owner[e] == place) != own) continue;
            next[e] = p->rows;
            p->rows += mine[e];
            of_place[place] += mine[e];
        }
    p->parcels = p->rows;
}

static int leave(lm_plan *p, const lm__layout *l) {
    int64_t *next = malloc((size_t)p->experts * sizeof *next);
    int64_t *of_place = calloc((size_t)l->ranks, sizeof *of_place);
    int32_t *token = NULL;
    int st = next && of_place ? LM_OK : no_memory();
    if (st == LM_OK) place_rows(p, l, next, of_place);
    if (st == LM_OK) st = lm__plan_array(p, p->rows, sizeof *p->route_of, &p->route_of);
    if (st == LM_OK && !(token = malloc((size_t)(p->rows + 1) * sizeof *token)))
        st = no_memory();
    for (int64_t i = 0; i < p->tokens && st == LM_OK; i++) {
        int64_t t = p->by_token ? p->by_token[i] : i;
        for (int64_t r = t * p->top_k; r < (t + 1) * p->top_k; r++) {
            if (p->expert_id[r] < 0 || p->dropped[r]) continue;
            int64_t row = next[p->expert_id[r]]++;
            p->row_of[r] = (int32_t)row;
            p->route_of[row] = (int32_t)r;
            token[row] = (int32_t)t;
        }
    }
    if (st == LM_OK) st = lm__parcels_leave(p, token, of_place);
    p->fan = p->top_k;
    p->parcel_of = p->row_of;
    free(token);
    free(of_place);
    free(next);
    return st;
}

/* ---- arriving ---- */

int lm__parcel_tokens(lm_plan *p, int64_t **out) {
    const lm__wire *w = &p->wire;
    lm__load load = {.leg = LM_LEG_PLAN, .each = sizeof(int64_t)};
    int64_t *mine = NULL, *theirs = NULL;
    int st = lm__room_new(w->leaving, sizeof *mine, &mine);
    if (st == LM_OK) st = lm__room_new(w->arriving, sizeof *theirs, &theirs);
    for (int64_t i = 0; i < w->leaving && st == LM_OK; i++)
        mine[i] = p->token_id[p->token_of[i]];
    if (st == LM_OK) st = lm__wire_swap(p, &load, mine, w->sends, theirs, w->receives);
    lm__room_free(mine);
    if (st == LM_OK) *out = theirs;
    else lm__room_free(theirs);
    return st;
}

/* One expert's rows from each rank, as ranges of what was received. */
typedef struct run {
    int64_t at, end;
} run;

/* The runs of local expert i: advances starts[r], where the rest of rank r's rows begin. */
static void take_runs(const lm_plan *p, int i, const lm__layout *l, int64_t *starts,
                      run *runs) {
    for (int r = 0; r < l->ranks; r++) {
        runs[r].at = starts[r];
        starts[r] += l->kept[(int64_t)r * p->experts + p->expert_of[i]];
        runs[r].end = starts[r];
    }
}

/* Overlapping ranges (rare: each rank holds a slice of the batch) are merged by token. */
static void merge(lm_plan *p, int i, int ranks, run *runs, const int64_t *token) {
    for (int64_t a = p->offsets[i]; a < p->offsets[i + 1]; a++) {
        int next = -1;
        for (int r = 0; r < ranks; r++)
            if (runs[r].at < runs[r].end &&
                (next < 0 || token[runs[r].at] < token[runs[next].at]))
                next = r;
        p->arrival_of[a] = (int32_t)runs[next].at++;
    }
}

static int arrive(lm_plan *p, const lm__layout *l) {
    int ranks = l->ranks;
    for (int r = 0; r < ranks; r++)
        for (int i = 0; i < p->local_experts; i++)
            p->wire.receives[r] += l->kept[(int64_t)r * p->experts + p->expert_of[i]];
    p->width = 1;
    int st = lm__wire_ready(p, &p->wire);
    if (st != LM_OK || ranks == 1) return st;

    int64_t *starts = calloc((size_t)ranks, sizeof *starts), *token = NULL;
    run *runs = malloc((size_t)ranks * sizeof *runs);
    st = starts && runs ? LM_OK : no_memory();
    if (st == LM_OK) st = lm__plan_array(p, p->arrivals, sizeof *p->arrival_of, &p->arrival_of);
    if (st == LM_OK) st = lm__plan_array(p, p->arrivals, sizeof *p->arrival_at, &p->arrival_at);
    if (st == LM_OK && !l->in_turn) st = lm__parcel_tokens(p, &token);
    for (int r = 1; r < ranks && st == LM_OK; r++)
        starts[r] = starts[r - 1] + p->wire.receives[r - 1];
    for (int i = 0; i < p->local_experts && st == LM_OK; i++) {
        take_runs(p, i, l, starts, runs);
        if (token) {
            merge(p, i, ranks, runs, token);
            continue;
        }
        int64_t a = p->offsets[i];
        for (int o = 0; o < l->with_tokens; o++)
            for (run *n = &runs[l->order[o]]; n->at < n->end; n->at++)
                p->arrival_of[a++] = (int32_t)n->at;
    }
    for (int64_t a = 0; a < p->arrivals && st == LM_OK; a++)
        p->arrival_at[p->arrival_of[a]] = (int32_t)a;
    lm__room_free(token);
    free(runs);
    free(starts);
    return st;
}

/* ---- both ---- */

/* Whether the ranks' tokens lie one after the other; and in which order. */
static bool in_turn(const lm__plan_heads *heads, const int *data_rank, lm__layout *l) {
    l->with_tokens = 0;
    for (int r = 0; r < l->ranks; r++) {
        const lm__plan_head *h = lm__head(heads, data_rank[r]);
        if (h->tokens == 0) continue;
        int i = l->with_tokens++;
        for (; i > 0 && lm__head(heads, data_rank[l->order[i - 1]])->first_id > h->first_id;
             i--)
            l->order[i] = l->order[i - 1];
        l->order[i] = r;
    }
    for (int i = 1; i < l->with_tokens; i++)
        if (lm__head(heads, data_rank[l->order[i]])->first_id <=
            lm__head(heads, data_rank[l->order[i - 1]])->last_id)
            return false;
    return true;
}

void lm__count_kept(const lm_plan *p, int64_t *mine) {
    for (int64_t r = 0; r < p->tokens * p->top_k; r++)
        if (p->expert_id[r] >= 0 && !p->dropped[r]) mine[p->expert_id[r]]++;
}

/* Every rank's rows per expert. Where nothing was dropped, the heads have said it. */
static int gather_kept(const lm_plan *p, const lm__plan_heads *heads, const int *data_rank,
                       lm__layout *l) {
    if (p->over)
        return lm_all_gather(p->expert, l->kept + (int64_t)l->rank * p->experts,
                             p->experts * (int64_t)sizeof *l->kept, l->kept);
    for (int r = 0; r < l->ranks; r++)
        memcpy(l->kept + (int64_t)r * p->experts, lm__head_counts(heads, data_rank[r]),
               (size_t)p->experts * sizeof *l->kept);
    return LM_OK;
}

void lm__keep_home(const lm_plan *p, lm__layout *l) {
    for (int r = 0; r < l->ranks && p->shadow; r++)
        for (int e = 0; e < p->experts && r != l->rank; e++)
            if (p->shadow[e]) l->kept[(int64_t)r * p->experts + e] = 0;
}

static int find_data_ranks(lm_group *data, lm_group *expert, int ranks, int *data_rank) {
    for (int r = 0; r < ranks; r++) {
        int world = expert ? lm_group_world_rank(expert, r) : data ? lm_dist_rank() : 0;
        data_rank[r] = -1;
        for (int d = 0; data && d < lm_group_size(data); d++)
            if (lm_group_world_rank(data, d) == world) data_rank[r] = d;
        if (!data && ranks == 1) data_rank[r] = 0;
        if (data_rank[r] < 0)
            return lm_fail(
                LM_EARG, "plan: rank %d has experts but is not among those with tokens", world);
    }
    return LM_OK;
}

static int layout_new(lm_plan *p, lm_group *expert, lm__layout *l) {
    l->ranks = expert ? lm_group_size(expert) : 1;
    l->rank = expert ? lm_group_rank(expert) : 0;
    l->order = malloc((size_t)l->ranks * sizeof *l->order);
    if (!l->order) return no_memory();
    return lm__room_new((int64_t)l->ranks * p->experts, sizeof *l->kept, &l->kept);
}

static void add_up_arrivals(lm_plan *p, const lm__layout *l) {
    for (int i = 0; i < p->local_experts; i++) {
        p->offsets[i] = p->arrivals;
        for (int r = 0; r < l->ranks; r++)
            p->arrivals += l->kept[(int64_t)r * p->experts + p->expert_of[i]];
    }
    p->offsets[p->local_experts] = p->arrivals;
}

int lm__plan_order(lm_plan *p, const lm__layout *l) {
    int st = lm__wire_new(p, &p->wire);
    if (st == LM_OK)
        st = lm__plan_array(p, p->local_experts + 1, sizeof *p->offsets, &p->offsets);
    if (st != LM_OK) return st;
    add_up_arrivals(p, l);
    for (int64_t r = 0; r < p->tokens * p->top_k; r++) p->row_of[r] = -1;
    if (p->once) return lm__once_layout(p, l);
    st = leave(p, l);
    return st == LM_OK ? arrive(p, l) : st;
}

int lm__plan_layout(lm_plan *p, const lm__plan_heads *heads, const lm_plan_spec *spec,
                    lm_group *data, lm_group *expert) {
    lm__layout l = {0};
    int *data_rank = NULL;
    int st = layout_new(p, expert, &l);
    if (st == LM_OK && !(data_rank = malloc((size_t)l.ranks * sizeof *data_rank)))
        st = no_memory();
    if (st == LM_OK) st = find_data_ranks(data, expert, l.ranks, data_rank);
    if (st == LM_OK) lm__count_kept(p, l.kept + (int64_t)l.rank * p->experts);
    if (st == LM_OK && l.ranks > 1) {
        st = gather_kept(p, heads, data_rank, &l);
        lm__keep_home(p, &l);
        l.in_turn = in_turn(heads, data_rank, &l);
    }
    if (st == LM_OK) st = lm__plan_order(p, &l);
    if (st == LM_OK && spec->parts > 1) st = lm__plan_divide(p, spec->parts, &l, spec);
    free(data_rank);
    free(l.order);
    lm__room_free(l.kept);
    return st;
}
