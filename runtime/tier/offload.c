/* offload.c - gradients on their way out, chunks on their way in.
 *
 * Which unit to read ahead is learnt: what followed the last time that this unit was entered
 * after the same two will follow again. Two, since that tells forward from backward where units
 * are nested: (experts 1, layer 2, experts 2) goes on to layer 3, (experts 3, layer 2, experts
 * 2) to layer 1. */
#include "kernels/kernels.h"
#include "runtime/memory.h"
#include "runtime/offload.h"
#include "runtime/shard_impl.h"

#include <string.h>

enum {
    PIECE = 1 << 18, /* elements of a gradient that are added at a time */
    MEMORY = 8       /* ways in which a unit is come by */
};

typedef struct home { /* a unit with chunks in a tier */
    struct home *next;
    lm_unit *unit;
    lm_offload *first;
    int count, fetched; /* its chunks; those that were read since it was entered */
    struct {
        const struct home *last, *before_last;
        struct home *after;
    } seen[MEMORY];
    int count_seen;
} home;

typedef struct {
    void *data;
    int64_t bytes;
    int purpose;
} buffer;

struct lm_offload {
    lm__lodging lodging;
    lm_tier *tier;
    lm_tensor *p;
    int64_t gradient, chunk;
    bool has; /* a gradient */
    double squares;
    home *home;       /* NULL: the chunk stays in memory */
    lm_offload *next; /* of its home */
    buffer ahead;
    double read; /* the number of the read that fills it */
};

static home *homes, *here, *last, *before_last; /* all; the units that were entered */
static home *expected;                          /* the one that is read ahead */

/* ---- memory ---- */

static int buffer_new(buffer *b, int64_t bytes, int purpose) {
    int outer = lm_memory_set_purpose(purpose);
    int st = lm__memory_alloc(bytes, &b->data, &b->purpose);
    lm_memory_set_purpose(outer);
    if (st == LM_OK) b->bytes = bytes;
    return st;
}

static void buffer_free(buffer *b) {
    if (b->data) lm__memory_free(b->data, b->bytes, b->purpose);
    b->data = NULL;
}

static int finish(lm_tier *t) { return lm_tier_wait(t, lm_tier_begun(t)); }

/* What is read there goes; the worker may still be writing to it. */
static int drop_ahead(lm_offload *o) {
    int st = o->ahead.data ? lm_tier_wait(o->tier, o->read) : LM_OK;
    buffer_free(&o->ahead);
    return st;
}

/* ---- gradients ---- */

static int square_sum(const float *x, int64_t n, double *sum) {
    double more;
    int st = lm_cpu_kernels.sqsum(LM_F32, n, x, &more);
    if (st != LM_OK) return lm_fail(st, "offload: the norm of a gradient failed");
    *sum += more;
    return LM_OK;
}

static int add_gradient(lm_offload *o, int64_t n, const float *grad) {
    buffer sum = {0};
    int st =
        buffer_new(&sum, (n < PIECE ? n : PIECE) * (int64_t)sizeof *grad, LM_MEM_GRADIENTS);
    float *x = sum.data;
    for (int64_t at = 0; at < n && st == LM_OK; at += PIECE) {
        int64_t len = n - at < PIECE ? n - at : PIECE;
        int64_t place = o->gradient + at * (int64_t)sizeof *x, bytes = len * (int64_t)sizeof *x;
        st = lm_tier_read(o->tier, place, x, bytes);
        if (st == LM_OK) st = finish(o->tier);
        for (int64_t i = 0; i < len && st == LM_OK; i++) x[i] += grad[at + i];
        if (st == LM_OK) st = square_sum(x, len, &o->squares);
        if (st == LM_OK) st = lm_tier_write(o->tier, place, x, bytes);
        if (st == LM_OK) st = finish(o->tier);
    }
    buffer_free(&sum);
    return st;
}

static int take(void *self, const lm_shard *s, const float *grad) {
    lm_offload *o = self;
    bool first = !o->has;
    o->has = true, o->squares = 0;
    if (s->count == 0) return LM_OK;
    if (!first) return add_gradient(o, s->count, grad);
    int st = lm_tier_write(o->tier, o->gradient, grad, s->count * (int64_t)sizeof *grad);
    if (st == LM_OK) st = square_sum(grad, s->count, &o->squares); /* meanwhile */
    int written = finish(o->tier);
    return st == LM_OK ? written : st;
}

