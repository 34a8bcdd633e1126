/* ffn.c - experts that are feed-forward networks, as one operation: the kernel takes a block of
 * an expert's rows through both products and the activation between them.
 *
 * Where all experts are at home and weights are given, x are tokens: their rows are read where
 * they lie and results weighed and added up, so that neither dispatch nor combine copies them.
 * The gradient of a route's weight, <dy, y>, comes from <dy down^T, h>: y is not kept. */
#include "runtime/moe/exchange_impl.h"

static const int kernel_activation[] = {
    [LM_FFN_RELU] = LM_RELU, [LM_FFN_GELU] = LM_GELU,     [LM_FFN_GELU_TANH] = LM_GELU_TANH,
    [LM_FFN_SILU] = LM_SILU, [LM_FFN_SWIGLU] = LM_SWIGLU,
};

enum { X, UP, DOWN, UP_BIAS, DOWN_BIAS, WEIGHTS, INPUTS }; /* inputs, saved alike; and saved: */
enum { PRE = INPUTS, ROW, AT, SAVED };

static float *floats(const lm_tensor *t) { return t ? (float *)(void *)t->data : NULL; }
static int32_t *ints(const lm_tensor *t) { return t ? (int32_t *)(void *)t->data : NULL; }

int lm_plan_at_home(const lm_plan *p) { return !p->expert && !p->parts && !p->once; }

/* ---- who is who ---- */

/* row [arrivals]: the token of each; at [tokens, top_k]: the arrival of each route, or -1. */
static int find_rows(const lm_plan *p, lm_tensor **row, lm_tensor **at) {
    int64_t routes = p->tokens * p->top_k;
    lm_tensor *r = NULL, *a = NULL;
    int st = lm_tensor_new(LM_I32, 1, &p->arrivals, &r);
    if (st == LM_OK) st = lm_tensor_new(LM_I32, 1, &routes, &a);
    for (int64_t i = 0; i < p->arrivals && st == LM_OK; i++)
        ints(r)[i] = p->token_of[p->arrival_of ? p->arrival_of[i] : i];
    for (int64_t i = 0; i < routes && st == LM_OK; i++) {
        int32_t to = p->row_of[i];
        ints(a)[i] = to >= 0 && p->arrival_at ? p->arrival_at[to] : to;
    }
    if (st == LM_OK) *row = r, *at = a;
    else lm_tensor_release(r), lm_tensor_release(a);
    return st;
}

/* [tokens, top_k] -> [arrivals], and the other way. */
static void by_arrival(const lm_plan *p, const int32_t *at, const float *by_route, float *to) {
    for (int64_t i = 0; i < p->tokens * p->top_k; i++)
        if (at[i] >= 0) to[at[i]] = by_route[i];
}
static void by_route(const lm_plan *p, const int32_t *at, const float *by_arrival, float *to) {
    for (int64_t i = 0; i < p->tokens * p->top_k; i++)
        to[i] = at[i] >= 0 ? by_arrival[at[i]] : 0;
}

/* in: as the inputs are counted; row may be NULL */
static lm_ffn network(const lm_plan *p, lm_tensor *const in[], const lm_tensor *row,
                      int activation) {
    lm_ffn f = {.dtype = in[X]->dtype,
                .activation = kernel_activation[activation],
                .experts = p->local_experts,
                .dim = in[DOWN]->shape[1],
                .hidden = in[DOWN]->shape[2],
                .offset = p->offsets,
                .row = ints(row),
                .up = in[UP]->data,
                .down = in[DOWN]->data};
    if (in[UP_BIAS]) f.up_bias = in[UP_BIAS]->data, f.bias_dtype = in[UP_BIAS]->dtype;
    if (in[DOWN_BIAS]) f.down_bias = in[DOWN_BIAS]->data, f.bias_dtype = in[DOWN_BIAS]->dtype;
    return f;
}

/* ---- backward ---- */

typedef struct { /* gradients on their way: to a leaf's own, or to one that is given */
    lm_tensor *to[INPUTS], *own[INPUTS];
} gradients;

static int want(lm_node *n, gradients *g, int input, lm_tensor *like, int *add) {
    bool fresh = false, narrow = input == UP || input == DOWN;
    if (!lm__wants(n, input)) return LM_OK;
    int st = lm__gradient_of(n, input, like, narrow, &g->to[input], &g->own[input], &fresh);
    *add = !fresh;
    return st;
}

