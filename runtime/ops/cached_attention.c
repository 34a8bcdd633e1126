/* cached_attention.c - attention of the next positions of sequences that are being generated,
 * in one operation: queries, keys and values as one product gave them; keys and values join a
 * cache that holds those of the positions before.
 *
 * The sequences of a search split and end. Their caches do not move then: what a position of a
 * sequence left stays in the row in which it was written, and `rows`, a small table, says which
 * that was. Whoever reorders sequences reorders the table. Nothing here has a gradient. */
#include "runtime/ops/rope.h"

#include <math.h>

static int check(const lm_tensor *qkv, const lm_tensor *k, const lm_tensor *v,
                 const lm_tensor *rows, int64_t heads, int64_t first, double base) {
    char a[96], b[96], c[96];
    const char *op = "cached_attention";
    int st = lm__floating(op, qkv);
    if (st == LM_OK) st = lm__floating(op, k);
    if (st == LM_OK) st = lm__floating(op, v);
    if (st == LM_OK && rows) st = lm__usable(op, rows);
    if (st != LM_OK) return st;
    bool fit = heads > 0 && first >= 0 && qkv->ndim == 3 && qkv->shape[2] % (3 * heads) == 0 &&
               k->ndim == 4 && lm__same_shape(k, v) && k->shape[1] == heads &&
               k->shape[3] * 3 * heads == qkv->shape[2] && k->dtype == qkv->dtype &&
               v->dtype == k->dtype && k->shape[0] >= qkv->shape[0] &&
               k->shape[2] >= first + qkv->shape[1];
    if (!fit)
        return lm_fail(
            LM_ESHAPE,
            "%s: qkv is %s, the caches are %s and %s; wants [B, T, 3 H dh] and twice "
            "[B or more, H, positions, dh] of the same dtype, H = %lld, with room "
            "for positions from %lld on",
            op, lm__describe(qkv, a), lm__describe(k, b), lm__describe(v, c), (long long)heads,
            (long long)first);
    if (rows && (rows->dtype != LM_I32 || rows->ndim != 2 || rows->shape[0] != qkv->shape[0] ||
                 rows->shape[1] < first + qkv->shape[1]))
        return lm_fail(LM_ESHAPE, "%s: rows is %s, but qkv is %s; wants [B, positions] i32", op,
                       lm__describe(rows, a), lm__describe(qkv, b));
    if (base > 0 && (k->shape[3] % 2 || k->shape[3] > LM_ROPE_MAX_DIM))
        return lm_fail(LM_ESHAPE,
                       "%s: rotary positions want an even dh of at most %d, not %lld", op,
                       LM_ROPE_MAX_DIM, (long long)k->shape[3]);
    const lm_tensor *written[] = {k, v, rows};
    for (int i = 0; i < 3; i++)
        if (written[i] && lm__grad_enabled() && (qkv->node || written[i]->node))
            return lm_fail(LM_EARG, "%s: has no gradient; it is for lumoe.no_grad", op);
    for (int i = 0; i < 3; i++) {
        const lm_tensor *t = written[i];
        int64_t dense = 1;
        for (int d = t ? t->ndim - 1 : -1; d >= 0; dense *= t->shape[d--])
            if (t->stride[d] != dense && t->shape[d] > 1)
                return lm_fail(LM_EARG, "%s: a cache must be contiguous", op);
    }
    return LM_OK;
}

/* Rows that a sequence may not have would be read out of the cache. */
static int rows_exist(const lm_tensor *rows, int64_t positions, int64_t count) {
    const int32_t *row = (const int32_t *)(const void *)rows->data;
    for (int64_t b = 0; b < rows->shape[0]; b++)
        for (int64_t t = 0; t < positions; t++)
            if (row[b * rows->shape[1] + t] < 0 || row[b * rows->shape[1] + t] >= count)
                return lm_fail(LM_EARG, "cached_attention: row %d is not in 0 to %lld",
                               (int)row[b * rows->shape[1] + t], (long long)count - 1);
    return LM_OK;
}

static lm_heads strides(const lm_tensor *t) {
    return (lm_heads){t->stride[0], t->stride[1], t->stride[2]};
}

int lm_cached_attention(lm_tensor *qkv, lm_tensor *k, lm_tensor *v, lm_tensor *rows,
                        int64_t heads, int64_t first, double scale, double rope_base,
                        lm_tensor **out) {
    int st = check(qkv, k, v, rows, heads, first, rope_base);
    if (st == LM_OK && rows) st = rows_exist(rows, first, k->shape[0]);
    if (st != LM_OK) return st;
    int64_t batch = qkv->shape[0], time = qkv->shape[1], dim = k->shape[3];
    int64_t shape[] = {batch, time, heads * dim};
    lm_tensor *x = NULL, *q = NULL, *y = NULL;
    lm_attention p = {.dtype = qkv->dtype,
                      .causal = 1,
                      .batch = batch,
                      .heads = heads,
                      .tq = time,
                      .tk = first + time,
                      .kv_heads = heads,
                      .dim = dim,
                      .scale = scale,
                      .q = {time * heads * dim, dim, heads * dim},
                      .k = strides(k),
                      .v = strides(v),
                      .o = {time * heads * dim, dim, heads * dim}};
    int32_t *table = rows ? (int32_t *)(void *)rows->data : NULL;
    if (rows) p.rows_step = rows->shape[1];
    st = lm__tensor_dense(qkv, qkv->dtype, &x);
    if (st == LM_OK) st = lm_tensor_new(qkv->dtype, 3, shape, &q);
    if (st == LM_OK) st = lm_tensor_new(qkv->dtype, 3, shape, &y);
    if (st == LM_OK && rope_base > 0)
        st = lm__rope_table(qkv, dim, rope_base, first + time, &p.cos, &p.sin);
    if (st == LM_OK) {
        const lm_kernels *kernels = lm__kernels(qkv);
        st = lm__ran("cached_attention", kernels->attention_append(&p, first, q->data, k->data,
                                                                   v->data, table, x->data));
        k->storage->version++, v->storage->version++;
        p.cos = p.sin = NULL; /* keys lie turned */
        p.rows = table;
        if (st == LM_OK)
            st = lm__ran("cached_attention",
                         kernels->attention_fwd(&p, y->data, NULL, q->data, k->data, v->data));
    }
    lm_tensor_release(x);
    lm_tensor_release(q);
    return lm__finish(st, y, out);
}
