/* dropout.c - zeroes an element with probability p and scales the rest by 1 / (1 - p).
 *
 * The draws are a function of (stream, row's id, element), so backward draws
 * them again instead of keeping a mask, and padding or ranks change nothing. */
#include "runtime/ops/op.h"
#include "runtime/random.h"

/* Two exact halves of the stream, since Lua's numbers hold 53 bits. */
static lm_draw draw_of(double high, double low, const lm_tensor *rows) {
    return (lm_draw){.seed = (uint64_t)(int64_t)lm_random_get_seed(),
                     .stream = (uint64_t)high << 32 | (uint64_t)low,
                     .row_ids = rows ? (const int64_t *)(const void *)rows->data : NULL};
}

static int run(lm_tensor *x, double p, const lm_draw *draw, int64_t rows, lm_tensor **out) {
    lm_tensor *dense = NULL, *y = NULL;
    int st = lm__tensor_dense(x, x->dtype, &dense);
    if (st == LM_OK) st = lm__tensor_like(x, x->dtype, &y);
    if (st == LM_OK)
        st = lm__ran("dropout",
                     lm__kernels(x)->dropout(x->dtype, rows, rows ? x->numel / rows : 0,
                                             y->data, dense->data, p, draw));
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}

static int dropout_backward(lm_node *n) { /* i: seed, stream, rows; f: p */
    lm_tensor *ids, *g;
    int st = lm__saved(n, 0, &ids);
    if (st != LM_OK) return st;
    lm_draw draw = {.seed = (uint64_t)n->i[0],
                    .stream = (uint64_t)n->i[1],
                    .row_ids = ids ? (const int64_t *)(const void *)ids->data : NULL};
    st = run(lm__grad(n, 0), n->f[0], &draw, n->i[2], &g);
    return st == LM_OK ? lm__give(n, 0, g) : st;
}

int lm_dropout(lm_tensor *x, double p, double stream_high, double stream_low, lm_tensor *rows,
               lm_tensor **out) {
    char xs[96], rs[96];
    int st = lm__floating("dropout", x);
    if (st == LM_OK && rows) st = lm__usable("dropout", rows);
    if (st != LM_OK) return st;
    if (!(p >= 0 && p <= 1)) return lm_fail(LM_EARG, "dropout: p is %g, wants 0 to 1", p);
    int64_t width = x->ndim ? x->shape[x->ndim - 1] : 1, count = width ? x->numel / width : 0;
    if (rows && (rows->dtype != LM_I64 || rows->numel != count))
        return lm_fail(LM_ESHAPE, "dropout: %s has %lld rows, but their ids are %s",
                       lm__describe(x, xs), (long long)count, lm__describe(rows, rs));
    lm_tensor *ids = NULL, *y = NULL;
    lm_node *n = NULL;
    if (rows) st = lm__tensor_dense(rows, LM_I64, &ids);
    lm_draw draw = draw_of(stream_high, stream_low, ids);
    if (st == LM_OK) st = run(x, p, &draw, count, &y);
    if (st == LM_OK) st = lm__record("dropout", dropout_backward, 1, &x, 1, &y, &n);
    if (st == LM_OK && n) {
        n->i[0] = (int64_t)draw.seed, n->i[1] = (int64_t)draw.stream, n->i[2] = count,
        n->f[0] = p;
        st = lm__save(n, 0, ids);
    }
    lm_tensor_release(ids);
    return lm__finish(st, y, out);
}
