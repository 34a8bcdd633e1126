/* per_host.c - over two levels, a token's row goes to each other host once.
 *
 * Where tokens go to each place only once, those of its parcels that are for places
 * on one host are the same row. One crosses; the rank that takes it there gives each
 * place its own. On the way back the same rank adds up what the places return for it,
 * and one row crosses; at home it stands for the first of the parcels, and the others
 * are 0. Everything follows from tables made once for the plan: which of the rows
 * that come across each parcel handed on is. */
#include "runtime/moe/two_level_impl.h"
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

static int no_memory(void) { return lm_fail(LM_EOOM, "moe: no memory for an exchange"); }

/* ---- the tables ---- */

/* For each rank across, its tokens are numbered as they come up: label[copy]. */
static int number_rows(lm_plan *p, const lm__map *m, int32_t *label) {
    lm__per_host *h = &p->per_host;
    int32_t *number = malloc((size_t)(p->tokens + 1) * sizeof *number);
    if (!number) return no_memory();
    for (int q = 0; q < m->ranks; q++) {
        if (!lm__receives_from(m, q, m->me)) continue;
        for (int64_t t = 0; t < p->tokens; t++) number[t] = -1;
        int64_t copy = 0;
        for (int d = 0; d < m->ranks; d++)
            for (int64_t end = copy + p->wire.sends[d]; copy < end; copy++) {
                if (!lm__near(m, d, q)) continue;
                int32_t *n = &number[p->token_of[copy]];
                if (*n < 0) {
                    *n = (int32_t)h->sends[q]++;
                    h->across_at[h->leaving++] = (int32_t)copy;
                }
                label[copy] = *n;
            }
    }
    free(number);
    return LM_OK;
}

/* Labels from each rank, one after the other, become numbers among all rows that come across.
 */
static void number_arrivals(lm_plan *p, const lm__step *a, int32_t *label) {
    lm__per_host *h = &p->per_host;
    for (int s = 0; s < lm__plan_ranks(p); s++) {
        for (int64_t i = 0; i < a->receives[s]; i++) {
            if (label[i] >= h->receives[s]) h->receives[s] = label[i] + 1;
            label[i] += (int32_t)h->arriving;
        }
        label += a->receives[s];
        h->arriving += h->receives[s];
    }
}

/* Which of what is handed on inside belongs to each row that came across. */
static int list_sums(lm_plan *p) {
    lm__per_host *h = &p->per_host;
    int32_t *count = calloc((size_t)h->arriving + 1, sizeof *count);
    if (!count) return no_memory();
    h->slots = 1;
    for (int64_t j = 0; j < h->inside_out; j++)
        if (h->inside_at[j] >= 0 && ++count[h->inside_at[j]] > h->slots)
            h->slots = count[h->inside_at[j]];
    int st = lm__plan_array(p, h->arriving * h->slots, sizeof *h->sum_of, &h->sum_of);
    for (int64_t i = 0; i < h->arriving * h->slots && st == LM_OK; i++) h->sum_of[i] = -1;
    memset(count, 0, (size_t)h->arriving * sizeof *count);
    for (int64_t j = 0; j < h->inside_out && st == LM_OK; j++)
        if (h->inside_at[j] >= 0) {
            int64_t row = h->inside_at[j];
            h->sum_of[row * h->slots + count[row]++] = (int32_t)j;
        }
    free(count);
    return st;
}

static int arrays(lm_plan *p, const lm__step *a, const lm__step *b) {
    lm__per_host *h = &p->per_host;
    int ranks = lm__plan_ranks(p);
    h->inside_out = b->out, h->inside_in = b->in;
    int st = lm__plan_array(p, ranks, sizeof *h->sends, &h->sends);
    if (st == LM_OK) st = lm__plan_array(p, ranks, sizeof *h->receives, &h->receives);
    if (st == LM_OK) st = lm__plan_array(p, 2 * ranks, sizeof *h->inside, &h->inside);
    if (st == LM_OK) st = lm__plan_array(p, a->out, sizeof *h->across_at, &h->across_at);
    if (st == LM_OK) st = lm__plan_array(p, b->out, sizeof *h->inside_at, &h->inside_at);
    if (st == LM_OK) st = lm__plan_array(p, p->wire.arriving, sizeof *h->to_at, &h->to_at);
    if (st == LM_OK) memcpy(h->inside, b->sends, 2 * (size_t)ranks * sizeof *h->inside);
    return st;
}

static int make_tables(lm_plan *p, const lm__map *m, const lm__step *a, const lm__step *b) {
    lm__load load = {.leg = LM_LEG_PLAN, .each = sizeof(int32_t)};
    int64_t most = p->wire.leaving > b->in ? p->wire.leaving : b->in;
    int32_t *label = NULL, *out = NULL, *in = NULL;
    int st = lm__room_new(most, sizeof *label, &label);
    if (st == LM_OK) st = lm__room_new(a->out, sizeof *out, &out);
    if (st == LM_OK) st = lm__room_new(a->in, sizeof *in, &in);
    if (st == LM_OK) st = arrays(p, a, b);
    if (st == LM_OK) st = number_rows(p, m, label);
    if (st == LM_OK) {
        lm__pack_across(m, (char *)label, sizeof *label, (char *)out);
        st = lm__wire_swap(p, &load, out, a->sends, in, a->receives);
    }
    if (st == LM_OK) { /* the tables are these orders of numbers instead of rows */
        number_arrivals(p, a, in);
        for (int64_t i = 0; i < p->wire.leaving; i++) label[i] = (int32_t)(-i - 1);
        lm__pack_inside(m, (char *)label, (char *)in, sizeof *in,
                        (char *)p->per_host.inside_at);
        for (int64_t i = 0; i < b->in; i++) label[i] = (int32_t)i;
        lm__unpack(m, (char *)label, sizeof *label, (char *)p->per_host.to_at);
        st = list_sums(p);
    }
    lm__room_free(in);
    lm__room_free(out);
    lm__room_free(label);
    return st;
}

