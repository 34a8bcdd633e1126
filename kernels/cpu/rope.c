/* rope.c - rotary positions (Su et al. 2021): pair i of a head turns by position *
 * base^(-2i/dim). The inverse turn is backward. */
#include "kernels/cpu/cpu.h"

#include <math.h>

int lm_cpu_rope_table(float *cos_table, float *sin_table, int64_t positions, int64_t dim,
                      double base) {
    int64_t half = dim / 2;
#pragma omp parallel for schedule(static) num_threads(lm__threads(8 * positions * half))
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)p * pow(base, -2.0 * (double)i / (double)dim);
            cos_table[p * half + i] = (float)cos(angle);
            sin_table[p * half + i] = (float)sin(angle);
        }
    return LM_KERNEL_OK;
}

LM_CLONES static void turn_halves(float *y, const float *x, const float *c, const float *s,
                                  float sign, int64_t half) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i], w = sign * s[i];
        y[i] = a * c[i] - b * w;
        y[half + i] = b * c[i] + a * w;
    }
}

LM_CLONES static void turn_pairs(float *y, const float *x, const float *c, const float *s,
                                 float sign, int64_t half) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1], w = sign * s[i];
        y[2 * i] = a * c[i] - b * w;
        y[2 * i + 1] = b * c[i] + a * w;
    }
}

int lm_cpu_rope(int dtype, int64_t tokens, int64_t heads, int64_t dim, void *y, const void *x,
                const float *cos_table, const float *sin_table, const int32_t *position,
                int interleaved, int inverse) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    if (dim > LM_CHUNK || dim % 2) return LM_KERNEL_EARG;
    float sign = inverse ? -1.0f : 1.0f;
    int64_t half = dim / 2;
#pragma omp parallel for schedule(static) num_threads(lm__threads(tokens *heads *dim))
    for (int64_t t = 0; t < tokens; t++) {
        const float *c = cos_table + position[t] * half, *s = sin_table + position[t] * half;
        for (int64_t h = 0; h < heads; h++) {
            float in[LM_CHUNK], out[LM_CHUNK];
            int64_t at = (t * heads + h) * dim;
            const float *v = lm__load(dtype, x, at, dim, in);
            float *to = lm__open(dtype, y, at, out);
            if (interleaved) turn_pairs(to, v, c, s, sign, half);
            else turn_halves(to, v, c, s, sign, half);
            lm__close(dtype, y, at, dim, to);
        }
    }
    return LM_KERNEL_OK;
}
