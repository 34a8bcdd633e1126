/* async.c - collectives under way, and waiting for them.
 *
 * A collective is a row of stages: a stage posts messages, and the next follows
 * when they have arrived (collective.c has the stages). Whoever waits, or calls
 * lm_dist_progress, moves everything that is in flight: a rank that waits for
 * one thing never holds up another.
 *
 * Stages of two collectives may overlap in any order, so each collective has a
 * tag of its own: its place in the order of its group's collectives, which is
 * the same on all members, modulo SLOTS. The tag's last user must be done here
 * before it is used again; messages under one tag then never overtake. */
#include "runtime/dist/dist_impl.h"
#include "runtime/dist/watch.h"
#include "runtime/memory.h"
#include "runtime/tensor_impl.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SPINS = 200, ALONE = 50, YIELDS = 4000, LEFT_SECONDS = 2, WRECK_SECONDS = 1 };

/* Why a rank has failed, as it tells the others (lm_dist_rejoin). */
typedef struct news {
    int32_t recoveries, code; /* recoveries: older news are of a failure that is over */
    char text[900];
} news;

_Static_assert(sizeof(news) <= LM__NEWS, "news fit");

/* A stage of a collective that failed while something was coming in. */
typedef struct wreck {
    struct wreck *next;
    lm__flight *flight;
    lm__comparison *comparison; /* what it is received into */
} wreck;

static lm_async *in_flight;
static wreck *wrecks;
static int recoveries, failed = -1; /* failed: the rank of which we have heard, or -1 */
static news failure;
static int64_t moves; /* times that something was found to have moved */
static double waited; /* seconds */
static volatile int interrupted;

/* ---- one collective ---- */

static void free_scratch(lm_async *a) {
    if (a->scratch) lm__memory_free(a->scratch, a->scratch_bytes, a->scratch_purpose);
    a->scratch = NULL;
}

static void async_free(lm_async *a) {
    lm_async **at = &in_flight;
    while (*at && *at != a) at = &(*at)->next;
    if (*at) *at = a->next;
    free_scratch(a);
    lm_group_release(a->group);
    free(a->comparison);
    free(a->record);
    free(a->error);
    free(a);
}

/* Takes back this stage's messages. What it was sending others may still read until all have
 * recovered; what is half received is a wreck, until the rest has come. */
static void drop_flight(lm_async *a) {
    lm__flight *f = a->flight;
    a->flight = NULL;
    if (!f) return;
    for (int i = 0; i < a->posted_out; i++)
        lm__memory_pin(a->out[i].data, a->out[i].bytes, NULL);
    if (lm__transport_of_job()->drop(f)) return;
    wreck *w = malloc(sizeof *w);
    for (int i = 0; i < a->posted_in; i++) /* without a wreck, it is pinned for ever */
        lm__memory_pin(a->in[i].data, a->in[i].bytes, w ? (void *)w : (void *)&wrecks);
    if (w) *w = (wreck){wrecks, f, a->comparison}, wrecks = w;
    a->comparison = NULL;
}

static void clear_wrecks(void) {
    char error[256];
    for (wreck **at = &wrecks, *w; (w = *at) != NULL;) {
        if (lm__transport_of_job()->test(w->flight, error) == 0) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        lm__memory_unpin(w);
        free(w->comparison);
        free(w);
    }
}

static void fail_saying(lm_async *a, int code, const char *sentence) {
    drop_flight(a);
    free_scratch(a);
    a->then = NULL;
    a->done = true;
    a->status = code;
    a->group->broken = true;
    size_t length = strlen(sentence) + 1;
    a->error = malloc(length);
    if (a->error) memcpy(a->error, sentence, length);
}

static void fail(lm_async *a, int code, const char *why) {
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s over %d ranks: %s", a->name, a->group->size, why);
    fail_saying(a, code, sentence);
}

/* Runs stages until one has to wait. */
static void advance(lm_async *a) {
    while (!a->flight && !a->done) {
        int (*stage)(lm_async *) = a->then;
        a->then = NULL;
        int st = stage ? stage(a) : LM_OK;
        if (st != LM_OK) fail(a, st, lm_last_error());
        if (!stage) a->done = true;
    }
}

static void step(lm_async *a) {
    char error[256] = "";
    int arrived = 1;
    if (a->done) return;
    if (a->group->broken) {
        fail(a, LM_ECOMM, "an earlier collective of this group failed or was interrupted");
        return;
    }
    if (a->flight) arrived = lm__transport_of_job()->test(a->flight, error);
    moves += arrived > 0;
    if (arrived == 1) {
        a->flight = NULL;
        advance(a);
    } else if (arrived < 0) fail(a, LM_ECOMM, error);
}

/* ---- all of them ---- */

void lm_dist_progress(void) {
    if (wrecks && lm_dist_running()) clear_wrecks();
    for (lm_async **at = &in_flight; *at;) {
        lm_async *a = *at;
        step(a);
        if (a->done) *at = a->next;
        else at = &a->next;
    }
}

void lm__async_give_up(const char *why) {
    for (; in_flight; in_flight = in_flight->next) fail(in_flight, LM_ECOMM, why);
}