int lm_offload_gradient(const lm_offload *o, double *squares) {
    *squares = o->has ? o->squares : 0;
    return o->has;
}

static void forget(void *self) { ((lm_offload *)self)->has = false; }
void lm_offload_forget(lm_offload *o) { forget(o); }

/* ---- chunks ---- */

static int64_t chunk_bytes(const lm_shard *s) { return s->bytes[s->rank]; }

/* Where h has seen this way to it, or will. */
static int place_of(home *h) {
    int i = 0, n = h->count_seen < MEMORY ? h->count_seen : MEMORY;
    while (i < n && (h->seen[i].last != last || h->seen[i].before_last != before_last)) i++;
    return i < n ? i : h->count_seen % MEMORY; /* the oldest is forgotten */
}

static home *follower(home *h) {
    int i = place_of(h);
    bool known =
        i < h->count_seen && h->seen[i].last == last && h->seen[i].before_last == before_last;
    return known ? h->seen[i].after : NULL;
}

static void learn(home *h, home *after) {
    int i = place_of(h);
    if (follower(h) == after) return;
    if (i >= h->count_seen || h->seen[i].last != last || h->seen[i].before_last != before_last)
        h->count_seen++;
    h->seen[i].last = last, h->seen[i].before_last = before_last, h->seen[i].after = after;
}

static void drop_all(home *h) {
    for (lm_offload *o = h->first; o; o = o->next) drop_ahead(o);
}

static void arrive(home *h) {
    if (expected && expected != h) drop_all(expected); /* it went another way */
    expected = NULL;
    if (here) learn(here, h);
    before_last = last, last = here, here = h;
    h->fetched = 0;
}

/* Where memory is short, what was read ahead is read again when it is needed. */
static bool relieve(void) {
    for (lm_offload *o = expected ? expected->first : NULL; o; o = o->next)
        if (o->ahead.data) return drop_ahead(o) == LM_OK;
    return false;
}

/* No memory for it is no failure: it will be read when it is needed. */
static void read_ahead(home *h) {
    expected = h;
    lm__memory_on_pressure(relieve);
    for (lm_offload *o = h && h != here ? h->first : NULL; o; o = o->next) {
        lm_shard *s = lm__shard_of(o->p);
        if (!s || o->ahead.data || chunk_bytes(s) == 0) continue;
        if (lm__memory_is_short(chunk_bytes(s)) ||
            buffer_new(&o->ahead, chunk_bytes(s), LM_MEM_PARAMETERS) != LM_OK)
            return;
        if (lm_tier_read(o->tier, o->chunk, o->ahead.data, chunk_bytes(s)) != LM_OK) {
            buffer_free(&o->ahead);
            return;
        }
        o->read = lm_tier_begun(o->tier);
    }
}

static void arrive_once(home *h) {
    if (h != here || h->fetched == h->count) arrive(h);
}

static void fetched_one(home *h) {
    if (++h->fetched == h->count) read_ahead(follower(h));
}

/* A read that failed is reported by the fetch that follows. */
static char *hand_over(void *self, const lm_shard *s) {
    lm_offload *o = self;
    if (!o->ahead.data || s->ranks > 1 || o->ahead.purpose != s->param->storage->purpose)
        return NULL;
    if (lm_tier_wait(o->tier, o->read) != LM_OK) return NULL;
    char *data = o->ahead.data;
    o->ahead.data = NULL;
    arrive_once(o->home);
    fetched_one(o->home);
    return data;
}

static int fetch(void *self, const lm_shard *s, void *dst) {
    lm_offload *o = self;
    int st = LM_OK;
    if (!o->home) { /* the gradient alone is in the tier */
        memcpy(dst, s->chunk->data, (size_t)chunk_bytes(s));
        return LM_OK;
    }
    arrive_once(o->home);
    if (o->ahead.data) {
        st = lm_tier_wait(o->tier, o->read);
        if (st == LM_OK) memcpy(dst, o->ahead.data, (size_t)chunk_bytes(s));
        buffer_free(&o->ahead);
    } else {
        st = lm_tier_read(o->tier, o->chunk, dst, chunk_bytes(s));
        if (st == LM_OK) st = finish(o->tier);
    }
    if (st == LM_OK) fetched_one(o->home);
    return st;
}

