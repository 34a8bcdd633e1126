/* once.c - a token goes to each place once, however many of its experts live there.
 *
 * Rows leave sorted by (place, token, slot); those of one token are one parcel. Its
 * receiver must know for which experts it is: one label a row says so, exchanged
 * here, once for the plan. It then visits the parcels in the order of their tokens,
 * whichever rank they are from, and counts them into the experts' arrivals: the
 * order (expert, token, slot), as always. */
#include "runtime/moe/plan_impl.h"

#include <stdlib.h>

/* What a row is for: its expert, and whether a parcel begins with it. */
static int32_t label_of(int32_t expert, bool first) { return expert << 1 | first; }
static int32_t expert_of(int32_t label) { return label >> 1; }
static bool is_first(int32_t label) { return label & 1; }

static int no_memory(void) {
    return lm_fail(LM_EOOM, "plan: no memory for the order of the rows");
}

/* ---- leaving ---- */

typedef struct leaving {
    int places;
    int64_t *rows, *parcels;         /* [places]: how many go there */
    int64_t *next_row, *next_parcel; /* [places]: where the next one is put */
    int64_t *last;                   /* [places]: the last token that goes there */
    int32_t *label;                  /* [rows] */
    int32_t *token;                  /* [parcels] */
} leaving;

static int leaving_new(leaving *v, int places) {
    size_t n = (size_t)places;
    *v = (leaving){.places = places, .rows = calloc(5 * n, sizeof *v->rows)};
    if (!v->rows) return no_memory();
    v->parcels = v->rows + n;
    v->next_row = v->parcels + n;
    v->next_parcel = v->next_row + n;
    v->last = v->next_parcel + n;
    for (int i = 0; i < places; i++) v->last[i] = -1;
    return LM_OK;
}

static void leaving_free(leaving *v) {
    free(v->rows);
    free(v->label);
    free(v->token);
}

/* True the first time that token t is seen on its way to a place. */
static bool first_there(leaving *v, int place, int64_t t) {
    bool first = v->last[place] != t;
    v->last[place] = t;
    return first;
}

static void count_rows(lm_plan *p, leaving *v) {
    p->fan = 1;
    for (int64_t i = 0; i < p->tokens; i++) {
        int64_t t = p->by_token ? p->by_token[i] : i;
        int fan = 0;
        for (int64_t r = t * p->top_k; r < (t + 1) * p->top_k; r++) {
            if (p->expert_id[r] < 0 || p->dropped[r]) continue;
            int place = lm__place_of(p, p->expert_id[r]);
            bool first = first_there(v, place, t);
            v->rows[place]++;
            v->parcels[place] += first;
            fan += first;
        }
        if (fan > p->fan) p->fan = fan;
    }
    for (int place = 0; place < v->places; place++) {
        v->next_row[place] = p->rows, v->next_parcel[place] = p->parcels;
        p->rows += v->rows[place], p->parcels += v->parcels[place];
        v->last[place] = -1;
    }
}

/* A token's parcels are listed in the order of their places. */
static void list_parcel(lm_plan *p, int64_t t, int32_t parcel) {
    int32_t *list = p->parcel_of + t * p->fan;
    int i = 0;
    while (list[i] >= 0) i++;
    for (; i > 0 && list[i - 1] > parcel; i--) list[i] = list[i - 1];
    list[i] = parcel;
}

static void order_rows(lm_plan *p, leaving *v) {
    for (int64_t i = 0; i < p->tokens * p->fan; i++) p->parcel_of[i] = -1;
    for (int64_t i = 0; i < p->tokens; i++) {
        int64_t t = p->by_token ? p->by_token[i] : i;
        for (int64_t r = t * p->top_k; r < (t + 1) * p->top_k; r++) {
            if (p->expert_id[r] < 0 || p->dropped[r]) continue;
            int place = lm__place_of(p, p->expert_id[r]);
            bool first = first_there(v, place, t);
            int64_t row = v->next_row[place]++;
            p->row_of[r] = (int32_t)row;
            p->route_of[row] = (int32_t)r;
            v->label[row] = label_of(p->expert_id[r], first);
            if (!first) continue;
            int64_t parcel = v->next_parcel[place]++;
            v->token[parcel] = (int32_t)t;
            list_parcel(p, t, (int32_t)parcel);
        }
    }
}

/* The route of each label and weight that leaves: rank by rank, the rows of its place. */
static void copy_routes(lm_plan *p, const leaving *v) {
    int64_t first = 0, copy = 0;
    for (int r = 0; r < v->places * p->etp; r++) {
        p->routes.sends[r] = v->rows[r / p->etp];
        for (int64_t i = 0; i < p->routes.sends[r]; i++)
            p->route_at[copy++] = p->route_of[first + i];
        if ((r + 1) % p->etp == 0) first += p->routes.sends[r];
    }
}

static int leave(lm_plan *p, leaving *v) {
    count_rows(p, v);
    v->label = malloc((size_t)(p->rows + 1) * sizeof *v->label);
    v->token = malloc((size_t)(p->parcels + 1) * sizeof *v->token);
    int st = v->label && v->token ? LM_OK : no_memory();
    if (st == LM_OK) st = lm__plan_array(p, p->rows, sizeof *p->route_of, &p->route_of);
    if (st == LM_OK)
        st = lm__plan_array(p, p->tokens * p->fan, sizeof *p->parcel_of, &p->parcel_of);
    if (st == LM_OK)
        st = lm__plan_array(p, p->rows * p->etp, sizeof *p->route_at, &p->route_at);
    if (st != LM_OK) return st;
    order_rows(p, v);
    copy_routes(p, v);
    return lm__parcels_leave(p, v->token, v->parcels);
}

/* ---- arriving ---- */

