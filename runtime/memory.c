/* memory.c - the pool behind tensor storage.
 *
 * Small requests are rounded up to a size class, eight to an octave; free buffers of a class
 * form a list through their first word. Large ones come from the arena (runtime/arena.c).
 *
 * Objects (headers, storages, nodes: a few to every operation) come from lists
 * of their own, and are carved out of slabs that are never given back. */
#include "runtime/arena_impl.h"
#include "runtime/memory.h"
#include "runtime/tensor_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_SHIFT = 6, MAX_SHIFT = 15, CLASSES = 8 * (MAX_SHIFT - MIN_SHIFT) + 1 };
enum { LARGE = 1 << MAX_SHIFT, LARGE_GRAIN = 1024 }; /* above LARGE: the arena */

typedef struct block {
    struct block *next;
} block;

static block *freelist[CLASSES];
static int64_t live[LM_MEM_PURPOSES], peak[LM_MEM_PURPOSES];
static int64_t live_all, peak_all, pooled, limit, soft_limit;
static int purpose_now = LM_MEM_ACTIVATIONS;
static int fail_countdown;

/* Its rounded size, and the class that holds it; -1: the arena. */
static int size_class(int64_t bytes, int64_t *size) {
    if (bytes > LARGE) {
        *size = bytes > INT64_MAX - LARGE_GRAIN
                    ? bytes
                    : (bytes + LARGE_GRAIN - 1) / LARGE_GRAIN * LARGE_GRAIN;
        return -1;
    }
    if (bytes <= 1 << MIN_SHIFT) return *size = 1 << MIN_SHIFT, 0;
    int octave =
        63 - __builtin_clzll((uint64_t)(bytes - 1)); /* 2^octave < bytes <= 2^(octave+1) */
    int64_t step = octave >= MIN_SHIFT + 3 ? (int64_t)1 << (octave - 3) : 1 << MIN_SHIFT;
    int64_t above = bytes - ((int64_t)1 << octave);
    int64_t steps = (above + step - 1) / step;
    *size = ((int64_t)1 << octave) + steps * step;
    return 8 * (octave - MIN_SHIFT) + (int)steps;
}

/* Sizes of a class, from the largest request that falls into it. */
static int64_t class_size(int class) {
    if (class == 0) return 1 << MIN_SHIFT;
    int octave = (class - 1) / 8 + MIN_SHIFT, steps = (class - 1) % 8 + 1;
    int64_t step = octave >= MIN_SHIFT + 3 ? (int64_t)1 << (octave - 3) : 1 << MIN_SHIFT;
    return ((int64_t)1 << octave) + steps * step;
}

static bool made_to_fail(void) {
    if (fail_countdown < 0) return ++fail_countdown == 0;
    if (fail_countdown > 1) fail_countdown--;
    return fail_countdown == 1;
}

/* "4.2 MB", "12.3 KB", "64 bytes": none of them 0.0 */
static const char *in_words(int64_t bytes, char text[32]) {
    if (bytes >= 100000) snprintf(text, 32, "%.1f MB", (double)bytes / 1e6);
    else if (bytes >= 1000) snprintf(text, 32, "%.1f KB", (double)bytes / 1e3);
    else snprintf(text, 32, "%lld bytes", (long long)bytes);
    return text;
}

int lm__memory_alloc(int64_t bytes, void **out, int *purpose) {
    if (made_to_fail())
        return lm_fail(LM_EOOM,
                       "no memory: allocation of %lld bytes was made to fail by a test",
                       (long long)bytes);
    int64_t size;
    int class = size_class(bytes, &size);
    char asked[32], used[32], most[32];
    if (limit > 0 && size > limit - live_all)
        return lm_fail(LM_EOOM, "no memory: %s asked, %s live of a limit of %s",
                       in_words(size, asked), in_words(live_all, used), in_words(limit, most));
    void *p;
    if (class < 0) p = lm__arena_alloc(size);
    else if ((p = freelist[class]) != NULL) {
        freelist[class] = freelist[class]->next;
        pooled -= size;
    } else p = aligned_alloc(64, (size_t)size);
    if (!p)
        return lm_fail(LM_EOOM, "no memory: the system refused %s, %s live",
                       in_words(size, asked), in_words(live_all, used));
    *out = p;
    *purpose = purpose_now;
    live[purpose_now] += size, live_all += size;
    if (live[purpose_now] > peak[purpose_now]) peak[purpose_now] = live[purpose_now];
    if (live_all > peak_all) peak_all = live_all;
    return LM_OK;
}

static bool (*relief[4])(void);
static int reliefs;