int lm__per_host_new(lm_plan *p) {
    lm__map m = {0};
    lm__step a = {0}, b = {0};
    int st = lm__map_new(p, &p->wire, false, &m);
    if (st == LM_OK) st = lm__step_new(m.ranks, &a);
    if (st == LM_OK) st = lm__step_new(m.ranks, &b);
    if (st == LM_OK) {
        lm__count_across(&m, &a);
        lm__count_inside(&m, &b);
        st = make_tables(p, &m, &a, &b);
    }
    free(a.sends);
    free(b.sends);
    free(m.number);
    return st;
}

/* ---- forth and back ---- */

static void copy_row(const lm__carry *c, char *to, int64_t i, const char *from, int64_t j) {
    memcpy(to + i * c->load.each, from + j * c->load.each, (size_t)c->load.each);
}

/* Rooms for what is sent inside and what comes. */
static int inside_room(lm__carry *c, lm__carry *inside) {
    const lm__per_host *h = &c->plan->per_host;
    *inside = (lm__carry){.plan = c->plan, .load = c->load};
    return lm__carry_room(inside, (h->inside_out + h->inside_in) * c->load.each);
}

static void leave_room(lm__carry *inside) {
    if (inside->room) lm__memory_free(inside->room, inside->room_bytes, inside->room_purpose);
}

static int hand_on(lm__carry *c) {
    lm_plan *p = c->plan;
    const lm__per_host *h = &p->per_host;
    const char *across = (const char *)c->room + c->arrived_at;
    lm__carry inside;
    int st = inside_room(c, &inside);
    char *out = inside.room, *in = out + h->inside_out * c->load.each;
    for (int64_t j = 0; j < h->inside_out && st == LM_OK; j++) {
        int32_t at = h->inside_at[j];
        copy_row(c, out, j, at >= 0 ? across : c->from, at >= 0 ? at : -(int64_t)at - 1);
    }
    if (st == LM_OK)
        st = lm__wire_swap(p, &c->load, out, h->inside, in, h->inside + lm__plan_ranks(p));
    for (int64_t i = 0; i < p->wire.arriving && st == LM_OK; i++)
        copy_row(c, c->to, i, in, h->to_at[i]);
    leave_room(&inside);
    return st;
}

static int forth(lm__carry *c) {
    const lm__per_host *h = &c->plan->per_host;
    c->arrived_at = h->leaving * c->load.each;
    int st = lm__carry_room(c, (h->leaving + h->arriving) * c->load.each);
    if (st != LM_OK) return st;
    for (int64_t i = 0; i < h->leaving; i++) copy_row(c, c->room, i, c->from, h->across_at[i]);
    c->then = hand_on;
    return lm__carry_swap(c, c->room, h->sends, (char *)c->room + c->arrived_at, h->receives);
}

static int come_home(lm__carry *c) {
    const lm__per_host *h = &c->plan->per_host;
    for (int64_t i = 0; i < h->leaving; i++)
        copy_row(c, c->to, h->across_at[i], (const char *)c->room + c->arrived_at, i);
    return LM_OK;
}

/* What the places of this host return, to whoever brought it: rows of ours go home, sums of
 * others' to sums. */
static int gather_inside(lm__carry *c, char *sums) {
    lm_plan *p = c->plan;
    const lm__per_host *h = &p->per_host;
    lm__carry inside;
    int st = inside_room(c, &inside);
    char *out = inside.room, *in = out + h->inside_in * c->load.each;
    for (int64_t i = 0; i < p->wire.arriving && st == LM_OK; i++)
        copy_row(c, out, h->to_at[i], c->from, i);
    if (st == LM_OK)
        st = lm__wire_swap(p, &c->load, out, h->inside + lm__plan_ranks(p), in, h->inside);
    for (int64_t j = 0; j < h->inside_out && st == LM_OK; j++)
        if (h->inside_at[j] < 0) copy_row(c, c->to, -(int64_t)h->inside_at[j] - 1, in, j);
    if (st == LM_OK &&
        lm_cpu_kernels.combine_fwd(c->load.dtype, h->arriving, h->slots, c->load.dim, sums, in,
                                   NULL, h->sum_of) != LM_KERNEL_OK)
        st = lm_fail(LM_EINTERNAL, "moe: adding up rows failed");
    leave_room(&inside);
    return st;
}

static int back(lm__carry *c) {
    const lm__per_host *h = &c->plan->per_host;
    c->arrived_at = h->arriving * c->load.each;
    int st = lm__carry_room(c, (h->leaving + h->arriving) * c->load.each);
    if (st != LM_OK) return st;
    memset(c->to, 0, (size_t)(c->plan->wire.leaving * c->load.each));
    st = gather_inside(c, c->room);
    if (st != LM_OK) return st;
    c->then = come_home;
    return lm__carry_swap(c, c->room, h->receives, (char *)c->room + c->arrived_at, h->sends);
}

int lm__carry_per_host(lm__carry *c) { return c->load.back ? back(c) : forth(c); }
