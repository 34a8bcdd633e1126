/* select.c - who keeps a place at an expert that is over its capacity.
 *
 * The choice is over the routes of all ranks. For each such expert one rank sees
 * all its routes' keys, finds the last one that still fits, and tells everybody;
 * each rank then drops its own routes that come after it. Experts within their
 * capacity cost nothing. */
#include "runtime/moe/plan_impl.h"
#include "kernels/philox.h"

#include <stdlib.h>
#include <string.h>

/* Where a route stands in line: lowest first. */
typedef struct place {
    uint64_t key;
    int64_t token, slot;
} place;

static bool before(const place *a, const place *b) {
    if (a->key != b->key) return a->key < b->key;
    if (a->token != b->token) return a->token < b->token;
    return a->slot < b->slot;
}

/* ---- keys ---- */

/* Higher values come first; -0 equals 0. */
static uint64_t falling(double value) {
    uint64_t bits;
    value += 0.0;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 63 ? bits : ~bits & ~((uint64_t)1 << 63);
}

static uint64_t random_key(uint64_t seed, int64_t token, int64_t slot) {
    uint32_t out[4];
    lm_philox(seed, (uint64_t)token, (uint64_t)slot, out);
    return (uint64_t)out[1] << 32 | out[0];
}

static place place_of(const lm_plan *p, const lm_plan_spec *s, uint64_t seed, int64_t route) {
    int64_t t = route / p->top_k;
    place at = {0, p->token_id[t], route % p->top_k};
    switch (s->select) {
    case LM_SELECT_RANDOM: at.key = random_key(seed, at.token, at.slot); break;
    case LM_SELECT_POSITION: at.key = (uint64_t)at.slot; break;
    case LM_SELECT_PROBABILITY:
        at.key = falling((double)s->scores[t * p->experts + p->expert_id[route]]);
        break;
    default: at.key = falling(s->priorities[route]);
    }
    return at;
}

/* ---- the n-th of a line (Hoare's quickselect) ---- */

static void swap(place *a, place *b) {
    place t = *a;
    *a = *b, *b = t;
}

static place nth(place *line, int64_t count, int64_t n) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (before(&line[middle], &line[low])) swap(&line[middle], &line[low]);
        if (before(&line[high], &line[low])) swap(&line[high], &line[low]);
        if (before(&line[high], &line[middle])) swap(&line[high], &line[middle]);
        place pivot = line[middle];
        int64_t i = low, j = high;
        while (i <= j) {
            while (before(&line[i], &pivot)) i++;
            while (before(&pivot, &line[j])) j--;
            if (i <= j) swap(&line[i++], &line[j--]);
        }
        if (n <= j) high = j;
        else if (n >= i) low = i;
        else break;
    }
    return line[n];
}

/* ---- the lines ---- */

/* Experts over capacity, each with a rank that decides: number i of them is rank i % ranks's.
 * They are kept in the order of their deciders, so that what goes to one rank is together. */
typedef struct contest {
    int ranks, rank, count;
    int32_t *expert; /* [count] */
    int32_t *index;  /* [experts] -> place in expert, or -1 */
    int64_t *lines;  /* [ranks, count]: routes of each rank in each line */
} contest;

static int decider(const contest *c, int i) { /* c->count experts in c->ranks blocks */
    return (int)((int64_t)i * c->ranks / c->count);
}

static int contest_new(contest *c, const lm_plan *p, lm_group *data) {
    *c = (contest){.ranks = data ? lm_group_size(data) : 1,
                   .rank = data ? lm_group_rank(data) : 0};
    c->expert = malloc((size_t)p->experts * sizeof *c->expert);
    c->index = malloc((size_t)p->experts * sizeof *c->index);
    if (!c->expert || !c->index)
        return lm_fail(LM_EOOM, "plan: no memory to choose among routes");
    for (int e = 0; e < p->experts; e++) {
        bool over = p->routed[e] > p->capacity;
        c->index[e] = over ? c->count : -1;
        if (over) c->expert[c->count++] = e;
    }
    int st = lm__room_new((int64_t)c->ranks * c->count, sizeof *c->lines, &c->lines);
    if (st != LM_OK) return st;
    int64_t *mine = c->lines + (int64_t)c->rank * c->count;
    for (int64_t r = 0; r < p->tokens * p->top_k; r++)
        if (p->expert_id[r] >= 0 && c->index[p->expert_id[r]] >= 0)
            mine[c->index[p->expert_id[r]]]++;
    return data ? lm_all_gather(data, mine, c->count * (int64_t)sizeof *mine, c->lines) : LM_OK;
}

static void contest_free(contest *c) {
    free(c->expert);
    free(c->index);
    lm__room_free(c->lines);
}

