/* ffn_rows.c - the activations of ffn.h, forward and backward, over one line of floats. */
#include "kernels/cpu/ffn.h"
#include "kernels/cpu/vecmath.h"

/* VALUE and SLOPE of g; for swiglu both are multiplied by u */
#define ACTIVATION(name, VALUE, SLOPE)                                                         \
    LM_CLONES static void name##_fwd(float *restrict h, const float *restrict gs, int64_t n) { \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                  \
            float g = gs[i];                                                                   \
            h[i] = VALUE;                                                                      \
        }                                                                                      \
    }                                                                                          \
    LM_CLONES static void name##_bwd(float *restrict h, float *restrict dg,                    \
                                     float *restrict dscale, const float *restrict dh,         \
                                     const float *restrict gs, const float *restrict scale,    \
                                     int64_t n) {                                              \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                  \
            float g = gs[i], value = VALUE;                                                    \
            dscale[i] += dh[i] * value;                                                        \
            dg[i] = dh[i] * scale[i] * (SLOPE);                                                \
            h[i] = value * scale[i];                                                           \
        }                                                                                      \
    }

ACTIVATION(relu, g<0.0f ? 0.0f : g, g> 0.0f ? 1.0f : 0.0f)
ACTIVATION(gelu, lm__gelu(g), lm__gelu_slope(g))
ACTIVATION(gelu_tanh, 0.5f * g * (1.0f + lm__tanh(lm__gelu_tanh_inner(g))),
           lm__gelu_tanh_slope(g))
ACTIVATION(silu, g *lm__sigmoid(g), lm__silu_slope(g))

LM_CLONES static void swiglu_fwd(float *restrict h, const float *restrict g,
                                 const float *restrict u, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) h[i] = g[i] * lm__sigmoid(g[i]) * u[i];
}

LM_CLONES static void swiglu_bwd(float *restrict h, float *restrict dg, float *restrict du,
                                 float *restrict dscale, const float *restrict dh,
                                 const float *restrict g, const float *restrict u,
                                 const float *restrict scale, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float s = lm__sigmoid(g[i]), silu = g[i] * s, value = silu * u[i];
        float d = dh[i] * scale[i];
        dscale[i] += dh[i] * value;
        dg[i] = d * u[i] * (s * (1.0f + g[i] * (1.0f - s)));
        du[i] = d * silu;
        h[i] = value * scale[i];
    }
}

void lm__ffn_activate(int activation, float *h, const float *g, const float *u, int64_t n) {
    switch (activation) {
    case LM_RELU: relu_fwd(h, g, n); break;
    case LM_GELU: gelu_fwd(h, g, n); break;
    case LM_GELU_TANH: gelu_tanh_fwd(h, g, n); break;
    case LM_SILU: silu_fwd(h, g, n); break;
    default: swiglu_fwd(h, g, u, n);
    }
}

void lm__ffn_activate_back(int activation, float *h, float *dg, float *du, float *dscale,
                           const float *dh, const float *g, const float *u, const float *scale,
                           int64_t n) {
    switch (activation) {
    case LM_RELU: relu_bwd(h, dg, dscale, dh, g, scale, n); break;
    case LM_GELU: gelu_bwd(h, dg, dscale, dh, g, scale, n); break;
    case LM_GELU_TANH: gelu_tanh_bwd(h, dg, dscale, dh, g, scale, n); break;
    case LM_SILU: silu_bwd(h, dg, dscale, dh, g, scale, n); break;
    default: swiglu_bwd(h, dg, du, dscale, dh, g, u, scale, n);
    }
}

LM_CLONES static void settle_f32(float *x, float bias, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += bias;
}
LM_CLONES static void settle_bf16(float *x, float bias, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = lm_bf16_to_f32(lm_f32_to_bf16(x[i] + bias));
}

void lm__ffn_settle(int dtype, float *x, float bias, int64_t n) {
    if (dtype == LM_BF16) settle_bf16(x, bias, n);
    else if (bias != 0) settle_f32(x, bias, n);
}
