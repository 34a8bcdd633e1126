/* tape.c - nodes, and the walk through them.
 *
 * A node lives as long as an output of it does. The graph is not a list that
 * grows: what nobody can differentiate any more is gone. Sequence numbers rise,
 * so visiting reachable nodes in falling order is a topological order. */
#include "runtime/tape.h"
#include "runtime/ops.h"
#include "runtime/shard_impl.h"
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

static bool grad_enabled = true;
static int64_t next_seq = 1, next_walk = 1;

bool lm__grad_enabled(void) { return grad_enabled; }

int lm_grad_set_enabled(int on) {
    int before = grad_enabled;
    grad_enabled = on != 0;
    return before;
}

bool lm__node_is_leaf(const lm_node *n) { return !n->backward && !n->custom; }

/* ---- life of a node ---- */

static int *freed_ids, freed_count, freed_room;

static void custom_freed(int id) {
    if (freed_count == freed_room) {
        int room = freed_room ? 2 * freed_room : 64;
        int *grown = realloc(freed_ids, (size_t)room * sizeof *grown);
        if (!grown) return; /* Lua keeps one closure too long: harmless */
        freed_ids = grown, freed_room = room;
    }
    freed_ids[freed_count++] = id;
}

int lm_custom_freed(void) { return freed_count ? freed_ids[--freed_count] : 0; }

/* One allocation: the node, its edges, gradients and dtypes. */
static size_t node_size(int inputs, int outputs) {
    return sizeof(lm_node) + (size_t)inputs * sizeof(lm_edge) +
           (size_t)outputs * (sizeof(lm_tensor *) + sizeof(int8_t));
}

static lm_node *node_new(const char *op, int inputs, int outputs) {
    lm_node *n = lm__object_new(node_size(inputs, outputs));
    if (!n) return NULL;
    n->op = op;
    n->backward = NULL;
    n->refs = 1;
    n->seq = next_seq++;
    n->inputs = inputs, n->outputs = outputs;
    n->edge = (lm_edge *)(void *)(n + 1);
    n->grad = (lm_tensor **)(void *)(n->edge + inputs);
    n->dtype = (int8_t *)(void *)(n->grad + outputs);
    n->slots = 0;
    n->extra = NULL, n->free_extra = NULL;
    n->leaf = NULL;
    n->region = NULL;
    n->custom = 0;
    n->done = false;
    n->walk = 0;
    for (int i = 0; i < inputs; i++) n->edge[i].node = NULL;
    for (int o = 0; o < outputs; o++) n->grad[o] = NULL;
    return n;
}

/* Drops what backward needs, keeping the edges. */
static void node_clear(lm_node *n) {
    for (int s = 0; s < n->slots; s++) lm_tensor_release(n->saved[s]), n->saved[s] = NULL;
    for (int o = 0; o < n->outputs; o++) lm_tensor_release(n->grad[o]), n->grad[o] = NULL;
    if (n->extra && n->free_extra) n->free_extra(n->extra);
    n->extra = NULL;
    if (n->custom > 0) custom_freed(n->custom), n->custom = -1;
}

/* Chains are as long as a program runs, so they are freed by a loop, linked through leaf. */
void lm__node_release(lm_node *n) {
    static lm_node *pending;
    static bool running;
    if (!n || --n->refs > 0) return;
    n->leaf = (lm_tensor *)(void *)pending;
    pending = n;
    if (running) return;
    running = true;
    while (pending) {
        n = pending;
        pending = (lm_node *)(void *)n->leaf;
        node_clear(n);
        for (int i = 0; i < n->inputs; i++) lm__node_release(n->edge[i].node);
        lm__region_release(n->region);
        lm__object_free(n, node_size(n->inputs, n->outputs));
    }
    running = false;
}

void lm__node_release_from(lm_node *n, lm_tensor *t) {
    if (lm__node_is_leaf(n) && n->leaf == t) n->leaf = NULL;
    lm__node_release(n);
}

/* ---- recording ---- */

static lm_node *node_of(lm_tensor *t) {
    if (!t->node) {
        t->node = node_new("leaf", 0, 0);
        if (t->node) t->node->leaf = t, t->output = 0;
    }
    return t->node;
}

bool lm__recording(int inputs, lm_tensor *const *in) {
    bool wanted = false;
    for (int i = 0; i < inputs && grad_enabled; i++) wanted |= in[i] && in[i]->requires_grad;
    return wanted;
}

