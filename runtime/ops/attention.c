/* attention.c - scaled dot-product attention, softmax(scale q k' + mask) v, tile by tile: the
 * scores are never in memory. q [B, H, Tq, dh], k and v [B, G, Tk, dh], where G divides H: each
 * head of k and v serves H / G heads of q.
 *
 * Results and gradients lie in memory as [B, T, H, dh], so that the transposes that join the
 * heads of a token, before and after, move nothing. packed_attention takes queries, keys and
 * values as one product gave them, side by side in a token's row, turns q and k by their
 * rotary positions as it reads them, and gives gradients that lie alike. */
#include "runtime/ops/rope.h"

#include <math.h>

enum { Q, K, V, O, LSE, MASK }; /* saved */

/* [B, H, T, dh] over memory in the order B, T, H, dh. */
static int heads_like(const lm_tensor *x, lm_tensor **out) {
    int64_t inside[] = {x->shape[0], x->shape[2], x->shape[1], x->shape[3]};
    lm_tensor *t = NULL;
    int st = lm_tensor_new(x->dtype, 4, inside, &t);
    if (st == LM_OK) {
        int64_t stride[] = {t->stride[0], t->stride[2], t->stride[1], t->stride[3]};
        st = lm__tensor_view(t, 4, x->shape, stride, 0, out);
    }
    lm_tensor_release(t);
    return st;
}

/* x, or a copy of the dtype in which a head's elements lie together. */
static int heads_of(lm_tensor *x, int dtype, lm_tensor **out) {
    if (x->dtype != dtype || (x->stride[3] != 1 && x->shape[3] > 1))
        return lm__tensor_dense(x, dtype, out);
    lm_tensor_retain(*out = x);
    return LM_OK;
}

static lm_heads strides(const lm_tensor *t) {
    return (lm_heads){t->stride[0], t->stride[1], t->stride[2]};
}

static lm_attention problem(const lm_tensor *q, const lm_tensor *k, const lm_tensor *v,
                            const lm_tensor *o, const lm_tensor *mask, int causal,
                            double scale) {
    return (lm_attention){.dtype = q->dtype,
                          .causal = causal,
                          .batch = q->shape[0],
                          .heads = q->shape[1],
                          .tq = q->shape[2],
                          .tk = k->shape[2],
                          .kv_heads = k->shape[1],
                          .dim = q->shape[3],
                          .scale = scale,
                          .key_mask = mask ? (const uint8_t *)mask->data : NULL,
                          .q = strides(q),
                          .k = strides(k),
                          .v = strides(v),
                          .o = strides(o)};
}

static int attention_backward(lm_node *n) { /* i[0]: causal; f[0]: scale */
    lm_tensor *s[MASK + 1], *d_o = NULL, *dq = NULL, *dk = NULL, *dv = NULL;
    int st = LM_OK;
    for (int i = 0; i <= MASK && st == LM_OK; i++) st = lm__saved(n, i, &s[i]);
    if (st == LM_OK) st = heads_of(lm__grad(n, 0), s[Q]->dtype, &d_o);
    if (st == LM_OK) st = heads_like(s[Q], &dq);
    if (st == LM_OK) st = heads_like(s[K], &dk);
    if (st == LM_OK) st = heads_like(s[V], &dv);
    if (st == LM_OK) {
        lm_attention p = problem(s[Q], s[K], s[V], s[O], s[MASK], (int)n->i[0], n->f[0]);
        p.dq = strides(dq), p.dk = strides(dk), p.dv = strides(dv), p.d_o = strides(d_o);
        st = lm__ran(n->op,
                     lm__kernels(s[Q])->attention_bwd(
                         &p, dq->data, dk->data, dv->data, d_o->data, s[Q]->data, s[K]->data,
                         s[V]->data, s[O]->data, (const float *)(const void *)s[LSE]->data));
    }
    lm_tensor_release(d_o);
    st = lm__give_result(st, n, 0, dq);
    st = lm__give_result(st, n, 1, dk);
    return lm__give_result(st, n, 2, dv);
}

