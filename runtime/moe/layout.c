/* layout.c - the order of the rows, from tokens to experts.
 *
 * Rows leave sorted by (place, expert, token, slot): a counting sort over the
 * tokens in the order of their ids; a place's rows once for each of its ranks.
 * They arrive rank by rank, and are put in
 * the order (expert, token, slot): the one that a single rank would have, so
 * that every layout adds up the same rows in the same order. */
#include "runtime/moe/plan_impl.h"

#include <stdlib.h>
#include <string.h>

static int no_memory(void) {
    return lm_fail(LM_EOOM, "plan: no memory for the order of the rows");
}

/* ---- leaving ---- */

/* Which row and token each copy is of: rank by rank, the rows of its place. */
static int copy_rows(lm_plan *p, int ranks) {
    int64_t first = 0, copy = 0;
    p->copies = p->rows * p->etp;
    int st = lm__plan_array(p, p->copies, sizeof *p->token_of, &p->token_of);
    if (st == LM_OK && p->etp > 1)
        st = lm__plan_array(p, p->copies, sizeof *p->row_at, &p->row_at);
    if (st == LM_OK && p->etp > 1)
        st = lm__plan_array(p, p->copies, sizeof *p->copy_of, &p->copy_of);
    for (int r = 0; r < ranks && st == LM_OK; r++) {
        for (int64_t row = first; row < first + p->sends[r]; row++, copy++) {
            p->token_of[copy] = p->route_of[row] / p->top_k;
            if (p->etp == 1) continue;
            p->row_at[copy] = (int32_t)row;
            p->copy_of[row * p->etp + r % p->etp] = (int32_t)copy;
        }
        if ((r + 1) % p->etp == 0) first += p->sends[r];
    }
    return st;
}

static int order_rows(lm_plan *p, int ranks, int64_t *mine) {
    int64_t *next = malloc((size_t)p->experts * sizeof *next);
    if (!next) return no_memory();
    for (int64_t r = 0; r < p->tokens * p->top_k; r++) {
        p->row_of[r] = -1;
        if (p->expert_id[r] >= 0 && !p->dropped[r]) mine[p->expert_id[r]]++;
    }
    for (int place = 0; place < ranks / p->etp; place++)
        for (int e = 0; e < p->experts; e++) {
            if (p->owner[e] != place) continue;
            next[e] = p->rows;
            p->rows += mine[e];
            for (int r = 0; r < p->etp; r++) p->sends[place * p->etp + r] += mine[e];
        }
    int st = lm__plan_array(p, p->rows, sizeof *p->route_of, &p->route_of);
    for (int64_t i = 0; i < p->tokens && st == LM_OK; i++) {
        int64_t t = p->by_token ? p->by_token[i] : i;
        for (int64_t r = t * p->top_k; r < (t + 1) * p->top_k; r++) {
            if (p->expert_id[r] < 0 || p->dropped[r]) continue;
            int64_t row = next[p->expert_id[r]]++;
            p->row_of[r] = (int32_t)row;
            p->route_of[row] = (int32_t)r;
        }
    }
    free(next);
    return st == LM_OK ? copy_rows(p, ranks) : st;
}

/* ---- arriving ---- */

static void add_up_arrivals(lm_plan *p, int ranks, const int64_t *kept) {
    for (int i = 0; i < p->local_experts; i++) {
        p->offsets[i] = p->arrivals;
        for (int r = 0; r < ranks; r++) {
            p->receives[r] += kept[(int64_t)r * p->experts + p->expert_of[i]];
            p->arrivals += kept[(int64_t)r * p->experts + p->expert_of[i]];
        }
    }
    p->offsets[p->local_experts] = p->arrivals;
}

/* How the ranks' tokens lie: order[] = the group's ranks that have tokens, by their first id.
 * False when their ranges overlap. */
static bool in_turn(const lm__plan_heads *heads, const int *data_rank, int ranks, int *order,
                    int *count) {
    *count = 0;
    for (int r = 0; r < ranks; r++) {
        const lm__plan_head *h = lm__head(heads, data_rank[r]);
        if (h->tokens == 0) continue;
        int i = (*count)++;
        for (; i > 0 && lm__head(heads, data_rank[order[i - 1]])->first_id > h->first_id; i--)
            order[i] = order[i - 1];
        order[i] = r;
    }
    for (int i = 1; i < *count; i++)
        if (lm__head(heads, data_rank[order[i]])->first_id <=
            lm__head(heads, data_rank[order[i - 1]])->last_id)
            return false;
    return true;
}

/* One expert's rows from each rank, as ranges of what was received. */
typedef struct run {
    int64_t at, end;
} run;

/* The runs of local expert i: advances starts[r], where the rest of rank r's rows begin. */
static void take_runs(const lm_plan *p, int i, int ranks, const int64_t *kept, int64_t *starts,
                      run *runs) {
    for (int r = 0; r < ranks; r++) {
        runs[r].at = starts[r];
        starts[r] += kept[(int64_t)r * p->experts + p->expert_of[i]];
        runs[r].end = starts[r];
    }
}