int lm__record(const char *op, lm_backward_fn backward, int inputs, lm_tensor *const *in,
               int outputs, lm_tensor *const *out, lm_node **node) {
    *node = NULL;
    if (!lm__recording(inputs, in)) return LM_OK;

    lm_node *n = node_new(op, inputs, outputs);
    if (!n) return lm_fail(LM_EOOM, "%s: no memory for the tape", op);
    n->backward = backward;
    n->region = lm__region_now();
    for (int i = 0; i < inputs; i++) {
        if (!in[i] || !in[i]->requires_grad) continue;
        lm_node *from = node_of(in[i]);
        if (!from) {
            lm__node_release(n);
            return lm_fail(LM_EOOM, "%s: no memory for the tape", op);
        }
        from->refs++;
        n->edge[i].node = from, n->edge[i].output = in[i]->output;
        n->edge[i].ndim = in[i]->ndim;
        memcpy(n->edge[i].shape, in[i]->shape, sizeof in[i]->shape);
    }
    for (int o = 0; o < outputs; o++) {
        out[o]->node = n, out[o]->output = o, out[o]->requires_grad = true;
        n->dtype[o] = out[o]->dtype;
    }
    n->refs = outputs;
    *node = n;
    return LM_OK;
}

int lm__save(lm_node *n, int slot, lm_tensor *t) {
    if (!n) return LM_OK;
    while (n->slots <= slot) n->saved[n->slots++] = NULL;
    if (!t) return LM_OK;
    int st = lm__tensor_alias(t, &n->saved[slot]);
    if (st == LM_OK) n->version[slot] = t->storage->version;
    return st;
}

int lm__saved(lm_node *n, int slot, lm_tensor **out) {
    lm_tensor *t = slot < n->slots ? n->saved[slot] : NULL;
    int st = t ? lm__usable(n->op, t) : LM_OK;
    if (st != LM_OK) return st;
    if (t && t->storage->version != n->version[slot])
        return lm_fail(LM_EGRAD, "backward of %s: a tensor it needs was changed in place since",
                       n->op);
    *out = t;
    return LM_OK;
}

lm_tensor *lm__grad(lm_node *n, int output) { return n->grad[output]; }
bool lm__wants(const lm_node *n, int input) { return n->edge[input].node != NULL; }

/* ---- giving gradients ---- */

bool lm__ours_alone(const lm_tensor *t) {
    return t->refs == 1 && t->storage->refs == 1 && lm_tensor_is_contiguous(t);
}

/* a += b */
static int add_into(lm_tensor *a, lm_tensor *b) {
    a->storage->version++;
    if (a->dtype == b->dtype)
        return lm_cpu_kernels.binary(LM_ADD, a->dtype, a->ndim, a->shape, a->data, a->data,
                                     a->stride, b->data, b->stride);
    if (lm__is_float(a->dtype) && lm__is_float(b->dtype) && lm_tensor_is_contiguous(a) &&
        lm_tensor_is_contiguous(b))
        return lm_cpu_kernels.axpy(a->numel, 1, a->data, a->dtype, b->data, b->dtype);
    lm_tensor *same;
    int st = lm__tensor_dense(b, a->dtype, &same);
    if (st == LM_OK) st = add_into(a, same), lm_tensor_release(same);
    return st;
}

static int give_leaf(const char *op, lm_tensor *leaf, lm_tensor *g) {
    int late = lm__shard_late(op, leaf);
    if (late != LM_OK) {
        lm_tensor_release(g);
        return late;
    }
    if (leaf->grad && leaf->grad->dtype == LM_F32 && lm_tensor_is_contiguous(leaf->grad)) {
        int st = add_into(leaf->grad, g);
        lm_tensor_release(g);
        return st;
    }
    lm_tensor *own = NULL;
    int st = LM_OK;
    if (leaf->grad) { /* set by the user in another form: replaced by the sum */
        st = lm__tensor_dense(leaf->grad, LM_F32, &own);
        if (st == LM_OK && !lm__ours_alone(own)) {
            lm_tensor *sum;
            st = lm_add(own, g, &sum);
            lm_tensor_release(own);
            own = sum;
        } else if (st == LM_OK) st = add_into(own, g);
    } else if (g->dtype == LM_F32 && lm__ours_alone(g)) {
        lm_tensor_retain(own = g);
    } else {
        st = lm__tensor_like(leaf, LM_F32, &own);
        if (st == LM_OK)
            st = lm_cpu_kernels.copy_strided(own->data, LM_F32, g->data, g->dtype, g->ndim,
                                             g->shape, own->stride, g->stride);
    }
    lm_tensor_release(g);
    if (st != LM_OK) {
        lm_tensor_release(own);
        return st;
    }
    lm_tensor_set_purpose(own, LM_MEM_GRADIENTS);
    lm_tensor_release(leaf->grad);
    leaf->grad = own;
    return LM_OK;
}