/* This rank's routes, line by line. */
static int stand(const contest *c, const lm_plan *p, const lm_plan_spec *s, place **out) {
    const int64_t *mine = c->lines + (int64_t)c->rank * c->count;
    uint64_t seed = lm__mix(s->seed, s->stream);
    int64_t total = 0;
    int64_t *next = malloc((size_t)c->count * sizeof *next);
    for (int i = 0; i < c->count && next; i++) next[i] = total, total += mine[i];
    place *line = NULL;
    int st = next ? lm__room_new(total, sizeof *line, &line)
                  : lm_fail(LM_EOOM, "plan: no memory to choose among %lld routes",
                            (long long)total);
    for (int64_t r = 0; r < p->tokens * p->top_k && st == LM_OK; r++) {
        int i = p->expert_id[r] >= 0 ? c->index[p->expert_id[r]] : -1;
        if (i >= 0) line[next[i]++] = place_of(p, s, seed, r);
    }
    free(next);
    *out = line;
    return st;
}

/* Sends each line to its decider. There: rank by rank, and within a rank line by line. */
static int send_lines(const contest *c, lm_group *data, place **line) {
    if (!data || c->ranks == 1) return LM_OK;
    int64_t *bytes = calloc(2 * (size_t)c->ranks, sizeof *bytes), *back = bytes + c->ranks;
    if (!bytes) return lm_fail(LM_EOOM, "plan: no memory to choose among routes");
    int64_t total = 0;
    for (int i = 0; i < c->count; i++) {
        int to = decider(c, i);
        bytes[to] += c->lines[(int64_t)c->rank * c->count + i] * (int64_t)sizeof(place);
        for (int r = 0; r < c->ranks && to == c->rank; r++) {
            back[r] += c->lines[(int64_t)r * c->count + i] * (int64_t)sizeof(place);
            total += c->lines[(int64_t)r * c->count + i];
        }
    }
    place *all = NULL;
    int st = lm__room_new(total, sizeof *all, &all);
    if (st == LM_OK) st = lm_all_to_all_v(data, *line, bytes, all, back);
    free(bytes);
    if (st != LM_OK) {
        lm__room_free(all);
        return st;
    }
    lm__room_free(*line);
    *line = all;
    return LM_OK;
}

/* The last place that fits, for each of this rank's lines. */
static int decide(const contest *c, const lm_plan *p, place *all, place *last) {
    int64_t most = 0;
    for (int i = 0; i < c->count; i++)
        if (p->routed[c->expert[i]] > most) most = p->routed[c->expert[i]];
    place *one = malloc((size_t)most * sizeof *one);
    int64_t *start = calloc((size_t)c->ranks + 1, sizeof *start);
    int st = one && start ? LM_OK : lm_fail(LM_EOOM, "plan: no memory to choose among routes");
    for (int r = 0; r < c->ranks && st == LM_OK; r++) { /* where rank r's lines begin */
        start[r + 1] = start[r];
        for (int i = 0; i < c->count; i++)
            if (decider(c, i) == c->rank) start[r + 1] += c->lines[(int64_t)r * c->count + i];
    }
    for (int i = 0; i < c->count && st == LM_OK; i++) {
        if (decider(c, i) != c->rank) continue;
        int64_t n = 0;
        for (int r = 0; r < c->ranks; r++) {
            int64_t here = c->lines[(int64_t)r * c->count + i];
            memcpy(one + n, all + start[r], (size_t)here * sizeof *one);
            start[r] += here;
            n += here;
        }
        if (p->capacity > 0) last[i] = nth(one, n, p->capacity - 1);
    }
    free(start);
    free(one);
    return st;
}

static int tell(const contest *c, lm_group *data, place *last) {
    if (!data || c->ranks == 1) return LM_OK;
    int64_t *bytes = calloc((size_t)c->ranks, sizeof *bytes);
    if (!bytes) return lm_fail(LM_EOOM, "plan: no memory to choose among routes");
    int first = c->count;
    for (int i = 0; i < c->count; i++) {
        bytes[decider(c, i)] += (int64_t)sizeof *last;
        if (decider(c, i) == c->rank && i < first) first = i;
    }
    int st = lm_all_gather_v(data, last + (first < c->count ? first : 0), bytes, last);
    free(bytes);
    return st;
}

int lm__plan_select(lm_plan *p, const lm_plan_spec *s, lm_group *data) {
    contest c;
    place *line = NULL, *last = NULL;
    int st = contest_new(&c, p, data);
    if (st == LM_OK) st = stand(&c, p, s, &line);
    if (st == LM_OK) st = send_lines(&c, data, &line);
    if (st == LM_OK) st = lm__room_new(c.count, sizeof *last, &last);
    if (st == LM_OK) st = decide(&c, p, line, last);
    if (st == LM_OK) st = tell(&c, data, last);
    if (st == LM_OK) {
        uint64_t seed = lm__mix(s->seed, s->stream);
        for (int64_t r = 0; r < p->tokens * p->top_k; r++) {
            int i = p->expert_id[r] >= 0 ? c.index[p->expert_id[r]] : -1;
            if (i < 0) continue;
            place at = place_of(p, s, seed, r);
            p->dropped[r] = p->capacity == 0 || before(&last[i], &at);
        }
    }
    lm__room_free(last);
    lm__room_free(line);
    contest_free(&c);
    return st;
}
