/* unary.c - y = f(x) and dx = dy f'(x): one loop for each op and type, in which bf16 is
 * converted in registers. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vecmath.h"

typedef void forward_fn(float *y, const void *x, int64_t n);
typedef void backward_fn(float *dx, const void *dy, const void *v, int64_t n);

#define AS_IS(v) (v)

/* FWD in x; BWD the derivative in v, which is x or y as kernels.h says */
#define LOOPS(name, T, LOAD, FWD, BWD)                                                         \
    LM_CLONES static void name##_fwd(float *ys, const void *from, int64_t n) {                 \
        const T *xs = from;                                                                    \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                  \
            float x = LOAD(xs[i]);                                                             \
            ys[i] = FWD;                                                                       \
        }                                                                                      \
    }                                                                                          \
    LM_CLONES static void name##_bwd(float *dx, const void *dy, const void *from, int64_t n) { \
        const T *dys = dy, *vs = from;                                                         \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                  \
            float v = LOAD(vs[i]);                                                             \
            (void)v;                                                                           \
            dx[i] = LOAD(dys[i]) * (BWD);                                                      \
        }                                                                                      \
    }
#define UNARY(name, FWD, BWD)                                                                  \
    LOOPS(name##_f32, float, AS_IS, FWD, BWD)                                                  \
    LOOPS(name##_bf16, uint16_t, lm_bf16_to_f32, FWD, BWD)

UNARY(neg, -x, -1.0f)
UNARY(exp, lm__exp(x), v)
UNARY(log, lm__log(x), 1.0f / v)
UNARY(sqrt, sqrtf(x), 0.5f / v)
UNARY(rsqrt, 1.0f / sqrtf(x), -0.5f * v * v * v)
UNARY(abs, fabsf(x), (v > 0.0f ? 1.0f : v < 0.0f ? -1.0f : v))
UNARY(relu, x<0.0f ? 0.0f : x, v> 0.0f ? 1.0f : 0.0f)
UNARY(gelu, lm__gelu(x), lm__gelu_slope(v))
UNARY(gelu_tanh, 0.5f * x * (1.0f + lm__tanh(lm__gelu_tanh_inner(x))), lm__gelu_tanh_slope(v))
UNARY(silu, x *lm__sigmoid(x), lm__silu_slope(v))
UNARY(tanh, lm__tanh(x), 1.0f - v * v)
UNARY(sigmoid, lm__sigmoid(x), v *(1.0f - v))
UNARY(square, x *x, 2.0f * v)
UNARY(reciprocal, 1.0f / x, -v *v)

/* these come from the C library: rare, and exact for large arguments there */
UNARY(sin, sinf(x), cosf(v))
UNARY(cos, cosf(x), -sinf(v))

#define OP(name, by_y)                                                                         \
    { {name##_f32_fwd, name##_bf16_fwd}, {name##_f32_bwd, name##_bf16_bwd}, by_y }
static const struct {
    forward_fn *forward[2]; /* by dtype */
    backward_fn *backward[2];
    int by_y; /* the derivative is a function of y */
} ops[LM_UNARY_OPS] = {
    [LM_NEG] = OP(neg, 0),
    [LM_EXP] = OP(exp, 1),
    [LM_LOG] = OP(log, 0),
    [LM_SQRT] = OP(sqrt, 1),
    [LM_RSQRT] = OP(rsqrt, 1),
    [LM_ABS] = OP(abs, 0),
    [LM_RELU] = OP(relu, 1),
    [LM_GELU] = OP(gelu, 0),
    [LM_GELU_TANH] = OP(gelu_tanh, 0),
    [LM_SILU] = OP(silu, 0),
    [LM_TANH] = OP(tanh, 1),
    [LM_SIGMOID] = OP(sigmoid, 1),
    [LM_SQUARE] = OP(square, 0),
    [LM_RECIPROCAL] = OP(reciprocal, 1),
    [LM_SIN] = OP(sin, 0),
    [LM_COS] = OP(cos, 0),
};

int lm_cpu_unary(int op, int dtype, int64_t n, void *y, const void *x) {
    if (!lm__is_float(dtype) || op < 0 || op >= LM_UNARY_OPS) return LM_KERNEL_EDTYPE;
    forward_fn *f = ops[op].forward[dtype];
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        LM_BUFFER float out[LM_CHUNK];
        int64_t len = lm__min(n - at, LM_CHUNK);
        f(lm__open(dtype, y, at, out), lm__element(dtype, x, at), len);
        lm__close(dtype, y, at, len, out);
    }
    return LM_KERNEL_OK;
}

int lm_cpu_unary_bwd(int op, int dtype, int64_t n, void *dx, const void *dy, const void *x,
                     const void *y) {
    if (!lm__is_float(dtype) || op < 0 || op >= LM_UNARY_OPS) return LM_KERNEL_EDTYPE;
    backward_fn *f = ops[op].backward[dtype];
    const void *v = ops[op].by_y ? y : x;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        LM_BUFFER float out[LM_CHUNK];
        int64_t len = lm__min(n - at, LM_CHUNK);
        f(lm__open(dtype, dx, at, out), lm__element(dtype, dy, at), lm__element(dtype, v, at),
          len);
        lm__close(dtype, dx, at, len, out);
    }
    return LM_KERNEL_OK;
}

LM_CLONES static void clamp_row(float *y, const float *x, float lo, float hi, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float v = x[i] < lo ? lo : x[i];
        y[i] = v > hi ? hi : v;
    }
}

LM_CLONES static void clamp_bwd_row(float *dx, const float *dy, const float *x, float lo,
                                    float hi, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dx[i] = (x[i] >= lo) & (x[i] <= hi) ? dy[i] : 0.0f;
}

int lm_cpu_clamp(int dtype, int64_t n, void *y, const void *x, double lo, double hi) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        LM_BUFFER float in[LM_CHUNK], out[LM_CHUNK];
        int64_t len = lm__min(n - at, LM_CHUNK);
        clamp_row(lm__open(dtype, y, at, out), lm__load(dtype, x, at, len, in), (float)lo,
                  (float)hi, len);
        lm__close(dtype, y, at, len, out);
    }
    return LM_KERNEL_OK;
}