/* Replaces g by its sum over the dims in which the input was broadcast. */
static int sum_to_input(const lm_node *n, int input, lm_tensor **g) {
    const lm_edge *e = &n->edge[input];
    char a[96], b[96];
    int st = LM_OK;
    while (st == LM_OK) {
        lm_tensor *t = *g, *sum;
        int lead = t->ndim - e->ndim, d = 0;
        if (lead < 0) break;
        while (d < t->ndim && d >= lead && t->shape[d] == e->shape[d - lead]) d++;
        if (d == t->ndim) return LM_OK;
        if (d >= lead && e->shape[d - lead] != 1) break;
        st = lm__sum_f32(t, d, d >= lead, &sum);
        if (st == LM_OK) lm_tensor_release(t), *g = sum;
    }
    if (st != LM_OK) return st;
    return lm_fail(LM_ESHAPE, "backward of %s: gradient %s for an input of %s", n->op,
                   lm__describe(*g, a), lm__shape_text(e->ndim, e->shape, b));
}

int lm__give(lm_node *n, int input, lm_tensor *g) {
    lm_edge e = n->edge[input];
    if (!e.node || !g || (lm__node_is_leaf(e.node) && !e.node->leaf)) {
        lm_tensor_release(g);
        return LM_OK;
    }
    int reduced = sum_to_input(n, input, &g);
    if (reduced != LM_OK) {
        lm_tensor_release(g);
        return reduced;
    }
    if (lm__node_is_leaf(e.node)) return give_leaf(n->op, e.node->leaf, g);
    if (g->dtype != e.node->dtype[e.output]) {
        lm_tensor *same;
        int st = lm__tensor_dense(g, e.node->dtype[e.output], &same);
        lm_tensor_release(g);
        if (st != LM_OK) return st;
        g = same;
    }
    lm_tensor **slot = &e.node->grad[e.output];
    if (!*slot) {
        *slot = g;
        return LM_OK;
    }
    int st;
    if (lm__ours_alone(*slot)) st = add_into(*slot, g);
    else if (lm__ours_alone(g)) {
        st = add_into(g, *slot);
        lm_tensor *t = *slot;
        *slot = g, g = t;
    } else {
        lm_tensor *sum;
        st = lm_add(*slot, g, &sum);
        if (st == LM_OK) lm_tensor_release(*slot), *slot = sum;
    }
    lm_tensor_release(g);
    return st;
}

/* The gradient of a whole that was cut: a second part is added where it belongs, so that
 * cutting a tensor into n pieces does not make n gradients of its size. */
int lm__give_part(lm_node *n, int input, lm_tensor *part, const int64_t *stride,
                  int64_t offset) {
    lm_edge *e = &n->edge[input];
    if (!e->node || (lm__node_is_leaf(e->node) && !e->node->leaf)) return LM_OK;
    lm_tensor *whole = NULL, *view = NULL, *sum = NULL;
    lm_tensor *there = lm__node_is_leaf(e->node) ? NULL : e->node->grad[e->output];
    int st = LM_OK;
    if (there && lm__ours_alone(there)) lm_tensor_retain(whole = there);
    else {
        there = NULL;
        st = lm_tensor_full(part->dtype, e->ndim, e->shape, 0, &whole);
    }
    if (st == LM_OK)
        st = lm__tensor_view(whole, part->ndim, part->shape, stride, offset, &view);
    if (st == LM_OK && there) st = lm_add(view, part, &sum);
    if (st == LM_OK) st = lm_tensor_copy(view, there ? sum : part);
    lm_tensor_release(view), lm_tensor_release(sum);
    if (st == LM_OK && !there) return lm__give(n, input, whole);
    lm_tensor_release(whole);
    return st;
}

lm_tensor *lm__given(lm_node *n, int input, int dtype) {
    const lm_edge *e = &n->edge[input];
    if (!e->node || lm__node_is_leaf(e->node)) return NULL;
    lm_tensor *there = e->node->grad[e->output];
    return there && lm__ours_alone(there) && there->dtype == dtype ? there : NULL;
}

/* A gradient in another form, as that of grad_dtype, becomes f32 and contiguous. */
static int widen(lm_tensor *leaf) {
    lm_tensor *wide;
    if (leaf->grad->dtype == LM_F32 && lm_tensor_is_contiguous(leaf->grad)) return LM_OK;
    int st = lm__tensor_dense(leaf->grad, LM_F32, &wide);
    if (st != LM_OK) return st;
    lm_tensor_set_purpose(wide, LM_MEM_GRADIENTS);
    lm_tensor_release(leaf->grad);
    leaf->grad = wide;
    return LM_OK;
}

