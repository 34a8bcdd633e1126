/* check.c - LUMOE_DEBUG=collectives: before a collective begins, its members compare what they
 * are about to do.
 *
 * The comparison is a stage like any other: everyone sends everyone its record under
 * the collective's own tag. That comes from the place in the order of the group's
 * collectives, so that whatever two ranks do there, their records meet. All members then
 * see the same records and come to the same verdict. */
#include "runtime/dist/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct lm__comparison {
    int (*first)(lm_async *); /* the collective's own first stage */
    size_t each;              /* bytes of a record */
    int size;
    _Alignas(lm__record) char records[]; /* [size] */
} comparison;

static const lm__record *record_of(const comparison *c, int rank) {
    return (const lm__record *)(const void *)(c->records + (size_t)rank * c->each);
}

/* Where they do not even mean the same group, that is told too. */
static void line(const void *of, int i, char *text, size_t room) {
    const comparison *c = of;
    const lm__call *first = &record_of(c, 0)->call, *call = &record_of(c, i)->call;
    bool one_group = true;
    for (int r = 1; r < c->size; r++)
        if (strcmp(first->ranks, record_of(c, r)->call.ranks) != 0) one_group = false;
    size_t at = 0;
    if (!one_group) at = (size_t)snprintf(text, room, "for a group of %s, ", call->ranks);
    if (at < room) lm__call_text(call, text + at, room - at);
}

static bool alike(const lm__call *a, const lm__call *b) {
    return strcmp(a->ranks, b->ranks) == 0 && strcmp(a->name, b->name) == 0 &&
           a->place == b->place && a->count == b->count && a->dtype == b->dtype &&
           a->op == b->op;
}

/* Writes what is wrong, or nothing. */
static void judge(const comparison *c, char *text, size_t room) {
    for (int r = 1; r < c->size; r++)
        if (!alike(&record_of(c, 0)->call, &record_of(c, r)->call)) {
            snprintf(text, room, "its ranks do not do the same");
            return;
        }
    for (int from = 0; from < c->size; from++)
        for (int to = 0; to < c->size; to++) {
            int64_t sent = record_of(c, from)->sizes[to];
            int64_t expected = record_of(c, to)->sizes[c->size + from];
            if (from == to || sent == expected) continue;
            snprintf(text, room,
                     "its rank %d sends %lld bytes to its rank %d, which expects %lld", from,
                     (long long)sent, to, (long long)expected);
            return;
        }
}

static int compare(lm_async *a) {
    comparison *c = a->comparison;
    char text[768] = "";
    judge(c, text, sizeof text);
    a->then = c->first;
    a->uncounted = false;
    if (!*text) return LM_OK;
    size_t at = strlen(text);
    lm__list_ranks(c->size, a->group->world_rank, line, c, text + at, sizeof text - at);
    if (a->group->rank > 0) lm__watch_let_others_speak();
    return lm_fail(LM_ECOMM, "%s", text);
}

static int exchange(lm_async *a) {
    comparison *c = a->comparison;
    int n = 0, rank = a->group->rank;
    memcpy(c->records + (size_t)rank * c->each, a->record, c->each);
    for (int r = 0; r < c->size; r++) {
        if (r == rank) continue;
        char *theirs = c->records + (size_t)r * c->each;
        a->out[n] = (lm__message){r, (int64_t)c->each, a->record};
        a->in[n++] = (lm__message){r, (int64_t)c->each, theirs};
    }
    a->then = compare;
    a->uncounted = true;
    return lm__async_post(a, n, a->out, n, a->in);
}

int lm__check(lm_async *a) {
    if (!lm__checking() || !a->record) return LM_OK;
    size_t size = (size_t)a->group->size;
    size_t each = sizeof *a->record + 2 * size * sizeof(int64_t);
    comparison *c = a->comparison = calloc(1, sizeof *c + size * each);
    if (!c) return lm_fail(LM_EOOM, "%s: no memory to compare it", a->name);
    c->first = a->then;
    c->each = each;
    c->size = a->group->size;
    a->then = exchange;
    return LM_OK;
}
