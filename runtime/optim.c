/* optim.c - checks what the optimizers hand over, then one kernel. */
#include "runtime/optim.h"
#include "runtime/random.h"
#include "runtime/ops/op.h"

typedef struct update {
    float *p;       /* NULL: there is the bf16 parameter alone */
    uint16_t *copy; /* of the bf16 parameter, else NULL */
    const void *g;
    int g_dtype;
    lm_dither dither;
} update;

static float *floats(lm_tensor *t) { return t ? (float *)(void *)t->data : NULL; }

static int matches(const char *op, const lm_tensor *p, const lm_tensor *state, int dtype) {
    char ps[96], ss[96];
    if (!state) return LM_OK;
    if (state->dtype != dtype || state->numel != p->numel || !lm_tensor_is_contiguous(state))
        return lm_fail(LM_ESHAPE, "%s: parameter %s, but its state is %s", op,
                       lm__describe(p, ps), lm__describe(state, ss));
    return LM_OK;
}

static int dither_of(const char *op, const lm_rounding *r, lm_dither *dither) {
    const lm_tensor *b = r->blocks;
    if (b && (b->dtype != LM_I64 || !lm_tensor_is_contiguous(b) || r->unit < 1))
        return lm_fail(LM_EARG, "%s: the blocks of a part are numbers in i64", op);
    *dither = (lm_dither){(uint64_t)(int64_t)lm_random_get_seed(), r->stream, (int64_t)r->first,
                          (int64_t)r->unit, b ? (const int64_t *)(const void *)b->data : NULL};
    return LM_OK;
}

/* 1: there is something to do; 0: no gradient. moments: whether they are rounded too. */
static int prepare(const char *op, lm_tensor *p, lm_tensor *master, int moments,
                   const lm_rounding *rounding, update *u) {
    int st = lm__floating(op, p);
    if (st == LM_OK) st = matches(op, p, master, LM_F32);
    if (st != LM_OK) return st;
    if (!p->grad) return 0;
    if (!lm_tensor_is_contiguous(p) || !lm_tensor_is_contiguous(p->grad))
        return lm_fail(LM_ESHAPE, "%s: the parameter or its gradient is not contiguous", op);
    int alone = p->dtype == LM_BF16 && !master;
    if (alone && !rounding)
        return lm_fail(LM_EARG, "%s: a bf16 parameter needs an f32 master, or random rounding",
                       op);
    if (moments && !rounding)
        return lm_fail(LM_EARG, "%s: bf16 moments need random rounding", op);
    if (alone || moments) st = dither_of(op, rounding, &u->dither);
    if (!alone) u->p = floats(master ? master : p);
    if (st != LM_OK) return st;
    u->copy = p->dtype == LM_BF16 ? (uint16_t *)(void *)p->data : NULL;
    u->g = p->grad->data, u->g_dtype = p->grad->dtype;
    p->storage->version++;
    return 1;
}

int lm_optim_adamw(lm_tensor *p, lm_tensor *master, lm_tensor *m, lm_tensor *v, double lr,
                   double beta1, double beta2, double eps, double weight_decay, int64_t step,
                   double grad_scale, const lm_rounding *rounding) {
    update u = {0};
    int moments = m->dtype == LM_BF16 ? LM_BF16 : LM_F32;
    if (m->dtype != v->dtype) {
        char ms[96], vs[96];
        return lm_fail(LM_EARG, "adamw: m is %s, but v is %s", lm__describe(m, ms),
                       lm__describe(v, vs));
    }
    int st = prepare("adamw", p, master, moments == LM_BF16, rounding, &u);
    if (st <= 0) return st;
    st = matches("adamw", p, m, moments);
    if (st == LM_OK) st = matches("adamw", p, v, moments);
    if (st != LM_OK) return st;
    return lm__ran("adamw",
                   lm__kernels(p)->adamw(p->numel, u.p, u.copy, &u.dither, u.g, u.g_dtype,
                                         m->data, v->data, moments, lr, beta1, beta2, eps,
                                         weight_decay, step, grad_scale));
}

int lm_optim_sgd(lm_tensor *p, lm_tensor *master, lm_tensor *momentum, double lr, double factor,
                 double weight_decay, int nesterov, double grad_scale,
                 const lm_rounding *rounding) {
    update u = {0};
    int st = prepare("sgd", p, master, 0, rounding, &u);
    if (st <= 0) return st;
    st = matches("sgd", p, momentum, LM_F32);
    if (st != LM_OK) return st;
    return lm__ran("sgd", lm__kernels(p)->sgd(p->numel, u.p, u.copy, &u.dither, u.g, u.g_dtype,
                                              floats(momentum), lr, factor, weight_decay,
                                              nesterov, grad_scale));
}

int lm_optim_adafactor(lm_tensor *p, lm_tensor *master, lm_tensor *row, lm_tensor *col,
                       double lr, double beta2, double eps, double clip, double weight_decay,
                       double grad_scale, const lm_rounding *rounding) {
    char ps[96];
    update u = {0};
    int st = prepare("adafactor", p, master, 0, rounding, &u);
    if (st <= 0) return st;
    int64_t cols = col ? p->shape[p->ndim - 1] : 0;
    int64_t rows = col ? p->shape[p->ndim - 2] : p->numel, matrix = col ? rows * cols : rows;
    int64_t matrices = matrix ? p->numel / matrix : 0;
    if (row->numel != matrices * rows || (col && col->numel != matrices * cols))
        return lm_fail(LM_ESHAPE, "adafactor: state does not fit a parameter of %s",
                       lm__describe(p, ps));
    const lm_kernels *k = lm__kernels(p);
    for (int64_t i = 0; i < matrices && st >= LM_OK; i++) {
        const char *g = (const char *)u.g + i * matrix * lm_dtype_size(u.g_dtype);
        float *r = floats(row) + i * rows, *c = col ? floats(col) + i * cols : NULL;
        uint16_t *copy = u.copy ? u.copy + i * matrix : NULL;
        st = k->adafactor_stats(rows, cols, r, c, g, u.g_dtype, beta2, eps, grad_scale);
        if (st == LM_OK)
            st = k->adafactor_update(rows, cols, u.p ? u.p + i * matrix : NULL, copy, &u.dither,
                                     g, u.g_dtype, r, c, lr, clip, weight_decay, grad_scale);
        u.dither.first += matrix;
    }
    return lm__ran("adafactor", st < LM_OK ? st : LM_OK);
}

int lm_optim_grad_sqsum(lm_tensor *p, double *out) {
    *out = 0;
    int st = lm__usable("grad norm", p);
    if (st != LM_OK || !p->grad) return st;
    lm_tensor *g;
    st = lm__tensor_dense(p->grad, p->grad->dtype, &g);
    if (st != LM_OK) return st;
    st = lm__ran("grad norm", lm__kernels(p)->sqsum(g->dtype, g->numel, g->data, out));
    lm_tensor_release(g);
    return st;
}