/* The next news of a failure that is not over; the rank, or -1. */
static int next_news(news *n) {
    int from;
    do from = lm_dist_running() ? lm__transport_of_job()->hear(n, sizeof *n) : -1;
    while (from >= 0 && n->recoveries != recoveries);
    return from;
}

static int fail_as_heard(void) {
    return lm_fail(failure.code, "%s [on rank %d]", failure.text, failed);
}

/* A rank that has failed will not come. */
static void listen(void) {
    if (failed < 0) failed = next_news(&failure);
    if (failed < 0) return;
    fail_as_heard();
    for (; in_flight; in_flight = in_flight->next)
        fail_saying(in_flight, failure.code, lm_last_error());
}

void lm_dist_interrupt(void) { interrupted = 1; }

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A short wait spins, a longer one gives its core away, a long one sleeps. With a core for each
 * rank, only a stranger could take it, and would keep it for milliseconds: such ranks spin
 * ALONE times as long. */
static void pause_for(int64_t turn) {
    if (!lm__dist_crowded()) turn = turn < ALONE * SPINS ? 0 : turn - (ALONE - 1) * SPINS;
    if (turn < SPINS) return;
    if (turn < YIELDS) sched_yield();
    else nanosleep(&(struct timespec){0, turn < 3 * YIELDS ? 50000 : 1000000}, NULL);
}

/* What a rank sent before it left may still be on its way: it has LEFT_SECONDS to come. */
static void look_for_deserters(lm_async *a, double *deadline) {
    char why[64];
    int rank = a->flight ? lm__transport_of_job()->deserter(a->flight) : -1;
    if (rank < 0) return;
    if (*deadline == 0) *deadline = seconds() + LEFT_SECONDS;
    if (seconds() < *deadline) return;
    snprintf(why, sizeof why, "rank %d has already left the job", rank);
    fail(a, LM_ECOMM, why);
}

static void look_at_clock(lm_async *a, double since) {
    char why[900];
    if (lm__watch_expired(since, seconds(), why, sizeof why)) fail(a, LM_ECOMM, why);
}

static void until_done(lm_async *a) {
    if (a->done) return;
    double deadline = 0, since = seconds();
    lm__watch_waits(a, true);
    for (int64_t turn = 0, seen = moves; !a->done; turn++) {
        lm_dist_progress();
        if (a->done) break;
        if (moves != seen) turn = 0, seen = moves;
        if (interrupted) {
            interrupted = 0;
            lm__async_give_up("interrupted");
        }
        pause_for(turn);
        if (turn < SPINS || turn % 100 != 0) continue;
        listen();
        if (turn < YIELDS) continue;
        if (!a->done) look_for_deserters(a, &deadline);
        if (!a->done) look_at_clock(a, since);
    }
    if (a->status == LM_OK) lm__watch_waits(a, false); /* who gave up got no further */
    waited += seconds() - since;
}

double lm_dist_waited(void) { return waited; }

int lm_async_wait(lm_async *a) {
    if (!a) return LM_OK;
    until_done(a);
    int st = a->status;
    if (st != LM_OK) lm_fail(st, "%s", a->error ? a->error : a->name);
    async_free(a);
    return st;
}

int lm_async_test(lm_async *a) {
    if (!a) return 1;
    lm_dist_progress();
    return a->done;
}

void lm_async_drop(lm_async *a) {
    if (!a) return;
    if (!a->done) fail(a, LM_ECOMM, "dropped");
    async_free(a);
}

int lm_dist_recover(void) {
    char error[256] = "";
    int st = lm_dist_init(), renewed = 0;
    if (st != LM_OK) return st;
    lm__async_give_up("interrupted");
    for (int64_t turn = 0; lm_dist_running() && renewed == 0; turn++) {
        renewed = lm__transport_of_job()->renew(error);
        pause_for(turn);
    }
    if (renewed < 0) return lm_fail(LM_ECOMM, "recover: %s", error);
    interrupted = 0;
    failed = -1;
    recoveries++;
    lm__memory_unpin(NULL); /* nobody can read any more what was being sent */
    double since = seconds();
    for (int64_t turn = 0; wrecks && seconds() - since < WRECK_SECONDS; turn++) {
        clear_wrecks();
        pause_for(turn);
    }
    return LM_OK;
}

int lm_dist_recoveries(void) { return recoveries; }

/* The least of all ranks' numbers. */
static int least(int *number) {
    char error[256] = "";
    int known = 0;
    for (int64_t turn = 0; known == 0; turn++) {
        known = lm__transport_of_job()->least(number, error);
        pause_for(turn);
    }
    return known > 0 ? LM_OK : lm_fail(LM_ECOMM, "%s", error);
}

