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
#include "runtime/memory.h"
#include "runtime/moe/plan_impl.h"
#include "runtime/tensor_impl.h"

#include <stdlib.h>
#include <string.h>

typedef struct map {
    int ranks, me;
    const int32_t *host;
    const int64_t *pairs;
    bool back;
    int *number; /* of a rank on its host */
    int *size;   /* of a rank's host */
} map;

static int map_new(const lm__carry *c, map *m) {
    int ranks = lm__plan_ranks(c->plan), me = lm_group_rank(c->plan->expert);
    *m = (map){ranks, me, c->plan->host, c->wire->pairs, c->load.back, NULL, NULL};
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
static int64_t things(const map *m, int s, int d) {
    return m->back ? m->pairs[(int64_t)d * m->ranks + s] : m->pairs[(int64_t)s * m->ranks + d];
}

static bool near(const map *m, int a, int b) { return m->host[a] == m->host[b]; }

/* Whether rank q takes what s has for the other host on which q is. */
static bool receives_from(const map *m, int q, int s) {
    return !near(m, s, q) && m->number[s] % m->size[q] == m->number[q];
}

/* Whether rank c brings things from s to c's host: its own, or handed to it. */
static bool brings(const map *m, int c, int s) { return c == s || receives_from(m, c, s); }

/* What moves in each step, to and from every rank. */
typedef struct step {
    int64_t *sends, *receives, out, in;
} step;

static int step_new(int ranks, step *s) {
    *s = (step){0};
    s->sends = calloc(2 * (size_t)ranks, sizeof *s->sends);
    s->receives = s->sends ? s->sends + ranks : NULL;
    return s->sends ? LM_OK : lm_fail(LM_EOOM, "moe: no memory for an exchange");
}

static void add_up(step *s, int ranks) {
    for (int r = 0; r < ranks; r++) s->out += s->sends[r], s->in += s->receives[r];
}

static void count_across(const map *m, step *a) {
    for (int q = 0; q < m->ranks; q++)
        for (int d = 0; d < m->ranks; d++) {
            if (receives_from(m, q, m->me) && near(m, d, q)) a->sends[q] += things(m, m->me, d);
            if (receives_from(m, m->me, q) && near(m, d, m->me))
                a->receives[q] += things(m, q, d);
        }
    add_up(a, m->ranks);
}

static void count_inside(const map *m, step *b) {
    for (int r = 0; r < m->ranks; r++) {
        if (!near(m, r, m->me)) continue;
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

/* For each rank across, in turn: what this one has for the ranks of its host. */
static void pack_across(const map *m, const char *from, int64_t each, char *out) {
    cursor c = {out, each};
    for (int q = 0; q < m->ranks; q++) {
        if (!receives_from(m, q, m->me)) continue;
        const char *block = from;
        for (int d = 0; d < m->ranks; d++) {
            int64_t n = things(m, m->me, d);
            if (near(m, d, q)) put(&c, block, n);
            block += n * each;
        }
    }
}

/* For each rank of this host, in turn: from each source, in turn, what came across or is ours.
 */
static void pack_inside(const map *m, const char *from, const char *across, int64_t each,
                        char *out) {
    cursor c = {out, each};
    const char *mine = from;
    for (int d = 0; d < m->ranks; d++) {
        const char *handed = across;
        for (int s = 0; s < m->ranks && near(m, d, m->me); s++) {
            if (s == m->me) put(&c, mine, things(m, s, d));
            if (!receives_from(m, m->me, s)) continue;
            for (int e = 0; e < m->ranks; e++) {
                if (!near(m, e, m->me)) continue;
                if (e == d) put(&c, handed, things(m, s, d));
                handed += things(m, s, e) * each;
            }
        }
        mine += things(m, m->me, d) * each;
    }
}

/* From bearer after bearer to source after source. */
static void unpack(const map *m, const char *in, int64_t each, char *to) {
    cursor c = {to, each};
    for (int s = 0; s < m->ranks; s++) {
        const char *block = in;
        for (int bearer = 0; bearer < m->ranks; bearer++)
            for (int source = 0; source < m->ranks && near(m, bearer, m->me); source++) {
                if (!brings(m, bearer, source)) continue;
                if (source == s) put(&c, block, things(m, s, m->me));
                block += things(m, source, m->me) * each;
            }
    }
}

static int hand_on(lm__carry *c) {
    map m = {0};
    step s = {0};
    const char *across = (const char *)c->room + c->arrived_at;
    lm__carry inside = {.plan = c->plan, .load = c->load};
    int st = map_new(c, &m);
    if (st == LM_OK) st = step_new(m.ranks, &s);
    if (st == LM_OK) {
        count_inside(&m, &s);
        st = lm__carry_room(&inside, (s.out + s.in) * c->load.each);
    }
    if (st == LM_OK) {
        char *out = inside.room, *in = out + s.out * c->load.each;
        pack_inside(&m, c->from, across, c->load.each, out);
        st = lm__wire_swap(c->plan, &c->load, out, s.sends, in, s.receives);
        if (st == LM_OK) unpack(&m, in, c->load.each, c->to);
    }
    if (inside.room) lm__memory_free(inside.room, inside.room_bytes, inside.room_purpose);
    free(s.sends);
    free(m.number);
    return st;
}

int lm__carry_two_level(lm__carry *c) {
    map m = {0};
    step s = {0};
    int st = map_new(c, &m);
    if (st == LM_OK) st = step_new(m.ranks, &s);
    if (st == LM_OK) {
        count_across(&m, &s);
        c->arrived_at = s.out * c->load.each;
        st = lm__carry_room(c, (s.out + s.in) * c->load.each);
    }
    if (st == LM_OK) {
        pack_across(&m, c->from, c->load.each, c->room);
        st = lm__carry_swap(c, c->room, s.sends, (char *)c->room + c->arrived_at, s.receives);
        c->then = hand_on;
    }
    free(s.sends);
    free(m.number);
    return st;
}
