/* index.c - rows and elements by number: embedding, gather, scatter_add, and the MoE's combine.
 *
 * Nothing here races: where several sources add to one place, a thread owns a slice of the
 * columns (or of the outer dimension) and walks the sources in order. */
#include "kernels/cpu/cpu.h"

#include <string.h>

/* The first id outside [low, n), or -1. */
static int64_t outside(int dtype, const void *ids, int64_t count, int64_t low, int64_t n) {
    for (int64_t i = 0; i < count; i++) {
        int64_t id = lm__id(dtype, ids, i);
        if (id < low || id >= n) return i;
    }
    return -1;
}

int lm_cpu_gather_rows(int dtype, int64_t count, int64_t n, int64_t rows, void *out,
                       const void *x, int id_dtype, const void *ids, int64_t *bad) {
    *bad = outside(id_dtype, ids, count, -1, rows);
    if (*bad >= 0) return LM_KERNEL_EARG;
    size_t bytes = (size_t)n * lm__size(dtype);
#pragma omp parallel for schedule(static) num_threads(lm__threads(count *n))
    for (int64_t i = 0; i < count; i++) {
        int64_t id = lm__id(id_dtype, ids, i);
        char *to = (char *)out + (size_t)i * bytes;
        if (id < 0) memset(to, 0, bytes);
        else memcpy(to, (const char *)x + (size_t)id * bytes, bytes);
    }
    return LM_KERNEL_OK;
}

/* m elements of `bytes` from a row of them; the common sizes without a call for each */
static void pick(char *out, const char *x, size_t bytes, int64_t m, int id_dtype,
                 const void *ids) {
    if (bytes == 4)
        for (int64_t i = 0; i < m; i++)
            ((uint32_t *)(void *)out)[i] =
                ((const uint32_t *)(const void *)x)[lm__id(id_dtype, ids, i)];
    else if (bytes == 2)
        for (int64_t i = 0; i < m; i++)
            ((uint16_t *)(void *)out)[i] =
                ((const uint16_t *)(const void *)x)[lm__id(id_dtype, ids, i)];
    else
        for (int64_t i = 0; i < m; i++)
            memcpy(out + (size_t)i * bytes, x + (size_t)lm__id(id_dtype, ids, i) * bytes,
                   bytes);
}

int lm_cpu_index_select(int dtype, int64_t outer, int64_t n, int64_t inner, int64_t m,
                        void *out, const void *x, int id_dtype, const void *ids, int64_t *bad) {
    *bad = outside(id_dtype, ids, m, 0, n);
    if (*bad >= 0) return LM_KERNEL_EARG;
    size_t bytes = (size_t)inner * lm__size(dtype);
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *m *inner))
    for (int64_t o = 0; o < outer; o++)
        pick((char *)out + (size_t)(o * m) * bytes, (const char *)x + (size_t)(o * n) * bytes,
             bytes, m, id_dtype, ids);
    return LM_KERNEL_OK;
}

LM_CLONES static void add_row(float *y, const float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

LM_CLONES static void add_scaled(float *y, const float *x, float by, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += by * x[i];
}

LM_CLONES static void scale_row(float *y, const float *x, float by, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = by * x[i];
}

LM_CLONES static float dot_row(const float *x, const float *y, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += x[i] * y[i];
    return s;
}

int lm_cpu_scatter_add_rows(int dtype, int64_t count, int64_t n, int64_t rows, float *out,
                            const void *x, int id_dtype, const void *ids) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    enum { NARROWEST = 16 }; /* columns of a thread: a cache line */
    int64_t slices = lm__ceil_div(n, NARROWEST);
    int threads = (int)lm__max(1, lm__min(lm__threads(count * n), slices));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        LM_BUFFER float buf[LM_CHUNK];
        lm__share(slices, &first, &last);
        first *= NARROWEST;
        last = lm__min(n, last * NARROWEST);
        for (int64_t i = 0; i < count; i++) {
            int64_t id = lm__id(id_dtype, ids, i);
            if (id < 0 || id >= rows) continue;
            for (int64_t j = first; j < last; j += LM_CHUNK) {
                int64_t len = lm__min(LM_CHUNK, last - j);
                add_row(out + id * n + j, lm__load(dtype, x, i * n + j, len, buf), len);
            }
        }
    }
    return LM_KERNEL_OK;
}