int lm_dist_rejoin(int status, const char *text) {
    char error[256] = "";
    int st = lm_dist_init();
    if (st != LM_OK) return st;
    int rank = lm_dist_rank(), size = lm_dist_world_size();
    bool ours = status != LM_OK && failed < 0; /* else it is another's that has reached us */
    news mine = {.recoveries = recoveries, .code = status};
    snprintf(mine.text, sizeof mine.text, "%s", text ? text : "an error");
    if (size == 1) return ours ? lm_fail(status, "%s", mine.text) : LM_OK;
    if (!lm_dist_running()) return lm_fail(LM_ECOMM, "this rank has already left the job");
    if (ours && lm__transport_of_job()->tell(&mine, sizeof mine, error) != 0)
        return lm_fail(LM_ECOMM, "%s", error);
    int first = ours ? rank : size;
    st = least(&first);
    if (st != LM_OK || first == size) return st;
    for (int64_t turn = 0; first != rank && failed != first; turn++) {
        failed = next_news(&failure);
        pause_for(turn);
    }
    if (first == rank) lm_fail(status, "%s", mine.text);
    else fail_as_heard();
    snprintf(mine.text, sizeof mine.text, "%s", lm_last_error());
    int code = first == rank ? status : failure.code;
    st = lm_dist_recover();
    return st == LM_OK ? lm_fail(code, "%s", mine.text) : st;
}

/* ---- starting one ---- */

static lm_async *alloc(int size) {
    lm_async *a;
    size_t n = (size_t)size;
    size_t each = 2 * sizeof *a->send + 2 * sizeof *a->sends + 2 * sizeof *a->out;
    a = calloc(1, sizeof *a + n * each);
    if (!a) return NULL;
    a->send = (char **)(void *)(a + 1);
    a->receive = a->send + n;
    a->sends = (int64_t *)(void *)(a->receive + n);
    a->receives = a->sends + n;
    a->out = (lm__message *)(void *)(a->receives + n);
    a->in = a->out + n;
    return a;
}

static int usable(lm_group *g, const char *name) {
    if (g->recovery != recoveries) {
        g->recovery = recoveries;
        g->broken = false;
        g->started = 0;
    }
    if (failed >= 0) return fail_as_heard();
    if (g->broken)
        return lm_fail(LM_ECOMM,
                       "%s: an earlier collective of this group failed or was interrupted",
                       name);
    if (!lm_dist_running())
        return lm_fail(LM_ECOMM, "%s: this rank has already left the job", name);
    return LM_OK;
}

int lm__async_new(lm_group *g, const char *name, int (*first)(lm_async *), lm_async **out) {
    int st = usable(g, name);
    if (st != LM_OK) return st;
    lm_async *a = alloc(g->size);
    if (!a) return lm_fail(LM_EOOM, "%s: no memory for its messages", name);
    lm_group_retain(g);
    a->group = g;
    a->name = name;
    a->then = first;
    st = lm__watch_new(a);
    if (st == LM_OK) *out = a;
    else async_free(a);
    return st;
}

/* The last user of a's tag has to be done. */
static void take_tag(lm_async *a) {
    lm_group *g = a->group;
    a->tag = g->number * LM__SLOTS + (int)(g->started++ % LM__SLOTS);
    for (lm_async *b = in_flight; b; b = b->next)
        if (b->group == g && b->tag == a->tag) {
            until_done(b);
            return;
        }
}

int lm__async_start(lm_async *a, int st, lm_async **out) {
    if (st == LM_OK) st = lm__check(a);
    if (st != LM_OK) {
        async_free(a);
        return st;
    }
    take_tag(a);
    lm__watch_started(a);
    step(a);
    lm_async **end = &in_flight;
    while (*end) end = &(*end)->next;
    if (!a->done) *end = a;
    *out = a;
    return LM_OK;
}

int lm__async_scratch(lm_async *a, int64_t bytes) {
    void *room = NULL;
    int before = lm_memory_set_purpose(LM_MEM_EXCHANGE);
    int st = lm__memory_obtain(bytes, &room, &a->scratch_purpose);
    lm_memory_set_purpose(before);
    a->scratch = room;
    a->scratch_bytes = bytes;
    return st;
}

/* ---- what stages do ---- */

int lm__async_post(lm_async *a, int sends, lm__message *send, int receives,
                   lm__message *receive) {
    char error[256] = "";
    const int *world_rank = a->group->world_rank;
    for (int i = 0; i < sends; i++) {
        send[i].peer = world_rank[send[i].peer];
        if (!a->uncounted) lm__traffic_count(send[i].peer, send[i].bytes);
    }
    for (int i = 0; i < receives; i++) receive[i].peer = world_rank[receive[i].peer];
    a->posted_out = sends, a->posted_in = receives;
    if (lm__transport_of_job()->post(a->tag, sends, send, receives, receive, &a->flight,
                                     error) != 0)
        return lm_fail(LM_ECOMM, "%s", error);
    return LM_OK;
}

int lm__async_everyone(lm_async *a) {
    int n = 0, size = a->group->size, rank = a->group->rank;
    for (int away = 1; away < size; away++, n++) { /* each starts at its neighbour */
        int to = (rank + away) % size, from = (rank + size - away) % size;
        a->out[n] = (lm__message){to, a->sends[to], a->send[to]};
        a->in[n] = (lm__message){from, a->receives[from], a->receive[from]};
    }
    return lm__async_post(a, n, a->out, n, a->in);
}