static int check(lm_tensor *q, lm_tensor *k, lm_tensor *v, lm_tensor *mask) {
    char a[96], b[96], c[96];
    int st = lm__floating("attention", q);
    if (st == LM_OK) st = lm__floating("attention", k);
    if (st == LM_OK) st = lm__floating("attention", v);
    if (st == LM_OK && mask) st = lm__usable("attention", mask);
    if (st != LM_OK) return st;
    bool fit = q->ndim == 4 && k->ndim == 4 && lm__same_shape(k, v) &&
               q->shape[0] == k->shape[0] && q->shape[3] == k->shape[3];
    if (fit) fit = k->shape[1] ? q->shape[1] % k->shape[1] == 0 : q->shape[1] == 0;
    if (!fit)
        return lm_fail(LM_ESHAPE,
                       "attention: q is %s, k is %s, v is %s; wants [B, H, Tq, dh] and twice "
                       "[B, G, Tk, dh], where G divides H",
                       lm__describe(q, a), lm__describe(k, b), lm__describe(v, c));
    if (mask && (mask->dtype != LM_U8 || mask->ndim != 2 || mask->shape[0] != k->shape[0] ||
                 mask->shape[1] != k->shape[2]))
        return lm_fail(LM_ESHAPE, "attention: key_mask is %s, but k is %s; wants [B, Tk] u8",
                       lm__describe(mask, a), lm__describe(k, b));
    return LM_OK;
}

static float *floats_of(const lm_tensor *t) { return t ? (float *)(void *)t->data : NULL; }

int lm_scaled_dot_product_attention(lm_tensor *q, lm_tensor *k, lm_tensor *v,
                                    lm_tensor *key_mask, int causal, double scale,
                                    lm_tensor **out) {
    int st = check(q, k, v, key_mask);
    if (st != LM_OK) return st;
    int dtype = lm__promote(q, k);
    if (dtype != v->dtype) dtype = LM_F32;
    lm_tensor *in[] = {q, k, v}, *s[MASK + 1] = {NULL}, *y = NULL;
    bool recording = lm__recording(3, in);
    lm_node *n = NULL;
    st = heads_of(q, dtype, &s[Q]);
    if (st == LM_OK) st = heads_of(k, dtype, &s[K]);
    if (st == LM_OK) st = heads_of(v, dtype, &s[V]);
    if (st == LM_OK && key_mask) st = lm__tensor_dense(key_mask, LM_U8, &s[MASK]);
    if (st == LM_OK) st = heads_like(s[Q], &y);
    if (st == LM_OK && recording) st = lm_tensor_new(LM_F32, 3, q->shape, &s[LSE]);
    if (st == LM_OK) {
        lm_attention p = problem(s[Q], s[K], s[V], y, s[MASK], causal, scale);
        st = lm__ran("scaled_dot_product_attention",
                     lm__kernels(q)->attention_fwd(&p, y->data, floats_of(s[LSE]), s[Q]->data,
                                                   s[K]->data, s[V]->data));
    }
    if (st == LM_OK) st = lm__record("attention", attention_backward, 3, in, 1, &y, &n);
    if (n) n->i[0] = causal, n->f[0] = scale;
    for (int i = 0; n && i <= MASK && st == LM_OK; i++) st = lm__save(n, i, i == O ? y : s[i]);
    for (int i = 0; i <= MASK; i++) lm_tensor_release(s[i]);
    return lm__finish(st, y, out);
}

/* ---- packed: qkv [B, T, 3 H dh], or q [B, Tq, H dh] and kv [B, Tk, 2 H dh] ---- */

enum { PACKED_Q, PACKED_KV, PACKED_O, PACKED_LSE, PACKED_MASK }; /* saved */