/* The labels of what arrives, rank by rank; free it. */
static int exchange_labels(lm_plan *p, const leaving *v, int32_t **out) {
    const lm__wire *w = &p->routes;
    lm__load load = {.leg = LM_LEG_PLAN, .each = sizeof(int32_t)};
    int32_t *mine = NULL, *theirs = NULL;
    int st = lm__room_new(w->leaving, sizeof *mine, &mine);
    if (st == LM_OK) st = lm__room_new(w->arriving, sizeof *theirs, &theirs);
    for (int64_t i = 0; i < w->leaving && st == LM_OK; i++)
        mine[i] = v->label[p->row_of[p->route_at[i]]];
    if (st == LM_OK) st = lm__wire_swap(p, &load, mine, w->sends, theirs, w->receives);
    lm__room_free(mine);
    if (st == LM_OK) *out = theirs;
    else lm__room_free(theirs);
    return st;
}

/* Where each parcel's labels begin; and how many parcels are from each rank. */
static int find_parcels(lm_plan *p, int ranks, const int32_t *label, int64_t **out) {
    int64_t parcel = 0, at = 0, *begin = malloc((size_t)(p->arrivals + 1) * sizeof *begin);
    if (!begin) return no_memory();
    for (int r = 0; r < ranks; r++)
        for (int64_t i = 0; i < p->routes.receives[r]; i++, at++) {
            if (!is_first(label[at])) continue;
            begin[parcel++] = at;
            p->wire.receives[r]++;
        }
    begin[parcel] = at;
    p->width = 1;
    for (int64_t q = 0; q < parcel; q++)
        if (begin[q + 1] - begin[q] > p->width) p->width = (int)(begin[q + 1] - begin[q]);
    *out = begin;
    return LM_OK;
}

/* The parcels by token. Most often that is rank by rank; else the ranks' are merged. */
static int visit(lm_plan *p, const lm__layout *l, int32_t *order) {
    int64_t n = 0, *token = NULL;
    int64_t *at = calloc(2 * (size_t)l->ranks, sizeof *at), *end = at + l->ranks;
    int st = at ? LM_OK : no_memory();
    if (st == LM_OK && !l->in_turn) st = lm__parcel_tokens(p, &token);
    for (int r = 0; r < l->ranks && st == LM_OK; r++) {
        at[r] = r ? end[r - 1] : 0;
        end[r] = at[r] + p->wire.receives[r];
    }
    for (int o = 0; o < l->with_tokens && st == LM_OK && l->in_turn; o++)
        for (int r = l->order[o]; at[r] < end[r];) order[n++] = (int32_t)at[r]++;
    while (st == LM_OK && n < p->wire.arriving) {
        int next = -1;
        for (int r = 0; r < l->ranks; r++)
            if (at[r] < end[r] && (next < 0 || token[at[r]] < token[at[next]])) next = r;
        order[n++] = (int32_t)at[next]++;
    }
    lm__room_free(token);
    free(at);
    return st;
}

/* Counts the parcels' rows into the arrivals of their experts. */
static int order_arrivals(lm_plan *p, const int32_t *order, const int32_t *label,
                          const int64_t *begin) {
    int64_t *next = malloc((size_t)p->experts * sizeof *next);
    if (!next) return no_memory();
    for (int i = 0; i < p->local_experts; i++) next[p->expert_of[i]] = p->offsets[i];
    for (int64_t i = 0; i < p->wire.arriving * p->width; i++) p->arrival_at[i] = -1;
    for (int64_t n = 0; n < p->wire.arriving; n++) {
        int64_t parcel = order[n];
        for (int64_t i = begin[parcel]; i < begin[parcel + 1]; i++) {
            int64_t a = next[expert_of(label[i])]++;
            p->arrival_of[a] = (int32_t)parcel;
            p->arrival_at[parcel * p->width + i - begin[parcel]] = (int32_t)a;
        }
    }
    free(next);
    return LM_OK;
}

static int arrive(lm_plan *p, const lm__layout *l, const int32_t *label) {
    int64_t *begin = NULL;
    int32_t *order = NULL;
    int st = find_parcels(p, l->ranks, label, &begin);
    if (st == LM_OK) st = lm__wire_ready(p, &p->wire);
    if (st == LM_OK && !(order = malloc((size_t)(p->wire.arriving + 1) * sizeof *order)))
        st = no_memory();
    if (st == LM_OK) st = lm__plan_array(p, p->arrivals, sizeof *p->arrival_of, &p->arrival_of);
    if (st == LM_OK)
        st = lm__plan_array(p, p->wire.arriving * p->width, sizeof *p->arrival_at,
                            &p->arrival_at);
    if (st == LM_OK) st = visit(p, l, order);
    if (st == LM_OK) st = order_arrivals(p, order, label, begin);
    free(order);
    free(begin);
    return st;
}

int lm__once_layout(lm_plan *p, const lm__layout *l) {
    leaving v = {0};
    int32_t *label = NULL;
    int st = leaving_new(&v, l->ranks / p->etp);
    if (st == LM_OK) st = lm__wire_new(p, &p->routes);
    if (st == LM_OK) st = leave(p, &v);
    for (int r = 0; r < l->ranks && st == LM_OK; r++)
        for (int i = 0; i < p->local_experts; i++)
            p->routes.receives[r] += l->kept[(int64_t)r * p->experts + p->expert_of[i]];
    if (st == LM_OK) st = lm__wire_ready(p, &p->routes);
    if (st == LM_OK) st = exchange_labels(p, &v, &label);
    if (st == LM_OK) st = arrive(p, l, label);
    if (st == LM_OK && p->way == LM_WAY_TWO_LEVEL) st = lm__per_host_new(p);
    lm__room_free(label);
    leaving_free(&v);
    return st;
}
