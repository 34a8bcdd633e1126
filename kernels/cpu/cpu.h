/* cpu.h - what the CPU kernels share: instruction sets, threads, scratch, rows of f32.
 *
 * Instruction sets. LM_CLONES before a function compiles it for the baseline, AVX2 and AVX-512;
 * the loader picks one. It reaches plain loops only, not the bodies of OpenMP regions, so the
 * loop over a row is a cloned function and the parallel loop over rows calls it.
 *
 * Rows. Arithmetic is f32. A kernel asks for n elements as floats: for f32 that is the array
 * itself, for bf16 a conversion into the caller's buffer (still in the first-level cache), and
 * so every kernel is written once. */
#ifndef LM_CPU_H
#define LM_CPU_H

#include <omp.h>
#include <stddef.h>

#include "kernels/bf16.h"
#include "kernels/kernels.h"

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define LM_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define LM_CLONES
#endif

/* before a buffer on the stack: a vector there lies in one cache line */
#define LM_BUFFER _Alignas(64)

#define LM_INLINE static inline __attribute__((always_inline))

enum {
    LM_CHUNK = 1024,          /* elements converted at a time */
    LM_PARALLEL_FROM = 32768, /* elements below which a region costs more than it gives */
    LM_BLOCK = 4096           /* elements summed in f32 before their sum is kept apart */
};

/* Threads for a loop over `work` elements (or as many floating-point operations). */
static inline int lm__threads(int64_t work) {
    if (work < LM_PARALLEL_FROM || omp_in_parallel()) return 1;
    return omp_get_max_threads();
}

/* The part of `tasks` that the calling thread of a region owns: first to last - 1. */
static inline void lm__share(int64_t tasks, int64_t *first, int64_t *last) {
    int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    *first = tasks * me / threads;
    *last = tasks * (me + 1) / threads;
}

static inline int64_t lm__min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t lm__max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t lm__ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline size_t lm__size(int dtype) {
    static const size_t size[LM_DTYPES] = {4, 2, 4, 8, 1};
    return size[dtype];
}
static inline int lm__is_float(int dtype) { return dtype == LM_F32 || dtype == LM_BF16; }

/* Scratch of the calling thread, kept for the next call and valid until the next request for
 * the same slot. NULL when there is no memory. 64-byte aligned. */
enum {
    LM_SCRATCH_ROW,
    LM_SCRATCH_ROW2,
    LM_SCRATCH_PARTIAL,
    LM_SCRATCH_A, /* panels of a product */
    LM_SCRATCH_B,
    LM_SCRATCH_C,
    LM_SCRATCH_PAD_A, /* and its padded ends */
    LM_SCRATCH_PAD_B,
    LM_SCRATCH_PAD_C,
    LM_SCRATCH_SLOTS
};
void *lm__scratch(int slot, size_t bytes);

void lm__from_bf16(float *dst, const uint16_t *src, int64_t n);
void lm__to_bf16(uint16_t *dst, const float *src, int64_t n);

static inline const void *lm__element(int dtype, const void *x, int64_t i) {
    return (const char *)x + (size_t)i * lm__size(dtype);
}

/* n elements from number `at` on, to read */
static inline const float *lm__load(int dtype, const void *x, int64_t at, int64_t n,
                                    float *buf) {
    if (dtype == LM_F32) return (const float *)x + at;
    lm__from_bf16(buf, (const uint16_t *)x + at, n);
    return buf;
}

/* where to write them, and the end of writing */
static inline float *lm__open(int dtype, void *y, int64_t at, float *buf) {
    return dtype == LM_F32 ? (float *)y + at : buf;
}
static inline void lm__close(int dtype, void *y, int64_t at, int64_t n, const float *buf) {
    if (dtype == LM_BF16) lm__to_bf16((uint16_t *)y + at, buf, n);
}

/* Words i to i + n - 1 of a random sequence, n <= LM_CHUNK; buf has room for LM_CHUNK + 8. */
const uint32_t *lm__random_words(uint32_t *buf, uint64_t seed, uint64_t stream, uint64_t i,
                                 int64_t n);
void lm__philox_blocks_avx512(uint32_t *restrict out, uint64_t seed, uint64_t stream,
                              uint64_t block, int64_t blocks); /* random_avx512.c */

/* one id of an i32 or i64 array */
static inline int64_t lm__id(int dtype, const void *ids, int64_t i) {
    return dtype == LM_I32 ? ((const int32_t *)ids)[i] : ((const int64_t *)ids)[i];
}

#endif
