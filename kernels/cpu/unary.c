/* unary.c - y = f(x) and dx = dy f'(x), one loop for each op, over chunks of f32. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vecmath.h"

typedef void forward_fn(float *y, const float *x, int64_t n);
typedef void backward_fn(float *dx, const float *dy, const float *v, int64_t n);

/* FWD in x; BWD the derivative in v, which is x or y as kernels.h says */
#define UNARY(name, FWD, BWD)                                                                  \
    LM_CLONES static void name##_fwd(float *ys, const float *xs, int64_t n) {                  \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                  \
            float x = xs[i];                                                                   \
            ys[i] = FWD;                                                                       \
        }                                                                                      \
    }                                                                                          \
    LM_CLONES static void name##_bwd(float *dx, const float *dy, const float *vs, int64_t n) { \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                  \
            float v = vs[i];                                                                   \
            (void)v;                                                                           \
            dx[i] = dy[i] * (BWD);                                                             \
        }                                                                                      \
    }

UNARY(neg, -x, -1.0f)
UNARY(exp, lm__exp(x), v)
UNARY(log, lm__log(x), 1.0f / v)
UNARY(sqrt, sqrtf(x), 0.5f / v)
UNARY(rsqrt, 1.0f / sqrtf(x), -0.5f * v * v * v)
UNARY(abs, fabsf(x), (v > 0.0f ? 1.0f : v < 0.0f ? -1.0f : v))
UNARY(relu, x<0.0f ? 0.0f : x, v> 0.0f ? 1.0f : 0.0f)
UNARY(gelu, x *lm__normal_cdf(x), lm__normal_cdf(v) + v * lm__normal_pdf(v))
UNARY(gelu_tanh, 0.5f * x * (1.0f + lm__tanh(lm__gelu_tanh_inner(x))), lm__gelu_tanh_slope(v))
UNARY(silu, x *lm__sigmoid(x), lm__silu_slope(v))
UNARY(tanh, lm__tanh(x), 1.0f - v * v)
UNARY(sigmoid, lm__sigmoid(x), v *(1.0f - v))
UNARY(square, x *x, 2.0f * v)
UNARY(reciprocal, 1.0f / x, -v *v)

/* sin and cos come from the C library: rare, and exact for large arguments there */
#define UNARY_LIBM(name, FWD, BWD)                                                             \
    static void name##_fwd(float *ys, const float *xs, int64_t n) {                            \
        for (int64_t i = 0; i < n; i++) ys[i] = FWD(xs[i]);                                    \
    }                                                                                          \
    static void name##_bwd(float *dx, const float *dy, const float *vs, int64_t n) {           \
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * (BWD(vs[i]));                          \
    }
UNARY_LIBM(sin, sinf, cosf)
UNARY_LIBM(cos, cosf, -sinf)

static const struct {
    forward_fn *forward;
    backward_fn *backward;
    int by_y; /* the derivative is a function of y */
} ops[LM_UNARY_OPS] = {
    [LM_NEG] = {neg_fwd, neg_bwd, 0},
    [LM_EXP] = {exp_fwd, exp_bwd, 1},
    [LM_LOG] = {log_fwd, log_bwd, 0},
    [LM_SQRT] = {sqrt_fwd, sqrt_bwd, 1},
    [LM_RSQRT] = {rsqrt_fwd, rsqrt_bwd, 1},
    [LM_ABS] = {abs_fwd, abs_bwd, 0},
    [LM_RELU] = {relu_fwd, relu_bwd, 1},
    [LM_GELU] = {gelu_fwd, gelu_bwd, 0},
    [LM_GELU_TANH] = {gelu_tanh_fwd, gelu_tanh_bwd, 0},
    [LM_SILU] = {silu_fwd, silu_bwd, 0},
    [LM_TANH] = {tanh_fwd, tanh_bwd, 1},
    [LM_SIGMOID] = {sigmoid_fwd, sigmoid_bwd, 1},
    [LM_SQUARE] = {square_fwd, square_bwd, 0},
    [LM_RECIPROCAL] = {reciprocal_fwd, reciprocal_bwd, 1},
    [LM_SIN] = {sin_fwd, sin_bwd, 0},
    [LM_COS] = {cos_fwd, cos_bwd, 0},
};

int lm_cpu_unary(int op, int dtype, int64_t n, void *y, const void *x) {
    if (!lm__is_float(dtype) || op < 0 || op >= LM_UNARY_OPS) return LM_KERNEL_EDTYPE;
    forward_fn *f = ops[op].forward;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        float in[LM_CHUNK], out[LM_CHUNK];
        int64_t len = lm__min(n - at, LM_CHUNK);
        f(lm__open(dtype, y, at, out), lm__load(dtype, x, at, len, in), len);
        lm__close(dtype, y, at, len, out);
    }
    return LM_KERNEL_OK;
}

int lm_cpu_unary_bwd(int op, int dtype, int64_t n, void *dx, const void *dy, const void *x,
                     const void *y) {
    if (!lm__is_float(dtype) || op < 0 || op >= LM_UNARY_OPS) return LM_KERNEL_EDTYPE;
    backward_fn *f = ops[op].backward;
    const void *v = ops[op].by_y ? y : x;
#pragma omp parallel for schedule(static) num_threads(lm__threads(n))
    for (int64_t at = 0; at < n; at += LM_CHUNK) {
        float g[LM_CHUNK], in[LM_CHUNK], out[LM_CHUNK];
        int64_t len = lm__min(n - at, LM_CHUNK);
        f(lm__open(dtype, dx, at, out), lm__load(dtype, dy, at, len, g),
          lm__load(dtype, v, at, len, in), len);
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
        float in[LM_CHUNK], out[LM_CHUNK];
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
        float g[LM_CHUNK], in[LM_CHUNK], out[LM_CHUNK];
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
            float g[LM_CHUNK], u[LM_CHUNK], out[LM_CHUNK];
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
            float g[LM_CHUNK], u[LM_CHUNK], d[LM_CHUNK], dg[LM_CHUNK], du[LM_CHUNK];
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