int lm__leaf_grad(lm_node *n, int input, bool narrow, lm_tensor **out, bool *fresh) {
    *out = NULL, *fresh = false;
    lm_node *node = n->edge[input].node;
    if (!node || !lm__node_is_leaf(node) || !node->leaf) return LM_OK;
    lm_tensor *leaf = node->leaf;
    int late = lm__shard_late(n->op, leaf);
    if (late != LM_OK) return late;
    if (leaf->grad) {
        int st = widen(leaf);
        if (st != LM_OK) return st;
    } else {
        int dtype = narrow && lm__shard_alone(leaf) ? leaf->grad_dtype : LM_F32;
        int st = lm__tensor_like(leaf, dtype, &leaf->grad);
        if (st != LM_OK) return st;
        lm_tensor_set_purpose(leaf->grad, LM_MEM_GRADIENTS);
        *fresh = true;
    }
    leaf->grad->storage->version++;
    *out = leaf->grad;
    return LM_OK;
}

/* ---- the walk ---- */

typedef struct walk {
    lm_node **order; /* falling seq; one reference each */
    int count, at;
    bool retain, last, expected;
    lm_region *region, *around; /* where it is; where forward was when it began */
    bool due;                   /* the node at `at` is Lua's, and Lua has been told */
    struct walk *outer;
} walk;

static walk *current;

static int by_falling_seq(const void *a, const void *b) {
    const lm_node *x = *(lm_node *const *)a, *y = *(lm_node *const *)b;
    return x->seq < y->seq ? 1 : x->seq > y->seq ? -1 : 0;
}

static int collect(walk *w, lm_node *root) {
    int room = 64;
    int64_t mark = next_walk++;
    w->order = malloc((size_t)room * sizeof *w->order);
    if (!w->order) return lm_fail(LM_EOOM, "backward: no memory for the walk");
    root->walk = mark, root->refs++;
    w->order[w->count++] = root;
    for (int at = 0; at < w->count; at++) {
        lm_node *n = w->order[at];
        for (int i = 0; i < n->inputs; i++) {
            lm_node *from = n->edge[i].node;
            if (!from || from->walk == mark || lm__node_is_leaf(from)) continue;
            if (w->count == room) {
                lm_node **grown = realloc(w->order, (size_t)(room *= 2) * sizeof *grown);
                if (!grown) return lm_fail(LM_EOOM, "backward: no memory for the walk");
                w->order = grown;
            }
            from->walk = mark, from->refs++;
            w->order[w->count++] = from;
        }
    }
    qsort(w->order, (size_t)w->count, sizeof *w->order, by_falling_seq);
    for (int i = 0; i < w->count; i++) lm__unit_expect(w->order[i]);
    w->expected = true;
    return LM_OK;
}

/* Frees it, wherever it is. */
static void walk_free(walk *w) {
    current = w->outer;
    lm__region_set(w->around);
    lm__region_release(w->around);
    for (int i = w->at; i < w->count; i++) {
        lm_node *n = w->order[i];
        if (w->expected) lm__unit_abandon(n);
        for (int o = 0; o < n->outputs; o++) lm_tensor_release(n->grad[o]), n->grad[o] = NULL;
        lm__node_release(n);
    }
    free(w->order);
    free(w);
}

void lm_backward_cancel(void) {
    walk *w = current;
    if (!w) return;
    lm__units_give_up();
    lm__region_cross(&w->region, NULL, false); /* only leaves, so it cannot fail */
    walk_free(w);
}

static walk *walk_new(int flags) {
    walk *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    w->retain = (flags & LM_BACKWARD_RETAIN) != 0, w->last = (flags & LM_BACKWARD_LAST) != 0;
    w->around = lm__region_now();
    w->outer = current;
    return current = w;
}

