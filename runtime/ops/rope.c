/* rope.c - rotary positions (Su et al. 2021) of x [.., H, T, dh]: element pair i of a head
 * turns by position * base^(-2i/dh), pairs being (i, i + dh/2), or (2i, 2i + 1) when
 * interleaved. Backward turns back. Kernels see [tokens, heads, dh], the order in which heads
 * are split off a token's row. Tables of cos and sin are kept for the next call. */
#include "runtime/ops/rope.h"

#include <stdlib.h>

typedef struct table {
    int64_t dim, positions;
    double base;
    float *cos, *sin; /* [positions, dim / 2], one allocation */
} table;

int lm__rope_table(const lm_tensor *x, int64_t dim, double base, int64_t positions,
                   const float **cos_table, const float **sin_table) {
    static table tables[4];
    static int oldest;
    table *t = NULL;
    for (int i = 0; i < 4 && !t; i++)
        if (tables[i].dim == dim && tables[i].base == base) t = &tables[i];
    if (!t) t = &tables[oldest], oldest = (oldest + 1) % 4;
    if (t->dim != dim || t->base != base || t->positions < positions) {
        int64_t room = 256;
        while (room < positions) room *= 2;
        float *cos = malloc((size_t)(room * dim) * sizeof *cos + 1);
        if (!cos)
            return lm_fail(LM_EOOM, "rope: no memory for %lld positions", (long long)room);
        free(t->cos);
        *t = (table){dim, room, base, cos, cos + room * (dim / 2)};
        int st = lm__ran("rope", lm__kernels(x)->rope_table(t->cos, t->sin, room, dim, base));
        if (st != LM_OK) return st;
    }
    *cos_table = t->cos, *sin_table = t->sin;
    return LM_OK;
}

/* [.., H, T, dh] <-> [.., T, H, dh]; with fewer dims there is one head. */
static int turned(lm_tensor *x, lm_tensor **out) {
    if (x->ndim > 2) return lm_transpose(x, -3, -2, out);
    lm_tensor_retain(*out = x);
    return LM_OK;
}

/* positions: dense i32, one to a token */
static int turn(lm_tensor *x, const lm_tensor *positions, int64_t count, double base,
                int interleaved, int inverse, lm_tensor **out) {
    lm_tensor *by_token = NULL, *dense = NULL, *y = NULL;
    const float *cos_table = NULL, *sin_table = NULL;
    int64_t dim = lm__width(x), heads = x->ndim > 2 ? x->shape[x->ndim - 3] : 1;
    int before = lm_grad_set_enabled(0);
    int st = turned(x, &by_token);
    if (st == LM_OK) st = lm__tensor_dense(by_token, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(dense, x->dtype, &y);
    if (st == LM_OK) st = lm__rope_table(x, dim, base, count, &cos_table, &sin_table);
    if (st == LM_OK)
        st =
            lm__ran("rope", lm__kernels(x)->rope(x->dtype, positions->numel, heads, dim,
                                                 y->data, dense->data, cos_table, sin_table,
                                                 (const int32_t *)(const void *)positions->data,
                                                 interleaved, inverse));
    if (st == LM_OK) st = turned(y, out);
    lm_grad_set_enabled(before);
    lm_tensor_release(by_token), lm_tensor_release(dense), lm_tensor_release(y);
    return st;
}

static int rope_backward(lm_node *n) { /* saved 0: positions; i: count, interleaved; f: base */
    lm_tensor *positions, *g = NULL;
    int st = lm__saved(n, 0, &positions);
    if (st == LM_OK)
        st = turn(lm__grad(n, 0), positions, n->i[0], n->f[0], (int)n->i[1], 1, &g);
    return lm__give_result(st, n, 0, g);
}

/* One i32 position for each of [.., T], from [T] or the like; *count is above them all. */
static int spread(lm_tensor *x, lm_tensor *given, lm_tensor **out, int64_t *count) {
    char xs[96], ps[96];
    int64_t shape[LM_MAX_DIMS], stride[LM_MAX_DIMS];
    int ndim = 0;
    for (int d = 0; d < x->ndim - 1; d++)
        if (x->ndim < 3 || d != x->ndim - 3) shape[ndim++] = x->shape[d];
    if (lm__broadcast_strides(given, ndim, shape, stride) != LM_OK)
        return lm_fail(LM_ESHAPE, "rope: positions are %s, but x is %s",
                       lm__describe(given, ps), lm__describe(x, xs));
    lm_tensor *wide = NULL, *all = NULL;
    int st = lm__tensor_view(given, ndim, shape, stride, 0, &wide);
    if (st == LM_OK) st = lm_tensor_new(LM_I32, ndim, shape, &all);
    if (st == LM_OK) st = lm_tensor_copy(all, wide);
    lm_tensor_release(wide);
    *count = 1;
    for (int64_t i = 0; st == LM_OK && i < all->numel; i++) {
        int64_t p = ((const int32_t *)(const void *)all->data)[i];
        if (p < 0 || p >= 1 << 24)
            st = lm_fail(LM_EARG, "rope: position %lld is not in 0 to %d", (long long)p,
                         (1 << 24) - 1);
        if (p >= *count) *count = p + 1;
    }
    return lm__finish(st, all, out);
}

int lm_rope(lm_tensor *x, lm_tensor *positions, double base, int interleaved, lm_tensor **out) {
    char xs[96];
    int st = lm__floating("rope", x);
    if (st == LM_OK) st = lm__ids("rope", positions);
    if (st != LM_OK) return st;
    if (x->ndim < 2 || lm__width(x) % 2 || lm__width(x) > 1024)
        return lm_fail(LM_ESHAPE,
                       "rope: x is %s; wants [.., T, dh] with an even dh of at most 1024",
                       lm__describe(x, xs));
    lm_tensor *all = NULL, *y = NULL;
    lm_node *n = NULL;
    int64_t count = 0;
    st = spread(x, positions, &all, &count);
    if (st == LM_OK) st = turn(x, all, count, base, interleaved, 0, &y);
    if (st == LM_OK) st = lm__record("rope", rope_backward, 1, &x, 1, &y, &n);
    if (n) n->i[0] = count, n->i[1] = interleaved, n->f[0] = base;
    if (st == LM_OK) st = lm__save(n, 0, all);
    lm_tensor_release(all);
    return lm__finish(st, y, out);
}
