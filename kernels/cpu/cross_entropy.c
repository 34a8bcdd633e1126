/* cross_entropy.c - the loss of a row of logits x with target t, lse = log sum exp x:
 *
 *   loss = (1 - s) (lse - x_t) + s (lse - mean(x)) + z lse^2
 *   dx_c = scale (p_c (1 + 2 z lse) - (1 - s) [c == t] - s / n),  p = exp(x - lse)
 *
 * over n classes. Where a row holds only some of them, its parts are put together elsewhere. A
 * row is read once, in chunks, with a running maximum; probabilities are never stored. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vecmath.h"

LM_CLONES static float chunk_max(const float *x, int64_t n) {
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

LM_CLONES static float chunk_exp_sum(const float *x, float shift, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += lm__exp_falling(x[i] - shift);
    return s;
}

LM_CLONES static float chunk_sum(const float *x, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += x[i];
    return s;
}

LM_CLONES static void backward_chunk(float *dx, const float *x, float lse, float p_scale,
                                     float flat, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dx[i] = lm__exp_falling(x[i] - lse) * p_scale - flat;
}

/* Asks for the next chunk while this one is summed. */
static void fetch(int dtype, const void *x, int64_t at, int64_t n) {
    const char *from = (const char *)x + (size_t)at * lm__size(dtype);
    for (int64_t i = 0; i < n * (int64_t)lm__size(dtype); i += 64) __builtin_prefetch(from + i);
}

/* log sum exp of row r; *sum is that of x when asked for */
static double row_lse(int dtype, const void *x, int64_t r, int64_t n, double *sum) {
    LM_BUFFER float buf[LM_CHUNK];
    double max = -INFINITY, total = 0;
    for (int64_t i = 0; i < n; i += LM_CHUNK) {
        int64_t len = lm__min(LM_CHUNK, n - i);
        const float *v = lm__load(dtype, x, r * n + i, len, buf);
        float m = chunk_max(v, len);
        fetch(dtype, x, r * n + i + len, lm__min(LM_CHUNK, n - i - len));
        if ((double)m > max) {
            total *= exp(max - (double)m);
            max = (double)m;
        }
        total += (double)chunk_exp_sum(v, (float)max, len);
        if (sum) *sum += (double)chunk_sum(v, len);
    }
    return max + log(total);
}

static float logit(int dtype, const void *x, int64_t at) {
    return dtype == LM_F32 ? ((const float *)x)[at] : lm_bf16_to_f32(((const uint16_t *)x)[at]);
}

int lm_cpu_cross_entropy_fwd(int dtype, int64_t rows, int64_t n, float *loss, float *lse,
                             const void *logits, const void *target, int target_dtype,
                             int64_t ignore, double smoothing, double z_loss, int64_t *bad) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    *bad = -1;
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = lm__id(target_dtype, target, r);
        if (t != ignore && (t < 0 || t >= n)) {
            *bad = r;
            return LM_KERNEL_EARG;
        }
    }
#pragma omp parallel for schedule(static) num_threads(lm__threads(4 * rows * n))
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = lm__id(target_dtype, target, r);
        loss[r] = lse[r] = 0;
        if (t == ignore) continue;
        double sum = 0, l = row_lse(dtype, logits, r, n, smoothing > 0 ? &sum : NULL);
        double value =
            (1 - smoothing) * (l - (double)logit(dtype, logits, r * n + t)) + z_loss * l * l;
        if (smoothing > 0) value += smoothing * (l - sum / (double)n);
        loss[r] = (float)value;
        lse[r] = (float)l;
    }
    return LM_KERNEL_OK;
}

int lm_cpu_cross_entropy_part(int dtype, int64_t rows, int64_t n, float *parts,
                              const void *logits, const void *target, int target_dtype,
                              int64_t ignore, int64_t first) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(4 * rows * n))
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = lm__id(target_dtype, target, r), here = t - first;
        float *part = parts + 3 * r;
        part[0] = part[1] = part[2] = 0;
        if (t == ignore) continue;
        double sum = 0;
        part[0] = (float)row_lse(dtype, logits, r, n, &sum);
        if (here >= 0 && here < n) part[1] = logit(dtype, logits, r * n + here);
        part[2] = (float)sum;
    }
    return LM_KERNEL_OK;
}

int lm_cpu_cross_entropy_bwd(int dtype, int64_t rows, int64_t n, void *dlogits,
                             const void *logits, const float *lse, const void *target,
                             int target_dtype, int64_t ignore, double smoothing, double z_loss,
                             const float *row_scale, int64_t first, int64_t classes) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(4 * rows * n))
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = lm__id(target_dtype, target, r);
        float scale = t == ignore ? 0.0f : row_scale[r];
        float p_scale = scale * (1.0f + 2.0f * (float)z_loss * lse[r]);
        float flat = scale * (float)(smoothing / (double)classes);
        int64_t here = t - first;
        for (int64_t i = 0; i < n; i += LM_CHUNK) {
            LM_BUFFER float in[LM_CHUNK], out[LM_CHUNK];
            int64_t len = lm__min(LM_CHUNK, n - i), at = r * n + i;
            float *d = lm__open(dtype, dlogits, at, out);
            if (t == ignore) /* whatever the logits are, inf and NaN too */
                for (int64_t j = 0; j < len; j++) d[j] = 0;
            else
                backward_chunk(d, lm__load(dtype, logits, at, len, in), lse[r], p_scale, flat,
                               len);
            if (here >= i && here < i + len && t != ignore)
                d[here - i] -= scale * (float)(1 - smoothing);
            lm__close(dtype, dlogits, at, len, d);
        }
    }
    return LM_KERNEL_OK;
}
