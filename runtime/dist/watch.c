/* watch.c - what every rank is doing, for jobs that hang.
 *
 * A rank that hangs cannot answer, so each keeps a note of its last collective
 * where the other ranks of its host can read it: in memory they share. The first
 * whose wait takes longer than LUMOE_TIMEOUT seconds reads all notes into its
 * error; the others, whose time is up as well, give it a moment to end the job. */
#include "runtime/dist/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BEFORE = 0, WAITS, PAST };
enum { DEBUG_SECONDS = 60, SPEAK_SECONDS = 3 };

typedef struct note {
    int state;
    int reports; /* of the first rank of a host: one of them is writing its report */
    lm__call call;
} note;

static note **notes; /* [world size], NULL for a rank on another host; NULL: not watching */
static int world_size, me, first_here;
static double limit;
static int (*where)(char *text, int room);

void lm_dist_where(int (*function)(char *text, int room)) { where = function; }

bool lm__checking(void) {
    static int on = -1;
    const char *modes = getenv("LUMOE_DEBUG");
    if (on < 0) on = modes && strstr(modes, "collectives");
    return on;
}

int lm_dist_debug(void) { return lm__checking(); }

static int read_limit(void) {
    const char *text = getenv("LUMOE_TIMEOUT");
    char *end = NULL;
    limit = lm__checking() ? DEBUG_SECONDS : 0;
    if (!text || !*text) return LM_OK;
    limit = strtod(text, &end);
    if (*end == '\0' && limit >= 0) return LM_OK;
    return lm_fail(LM_EARG, "LUMOE_TIMEOUT: '%s' is not a number of seconds", text);
}

int lm__watch_open(const lm__transport *transport, int size, int rank) {
    char error[256] = "";
    int st = read_limit();
    if (st != LM_OK) return st;
    if (limit <= 0 && !lm__checking()) return LM_OK;
    notes = calloc((size_t)size, sizeof *notes);
    if (!notes) return lm_fail(LM_EOOM, "dist: no memory for %d ranks", size);
    if (transport->share(sizeof(note), (void **)notes, error) != 0)
        return lm_fail(LM_ECOMM, "%s", error);
    world_size = size;
    me = rank;
    while (!notes[first_here]) first_here++;
    return LM_OK;
}

/* ---- records ---- */

static void ranks_text(int n, const int *rank, char *text, size_t room) {
    size_t at = (size_t)snprintf(text, room, n == 1 ? "rank" : "ranks");
    for (int i = 0, last; i < n && at < room; i = last + 1) {
        for (last = i; last + 1 < n && rank[last + 1] == rank[last] + 1;) last++;
        at += (size_t)snprintf(text + at, room - at, last > i ? "%s %d-%d" : "%s %d",
                               i > 0 ? "," : "", rank[i], rank[last]);
    }
}

int lm__watch_new(lm_async *a) {
    if (!notes) return LM_OK;
    size_t sizes = 2 * (size_t)a->group->size * sizeof(int64_t);
    lm__record *r = a->record = calloc(1, sizeof *r + sizes);
    if (!r) return lm_fail(LM_EOOM, "%s: no memory for its record", a->name);
    lm__call *c = &r->call;
    snprintf(c->name, sizeof c->name, "%s", a->name);
    ranks_text(a->group->size, a->group->world_rank, c->ranks, sizeof c->ranks);
    if (lm__checking() && where) where(c->line, sizeof c->line);
    return LM_OK;
}

void lm__watch_started(lm_async *a) {
    lm__record *r = a->record;
    size_t size = (size_t)a->group->size;
    if (!r) return;
    r->call.place = a->group->started;
    r->call.count = a->count;
    r->call.dtype = a->dtype;
    r->call.op = a->op;
    memcpy(r->sizes, a->sends, size * sizeof *r->sizes);
    memcpy(r->sizes + size, a->receives, size * sizeof *r->sizes);
    notes[me]->call = r->call;
    notes[me]->state = PAST;
}

void lm__watch_waits(const lm_async *a, bool waits) {
    if (!a->record) return;
    notes[me]->call = a->record->call;
    notes[me]->state = waits ? WAITS : PAST;
}

void lm__call_text(const lm__call *c, char *text, size_t room) {
    static const char *const dtypes[] = {"f32", "bf16", "i32", "i64", "u8"};
    static const char *const ops[] = {"sum", "max", "min"};
    const char *dtype = c->dtype >= 0 && c->dtype < LM_DTYPES ? dtypes[c->dtype] : "f64";
    const char *op = c->op >= 0 && c->op <= LM_REDUCE_MIN ? ops[c->op] : "?"; /* half written */
    char what[64] = "";
    if (strcmp(c->name, "broadcast") == 0)
        snprintf(what, sizeof what, " of %lld bytes from its rank %d", (long long)c->count,
                 c->op);
    else if (strstr(c->name, "reduce"))
        snprintf(what, sizeof what, " of %lld %s (%s)", (long long)c->count, dtype, op);
    snprintf(text, room, "%s%s%s%s", c->name, what, *c->line ? ", at " : "", c->line);
}

void lm__list_ranks(int n, const int *rank, lm__line_fn line, const void *of, char *text,
                    size_t room) {
    char mine[512], other[512], who[64];
    int *same = malloc((size_t)n * sizeof *same);
    size_t at = 0;
    for (int i = 0; same && i < n && at < room; i++) {
        int count = 0;
        line(of, i, mine, sizeof mine);
        for (int j = 0; j < n && (count > 0 || j <= i); j++) {
            line(of, j, other, sizeof other);
            if (strcmp(mine, other) == 0) {
                if (count == 0 && j < i) break; /* it was listed with j */
                same[count++] = rank[j];
            }
        }
        if (count == 0) continue;
        ranks_text(count, same, who, sizeof who);
        at += (size_t)snprintf(text + at, room - at, "\n  %s: %s", who, mine);
    }
    free(same);
}

/* ---- time-outs ---- */

void lm__watch_let_others_speak(void) { nanosleep(&(struct timespec){SPEAK_SECONDS, 0}, NULL); }

static void note_text(const void *of, int i, char *text, size_t room) {
    static const char *const states[] = {"in no collective yet", "waits in", "is past"};
    const note *const *all = of;
    char what[256] = "";
    if (!all[i]) {
        snprintf(text, room, "on another host, which tells of its own ranks");
        return;
    }
    note n = *all[i]; /* as it is now */
    if (n.state != BEFORE) lm__call_text(&n.call, what, sizeof what);
    if (n.state == BEFORE) snprintf(text, room, "%s", states[BEFORE]);
    else
        snprintf(text, room, "%s collective %lld of %s: %s", states[n.state],
                 (long long)n.call.place, n.call.ranks, what);
}

bool lm__watch_expired(double since, double now, char *text, size_t room) {
    if (!notes || limit <= 0 || now - since < limit) return false;
    if (__sync_lock_test_and_set(&notes[first_here]->reports, 1)) lm__watch_let_others_speak();
    int *rank = malloc((size_t)world_size * sizeof *rank);
    size_t at = (size_t)snprintf(text, room, "nothing came for %g s (LUMOE_TIMEOUT)", limit);
    for (int r = 0; rank && r < world_size; r++) rank[r] = r;
    if (rank) lm__list_ranks(world_size, rank, note_text, notes, text + at, room - at);
    free(rank);
    __sync_lock_release(&notes[first_here]->reports);
    return true;
}
