/* softmax.c - softmax, log-softmax and logsumexp over rows, all in f32 with the row's maximum
 * taken out first. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vecmath.h"

LM_CLONES static float row_max(const float *x, int64_t n) {
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* y = exp(x - shift); their sum */
LM_CLONES static float exp_row(float *y, const float *x, float shift, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        float e = lm__exp(x[i] - shift);
        y[i] = e;
        sum += e;
    }
    return sum;
}

LM_CLONES static float exp_sum(const float *x, float shift, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += lm__exp(x[i] - shift);
    return sum;
}

LM_CLONES static void scale_row(float *y, float by, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] *= by;
}

LM_CLONES static void shift_row(float *y, const float *x, float by, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - by;
}

LM_CLONES static void softmax_bwd_row(float *dx, const float *dy, const float *y, int64_t n) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < n; i++) dot += dy[i] * y[i];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (dy[i] - dot);
}

LM_CLONES static void log_softmax_bwd_row(float *dx, const float *dy, const float *y,
                                          int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += dy[i];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] - lm__exp(y[i]) * sum;
}

int lm_cpu_softmax_fwd(int dtype, int64_t rows, int64_t n, int log, void *y, const void *x) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    int failed = 0;
#pragma omp parallel num_threads(lm__threads(4 * rows * n)) reduction(| : failed)
    {
        int64_t r, end;
        lm__share(rows, &r, &end);
        float *in = lm__scratch(LM_SCRATCH_ROW, (size_t)(2 * n) * sizeof(float));
        failed = !in;
        for (; r < end && in; r++) {
            const float *v = lm__load(dtype, x, r * n, n, in);
            float *out = lm__open(dtype, y, r * n, in + n), max = row_max(v, n);
            if (log) shift_row(out, v, max + logf(exp_sum(v, max, n)), n);
            else scale_row(out, 1.0f / exp_row(out, v, max, n), n);
            lm__close(dtype, y, r * n, n, out);
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}

int lm_cpu_softmax_bwd(int dtype, int64_t rows, int64_t n, int log, void *dx, const void *dy,
                       const void *y) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    int failed = 0;
#pragma omp parallel num_threads(lm__threads(2 * rows * n)) reduction(| : failed)
    {
        int64_t r, end;
        lm__share(rows, &r, &end);
        float *buf = lm__scratch(LM_SCRATCH_ROW, (size_t)(3 * n) * sizeof(float));
        failed = !buf;
        for (; r < end && buf; r++) {
            const float *g = lm__load(dtype, dy, r * n, n, buf);
            const float *v = lm__load(dtype, y, r * n, n, buf + n);
            float *out = lm__open(dtype, dx, r * n, buf + 2 * n);
            if (log) log_softmax_bwd_row(out, g, v, n);
            else softmax_bwd_row(out, g, v, n);
            lm__close(dtype, dx, r * n, n, out);
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}

int lm_cpu_logsumexp(int dtype, int64_t rows, int64_t n, float *out, const void *x) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    int failed = 0;
#pragma omp parallel num_threads(lm__threads(2 * rows * n)) reduction(| : failed)
    {
        int64_t r, end;
        lm__share(rows, &r, &end);
        float *buf = lm__scratch(LM_SCRATCH_ROW, (size_t)n * sizeof(float));
        failed = !buf;
        for (; r < end && buf; r++) {
            const float *v = lm__load(dtype, x, r * n, n, buf);
            float max = row_max(v, n);
            out[r] = fabsf(max) == INFINITY ? max : max + logf(exp_sum(v, max, n));
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}
