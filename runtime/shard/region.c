/* region.c - which unit is being run, in forward and in backward.
 *
 * A unit's parameters are whole while any region of it is open. Backward opens
 * the regions that forward recorded in, latest first, and counts what it has
 * still to go through: a unit whose count gets to 0 has all its gradients. */
#include "runtime/shard_impl.h"

static lm_region *now;
static lm_unit *done_first, **done_last = &done_first; /* each holds a reference */

/* ---- the stack ---- */

lm_region *lm__region_now(void) {
    if (now) now->refs++;
    return now;
}

void lm__region_set(lm_region *r) {
    if (r) r->refs++;
    lm_region *before = now;
    now = r;
    lm__region_release(before);
}

void lm__region_release(lm_region *r) {
    while (r && --r->refs == 0) {
        lm_region *parent = r->parent;
        lm_unit_release(r->unit);
        lm__object_free(r, sizeof *r);
        r = parent;
    }
}

static void leave(lm_unit *u) {
    if (--u->inside == 0) lm__unit_drop(u);
}

int lm_region_enter(lm_unit *u, int eager) {
    lm_region *r = lm__object_new(sizeof *r);
    if (!r) return lm_fail(LM_EOOM, "region: no memory");
    u->inside++;
    int st = eager ? lm__unit_gather(u) : LM_OK;
    if (st != LM_OK) {
        leave(u);
        lm__object_free(r, sizeof *r);
        return st;
    }
    lm_unit_retain(u);
    *r = (lm_region){.refs = 1, .unit = u, .parent = now};
    now = r;
    return LM_OK;
}

int lm_region_leave(void) {
    lm_region *r = now;
    if (!r) return lm_fail(LM_EARG, "region: none is open");
    leave(r->unit);
    lm__region_set(r->parent);
    return LM_OK;
}

int lm_unit_inside(const lm_unit *u) { return u->inside; }

/* ---- the walk ---- */

static int gather_outermost_first(const lm_region *r) {
    if (!r) return LM_OK;
    int st = gather_outermost_first(r->parent);
    return st == LM_OK ? lm__unit_gather(r->unit) : st;
}

static lm_unit *take_done(void) {
    lm_unit *u = done_first;
    if (!u) return NULL;
    done_first = u->next;
    if (!done_first) done_last = &done_first;
    u->done = false, u->next = NULL;
    return u;
}

static int send_done(bool last) {
    int st = LM_OK;
    for (lm_unit *u; st == LM_OK && (u = take_done()) != NULL; lm_unit_release(u))
        st = lm__unit_send(u, last, false);
    return st;
}

void lm__units_give_up(void) {
    for (lm_unit *u; (u = take_done()) != NULL;) lm_unit_release(u);
}

/* The new regions are entered before the old ones are left, so that what is in both stays; and
 * what is not is dropped before anything is gathered, so that it is never there besides. */
int lm__region_cross(lm_region **at, lm_region *to, bool last) {
    lm_region *from = *at;
    if (from != to) {
        for (lm_region *r = to; r; r = r->parent) r->unit->inside++;
        if (to) to->refs++;
        *at = to;
        for (lm_region *r = from; r; r = r->parent) leave(r->unit);
        lm__region_release(from);
    }
    int st = done_first ? send_done(last) : LM_OK;
    return st == LM_OK && from != to ? gather_outermost_first(to) : st;
}

/* Every unit around the node, and every unit whose parameter it uses. */
static void count(const lm_node *n, int step, bool passed) {
    lm_unit *u;
    const lm_region *r = n->region;
    for (int i = 0; r || i < n->inputs;) {
        if (r) u = r->unit, r = r->parent;
        else {
            const lm_node *from = n->edge[i++].node;
            lm_shard *s =
                from && lm__node_is_leaf(from) && from->leaf ? lm__shard_of(from->leaf) : NULL;
            if (!s) continue;
            u = s->unit;
        }
        u->left += step;
        if (!passed || u->left > 0 || u->done) continue;
        lm_unit_retain(u);
        u->done = true;
        *done_last = u, done_last = &u->next;
    }
}

void lm__unit_expect(const lm_node *n) { count(n, 1, false); }
void lm__unit_passed(const lm_node *n) { count(n, -1, true); }
void lm__unit_abandon(const lm_node *n) { count(n, -1, false); }