int lm_cpu_clamp_bwd(int dtype, int64_t n, void *dx, const void *dy, const void *x, double lo,
                     double hi) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        LM_BUFFER float g[LM_CHUNK], in[LM_CHUNK], out[LM_CHUNK];
        int64_t len = lm__min(n - at, LM_CHUNK);
        clamp_bwd_row(lm__open(dtype, dx, at, out), lm__load(dtype, dy, at, len, g),
                      lm__load(dtype, x, at, len, in), (float)lo, (float)hi, len);
        lm__close(dtype, dx, at, len, out);
    }
    return LM_KERNEL_OK;
}

/* --- swiglu: y = silu(g) u; du = dy silu(g), dg = dy u silu'(g) */

LM_CLONES static void swiglu_row(float *y, const float *g, const float *u, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = g[i] * lm__sigmoid(g[i]) * u[i];
}

LM_CLONES static void swiglu_bwd_row(float *dg, float *du, const float *dy, const float *g,
                                     const float *u, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float s = lm__sigmoid(g[i]), d = dy[i];
        float slope = s * (1.0f + g[i] * (1.0f - s));
        du[i] = d * g[i] * s;
        dg[i] = d * u[i] * slope;
    }
}

int lm_cpu_swiglu_fwd(int dtype, int64_t rows, int64_t h, void *y, const void *x) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(rows *h))
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = 0; at < h; at += LM_CHUNK) {
            LM_BUFFER float g[LM_CHUNK], u[LM_CHUNK], out[LM_CHUNK];
            int64_t len = lm__min(h - at, LM_CHUNK), gate = r * 2 * h + at;
            swiglu_row(lm__open(dtype, y, r * h + at, out), lm__load(dtype, x, gate, len, g),
                       lm__load(dtype, x, gate + h, len, u), len);
            lm__close(dtype, y, r * h + at, len, out);
        }
    return LM_KERNEL_OK;
}

int lm_cpu_swiglu_bwd(int dtype, int64_t rows, int64_t h, void *dx, const void *dy,
                      const void *x) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(rows *h))
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = 0; at < h; at += LM_CHUNK) {
            LM_BUFFER float g[LM_CHUNK], u[LM_CHUNK], d[LM_CHUNK], dg[LM_CHUNK], du[LM_CHUNK];
            int64_t len = lm__min(h - at, LM_CHUNK), gate = r * 2 * h + at;
            swiglu_bwd_row(lm__open(dtype, dx, gate, dg), lm__open(dtype, dx, gate + h, du),
                           lm__load(dtype, dy, r * h + at, len, d),
                           lm__load(dtype, x, gate, len, g),
                           lm__load(dtype, x, gate + h, len, u), len);
            lm__close(dtype, dx, gate, len, dg);
            lm__close(dtype, dx, gate + h, len, du);
        }
    return LM_KERNEL_OK;
}
