/* index.c - rows and elements picked by ids, and their gradients added back.
 *
 * Adding needs no atomics: a thread owns a range of the destination and looks
 * through all ids for those that fall into it, so sums have one order. */
#include "kernels/cpu/cpu.h"

#include <string.h>

int lm_cpu_gather_rows(int dtype, int64_t count, int64_t n, int64_t rows, void *out,
                       const void *x, int id_dtype, const void *ids, int64_t *bad) {
    size_t bytes = (size_t)n * lm__size(dtype);
    for (int64_t i = 0; i < count; i++) {
        int64_t id = lm__id(id_dtype, ids, i);
        if (id < -1 || id >= rows) return *bad = i, LM_KERNEL_EARG;
    }
#pragma omp parallel for num_threads(lm__threads(count *n))
    for (int64_t i = 0; i < count; i++) {
        int64_t id = lm__id(id_dtype, ids, i);
        char *to = (char *)out + (size_t)i * bytes;
        if (id < 0) memset(to, 0, bytes);
        else memcpy(to, (const char *)x + (size_t)id * bytes, bytes);
    }
    return LM_KERNEL_OK;
}

LM_CLONES static void add_row(float *y, const float *x, int64_t n) {
    for (int64_t j = 0; j < n; j++) y[j] += x[j];
}

int lm_cpu_scatter_add_rows(int dtype, int64_t count, int64_t n, int64_t rows, float *out,
                            const void *x, int id_dtype, const void *ids) {
    int threads = lm__threads(count * n);
#pragma omp parallel num_threads(threads)
    {
        float buf[LM_CHUNK];
        int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        int64_t from = rows * me / all, to = rows * (me + 1) / all;
        for (int64_t i = 0; i < count; i++) {
            int64_t id = lm__id(id_dtype, ids, i);
            if (id < from || id >= to) continue;
            for (int64_t at = 0; at < n; at += LM_CHUNK) {
                int64_t m = lm__min(n - at, LM_CHUNK);
                add_row(out + id * n + at, lm__load(dtype, x, i * n + at, m, buf), m);
            }
        }
    }
    return LM_KERNEL_OK;
}

int lm_cpu_gather(int dtype, int64_t outer, int64_t n, int64_t inner, int64_t m, void *out,
                  const void *x, int id_dtype, const void *ids, int64_t *bad) {
    size_t size = lm__size(dtype);
    for (int64_t i = 0; i < outer * m * inner; i++) {
        int64_t id = lm__id(id_dtype, ids, i);
        if (id < 0 || id >= n) return *bad = i, LM_KERNEL_EARG;
    }
#pragma omp parallel for num_threads(lm__threads(outer *m *inner))
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < m * inner; i++) {
            int64_t id = lm__id(id_dtype, ids, o * m * inner + i);
            memcpy((char *)out + (size_t)(o * m * inner + i) * size,
                   (const char *)x + (size_t)((o * n + id) * inner + i % inner) * size, size);
        }
    return LM_KERNEL_OK;
}

int lm_cpu_scatter_add(int dtype, int64_t outer, int64_t n, int64_t inner, int64_t m,
                       float *out, const void *x, int id_dtype, const void *ids, int64_t *bad) {
    for (int64_t i = 0; i < outer * m * inner; i++) {
        int64_t id = lm__id(id_dtype, ids, i);
        if (id < 0 || id >= n) return *bad = i, LM_KERNEL_EARG;
    }
#pragma omp parallel for num_threads(lm__threads(outer *m *inner))
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < m * inner; i++) {
            float buf[1];
            int64_t at = o * m * inner + i, id = lm__id(id_dtype, ids, at);
            out[(o * n + id) * inner + i % inner] += *lm__load(dtype, x, at, 1, buf);
        }
    return LM_KERNEL_OK;
}