void lm__memory_on_pressure(bool (*relieve)(void)) {
    for (int i = 0; i < reliefs; i++)
        if (relief[i] == relieve) return;
    relief[reliefs++] = relieve;
}

/* Not from within: who gives up memory may need some. */
static bool relieved(void) {
    static bool busy;
    bool some = false;
    if (busy) return false;
    busy = true;
    for (int i = 0; i < reliefs && !some; i++) some = relief[i]();
    busy = false;
    return some;
}

bool lm__memory_is_short(int64_t bytes) {
    int64_t size;
    size_class(bytes, &size);
    return soft_limit > 0 && size > soft_limit - live_all;
}

int lm__memory_obtain(int64_t bytes, void **out, int *purpose) {
    while (lm__memory_is_short(bytes) && relieved()) continue;
    int st = lm__memory_alloc(bytes, out, purpose);
    while (st == LM_EOOM && relieved()) st = lm__memory_alloc(bytes, out, purpose);
    return st;
}

void lm__memory_free(void *p, int64_t bytes, int purpose) {
    if (lm__memory_pins && lm__memory_pinned(p, bytes, purpose)) return;
    int64_t size;
    int class = size_class(bytes, &size);
    live[purpose] -= size, live_all -= size;
    if (class < 0) {
        lm__arena_free(p);
        return;
    }
    block *b = p;
    b->next = freelist[class];
    freelist[class] = b;
    pooled += size;
}

void lm__memory_rebook(int64_t bytes, int from, int to) {
    int64_t size;
    size_class(bytes, &size);
    live[from] -= size, live[to] += size;
    if (live[to] > peak[to]) peak[to] = live[to];
}

/* ---- objects ---- */

#ifdef __SANITIZE_ADDRESS__
enum { OBJECT_MAX = 0 }; /* each on its own, so that the sanitizer sees its end */
#else
enum { OBJECT_MAX = 1024 };
#endif
enum { OBJECT_STEP = 64, SLAB = 1 << 16 };

static block *objects[OBJECT_MAX / OBJECT_STEP + 1]; /* by size, in steps */
static char *slab, *slab_end;
static int64_t objects_live;

double lm_memory_objects(void) { return (double)objects_live; }

void *lm__object_new(size_t size) {
    if (made_to_fail()) return NULL;
    objects_live++;
    if (size > OBJECT_MAX) {
        void *p = malloc(size);
        objects_live -= !p;
        return p;
    }
    size_t class = (size + OBJECT_STEP - 1) / OBJECT_STEP;
    block *b = objects[class];
    if (b) {
        objects[class] = b->next;
        return b;
    }
    size_t rounded = class * OBJECT_STEP;
    if ((size_t)(slab_end - slab) <
        rounded) { /* the rest of the old one is lost: under 1 KiB */
        char *fresh = aligned_alloc(OBJECT_STEP, SLAB);
        if (!fresh) {
            objects_live--;
            return NULL;
        }
        slab = fresh, slab_end = fresh + SLAB;
    }
    slab += rounded;
    return slab - rounded;
}

void lm__object_free(void *p, size_t size) {
    objects_live--;
    if (size > OBJECT_MAX) {
        free(p);
        return;
    }
    size_t class = (size + OBJECT_STEP - 1) / OBJECT_STEP;
    block *b = p;
    b->next = objects[class];
    objects[class] = b;
}

void lm_memory_trim(void) {
    for (int class = 0; class < CLASSES; class ++)
        while (freelist[class]) {
            block *b = freelist[class];
            freelist[class] = b->next;
            free(b);
            pooled -= class_size(class);
        }
    lm__arena_trim();
}

double lm_memory_live(int purpose) { return (double)(purpose < 0 ? live_all : live[purpose]); }
double lm_memory_peak(int purpose) { return (double)(purpose < 0 ? peak_all : peak[purpose]); }
double lm_memory_pooled(void) { return (double)(pooled + lm__arena_idle()); }
double lm_memory_limit(void) { return (double)limit; }
void lm_memory_set_limit(double bytes) { limit = (int64_t)bytes; }
void lm_memory_set_soft_limit(double bytes) { soft_limit = (int64_t)bytes; }
void lm_test_fail_alloc(int n) { fail_countdown = n; }

void lm_memory_reset_peak(void) {
    memcpy(peak, live, sizeof peak);
    peak_all = live_all;
}

int lm_memory_set_purpose(int purpose) {
    int before = purpose_now;
    if (purpose >= 0 && purpose < LM_MEM_PURPOSES) purpose_now = purpose;
    return before;
}
