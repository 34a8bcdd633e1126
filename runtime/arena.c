/* arena.c - large buffers out of one range of addresses, first fit.
 *
 * Batches of sentences have another shape in every step, so buffers kept by size would pile up
 * until every size was there, and each new one would begin with the system clearing its pages:
 * more time than the arithmetic on them. Here neighbours that are free become one, and a
 * request takes the lowest place that is large enough, so that after a few steps the arena is
 * as large as the largest step and asks the system for nothing.
 *
 * The range is reserved once, as large as the system allows; memory is taken from its low end
 * on. Each block starts with its header, and the free ones are listed by address. */
#include "runtime/arena_impl.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct block {
    int64_t size;   /* with the header */
    int64_t before; /* size of the block below; 0: the first */
    bool is_free;
    int64_t resident;          /* of a free block: about what trimming would give back */
    struct block *next, *prev; /* free blocks, by rising address */
} block;

enum { HEADER = 64, GRAIN = 1024, STEP = 16 << 20, LEAST_RANGE = 256 << 20 };

static char *base, *top, *committed, *end; /* blocks; usable memory; the range */
static block *first_free;
static int64_t last_size; /* of the block below top */
static int64_t idle;      /* sum of resident */

static void reserve(void) {
    int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    for (int64_t size = 4 * pages * page; size >= LEAST_RANGE; size /= 2) {
        void *p = mmap(NULL, (size_t)size, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) continue;
        madvise(p, (size_t)size, MADV_HUGEPAGE);
        base = top = committed = p;
        end = base + size;
        return;
    }
}

static block *above(const block *b) {
    char *p = (char *)b + b->size;
    return p < top ? (block *)(void *)p : NULL;
}

static block *below(const block *b) {
    return b->before ? (block *)(void *)((char *)b - b->before) : NULL;
}

/* A size that changed is also known to the neighbour above. */
static void resize(block *b, int64_t size) {
    b->size = size;
    block *a = above(b);
    if (a) a->before = size;
    else last_size = size;
}

static void unlist(block *b) {
    if (b->prev) b->prev->next = b->next;
    else first_free = b->next;
    if (b->next) b->next->prev = b->prev;
    b->is_free = false;
    idle -= b->resident;
}

/* after: the free block below, NULL when there is none. */
static void list(block *b, block *after, int64_t resident) {
    b->prev = after;
    b->next = after ? after->next : first_free;
    if (b->next) b->next->prev = b;
    if (after) after->next = b;
    else first_free = b;
    b->is_free = true;
    b->resident = resident;
    idle += resident;
}

static block *extend(int64_t size) {
    if (!base) reserve();
    if (!base || size > end - top) return NULL;
    if (top + size > committed) {
        int64_t more = (top + size - committed + STEP - 1) / STEP * STEP;
        if (more > end - committed) more = end - committed;
        if (mprotect(committed, (size_t)more, PROT_READ | PROT_WRITE) != 0) return NULL;
        committed += more;
    }
    block *b = (block *)(void *)top;
    b->before = last_size;
    b->is_free = false;
    top += size;
    resize(b, size);
    return b;
}

void *lm__arena_alloc(int64_t bytes) {
    if (bytes > INT64_MAX - HEADER - GRAIN) return NULL;
    int64_t size = (bytes + HEADER + GRAIN - 1) / GRAIN * GRAIN;
    block *b = first_free;
    while (b && b->size < size) b = b->next;
    if (b) {
        block *under = b->prev;
        int64_t rest = b->size - size;
        unlist(b);
        if (rest > 0) {
            resize(b, size);
            block *r = above(b);
            resize(r, rest);
            list(r, under, b->resident > size ? b->resident - size : 0);
        }
    } else {
        /* a free block at the very top is grown instead of passed by */
        block *last = last_size ? (block *)(void *)(top - last_size) : NULL;
        if (last && last->is_free) {
            int64_t had = last->size;
            block *more = extend(size - had);
            if (!more) return NULL;
            unlist(last);
            last_size = 0;
            resize(last, size);
            b = last;
        } else b = extend(size);
    }
    return b ? (char *)b + HEADER : NULL;
}

void lm__arena_free(void *p) {
    block *b = (block *)(void *)((char *)p - HEADER), *a = above(b), *u = below(b), *under;
    int64_t resident = b->size;
    if (a && a->is_free) {
        unlist(a);
        resident += a->resident;
        resize(b, b->size + a->size);
    }
    if (u && u->is_free) {
        under = u->prev;
        unlist(u);
        resident += u->resident;
        resize(u, u->size + b->size);
        b = u;
    } else { /* the nearest free block below: mostly a short way along the list */
        under = NULL;
        for (block *f = first_free; f && f < b; f = f->next) under = f;
    }
    list(b, under, resident);
}

int64_t lm__arena_idle(void) { return idle; }

void lm__arena_trim(void) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (block *b = first_free; b; b = b->next) {
        uintptr_t from = ((uintptr_t)b + HEADER + page - 1) / page * page;
        uintptr_t to = ((uintptr_t)b + (uintptr_t)b->size) / page * page;
        if (to > from) madvise((char *)b + (from - (uintptr_t)b), to - from, MADV_DONTNEED);
        idle -= b->resident;
        b->resident = 0;
    }
}
