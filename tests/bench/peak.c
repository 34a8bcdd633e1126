/* peak.c - what this machine can do at most: multiply-adds of registers, and bytes to and from
 * memory. usage: peak THREADS; prints JSON: GFLOP/s of f32 and bf16 (0: this CPU does not
 * multiply bf16), GB/s of reading (read), of copying (copy: read plus written) and of y += a x
 * (update: two read, one written). Best of some runs: a limit is not a mean. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float vector __attribute__((vector_size(LANES * 4)));

/* Enough independent sums to hide the latency of one; each a variable of its own, hence a
 * register. */
#define SUMS(X)                                                                                \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
enum { COUNT = 16, RUNS = 25 };
static const long STEPS = 2500000;
static const size_t BYTES = (size_t)128 << 20; /* far beyond any cache */
static volatile float sink;

#define BARRIER(i) __asm__ volatile("" : "+v"(s##i)); /* the compiler must not fold steps */

static float multiply_add(long steps, vector x, vector y) {
#define MAKE(i) vector s##i = x * i;
#define ADD(i)  s##i = x * y + s##i;
#define TAKE(i) +s##i[0]
    SUMS(MAKE)
    while (steps-- > 0) {
        SUMS(ADD)
        SUMS(BARRIER)
    }
    return 0 SUMS(TAKE);
}

#ifdef __AVX512BF16__
static float multiply_add_bf16(long steps) {
    __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80), y = (__m512bh)_mm512_set1_epi16(0x3080);
#define MAKE_BF16(i) __m512 s##i = _mm512_set1_ps(i);
#define ADD_BF16(i)  s##i = _mm512_dpbf16_ps(s##i, x, y);
    SUMS(MAKE_BF16)
    while (steps-- > 0) {
        SUMS(ADD_BF16)
        SUMS(BARRIER)
    }
    return 0 SUMS(TAKE);
}
#endif

static double flops(int bf16) {
    double best = 0;
    for (int r = 0; r < RUNS; r++) {
        double begun = omp_get_wtime();
#pragma omp parallel
        {
            float result = 0;
#ifdef __AVX512BF16__
            if (bf16) result = multiply_add_bf16(STEPS);
#endif
            vector x = {1e-9f}, y = {1.0f};
            if (!bf16) result = multiply_add(STEPS, x, y);
            sink = result;
        }
        double rate = 2.0 * (bf16 ? 32 : LANES) * COUNT * (double)STEPS *
                      omp_get_max_threads() / (omp_get_wtime() - begun);
        if (rate > best) best = rate;
    }
    return best * 1e-9;
}

static double bandwidth(int kind, float *x, float *y) {
    const size_t n = BYTES / sizeof *x;
    double best = 0;
    for (int r = 0; r < RUNS; r++) {
        double begun = omp_get_wtime();
        float total = 0;
#pragma omp parallel reduction(+ : total)
        {
            size_t from = n / (size_t)omp_get_num_threads() * (size_t)omp_get_thread_num();
            size_t count = n / (size_t)omp_get_num_threads();
            const float *in = x + from;
            float *out = y + from;
            if (kind == 0) {
                vector sum[8] = {{0}};
                for (size_t i = 0; i + 8 * LANES <= count; i += 8 * LANES)
                    for (int j = 0; j < 8; j++)
                        sum[j] += *(const vector *)(in + i + (size_t)j * LANES);
                for (int j = 0; j < 8; j++) total += sum[j][0];
            } else if (kind == 1) {
                memcpy(out, in, count * sizeof *in);
            } else {
                for (size_t i = 0; i < count; i++) out[i] += 3.0f * in[i];
            }
        }
        sink = total;
        double rate = (double)BYTES * (kind + 1) / (omp_get_wtime() - begun);
        if (rate > best) best = rate;
    }
    return best * 1e-9;
}

int main(int argc, char **argv) {
    int bf16 = 0;
#ifdef __AVX512BF16__
    bf16 = 1;
#endif
    omp_set_num_threads(argc > 1 ? atoi(argv[1]) : 1);
    float *x = aligned_alloc(4096, BYTES), *y = aligned_alloc(4096, BYTES);
    if (!x || !y) return 1;
    memset(x, 0, BYTES);
    memset(y, 0, BYTES);
    printf(
        "{\"f32\": %.1f, \"bf16\": %.1f, \"read\": %.2f, \"copy\": %.2f, \"update\": %.2f}\n",
        flops(0), bf16 ? flops(1) : 0.0, bandwidth(0, x, y), bandwidth(1, x, y),
        bandwidth(2, x, y));
    free(x);
    free(y);
    return 0;
}
