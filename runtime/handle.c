/* handle.c - the slot table and the scopes over it. */
#include "runtime/handle.h"
#include "runtime/tensor_impl.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { MAX_SLOTS = 1 << 24, MAX_DEPTH = 64 };

static lm_slot *slots; /* address space for all of them; pages come as they are touched */
static uint32_t used = 1, *vacant, vacant_count, vacant_room;

static lm_handle *made; /* handles of the open scopes, in order */
static size_t made_count, made_room;
static size_t scope_start[MAX_DEPTH];
static int depth;
static bool lifted; /* some handle went from the innermost scope to the one around it */

lm_slot *lm_handle_slots(void) {
    if (!slots) {
        slots = mmap(NULL, MAX_SLOTS * sizeof *slots, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (slots == MAP_FAILED) slots = NULL;
    }
    return slots;
}

/* Room for one more before anything is changed, so that nothing fails half-way. */
static int make_room(void) {
    if (made_count == made_room) {
        size_t room = made_room ? 2 * made_room : 1024;
        lm_handle *grown = realloc(made, room * sizeof *grown);
        if (!grown) return lm_fail(LM_EOOM, "no memory for handles");
        made = grown, made_room = room;
    }
    if (vacant_room < used) { /* a drop must always find room */
        uint32_t room = vacant_room ? 2 * vacant_room : 1024;
        uint32_t *grown = realloc(vacant, room * sizeof *grown);
        if (!grown) return lm_fail(LM_EOOM, "no memory for handles");
        vacant = grown, vacant_room = room;
    }
    return LM_OK;
}

int lm_handle_new(lm_tensor *t, lm_handle *out) {
    if (!slots && !lm_handle_slots()) return lm_fail(LM_EOOM, "no address space for handles");
    int st = make_room();
    if (st != LM_OK) return st;
    uint32_t slot;
    if (vacant_count) slot = vacant[--vacant_count];
    else if (used < MAX_SLOTS) slot = used++;
    else return lm_fail(LM_EOOM, "more than %d tensors at once", MAX_SLOTS);
    lm_slot *s = &slots[slot];
    if (s->gen == 0) s->gen = 1;
    s->tensor = t, s->scope = (uint32_t)depth;
    out->slot = slot, out->gen = s->gen;
    if (depth > 0) made[made_count++] = *out;
    return depth > 0;
}

void lm_handle_drop(lm_handle *h) {
    lm_slot *s = &slots[h->slot];
    if (h->gen == 0 || s->gen != h->gen) return;
    lm_tensor *t = s->tensor;
    s->tensor = NULL;
    s->gen = s->gen == UINT32_MAX ? 1 : s->gen + 1;
    vacant[vacant_count++] = h->slot;
    lm_tensor_release(t);
}

int lm_scope_enter(void) {
    if (depth == MAX_DEPTH)
        return lm_fail(LM_EARG, "scope: more than %d inside each other", MAX_DEPTH);
    scope_start[depth++] = made_count;
    return depth;
}

static bool belongs(const lm_handle *h, int scope) {
    return slots[h->slot].gen == h->gen && slots[h->slot].scope == (uint32_t)scope;
}

void lm_scope_leave(void) {
    if (depth == 0) return;
    size_t start = scope_start[depth - 1], end = made_count;
    while (made_count > start) { /* the latest first, as they were made from each other */
        lm_handle h = made[--made_count];
        if (belongs(&h, depth)) lm_handle_drop(&h);
    }
    depth--;
    if (!lifted || depth == 0) return;
    lifted = false;
    for (size_t i = start; i < end; i++)
        if (belongs(&made[i], depth)) made[made_count++] = made[i];
}

int lm_scope_depth(void) { return depth; }

int lm_scope_keep(const lm_handle *h) {
    lm_slot *s = &slots[h->slot];
    if (s->gen != h->gen || s->scope == 0) return 0;
    s->scope = 0;
    return 1;
}

int lm_scope_lift(const lm_handle *h) {
    if (depth == 0 || !belongs(h, depth)) return 0;
    slots[h->slot].scope--;
    lifted = depth > 1;
    return depth == 1;
}
