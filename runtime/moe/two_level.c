/* two_level.c - the exchange over two levels: few messages between hosts.
 *
 * With L ranks on each host, a direct exchange puts L * L messages between two
 * hosts; this one L:
 *   1. across: everything for another host goes to one rank there, the one with
 *      the sender's number on its own host (modulo the host's ranks);
 *   2. inside: every rank gives each rank of its host what it has for it, its own
 *      things and those it was handed for others.
 * The first step may go on while the rank computes; the second, short, is waited for.
 * Blocks of things (source, destination) keep their order throughout, so that what
 * comes out is what a direct exchange gives. Hosts may have different sizes, and
 * their ranks any numbers. */
#include "runtime/moe/two_level_impl.h"
#include "runtime/tensor_impl.h"

#include <stdlib.h>
#include <string.h>

int lm__map_new(const lm_plan *p, const lm__wire *w, bool back, lm__map *m) {
    int ranks = lm__plan_ranks(p);
    *m = (lm__map){ranks, lm_group_rank(p->expert), p->host, w->pairs, back, NULL, NULL};
    m->number = calloc(2 * (size_t)ranks, sizeof *m->number);
    if (!m->number) return lm_fail(LM_EOOM, "moe: no memory for an exchange");
    m->size = m->number + ranks;
    for (int r = 0; r < ranks; r++)
        for (int q = 0; q < ranks; q++) {
            if (m->host[q] != m->host[r]) continue;
            m->number[r] += q < r;
            m->size[r]++;
        }
    return LM_OK;
}

/* Things from s to d. */
static int64_t things(const lm__map *m, int s, int d) {
    return m->back ? m->pairs[(int64_t)d * m->ranks + s] : m->pairs[(int64_t)s * m->ranks + d];
}

bool lm__near(const lm__map *m, int a, int b) { return m->host[a] == m->host[b]; }

bool lm__receives_from(const lm__map *m, int q, int s) {
    return !lm__near(m, s, q) && m->number[s] % m->size[q] == m->number[q];
}

/* Whether rank c brings things from s to c's host: its own, or handed to it. */
static bool brings(const lm__map *m, int c, int s) {
    return c == s || lm__receives_from(m, c, s);
}

int lm__step_new(int ranks, lm__step *s) {
    *s = (lm__step){0};
    s->sends = calloc(2 * (size_t)ranks, sizeof *s->sends);
    s->receives = s->sends ? s->sends + ranks : NULL;
    return s->sends ? LM_OK : lm_fail(LM_EOOM, "moe: no memory for an exchange");
}

static void add_up(lm__step *s, int ranks) {
    for (int r = 0; r < ranks; r++) s->out += s->sends[r], s->in += s->receives[r];
}

void lm__count_across(const lm__map *m, lm__step *a) {
    for (int q = 0; q < m->ranks; q++)
        for (int d = 0; d < m->ranks; d++) {
            if (lm__receives_from(m, q, m->me) && lm__near(m, d, q))
                a->sends[q] += things(m, m->me, d);
            if (lm__receives_from(m, m->me, q) && lm__near(m, d, m->me))
                a->receives[q] += things(m, q, d);
        }
    add_up(a, m->ranks);
}

void lm__count_inside(const lm__map *m, lm__step *b) {
    for (int r = 0; r < m->ranks; r++) {
        if (!lm__near(m, r, m->me)) continue;
        for (int s = 0; s < m->ranks; s++) {
            if (brings(m, m->me, s)) b->sends[r] += things(m, s, r);
            if (brings(m, r, s)) b->receives[r] += things(m, s, m->me);
        }
    }
    add_up(b, m->ranks);
}

/* A copy that knows where it is. */
typedef struct cursor {
    char *at;
    int64_t each;
} cursor;

static void put(cursor *c, const char *block, int64_t count) {
    if (count) memcpy(c->at, block, (size_t)(count * c->each));
    c->at += count * c->each;
}

void lm__pack_across(const lm__map *m, const char *from, int64_t each, char *out) {
    cursor c = {out, each};
    for (int q = 0; q < m->ranks; q++) {
        if (!lm__receives_from(m, q, m->me)) continue;
        const char *block = from;
        for (int d = 0; d < m->ranks; d++) {
            int64_t n = things(m, m->me, d);
            if (lm__near(m, d, q)) put(&c, block, n);
            block += n * each;
        }
    }
}

void lm__pack_inside(const lm__map *m, const char *from, const char *across, int64_t each,
                     char *out) {
    cursor c = {out, each};
    const char *mine = from;
    for (int d = 0; d < m->ranks; d++) {
        const char *handed = across;
        for (int s = 0; s < m->ranks && lm__near(m, d, m->me); s++) {
            if (s == m->me) put(&c, mine, things(m, s, d));
            if (!lm__receives_from(m, m->me, s)) continue;
            for (int e = 0; e < m->ranks; e++) {
                if (!lm__near(m, e, m->me)) continue;
                if (e == d) put(&c, handed, things(m, s, d));
                handed += things(m, s, e) * each;
            }
        }
        mine += things(m, m->me, d) * each;
    }
}

void lm__unpack(const lm__map *m, const char *in, int64_t each, char *to) {
    cursor c = {to, each};
    for (int s = 0; s < m->ranks; s++) {
        const char *block = in;
        for (int bearer = 0; bearer < m->ranks; bearer++)
            for (int source = 0; source < m->ranks && lm__near(m, bearer, m->me); source++) {
                if (!brings(m, bearer, source)) continue;
                if (source == s) put(&c, block, things(m, s, m->me));
                block += things(m, source, m->me) * each;
            }
    }
}

static int hand_on(lm__carry *c) {
    lm__map m = {0};
    lm__step s = {0};
    const char *across = (const char *)c->room + c->arrived_at;
    lm__carry inside = {.plan = c->plan, .load = c->load};
    int st = lm__map_new(c->plan, c->wire, c->load.back, &m);
    if (st == LM_OK) st = lm__step_new(m.ranks, &s);
    if (st == LM_OK) {
        lm__count_inside(&m, &s);
        st = lm__carry_room(&inside, (s.out + s.in) * c->load.each);
    }
    if (st == LM_OK) {
        char *out = inside.room, *in = out + s.out * c->load.each;
        lm__pack_inside(&m, c->from, across, c->load.each, out);
        st = lm__wire_swap(c->plan, &c->load, out, s.sends, in, s.receives);
        if (st == LM_OK) lm__unpack(&m, in, c->load.each, c->to);
    }
    if (inside.room) lm__memory_free(inside.room, inside.room_bytes, inside.room_purpose);
    free(s.sends);
    free(m.number);
    return st;
}

int lm__carry_two_level(lm__carry *c) {
    lm__map m = {0};
    lm__step s = {0};
    int st = lm__map_new(c->plan, c->wire, c->load.back, &m);
    if (st == LM_OK) st = lm__step_new(m.ranks, &s);
    if (st == LM_OK) {
        lm__count_across(&m, &s);
        c->arrived_at = s.out * c->load.each;
        st = lm__carry_room(c, (s.out + s.in) * c->load.each);
    }
    if (st == LM_OK) {
        lm__pack_across(&m, c->from, c->load.each, c->room);
        st = lm__carry_swap(c, c->room, s.sends, (char *)c->room + c->arrived_at, s.receives);
        c->then = hand_on;
    }
    free(s.sends);
    free(m.number);
    return st;
}