/* Overlapping ranges (rare: each rank holds a slice of the batch) are merged by token. */
static int exchange_tokens(const lm_plan *p, lm_group *expert, int ranks, int64_t **out) {
    int64_t *mine = malloc((size_t)(p->copies + 1) * sizeof *mine);
    int64_t *theirs = malloc((size_t)(p->arrivals + 1) * sizeof *theirs);
    int64_t *bytes = malloc(2 * (size_t)ranks * sizeof *bytes);
    int st = mine && theirs && bytes ? LM_OK : no_memory();
    if (st == LM_OK) {
        for (int64_t copy = 0; copy < p->copies; copy++)
            mine[copy] = p->token_id[p->token_of[copy]];
        for (int r = 0; r < ranks; r++) {
            bytes[r] = p->sends[r] * (int64_t)sizeof *mine;
            bytes[ranks + r] = p->receives[r] * (int64_t)sizeof *mine;
        }
        st = lm_all_to_all_v(expert, mine, bytes, theirs, bytes + ranks);
    }
    free(bytes);
    free(mine);
    if (st == LM_OK) *out = theirs;
    else free(theirs);
    return st;
}

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

static int order_arrivals(lm_plan *p, const lm__plan_heads *heads, const int *data_rank,
                          lm_group *expert, int ranks, const int64_t *kept) {
    int count, *order = malloc((size_t)ranks * sizeof *order);
    int64_t *starts = calloc((size_t)ranks + 1, sizeof *starts), *token = NULL;
    run *runs = malloc((size_t)ranks * sizeof *runs);
    int st = order && starts && runs ? LM_OK : no_memory();
    if (st == LM_OK) st = lm__plan_array(p, p->arrivals, sizeof *p->arrival_of, &p->arrival_of);
    if (st == LM_OK) st = lm__plan_array(p, p->arrivals, sizeof *p->arrival_at, &p->arrival_at);
    if (st == LM_OK) {
        for (int r = 1; r < ranks; r++) starts[r] = starts[r - 1] + p->receives[r - 1];
        if (!in_turn(heads, data_rank, ranks, order, &count))
            st = exchange_tokens(p, expert, ranks, &token);
    }
    for (int i = 0; i < p->local_experts && st == LM_OK; i++) {
        take_runs(p, i, ranks, kept, starts, runs);
        if (token) {
            merge(p, i, ranks, runs, token);
            continue;
        }
        int64_t a = p->offsets[i];
        for (int o = 0; o < count; o++)
            for (run *n = &runs[order[o]]; n->at < n->end; n->at++)
                p->arrival_of[a++] = (int32_t)n->at;
    }
    for (int64_t a = 0; a < p->arrivals && st == LM_OK; a++)
        p->arrival_at[p->arrival_of[a]] = (int32_t)a;
    free(token);
    free(runs);
    free(starts);
    free(order);
    return st;
}

/* ---- both ---- */

/* Every rank's rows per expert. Where nothing was dropped, the heads have said it. */
static int gather_kept(const lm_plan *p, const lm__plan_heads *heads, const int *data_rank,
                       lm_group *expert, int ranks, int rank, int64_t *kept) {
    if (p->over)
        return lm_all_gather(expert, kept + (int64_t)rank * p->experts,
                             p->experts * (int64_t)sizeof *kept, kept);
    for (int r = 0; r < ranks; r++)
        memcpy(kept + (int64_t)r * p->experts, lm__head_counts(heads, data_rank[r]),
               (size_t)p->experts * sizeof *kept);
    return LM_OK;
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

int lm__plan_layout(lm_plan *p, const lm__plan_heads *heads, lm_group *data, lm_group *expert) {
    int ranks = expert ? lm_group_size(expert) : 1, rank = expert ? lm_group_rank(expert) : 0;
    int64_t *kept = calloc((size_t)ranks * (size_t)p->experts, sizeof *kept);
    int *data_rank = malloc((size_t)ranks * sizeof *data_rank);
    int st = kept && data_rank ? find_data_ranks(data, expert, ranks, data_rank) : no_memory();
    if (st == LM_OK) st = lm__plan_array(p, ranks, sizeof *p->sends, &p->sends);
    if (st == LM_OK) st = lm__plan_array(p, ranks, sizeof *p->receives, &p->receives);
    if (st == LM_OK)
        st = lm__plan_array(p, p->local_experts + 1, sizeof *p->offsets, &p->offsets);
    if (st == LM_OK) st = order_rows(p, ranks, kept + (int64_t)rank * p->experts);
    if (st == LM_OK && ranks > 1)
        st = gather_kept(p, heads, data_rank, expert, ranks, rank, kept);
    if (st == LM_OK) add_up_arrivals(p, ranks, kept);
    if (st == LM_OK && ranks > 1) st = order_arrivals(p, heads, data_rank, expert, ranks, kept);
    free(data_rank);
    free(kept);
    return st;
}
