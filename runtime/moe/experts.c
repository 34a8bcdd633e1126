/* experts.c - every expert's own linear map, as one grouped matrix product.
 *
 * The arrivals are sorted by expert, so each expert's rows are one block, and
 * an expert without rows costs nothing. Gradients of the weights are added
 * straight into a leaf's f32 gradient. Other rows may be on their way meanwhile
 * (part.c): messages are looked after before each product. */
#include "runtime/moe/exchange_impl.h"

static int input_gradient(lm_node *n, const lm_plan *p, lm_tensor *dy, lm_tensor *x,
                          lm_tensor *w) {
    lm_tensor *dx;
    int64_t out = w->shape[1], in = w->shape[2];
    int st = lm__tensor_like(x, x->dtype, &dx);
    if (st != LM_OK) return st;
    st = lm__ran("experts: the gradient of x",
                 lm__kernels(x)->grouped_gemm(p->local_experts, p->offsets, in, out, dx->data,
                                              dx->dtype, dy->data, dy->dtype, w->data, w->dtype,
                                              0, NULL, 0));
    return lm__give_result(st, n, 0, dx);
}

int lm__gradient_of(lm_node *n, int input, const lm_tensor *like, bool narrow, lm_tensor **grad,
                    lm_tensor **own, bool *fresh) {
    *own = NULL;
    int st = lm__leaf_grad(n, input, narrow, grad, fresh);
    if (st != LM_OK || *grad) return st;
    *fresh = true;
    st = lm__tensor_like(like, LM_F32, own);
    *grad = *own;
    return st;
}

int lm__finish_gradient(int st, lm_node *n, int input, lm_tensor *own) {
    if (st == LM_OK) return own ? lm__give(n, input, own) : LM_OK;
    lm_tensor_release(own);
    return st;
}

static int linear_backward(lm_node *n) {
    const lm_plan *p = n->extra;
    lm_tensor *x, *w, *bias, *dy = NULL, *grad, *own;
    bool fresh;
    int st = lm__saved(n, 0, &x);
    if (st == LM_OK) st = lm__saved(n, 1, &w);
    if (st == LM_OK) st = lm__saved(n, 2, &bias);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), x->dtype, &dy);
    if (st != LM_OK) return st;
    int64_t out = w->shape[1], in = w->shape[2];
    lm_dist_progress();
    if (lm__wants(n, 0)) st = input_gradient(n, p, dy, x, w);
    lm_dist_progress();
    if (st == LM_OK && lm__wants(n, 1)) {
        st = lm__gradient_of(n, 1, w, false, &grad, &own, &fresh);
        if (st == LM_OK)
            st = lm__ran("experts: the gradient of their weights",
                         lm__kernels(x)->grouped_gemm_dw(p->local_experts, p->offsets, out, in,
                                                         grad->data, LM_F32, x->data, x->dtype,
                                                         dy->data, dy->dtype, 1, !fresh));
        st = lm__finish_gradient(st, n, 1, own);
    }
    if (st == LM_OK && bias && lm__wants(n, 2)) {
        st = lm__gradient_of(n, 2, bias, false, &grad, &own, &fresh);
        if (st == LM_OK)
            st = lm__kernels(x)->grouped_sum(p->local_experts, p->offsets, out,
                                             (float *)(void *)grad->data, dy->data, dy->dtype,
                                             !fresh);
        st = lm__finish_gradient(st, n, 2, own);
    }
    lm_tensor_release(dy);
    return st;
}

static int check(const lm_plan *p, const lm_tensor *x, const lm_tensor *w,
                 const lm_tensor *bias) {
    char a[96], b[96];
    int st = lm__floating("experts", x);
    if (st == LM_OK) st = lm__floating("experts", w);
    if (st == LM_OK && bias) st = lm__floating("experts", bias);
    if (st != LM_OK) return st;
    if (w->ndim != 3 || w->shape[0] != p->local_experts)
        return lm_fail(LM_ESHAPE,
                       "experts: weight is %s, but this rank has %d experts; wants "
                       "[experts, out, in]",
                       lm__describe(w, a), p->local_experts);
    if (x->ndim != 2 || x->shape[0] != p->arrivals || x->shape[1] != w->shape[2])
        return lm_fail(LM_ESHAPE,
                       "experts: x is %s, but the plan has %lld arrivals and weight is %s",
                       lm__describe(x, a), (long long)p->arrivals, lm__describe(w, b));
    if (bias &&
        (bias->ndim != 2 || bias->shape[0] != w->shape[0] || bias->shape[1] != w->shape[1]))
        return lm_fail(LM_ESHAPE, "experts: bias is %s, but weight is %s",
                       lm__describe(bias, a), lm__describe(w, b));
    return LM_OK;
}

int lm_moe_linear(lm_plan *p, lm_tensor *x, lm_tensor *weight, lm_tensor *bias,
                  lm_tensor **out) {
    lm_tensor *dx = NULL, *dw = NULL, *db = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = check(p, x, weight, bias);
    if (st != LM_OK) return st;
    int dtype = lm__promote(x, weight);
    st = lm__tensor_dense(x, dtype, &dx);
    if (st == LM_OK) st = lm__tensor_dense(weight, dtype, &dw);
    if (st == LM_OK && bias) st = lm__tensor_dense(bias, bias->dtype, &db);
    if (st == LM_OK) st = lm_tensor_new(dtype, 2, (int64_t[]){p->arrivals, dw->shape[1]}, &y);
    lm_dist_progress();
    if (st == LM_OK)
        st = lm__ran("experts", lm__kernels(x)->grouped_gemm(
                                    p->local_experts, p->offsets, dw->shape[1], dw->shape[2],
                                    y->data, dtype, dx->data, dtype, dw->data, dtype, 1,
                                    db ? db->data : NULL, db ? db->dtype : LM_F32));
    if (st == LM_OK)
        st = lm__record("experts", linear_backward, bias ? 3 : 2,
                        (lm_tensor *[]){x, weight, bias}, 1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, dx);
    if (st == LM_OK) st = lm__save(n, 1, dw);
    if (st == LM_OK) st = lm__save(n, 2, db);
    lm__hold_plan(n, p);
    lm_tensor_release(dx);
    lm_tensor_release(dw);
    lm_tensor_release(db);
    return lm__finish(st, y, out);
}
