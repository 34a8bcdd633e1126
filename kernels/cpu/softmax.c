/* softmax.c - softmax, log-softmax and logsumexp over rows, all in f32 with the row's maximum
 * taken out first.
 *
 * A row narrower than a vector would leave most of it empty, and a router has a row of a few
 * experts for each token: such rows go a block at a time, so that exp sees one long array. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vecmath.h"

enum { NARROW = 16, LANES = 16 }; /* rows of fewer; elements that exp is made for */

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
        float e = lm__exp_falling(x[i] - shift);
        y[i] = e;
        sum += e;
    }
    return sum;
}

LM_CLONES static float exp_sum(const float *x, float shift, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += lm__exp_falling(x[i] - shift);
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

#define AS_IS(v) (v)

/* Of rows of T, which is converted in registers, twice. */
#define BACKWARD(name, T, LOAD)                                                                \
    LM_CLONES static void backward_##name(float *dx, const void *from, const void *of,         \
                                          int64_t n) {                                         \
        const T *dy = from, *y = of;                                                           \
        float dot = 0;                                                                         \
        _Pragma("omp simd reduction(+ : dot)") for (int64_t i = 0; i < n; i++) dot +=          \
            LOAD(dy[i]) * LOAD(y[i]);                                                          \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) dx[i] =                            \
            LOAD(y[i]) * (LOAD(dy[i]) - dot);                                                  \
    }                                                                                          \
    LM_CLONES static void log_backward_##name(float *dx, const void *from, const void *of,     \
                                              int64_t n) {                                     \
        const T *dy = from, *y = of;                                                           \
        float sum = 0;                                                                         \
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; i++) sum +=          \
            LOAD(dy[i]);                                                                       \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) dx[i] =                            \
            LOAD(dy[i]) - lm__exp(LOAD(y[i])) * sum;                                           \
    }
BACKWARD(f32, float, AS_IS)
BACKWARD(bf16, uint16_t, lm_bf16_to_f32)

typedef void backward_fn(float *dx, const void *dy, const void *y, int64_t n);
static backward_fn *const backward[2][2] = {/* by log, dtype */
                                            {backward_f32, backward_bf16},
                                            {log_backward_f32, log_backward_bf16}};

/* A block of rows, at most LM_CHUNK elements; y may be x. */
LM_CLONES static void narrow_block(float *y, const float *x, int64_t rows, int64_t n, int log) {
    LM_BUFFER float e[LM_CHUNK + LANES], shift[LM_CHUNK];
    int64_t count = rows * n, full = lm__ceil_div(count, LANES) * LANES;
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * n;
        float max = row[0];
        for (int64_t i = 1; i < n; i++) max = row[i] > max ? row[i] : max;
        shift[r] = max;
        for (int64_t i = 0; i < n; i++) e[r * n + i] = row[i] - max;
    }
    for (int64_t i = count; i < full; i++) e[i] = 0;
    for (int64_t i = 0; i < full; i += LANES)
#pragma omp simd
        for (int64_t j = i; j < i + LANES; j++) e[j] = lm__exp_falling(e[j]);
    for (int64_t r = 0; r < rows; r++) {
        const float *row = e + r * n;
        float sum = 0;
        for (int64_t i = 0; i < n; i++) sum += row[i];
        if (log) {
            float by = shift[r] + logf(sum);
            for (int64_t i = 0; i < n; i++) y[r * n + i] = x[r * n + i] - by;
        } else {
            float by = 1.0f / sum;
            for (int64_t i = 0; i < n; i++) y[r * n + i] = row[i] * by;
        }
    }
}

static void narrow_fwd(int dtype, int64_t rows, int64_t n, int log, void *y, const void *x) {
    const int64_t most = LM_CHUNK / n; /* rows of a block */
#pragma omp parallel for schedule(static) num_threads(lm__threads(4 * rows * n))
    for (int64_t r = 0; r < rows; r += most) {
        LM_BUFFER float in[LM_CHUNK], out[LM_CHUNK];
        int64_t here = lm__min(most, rows - r), count = here * n;
        narrow_block(lm__open(dtype, y, r * n, out), lm__load(dtype, x, r * n, count, in), here,
                     n, log);
        lm__close(dtype, y, r * n, count, out);
    }
}

int lm_cpu_softmax_fwd(int dtype, int64_t rows, int64_t n, int log, void *y, const void *x) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    if (n > 0 && n < NARROW) {
        narrow_fwd(dtype, rows, n, log, y, x);
        return LM_KERNEL_OK;
    }
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
        float *buf = lm__scratch(LM_SCRATCH_ROW, (size_t)n * sizeof(float));
        failed = !buf;
        for (; r < end && buf; r++) {
            float *out = lm__open(dtype, dx, r * n, buf);
            backward[log != 0][dtype](out, lm__element(dtype, dy, r * n),
                                      lm__element(dtype, y, r * n), n);
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