int lm_cpu_gather(int dtype, int64_t outer, int64_t n, int64_t inner, int64_t m, void *out,
                  const void *x, int id_dtype, const void *ids, int64_t *bad) {
    *bad = outside(id_dtype, ids, outer * m * inner, 0, n);
    if (*bad >= 0) return LM_KERNEL_EARG;
    size_t size = lm__size(dtype);
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *m *inner))
    for (int64_t i = 0; i < outer * m; i++)
        for (int64_t j = 0; j < inner; j++) {
            int64_t at = i * inner + j, id = lm__id(id_dtype, ids, at);
            int64_t from = (i / m * n + id) * inner + j;
            switch (size) {
            case 1: ((uint8_t *)out)[at] = ((const uint8_t *)x)[from]; break;
            case 2: ((uint16_t *)out)[at] = ((const uint16_t *)x)[from]; break;
            case 4: ((uint32_t *)out)[at] = ((const uint32_t *)x)[from]; break;
            default: ((uint64_t *)out)[at] = ((const uint64_t *)x)[from];
            }
        }
    return LM_KERNEL_OK;
}

int lm_cpu_scatter_add(int dtype, int64_t outer, int64_t n, int64_t inner, int64_t m,
                       float *out, const void *x, int id_dtype, const void *ids, int64_t *bad) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    *bad = outside(id_dtype, ids, outer * m * inner, 0, n);
    if (*bad >= 0) return LM_KERNEL_EARG;
#pragma omp parallel for schedule(static) num_threads(lm__threads(outer *m *inner))
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < m * inner; i++) {
            int64_t from = o * m * inner + i, id = lm__id(id_dtype, ids, from);
            out[(o * n + id) * inner + i % inner] +=
                dtype == LM_F32 ? ((const float *)x)[from]
                                : lm_bf16_to_f32(((const uint16_t *)x)[from]);
        }
    return LM_KERNEL_OK;
}

/* --- combine */

int lm_cpu_combine_fwd(int dtype, int64_t tokens, int64_t slots, int64_t dim, void *y,
                       const void *x, const float *weights, const int32_t *inv) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(tokens *slots *dim))
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = 0; j < dim; j += LM_CHUNK) {
            LM_BUFFER float in[LM_CHUNK], out[LM_CHUNK];
            int64_t len = lm__min(LM_CHUNK, dim - j);
            float *sum = lm__open(dtype, y, t * dim + j, out);
            memset(sum, 0, (size_t)len * sizeof *sum);
            for (int64_t s = 0; s < slots; s++) {
                int64_t row = inv[t * slots + s];
                if (row < 0) continue;
                add_scaled(sum, lm__load(dtype, x, row * dim + j, len, in),
                           weights ? weights[t * slots + s] : 1.0f, len);
            }
            lm__close(dtype, y, t * dim + j, len, sum);
        }
    return LM_KERNEL_OK;
}

int lm_cpu_combine_bwd(int dtype, int64_t tokens, int64_t slots, int64_t dim, void *dx,
                       float *dweights, const void *dy, const void *x, const float *weights,
                       const int32_t *inv) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
#pragma omp parallel for schedule(static) num_threads(lm__threads(tokens *slots *dim))
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t s = 0; s < slots; s++) {
            int64_t row = inv[t * slots + s];
            float dot = 0, by = weights ? weights[t * slots + s] : 1.0f;
            for (int64_t j = 0; j < dim && row >= 0; j += LM_CHUNK) {
                LM_BUFFER float g[LM_CHUNK], in[LM_CHUNK], out[LM_CHUNK];
                int64_t len = lm__min(LM_CHUNK, dim - j), at = row * dim + j;
                const float *d = lm__load(dtype, dy, t * dim + j, len, g);
                if (dx) {
                    scale_row(lm__open(dtype, dx, at, out), d, by, len);
                    lm__close(dtype, dx, at, len, out);
                }
                if (dweights) dot += dot_row(d, lm__load(dtype, x, at, len, in), len);
            }
            if (dweights) dweights[t * slots + s] = dot;
        }
    return LM_KERNEL_OK;
}