static int prepare(lm_node *n, const lm_plan *p, lm_tensor *const in[], gradients *g,
                   lm_ffn_gradients *k, lm_tensor **dx, lm_tensor **dscale) {
    int st = want(n, g, UP, in[UP], &k->add_up);
    if (st == LM_OK) st = want(n, g, DOWN, in[DOWN], &k->add_down);
    if (st == LM_OK) st = want(n, g, UP_BIAS, in[UP_BIAS], &k->add_up_bias);
    if (st == LM_OK) st = want(n, g, DOWN_BIAS, in[DOWN_BIAS], &k->add_down_bias);
    if (st == LM_OK && g->to[UP]) k->up = g->to[UP]->data, k->up_dtype = g->to[UP]->dtype;
    if (st == LM_OK && g->to[DOWN])
        k->down = g->to[DOWN]->data, k->down_dtype = g->to[DOWN]->dtype;
    k->up_bias = floats(g->to[UP_BIAS]), k->down_bias = floats(g->to[DOWN_BIAS]);
    if (st == LM_OK && lm__wants(n, X)) {
        st = lm__rows_new(in[X]->dtype, p->arrivals, in[X]->shape[1], dx);
        if (st == LM_OK) k->dx = (*dx)->data;
    }
    if (st == LM_OK && lm__wants(n, WEIGHTS)) {
        st = lm_tensor_new(LM_F32, 1, &p->arrivals, dscale);
        if (st == LM_OK) k->dscale = floats(*dscale);
    }
    return st;
}

/* The weights' gradients to their places; then those of arrivals, as tokens'. */
static int give(int st, lm_node *n, const lm_plan *p, lm_tensor *const in[], gradients *g,
                const lm_tensor *at, lm_tensor *dx, lm_tensor *dscale) {
    lm_tensor *tokens = NULL, *dw = NULL;
    for (int i = UP; i <= DOWN_BIAS; i++)
        if (g->to[i]) st = lm__finish_gradient(st, n, i, g->own[i]);
    if (st == LM_OK && dscale) st = lm__tensor_like(in[WEIGHTS], LM_F32, &dw);
    if (st == LM_OK && dscale) {
        by_route(p, ints(at), floats(dscale), floats(dw));
        st = lm__give(n, WEIGHTS, dw);
    }
    if (st == LM_OK && dx && at) {
        st = lm__rows_sum(dx, p->tokens, p->top_k, NULL, ints(at), &tokens);
        if (st == LM_OK) st = lm__give(n, X, tokens);
    } else if (st == LM_OK && dx) {
        lm_tensor_retain(dx);
        st = lm__give(n, X, dx);
    }
    return st;
}

static int ffn_backward(lm_node *n) {
    const lm_plan *p = n->extra;
    lm_tensor *in[SAVED] = {NULL}, *dy = NULL, *dx = NULL, *dscale = NULL, *scale = NULL;
    lm_tensor *room = NULL;
    gradients g = {{NULL}, {NULL}};
    lm_ffn_gradients k = {0};
    int64_t bytes = 0;
    int st = LM_OK;
    for (int i = 0; i < SAVED && st == LM_OK; i++) st = lm__saved(n, i, &in[i]);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), in[X]->dtype, &dy);
    if (st != LM_OK) return st;
    lm_dist_progress();
    lm_ffn f = network(p, in, in[ROW], (int)n->i[0]);
    if (in[WEIGHTS]) {
        st = lm_tensor_new(LM_F32, 1, &p->arrivals, &scale);
        if (st == LM_OK) by_arrival(p, ints(in[AT]), floats(in[WEIGHTS]), floats(scale));
    }
    if (st == LM_OK) st = lm__ran("experts", lm__kernels(dy)->ffn_room(&f, &bytes));
    if (st == LM_OK) st = lm_tensor_new(LM_U8, 1, &bytes, &room);
    if (st == LM_OK) st = prepare(n, p, in, &g, &k, &dx, &dscale);
    if (st == LM_OK)
        st = lm__ran("experts", lm__kernels(dy)->ffn_bwd(&f, &k, dy->data, in[X]->data,
                                                         in[PRE] ? in[PRE]->data : NULL,
                                                         floats(scale), room->data));
    lm_tensor_release(room);
    lm_dist_progress();
    st = give(st, n, p, in, &g, in[AT], dx, dscale);
    lm_tensor_release(scale);
    lm_tensor_release(dscale);
    lm_tensor_release(dx);
    lm_tensor_release(dy);
    return st;
}

/* ---- forward ---- */

static int check_bias(const char *name, const lm_tensor *bias, int64_t experts, int64_t n) {
    char text[96];
    if (!bias) return LM_OK;
    int st = lm__floating("experts", bias);
    if (st == LM_OK && (bias->ndim != 2 || bias->shape[0] != experts || bias->shape[1] != n))
        st = lm_fail(LM_ESHAPE, "experts: %s is %s, but there are %lld experts of %lld", name,
                     lm__describe(bias, text), (long long)experts, (long long)n);
    return st;
}

