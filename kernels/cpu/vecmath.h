/* vecmath.h - exp, log, tanh, sigmoid, gelu and the like in f32, without branches or
 * library calls, so that loops over them vectorise. Within 2 ulp (measured in
 * tests/kernels/kernels_test.c), but for gelu's far tails. */
#ifndef LM_VECMATH_H
#define LM_VECMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

LM_INLINE float lm__as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
LM_INLINE uint32_t lm__as_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

#define LM_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */

/* exp(x) / 2^n = exp(r), |r| <= ln 2 / 2 */
LM_INLINE float lm__exp_rest(float x, float n) {
    float r = x - n * 0.693359375f; /* ln 2 in two parts; the first product is exact */
    r = r - n * -2.12194440e-4f;
    float r2 = r * r; /* in pairs: a polynomial in one chain would keep the units waiting */
    float p0 = 1.66666657e-1f * r + 5.00000000e-1f, p1 = 8.33345190e-3f * r + 4.16657962e-2f;
    float p = (1.98756915e-4f * r + 1.39819995e-3f) * r2 + p1;
    return (p * r2 + p0) * r2 + r + 1.0f;
}

/* 2^n is applied in two halves: it may overflow to inf or sink to a denormal. */
LM_INLINE float lm__exp(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float shifted = x * 1.44269504f + LM_ROUND;
    int32_t n = (int32_t)(lm__as_bits(shifted) - lm__as_bits(LM_ROUND));
    float p = lm__exp_rest(x, shifted - LM_ROUND);
    int32_t half = n >> 1;
    float s1 = lm__as_float((uint32_t)(half + 127) << 23);
    float s2 = lm__as_float((uint32_t)(n - half + 127) << 23);
    return p * s1 * s2;
}

/* log(x) = e ln 2 + log(m), m in [sqrt(1/2), sqrt(2)) */
LM_INLINE float lm__log(float x) {
    float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x; /* denormals */
    float e0 = x < 1.17549435e-38f ? -23.0f : 0.0f;
    uint32_t u = lm__as_bits(scaled);
    int32_t e = (int32_t)(u - 0x3f3504f3u) >> 23;
    float m = lm__as_float(u - ((uint32_t)e << 23)) - 1.0f;
    float fe = (float)e + e0;
    float z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float y = m * z * p;
    y = y + fe * -2.12194440e-4f;
    y = y - 0.5f * z;
    float r = m + y + fe * 0.693359375f;
    r = x > 3.40282347e38f ? x : r; /* inf */
    r = x == 0.0f ? -INFINITY : r;
    r = x >= 0.0f ? r : NAN; /* negative, NaN */
    return r;
}

LM_INLINE float lm__sigmoid(float x) { return 1.0f / (1.0f + lm__exp(-x)); }

LM_INLINE float lm__tanh(float x) {
    float a = fabsf(x), z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float small = p * z * x + x;
    float big = 1.0f - 2.0f / (lm__exp(2.0f * a) + 1.0f);
    return a < 0.625f ? small : (x < 0.0f ? -big : big); /* NaN takes the second and stays */
}

/* exp(x) for x <= 0: 2^n never overflows, so one factor has it; 0 from -87 down. */
LM_INLINE float lm__exp_falling(float x) {
    float shifted = x * 1.44269504f + LM_ROUND;
    float scale = lm__as_float((lm__as_bits(shifted) << 23) + 0x3f800000u);
    return x < -87.0f ? 0.0f : lm__exp_rest(x, shifted - LM_ROUND) * scale;
}

/* The normal distribution's density but for 1 / sqrt(2 pi), and P(N(0, 1) > a) given that: the
 * tail is e t R(t), t = 1 / (1 + c a), R fitted to relative 2e-8. 0 <= a <= LM_FAR. */
#define LM_FAR 13.0f /* there the tail is under 2^-126 */
LM_INLINE float lm__normal_bell(float a) { return lm__exp_falling(-0.5f * (a * a)); }
LM_INLINE float lm__normal_tail(float a, float e) {
    float t = 1.0f / (1.0f + 0.261629509f * a), t2 = t * t, t4 = t2 * t2;
    float p0 = 0.103749295f * t + 0.10440481f, p1 = 0.0541920493f * t + 0.102885749f;
    float p2 = -0.139531022f * t + 0.153231123f, p3 = -0.150319809f * t + 0.240697086f;
    float p = (p3 * t2 + p2 + 0.0306907085f * t4) * t4 + (p1 * t2 + p0);
    return p * t * e;
}

/* gelu: x P(N < x) is x or 0, less |x| times the tail; and its derivative, P(N < x) + x density
 */
LM_INLINE float lm__gelu(float x) {
    float a = fabsf(x);
    a = a > LM_FAR ? LM_FAR : a;
    return (x > 0.0f ? x : 0.0f) - a * lm__normal_tail(a, lm__normal_bell(a));
}
LM_INLINE float lm__gelu_slope(float x) {
    x = x > LM_FAR ? LM_FAR : x;
    x = x < -LM_FAR ? -LM_FAR : x;
    float a = fabsf(x), e = lm__normal_bell(a), tail = lm__normal_tail(a, e);
    return (x < 0.0f ? tail : 1.0f - tail) + 0.398942280f * x * e;
}

/* gelu as PyTorch's approximate='tanh', and the derivatives of it and of silu */
LM_INLINE float lm__gelu_tanh_inner(float x) {
    return 0.797884561f * (x + 0.044715f * x * x * x);
}
LM_INLINE float lm__gelu_tanh_slope(float x) {
    float t = lm__tanh(lm__gelu_tanh_inner(x));
    float du = 0.797884561f * (1.0f + 0.134145f * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * du;
}
LM_INLINE float lm__silu_slope(float x) {
    float s = lm__sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

#endif
