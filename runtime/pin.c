/* pin.c - memory that is not free yet, although nobody here has it any more.
 *
 * The messages of a collective that failed cannot all be taken back: another rank may go on
 * reading what was sent, or MPI writing what has half arrived. Their memory is pinned, and
 * when it is freed it waits here. There are no pins in a job in which nothing fails. What Lua
 * hands in of its own Lua keeps as long (lua/lumoe/dist/checked.lua). */
#include "runtime/memory.h"
#include "runtime/tensor_impl.h"

#include <stdlib.h>

typedef struct pin {
    struct pin *next;
    const char *from, *to;
    const void *by;
} pin;

typedef struct waiting {
    struct waiting *next;
    void *p;
    int64_t bytes;
    int purpose;
} waiting;

int lm__memory_pins;
int lm_memory_pins(void) { return lm__memory_pins; }

static pin *pins;
static waiting *freed;

/* Without memory for the pin it is the old danger, and no new one. */
void lm__memory_pin(const void *p, int64_t bytes, const void *by) {
    pin *one = bytes > 0 ? malloc(sizeof *one) : NULL;
    if (!one) return;
    *one = (pin){pins, p, (const char *)p + bytes, by};
    pins = one;
    lm__memory_pins++;
}

bool lm__memory_pinned(void *p, int64_t bytes, int purpose) {
    const char *from = p, *to = from + bytes;
    const pin *one = pins;
    while (one && (to <= one->from || one->to <= from)) one = one->next;
    if (!one) return false;
    waiting *w = malloc(sizeof *w); /* without: lost */
    if (w) *w = (waiting){freed, p, bytes, purpose}, freed = w;
    return true;
}

void lm__memory_unpin(const void *by) {
    for (pin **at = &pins, *one; (one = *at) != NULL;) {
        if (one->by != by) {
            at = &one->next;
            continue;
        }
        *at = one->next;
        lm__memory_pins--;
        free(one);
    }
    waiting *all = freed;
    freed = NULL;
    while (all) { /* what is still pinned comes back */
        waiting *w = all;
        all = w->next;
        lm__memory_free(w->p, w->bytes, w->purpose);
        free(w);
    }
}
