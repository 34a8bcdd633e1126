/* binary.c - out = a op b with broadcasting, comparisons, where, and the scalar forms.
 *
 * Dimensions merge where both operands allow it; what is left inside is a row in which each
 * operand steps by 1 or stands still. An operand with another step is gathered into a buffer,
 * bf16 is converted there, and the loops below see only arrays and constants. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vecmath.h"

/* as, bs: 1 for an array, 0 for a constant */
typedef void loop_fn(void *out, const void *a, int as, const void *b, int bs, int64_t n);

#define LOOP(name, O, T, EXPR)                                                                 \
    LM_CLONES static void name(void *out, const void *pa, int as, const void *pb, int bs,      \
                               int64_t n) {                                                    \
        O *o = out;                                                                            \
        const T *xa = pa, *xb = pb;                                                            \
        if (as && bs) {                                                                        \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                              \
                T a = xa[i], b = xb[i];                                                        \
                o[i] = (O)(EXPR);                                                              \
            }                                                                                  \
        } else if (as) {                                                                       \
            T b = xb[0];                                                                       \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                              \
                T a = xa[i];                                                                   \
                o[i] = (O)(EXPR);                                                              \
            }                                                                                  \
        } else if (bs) {                                                                       \
            T a = xa[0];                                                                       \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                              \
                T b = xb[i];                                                                   \
                o[i] = (O)(EXPR);                                                              \
            }                                                                                  \
        } else {                                                                               \
            T a = xa[0], b = xb[0];                                                            \
            O v = (O)(EXPR);                                                                   \
            for (int64_t i = 0; i < n; i++) o[i] = v;                                          \
        }                                                                                      \
    }

/* As PyTorch: maximum and minimum pass a NaN on. Integer division truncates; by 0 it is 0. */
#define MAXIMUM(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define MINIMUM(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))

static int64_t power(int64_t a, int64_t b) {
    if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
    uint64_t p = 1, base = (uint64_t)a; /* wraps, as integers do */
    for (; b > 0; b >>= 1, base *= base)
        if (b & 1) p *= base;
    return (int64_t)p;
}
static int64_t divide(int64_t a, int64_t b) {
    return b == 0 ? 0 : b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b;
}

LOOP(add_f32, float, float, a + b)
LOOP(sub_f32, float, float, a - b)
LOOP(mul_f32, float, float, a *b)
LOOP(div_f32, float, float, a / b)
LOOP(max_f32, float, float, MAXIMUM(a, b))
LOOP(min_f32, float, float, MINIMUM(a, b))
LOOP(pow_f32, float, float, powf(a, b))
LOOP(add_i32, int32_t, int32_t, (uint32_t)a + (uint32_t)b)
LOOP(sub_i32, int32_t, int32_t, (uint32_t)a - (uint32_t)b)
LOOP(mul_i32, int32_t, int32_t, (uint32_t)a *(uint32_t)b)
LOOP(div_i32, int32_t, int32_t, divide(a, b))
LOOP(max_i32, int32_t, int32_t, a > b ? a : b)
LOOP(min_i32, int32_t, int32_t, a < b ? a : b)
LOOP(pow_i32, int32_t, int32_t, power(a, b))
LOOP(add_i64, int64_t, int64_t, (uint64_t)a + (uint64_t)b)
LOOP(sub_i64, int64_t, int64_t, (uint64_t)a - (uint64_t)b)
LOOP(mul_i64, int64_t, int64_t, (uint64_t)a *(uint64_t)b)
LOOP(div_i64, int64_t, int64_t, divide(a, b))
LOOP(max_i64, int64_t, int64_t, a > b ? a : b)
LOOP(min_i64, int64_t, int64_t, a < b ? a : b)
LOOP(pow_i64, int64_t, int64_t, power(a, b))