int lm_backward_begin(lm_tensor *root, lm_tensor *grad, int flags) {
    char a[96], b[96];
    int st = lm__usable("backward", root);
    if (st != LM_OK) return st;
    if (!root->requires_grad)
        return lm_fail(LM_EGRAD,
                       "backward: nothing that this was computed from requires a gradient");
    if (!grad && root->numel != 1)
        return lm_fail(LM_EGRAD,
                       "backward: %s is not a single number; give its gradient, or reduce it",
                       lm__describe(root, a));
    if (grad && !lm__same_shape(grad, root))
        return lm_fail(LM_ESHAPE, "backward: gradient is %s, but the tensor is %s",
                       lm__describe(grad, a), lm__describe(root, b));
    lm_tensor *seed = grad;
    if (grad) lm_tensor_retain(grad);
    else st = lm_tensor_full(root->dtype, root->ndim, root->shape, 1.0, &seed);
    if (st != LM_OK) return st;
    walk *w = walk_new(flags);
    if (!w) return lm_tensor_release(seed), lm_fail(LM_EOOM, "backward: no memory");
    if (lm_tensor_is_leaf(root)) {
        st = give_leaf("backward", root, seed);
        if (st != LM_OK) lm_backward_cancel();
        return st;
    }
    st = collect(w, root->node);
    if (st == LM_OK) {
        lm_edge edge = {.node = root->node, .output = root->output, .ndim = root->ndim};
        memcpy(edge.shape, root->shape, sizeof edge.shape);
        lm_node self = {.op = "backward", .inputs = 1, .edge = &edge};
        st = lm__give(&self, 0, seed);
    } else lm_tensor_release(seed);
    if (st != LM_OK) lm_backward_cancel();
    return st;
}

static bool reached(const lm_node *n) {
    for (int o = 0; o < n->outputs; o++)
        if (n->grad[o]) return true;
    return false;
}

static void finish(walk *w) {
    lm_node *n = w->order[w->at++];
    lm__unit_passed(n);
    if (w->retain) {
        for (int o = 0; o < n->outputs; o++) lm_tensor_release(n->grad[o]), n->grad[o] = NULL;
    } else node_clear(n), n->done = true;
    lm__node_release(n);
}

int lm_backward_next(void) {
    walk *w = current;
    if (!w) return lm_fail(LM_EGRAD, "backward: no walk was begun");
    if (w->due) {
        w->due = false, finish(w);
        lm__region_set(w->around);
    }
    bool before = grad_enabled;
    grad_enabled = false;
    int st = LM_OK;
    while (st == LM_OK && w->at < w->count) {
        lm_node *n = w->order[w->at];
        st = lm__region_cross(&w->region, n->region, w->last);
        if (st == LM_OK) st = lm__buckets_progress();
        if (st != LM_OK) break;
        if (n->done || n->custom < 0) {
            st = lm_fail(LM_EGRAD,
                         "backward: %s was gone through before and its values are freed; "
                         "ask the first time for retain_graph",
                         n->op);
            break;
        }
        if (n->custom && reached(n)) {
            w->due = true;
            lm__region_set(n->region); /* what Lua computes again belongs there too */
            grad_enabled = before;
            return 1;
        }
        if (n->backward && reached(n)) st = n->backward(n);
        if (st == LM_OK) finish(w);
    }
    if (st == LM_OK) st = lm__region_cross(&w->region, NULL, w->last);
    grad_enabled = before;
    lm_backward_cancel(); /* frees the walk, whichever way it ended */
    return st;
}

/* ---- custom functions ---- */

int lm_custom_record(int id, int inputs, lm_tensor **in, int outputs, lm_tensor **out,
                     int *recorded) {
    for (int o = 0; o < outputs; o++) {
        if (out[o]->node || out[o]->requires_grad)
            return lm_fail(LM_EGRAD,
                           "custom function: output %d already has a gradient path; compute "
                           "it under no_grad",
                           o + 1);
        if (!lm__is_float(out[o]->dtype))
            return lm_fail(LM_EDTYPE,
                           "custom function: output %d is %s; only f32 and bf16 have "
                           "gradients",
                           o + 1, lm_dtype_name(out[o]->dtype));
    }
    lm_node *n;
    int st = lm__record("custom function", NULL, inputs, in, outputs, out, &n);
    if (st == LM_OK && n) n->custom = id;
    if (st == LM_OK) *recorded = n != NULL;
    return st;
}

static lm_node *due(void) {
    return current && current->due ? current->order[current->at] : NULL;
}

int lm_backward_custom(void) { return due() ? due()->custom : 0; }

int lm_backward_custom_grad(int output, lm_tensor **out) {
    lm_node *n = due();
    if (!n || output < 0 || output >= n->outputs)
        return lm_fail(LM_EGRAD, "custom function: no output %d is due", output);
    if (n->grad[output]) lm_tensor_retain(n->grad[output]);
    *out = n->grad[output];
    return LM_OK;
}

int lm_backward_custom_wants(int input) {
    lm_node *n = due();
    return n && input >= 0 && input < n->inputs && lm__wants(n, input);
}

int lm_backward_custom_give(int input, lm_tensor *grad) {
    lm_node *n = due();
    if (!n || input < 0 || input >= n->inputs)
        return lm_fail(LM_EGRAD, "custom function: no input %d is due", input);
    lm_tensor_retain(grad);
    return lm__give(n, input, grad);
}