/* Heads of `heads`, number `part` of the `parts` in a row of t. */
static lm_heads packed_strides(const lm_tensor *t, int64_t heads, int parts) {
    int64_t row = t->shape[2];
    return (lm_heads){t->shape[1] * row, heads ? row / parts / heads : 0, row};
}
static void *part_of(const lm_tensor *t, int part, int parts) {
    return t->data + part * (t->shape[2] / parts) * (int64_t)lm_dtype_size(t->dtype);
}

/* kv NULL: q holds all three. */
static int packed_problem(const lm_tensor *q, const lm_tensor *kv, const lm_tensor *mask,
                          int64_t heads, int causal, double scale, double base,
                          lm_attention *p) {
    int of_q = kv ? 1 : 3, of_kv = kv ? 2 : 3;
    const lm_tensor *k = kv ? kv : q;
    int64_t dim = q->shape[2] / of_q / heads;
    *p = (lm_attention){.dtype = q->dtype,
                        .causal = causal,
                        .batch = q->shape[0],
                        .heads = heads,
                        .tq = q->shape[1],
                        .tk = k->shape[1],
                        .kv_heads = heads,
                        .dim = dim,
                        .scale = scale,
                        .key_mask = mask ? (const uint8_t *)mask->data : NULL,
                        .q = packed_strides(q, heads, of_q),
                        .k = packed_strides(k, heads, of_kv),
                        .v = packed_strides(k, heads, of_kv),
                        .o = {q->shape[1] * heads * dim, dim, heads * dim}};
    p->dq = p->q, p->dk = p->k, p->dv = p->v, p->d_o = p->o;
    if (base <= 0) return LM_OK;
    return lm__rope_table(q, dim, base, p->tq, &p->cos, &p->sin);
}

static int packed_backward(lm_node *n) { /* i: heads, causal; f: scale, base */
    lm_tensor *s[PACKED_MASK + 1], *d_o = NULL, *dq = NULL, *dkv = NULL;
    lm_attention p;
    int st = LM_OK;
    for (int i = 0; i <= PACKED_MASK && st == LM_OK; i++) st = lm__saved(n, i, &s[i]);
    if (st != LM_OK) return st;
    lm_tensor *q = s[PACKED_Q], *kv = s[PACKED_KV];
    int first = kv ? 0 : 1, parts = kv ? 2 : 3; /* of keys in their rows */
    st = lm__tensor_dense(lm__grad(n, 0), q->dtype, &d_o);
    if (st == LM_OK) st = lm__tensor_like(q, q->dtype, &dq);
    if (st == LM_OK && kv) st = lm__tensor_like(kv, kv->dtype, &dkv);
    if (st == LM_OK)
        st = packed_problem(q, kv, s[PACKED_MASK], n->i[0], (int)n->i[1], n->f[0], n->f[1], &p);
    if (st == LM_OK) {
        const lm_tensor *k = kv ? kv : q, *dk = kv ? dkv : dq;
        st = lm__ran(n->op,
                     lm__kernels(q)->attention_bwd(
                         &p, dq->data, part_of(dk, first, parts), part_of(dk, first + 1, parts),
                         d_o->data, q->data, part_of(k, first, parts),
                         part_of(k, first + 1, parts), s[PACKED_O]->data,
                         (const float *)(const void *)s[PACKED_LSE]->data));
    }
    lm_tensor_release(d_o);
    st = lm__give_result(st, n, 0, dq);
    return kv ? lm__give_result(st, n, 1, dkv) : st;
}