static int check(const lm_plan *p, lm_tensor *const in[], int activation) {
    char a[96], b[96];
    const lm_tensor *x = in[X], *up = in[UP], *down = in[DOWN];
    if (activation < LM_FFN_RELU || activation > LM_FFN_SWIGLU)
        return lm_fail(LM_EARG, "experts: no activation %d", activation);
    if (in[WEIGHTS] && !lm_plan_at_home(p))
        return lm_fail(LM_EARG, "experts: weights go along only where all experts are at home");
    int st = lm__check_rows("experts", x, in[WEIGHTS] ? p->tokens : p->arrivals,
                            in[WEIGHTS] ? "tokens" : "arrivals");
    if (st == LM_OK) st = lm__floating("experts", up);
    if (st == LM_OK) st = lm__floating("experts", down);
    if (st == LM_OK && in[WEIGHTS]) st = lm__check_weights(p, in[WEIGHTS]);
    if (st != LM_OK) return st;
    int halves = activation == LM_FFN_SWIGLU ? 2 : 1;
    if (up->ndim != 3 || down->ndim != 3 || up->shape[0] != p->local_experts ||
        down->shape[0] != p->local_experts || up->shape[2] != x->shape[1] ||
        down->shape[1] != x->shape[1] || up->shape[1] != halves * down->shape[2])
        return lm_fail(LM_ESHAPE,
                       "experts: up is %s and down %s for %d experts of dim %lld; wants "
                       "[experts, %shidden, dim] and [experts, dim, hidden]",
                       lm__describe(up, a), lm__describe(down, b), p->local_experts,
                       (long long)x->shape[1], halves == 2 ? "2 " : "");
    st = check_bias("up's bias", in[UP_BIAS], up->shape[0], up->shape[1]);
    if (st == LM_OK)
        st = check_bias("down's bias", in[DOWN_BIAS], down->shape[0], down->shape[1]);
    return st;
}

/* Of one dtype, each in one piece. */
static int dense_inputs(lm_tensor *const in[], lm_tensor *dense[]) {
    int dtype = lm__promote(in[X], in[UP]), st = LM_OK;
    for (int i = X; i <= DOWN && st == LM_OK; i++)
        st = lm__tensor_dense(in[i], dtype, &dense[i]);
    int bias = in[UP_BIAS] ? in[UP_BIAS]->dtype : LM_F32;
    for (int i = UP_BIAS; i <= DOWN_BIAS && st == LM_OK; i++)
        if (in[i]) st = lm__tensor_dense(in[i], bias, &dense[i]);
    if (st == LM_OK && in[WEIGHTS]) st = lm__tensor_dense(in[WEIGHTS], LM_F32, &dense[WEIGHTS]);
    return st;
}

int lm_moe_ffn(lm_plan *p, lm_tensor *x, lm_tensor *up, lm_tensor *up_bias, lm_tensor *down,
               lm_tensor *down_bias, lm_tensor *weights, int activation, int recompute,
               lm_tensor **out) {
    lm_tensor *in[INPUTS] = {x, up, down, up_bias, down_bias, weights};
    lm_tensor *dense[SAVED] = {NULL}, *rows = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = check(p, in, activation);
    if (st != LM_OK) return st;
    lm_dist_progress();
    st = dense_inputs(in, dense);
    if (st == LM_OK && weights) st = find_rows(p, &dense[ROW], &dense[AT]);
    if (st == LM_OK && lm__recording(INPUTS, in) && !recompute)
        st = lm__rows_new(dense[X]->dtype, p->arrivals, up->shape[1], &dense[PRE]);
    if (st == LM_OK) st = lm__rows_new(dense[X]->dtype, p->arrivals, x->shape[1], &rows);
    if (st == LM_OK) {
        lm_ffn f = network(p, dense, dense[ROW], activation);
        st = lm__ran("experts", lm__kernels(x)->ffn_fwd(&f, rows->data,
                                                        dense[PRE] ? dense[PRE]->data : NULL,
                                                        dense[X]->data));
    }
    if (st == LM_OK && weights)
        st = lm__rows_sum(rows, p->tokens, p->top_k, floats(dense[WEIGHTS]), ints(dense[AT]),
                          &y);
    else if (st == LM_OK) lm_tensor_retain(y = rows);
    lm_tensor_release(rows);
    lm_dist_progress();
    if (st == LM_OK) st = lm__record("experts", ffn_backward, INPUTS, in, 1, &y, &n);
    for (int i = 0; i < SAVED && st == LM_OK; i++) st = lm__save(n, i, dense[i]);
    if (n) n->i[0] = activation;
    lm__hold_plan(n, p);
    for (int i = 0; i < SAVED; i++) lm_tensor_release(dense[i]);
    return lm__finish(st, y, out);
}