#define COMPARISONS(T, suffix)                                                                 \
    LOOP(eq_##suffix, uint8_t, T, a == b)                                                      \
    LOOP(ne_##suffix, uint8_t, T, a != b)                                                      \
    LOOP(lt_##suffix, uint8_t, T, a < b)                                                       \
    LOOP(le_##suffix, uint8_t, T, a <= b)                                                      \
    LOOP(gt_##suffix, uint8_t, T, a > b)                                                       \
    LOOP(ge_##suffix, uint8_t, T, a >= b)
COMPARISONS(float, f32)
COMPARISONS(int32_t, i32)
COMPARISONS(int64_t, i64)

enum { IN_F32, IN_I32, IN_I64 }; /* what the arithmetic is done in */
static int computed_in(int dtype) {
    return lm__is_float(dtype) ? IN_F32 : dtype == LM_I64 ? IN_I64 : IN_I32;
}

static loop_fn *const binary_loops[3][7] = {
    {add_f32, sub_f32, mul_f32, div_f32, max_f32, min_f32, pow_f32},
    {add_i32, sub_i32, mul_i32, div_i32, max_i32, min_i32, pow_i32},
    {add_i64, sub_i64, mul_i64, div_i64, max_i64, min_i64, pow_i64},
};
static loop_fn *const compare_loops[3][6] = {
    {eq_f32, ne_f32, lt_f32, le_f32, gt_f32, ge_f32},
    {eq_i32, ne_i32, lt_i32, le_i32, gt_i32, ge_i32},
    {eq_i64, ne_i64, lt_i64, le_i64, gt_i64, ge_i64},
};

/* --- the shape of the work */

enum { MAX_OPERANDS = 3 };

typedef struct {
    int ndim;                                         /* outer dims */
    int64_t shape[LM_KERNEL_MAX_DIMS];                /* of the outer dims */
    int64_t stride[MAX_OPERANDS][LM_KERNEL_MAX_DIMS]; /* of each operand there */
    int64_t inner, step[MAX_OPERANDS];                /* the row, and the step in it */
    int64_t total, pieces;                            /* elements; chunks of a row */
} plan;

static void make_plan(plan *p, int ndim, const int64_t *shape, int operands,
                      const int64_t *const *strides) {
    int n = 0;
    p->total = 1;
    for (int d = 0; d < ndim; d++) {
        p->total *= shape[d];
        if (shape[d] == 1) continue;
        int merges = n > 0;
        for (int o = 0; o < operands && merges; o++)
            merges = p->stride[o][n - 1] == strides[o][d] * shape[d];
        if (!merges) p->shape[n++] = 1;
        p->shape[n - 1] *= shape[d];
        for (int o = 0; o < operands; o++) p->stride[o][n - 1] = strides[o][d];
    }
    p->ndim = n > 0 ? n - 1 : 0;
    p->inner = n > 0 ? p->shape[n - 1] : 1;
    for (int o = 0; o < operands; o++) p->step[o] = n > 0 ? p->stride[o][n - 1] : 0;
    p->pieces = lm__ceil_div(p->inner, LM_CHUNK);
}

/* Calls body for pieces first..last-1. `at` counts output elements; off are the operands'. */
typedef struct {
    int64_t row, piece, at, len;
    int64_t index[LM_KERNEL_MAX_DIMS], base[MAX_OPERANDS], off[MAX_OPERANDS];
} cursor;

static void cursor_place(const plan *p, int operands, cursor *c) {
    int64_t skip = c->piece * LM_CHUNK;
    c->at = c->row * p->inner + skip;
    c->len = lm__min(LM_CHUNK, p->inner - skip);
    for (int o = 0; o < operands; o++) c->off[o] = c->base[o] + skip * p->step[o];
}

static void cursor_at(const plan *p, int operands, int64_t task, cursor *c) {
    c->row = task / p->pieces;
    c->piece = task % p->pieces;
    int64_t i = c->row;
    for (int o = 0; o < operands; o++) c->base[o] = 0;
    for (int d = p->ndim - 1; d >= 0; d--) {
        c->index[d] = i % p->shape[d];
        i /= p->shape[d];
        for (int o = 0; o < operands; o++) c->base[o] += c->index[d] * p->stride[o][d];
    }
    cursor_place(p, operands, c);
}

static void cursor_next(const plan *p, int operands, cursor *c) {
    if (++c->piece == p->pieces) {
        c->piece = 0;
        c->row++;
        for (int d = p->ndim - 1; d >= 0; d--) {
            for (int o = 0; o < operands; o++) c->base[o] += p->stride[o][d];
            if (++c->index[d] < p->shape[d]) break;
            for (int o = 0; o < operands; o++) c->base[o] -= p->stride[o][d] * p->shape[d];
            c->index[d] = 0;
        }
    }
    cursor_place(p, operands, c);
}

/* An operand's row as the loops want it; *unit says array or constant. */
static const void *operand(int dtype, const void *x, int64_t off, int64_t step, int64_t n,
                           void *buf, int *unit) {
    *unit = step != 0;
    int64_t count = step == 0 ? 1 : n;
    if (step == 1 && dtype == LM_BF16) {
        lm__from_bf16(buf, (const uint16_t *)x + off, n);
        return buf;
    }
    if ((step == 0 || step == 1) && dtype != LM_BF16 && dtype != LM_U8)
        return (const char *)x + (size_t)off * lm__size(dtype);
    switch (dtype) {
    case LM_F32:
        for (int64_t i = 0; i < count; i++)
            ((float *)buf)[i] = ((const float *)x)[off + i * step];
        break;
    case LM_BF16:
        for (int64_t i = 0; i < count; i++)
            ((float *)buf)[i] = lm_bf16_to_f32(((const uint16_t *)x)[off + i * step]);
        break;
    case LM_I32:
        for (int64_t i = 0; i < count; i++)
            ((int32_t *)buf)[i] = ((const int32_t *)x)[off + i * step];
        break;
    case LM_U8:
        for (int64_t i = 0; i < count; i++)
            ((int32_t *)buf)[i] = ((const uint8_t *)x)[off + i * step];
        break;
    default:
        for (int64_t i = 0; i < count; i++)
            ((int64_t *)buf)[i] = ((const int64_t *)x)[off + i * step];
    }
    return buf;
}

/* The common run: out_dtype BF16 goes through a buffer, every other type is written at once. */
static void run(const plan *p, loop_fn *loop, int dtype, int out_dtype, void *out,
                const void *a, const void *b) {
    int64_t tasks = p->total / p->inner * p->pieces;
#pragma omp parallel num_threads(lm__threads(p->total))
    {
        LM_BUFFER int64_t abuf[LM_CHUNK], bbuf[LM_CHUNK];
        LM_BUFFER float obuf[LM_CHUNK];
        int64_t task, last;
        cursor c;
        lm__share(tasks, &task, &last);
        if (task < last) cursor_at(p, 2, task, &c);
        for (; task < last; task++, cursor_next(p, 2, &c)) {
            int as, bs;
            const void *pa = operand(dtype, a, c.off[0], p->step[0], c.len, abuf, &as);
            const void *pb = operand(dtype, b, c.off[1], p->step[1], c.len, bbuf, &bs);
            void *po = out_dtype == LM_BF16 ? (void *)obuf
                                            : (char *)out + (size_t)c.at * lm__size(out_dtype);
            loop(po, pa, as, pb, bs, c.len);
            if (out_dtype == LM_BF16) lm__to_bf16((uint16_t *)out + c.at, obuf, c.len);
        }
    }
}

int lm_cpu_binary(int op, int dtype, int ndim, const int64_t *shape, void *out, const void *a,
                  const int64_t *a_stride, const void *b, const int64_t *b_stride) {
    if (op < LM_ADD || op > LM_POW || dtype == LM_U8) return LM_KERNEL_EDTYPE;
    plan p;
    make_plan(&p, ndim, shape, 2, (const int64_t *const[]){a_stride, b_stride});
    if (p.total > 0) run(&p, binary_loops[computed_in(dtype)][op], dtype, dtype, out, a, b);
    return LM_KERNEL_OK;
}

int lm_cpu_compare(int op, int dtype, int ndim, const int64_t *shape, uint8_t *out,
                   const void *a, const int64_t *a_stride, const void *b,
                   const int64_t *b_stride) {
    if (op < LM_EQ || op > LM_GE) return LM_KERNEL_EDTYPE;
    plan p;
    make_plan(&p, ndim, shape, 2, (const int64_t *const[]){a_stride, b_stride});
    if (p.total > 0) run(&p, compare_loops[computed_in(dtype)][op], dtype, LM_U8, out, a, b);
    return LM_KERNEL_OK;
}

/* --- scalars. For integers s is an integer; for bf16 it is not rounded to bf16 first. */

typedef union {
    float f32;
    int32_t i32;
    int64_t i64;
} scalar;

static scalar scalar_of(int dtype, double s) {
    scalar v = {.i64 = 0};
    if (lm__is_float(dtype)) v.f32 = (float)s;
    else if (dtype == LM_I64) v.i64 = (int64_t)s;
    else v.i32 = (int32_t)s;
    return v;
}

LM_CLONES static void square_row(float *y, const float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * x[i];
}

static void scalar_run(loop_fn *loop, int dtype, int out_dtype, int64_t n, void *out,
                       const void *a, double s, int reversed) {
    scalar v = scalar_of(dtype, s);
    int squares = loop == pow_f32 && s == 2.0 && !reversed;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        LM_BUFFER int64_t buf[LM_CHUNK];
        LM_BUFFER float obuf[LM_CHUNK];
        int64_t len = lm__min(LM_CHUNK, n - at);
        int unit;
        const void *pa = operand(dtype, a, at, 1, len, buf, &unit);
        void *po = out_dtype == LM_BF16 ? (void *)obuf
                                        : (char *)out + (size_t)at * lm__size(out_dtype);
        if (squares) square_row(po, pa, len);
        else if (reversed) loop(po, &v, 0, pa, 1, len);
        else loop(po, pa, 1, &v, 0, len);
        if (out_dtype == LM_BF16) lm__to_bf16((uint16_t *)out + at, obuf, len);
    }
}

int lm_cpu_binary_scalar(int op, int dtype, int64_t n, void *out, const void *a, double s,
                         int reversed) {
    if (op < LM_ADD || op > LM_POW || dtype == LM_U8) return LM_KERNEL_EDTYPE;
    scalar_run(binary_loops[computed_in(dtype)][op], dtype, dtype, n, out, a, s, reversed);
    return LM_KERNEL_OK;
}

int lm_cpu_compare_scalar(int op, int dtype, int64_t n, uint8_t *out, const void *a, double s) {
    if (op < LM_EQ || op > LM_GE) return LM_KERNEL_EDTYPE;
    scalar_run(compare_loops[computed_in(dtype)][op], dtype, LM_U8, n, out, a, s, 0);
    return LM_KERNEL_OK;
}

/* --- where: bits are moved, so only the size of an element matters */

#define WHERE(T)                                                                               \
    LM_CLONES static void where_##T(void *out, const uint8_t *c, int64_t cs, const void *pa,   \
                                    int64_t as, const void *pb, int64_t bs, int64_t n) {       \
        T *o = out;                                                                            \
        const T *a = pa, *b = pb;                                                              \
        if (cs == 1 && as == 1 && bs == 1)                                                     \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) o[i] = c[i] ? a[i] : b[i];     \
        else if (cs == 1 && as == 1 && bs == 0)                                                \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) o[i] = c[i] ? a[i] : b[0];     \
        else if (cs == 1 && as == 0 && bs == 1)                                                \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) o[i] = c[i] ? a[0] : b[i];     \
        else                                                                                   \
            for (int64_t i = 0; i < n; i++) o[i] = c[i * cs] ? a[i * as] : b[i * bs];          \
    }
WHERE(uint8_t)
WHERE(uint16_t)
WHERE(uint32_t)
WHERE(uint64_t)

int lm_cpu_where(int dtype, int ndim, const int64_t *shape, void *out, const uint8_t *cond,
                 const int64_t *cond_stride, const void *a, const int64_t *a_stride,
                 const void *b, const int64_t *b_stride) {
    plan p;
    make_plan(&p, ndim, shape, 3, (const int64_t *const[]){cond_stride, a_stride, b_stride});
    if (p.total == 0) return LM_KERNEL_OK;
    size_t size = lm__size(dtype);
    int64_t tasks = p.total / p.inner * p.pieces;
#pragma omp parallel num_threads(lm__threads(p.total))
    {
        int64_t task, last;
        cursor c;
        lm__share(tasks, &task, &last);
        if (task < last) cursor_at(&p, 3, task, &c);
        for (; task < last; task++, cursor_next(&p, 3, &c)) {
            void *po = (char *)out + (size_t)c.at * size;
            const uint8_t *pc = cond + c.off[0];
            const void *pa = (const char *)a + c.off[1] * (int64_t)size;
            const void *pb = (const char *)b + c.off[2] * (int64_t)size;
            const int64_t *s = p.step;
            switch (size) {
            case 1: where_uint8_t(po, pc, s[0], pa, s[1], pb, s[2], c.len); break;
            case 2: where_uint16_t(po, pc, s[0], pa, s[1], pb, s[2], c.len); break;
            case 4: where_uint32_t(po, pc, s[0], pa, s[1], pb, s[2], c.len); break;
            default: where_uint64_t(po, pc, s[0], pa, s[1], pb, s[2], c.len);
            }
        }
    }
    return LM_KERNEL_OK;
}

/* --- axpy: gradients accumulate with it */

LM_CLONES static void axpy_row(float *out, const float *y, const float *x, float alpha,
                               int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = y[i] + alpha * x[i];
}

int lm_cpu_axpy(int64_t n, double alpha, void *y, int y_dtype, const void *x, int x_dtype) {
    if (!lm__is_float(y_dtype) || !lm__is_float(x_dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        LM_BUFFER float ybuf[LM_CHUNK], xbuf[LM_CHUNK], out[LM_CHUNK];
        int64_t len = lm__min(LM_CHUNK, n - at);
        axpy_row(lm__open(y_dtype, y, at, out), lm__load(y_dtype, y, at, len, ybuf),
                 lm__load(x_dtype, x, at, len, xbuf), (float)alpha, len);
        lm__close(y_dtype, y, at, len, out);
    }
    return LM_KERNEL_OK;
}