static int check_packed(lm_tensor *q, lm_tensor *kv, int64_t heads, lm_tensor *mask,
                        double base) {
    char a[96], b[96];
    const char *op = "packed_attention";
    int st = lm__floating(op, q);
    if (st == LM_OK && kv) st = lm__floating(op, kv);
    if (st == LM_OK && mask) st = lm__usable(op, mask);
    if (st != LM_OK) return st;
    int64_t parts = kv ? 1 : 3;
    bool fit = heads > 0 && q->ndim == 3 && q->shape[2] % (parts * heads) == 0;
    if (fit && kv)
        fit = kv->ndim == 3 && kv->shape[0] == q->shape[0] && kv->shape[2] == 2 * q->shape[2];
    if (!fit && kv)
        return lm_fail(
            LM_ESHAPE,
            "%s: q is %s and kv %s; wants [B, Tq, H dh] and [B, Tk, 2 H dh], H = %lld", op,
            lm__describe(q, a), lm__describe(kv, b), (long long)heads);
    if (!fit)
        return lm_fail(LM_ESHAPE, "%s: qkv is %s; wants [B, T, 3 H dh], H = %lld", op,
                       lm__describe(q, a), (long long)heads);
    int64_t dim = q->shape[2] / parts / heads;
    if (base > 0 && (kv || dim % 2 || dim > LM_ROPE_MAX_DIM))
        return lm_fail(LM_ESHAPE,
                       "%s: rotary positions are for queries and keys of the same tokens, with "
                       "an even dh of at most %d, not %lld",
                       op, LM_ROPE_MAX_DIM, (long long)dim);
    const lm_tensor *k = kv ? kv : q;
    if (mask && (mask->dtype != LM_U8 || mask->ndim != 2 || mask->shape[0] != k->shape[0] ||
                 mask->shape[1] != k->shape[1]))
        return lm_fail(LM_ESHAPE, "%s: key_mask is %s, but keys are %s; wants [B, Tk] u8", op,
                       lm__describe(mask, a), lm__describe(k, b));
    return LM_OK;
}

int lm_packed_attention(lm_tensor *q, lm_tensor *kv, int64_t heads, lm_tensor *key_mask,
                        int causal, double scale, double rope_base, lm_tensor **out) {
    int st = check_packed(q, kv, heads, key_mask, rope_base);
    if (st != LM_OK) return st;
    int dtype = kv ? lm__promote(q, kv) : q->dtype, first = kv ? 0 : 1, parts = kv ? 2 : 3;
    int64_t lse[] = {q->shape[0], heads, q->shape[1]};
    int64_t shape[] = {q->shape[0], q->shape[1], q->shape[2] / (kv ? 1 : 3)};
    lm_tensor *in[] = {q, kv}, *s[PACKED_MASK + 1] = {NULL}, *y = NULL;
    bool recording = lm__recording(2, in);
    lm_node *n = NULL;
    lm_attention p;
    st = lm__tensor_dense(q, dtype, &s[PACKED_Q]);
    if (st == LM_OK && kv) st = lm__tensor_dense(kv, dtype, &s[PACKED_KV]);
    if (st == LM_OK && key_mask) st = lm__tensor_dense(key_mask, LM_U8, &s[PACKED_MASK]);
    if (st == LM_OK) st = lm_tensor_new(dtype, 3, shape, &y);
    if (st == LM_OK && recording) st = lm_tensor_new(LM_F32, 3, lse, &s[PACKED_LSE]);
    if (st == LM_OK)
        st = packed_problem(s[PACKED_Q], s[PACKED_KV], s[PACKED_MASK], heads, causal, scale,
                            rope_base, &p);
    if (st == LM_OK) {
        const lm_tensor *k = kv ? s[PACKED_KV] : s[PACKED_Q];
        st = lm__ran("packed_attention",
                     lm__kernels(q)->attention_fwd(&p, y->data, floats_of(s[PACKED_LSE]),
                                                   s[PACKED_Q]->data, part_of(k, first, parts),
                                                   part_of(k, first + 1, parts)));
    }
    if (st == LM_OK) st = lm__record("packed_attention", packed_backward, 2, in, 1, &y, &n);
    if (n) n->i[0] = heads, n->i[1] = causal, n->f[0] = scale, n->f[1] = rope_base;
    for (int i = 0; n && i <= PACKED_MASK; i++)
        if (st == LM_OK) st = lm__save(n, i, i == PACKED_O ? y : s[i]);
    for (int i = 0; i <= PACKED_MASK; i++) lm_tensor_release(s[i]);
    return lm__finish(st, y, out);
}