static int store(void *self, const lm_shard *s, const void *src) {
    lm_offload *o = self;
    if (!o->home) {
        memcpy(s->chunk->data, src, (size_t)chunk_bytes(s));
        return LM_OK;
    }
    int st = drop_ahead(o);
    if (st == LM_OK) st = lm_tier_write(o->tier, o->chunk, src, chunk_bytes(s));
    return st == LM_OK ? finish(o->tier) : st;
}

int lm_offload_discard(void) {
    int st = LM_OK;
    for (home *h = homes; h; h = h->next)
        for (lm_offload *o = h->first; o; o = o->next) {
            int one = drop_ahead(o);
            if (st == LM_OK) st = one;
        }
    return st;
}

/* ---- life ---- */

static home *home_of(lm_unit *u) {
    home *h = homes;
    while (h && h->unit != u) h = h->next;
    if (h || !(h = lm__object_new(sizeof *h))) return h;
    *h = (home){.next = homes, .unit = u};
    lm_unit_retain(u);
    return homes = h;
}

static void home_free(home *h) {
    home **at = &homes;
    while (*at != h) at = &(*at)->next;
    *at = h->next;
    for (home *other = homes; other; other = other->next)
        for (int i = 0; i < other->count_seen && i < MEMORY; i++)
            if (other->seen[i].after == h) other->seen[i].after = NULL;
    if (here == h) here = NULL;
    if (last == h) last = NULL;
    if (before_last == h) before_last = NULL;
    if (expected == h) expected = NULL;
    lm_unit_release(h->unit);
    lm__object_free(h, sizeof *h);
}

static void move_in(lm_offload *o) {
    lm_offload **end = &o->home->first;
    while (*end) end = &(*end)->next;
    *end = o;
    o->home->count++;
}

static void move_out(lm_offload *o) {
    home *h = o->home;
    if (!h) return;
    lm_offload **at = &h->first;
    while (*at && *at != o) at = &(*at)->next;
    if (*at) *at = o->next, h->count--;
    if (h->count == 0) home_free(h);
}

int lm_offload_new(lm_tensor *p, lm_tier *tier, int64_t gradient, int64_t chunk,
                   lm_offload **out) {
    lm_shard *s = lm__shard_of(p);
    if (!s || s->stage < 2 || s->lodging || (chunk >= 0 && (s->stage < 3 || s->unit->inside)))
        return lm_fail(LM_EARG,
                       "offload: the parameter is not under a unit at stage %d, or is in "
                       "use, or offloaded already",
                       chunk >= 0 ? 3 : 2);
    lm_offload *o = lm__object_new(sizeof *o);
    if (!o) return lm_fail(LM_EOOM, "offload: no memory");
    *o = (lm_offload){.lodging = {o, fetch, hand_over, store, take, forget},
                      .tier = tier,
                      .gradient = gradient,
                      .chunk = chunk};
    int st = LM_OK;
    if (chunk >= 0) {
        o->home = home_of(s->unit);
        st = o->home ? store(o, s, s->chunk->data) : lm_fail(LM_EOOM, "offload: no memory");
    }
    if (st != LM_OK) {
        if (o->home && o->home->count == 0) home_free(o->home);
        lm__object_free(o, sizeof *o);
        return st;
    }
    if (o->home) {
        move_in(o);
        lm__storage_drop(s->chunk->storage);
    }
    lm_tensor_retain(o->p = p);
    lm_tier_retain(tier);
    s->lodging = &o->lodging;
    *out = o;
    return LM_OK;
}

void lm_offload_release(lm_offload *o) {
    if (!o) return;
    drop_ahead(o);
    move_out(o);
    lm_shard *s = lm__shard_of(o->p);
    if (s && s->lodging == &o->lodging) s->lodging = NULL;
    lm_tensor_release(o->p);
    lm_tier_release(o->tier);
    lm__object_free(o, sizeof *o);
}
