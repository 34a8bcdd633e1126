/* check.h - the little that the kernels' tests share: random data, arrays of any dtype read and
 * written as double, and one way to compare. A failure prints the case and counts. */
#ifndef LM_CHECK_H
#define LM_CHECK_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bf16.h"
#include "kernels/kernels.h"
#include "kernels/philox.h"

extern int check_failures, check_count;
void check_case(const char *format, ...) __attribute__((format(printf, 1, 2)));

static inline size_t size_of(int dtype) {
    static const size_t size[LM_DTYPES] = {4, 2, 4, 8, 1};
    return size[dtype];
}

/* a zeroed array, at least one element */
static inline void *array(int dtype, int64_t n) {
    return calloc((size_t)n + 1, size_of(dtype));
}

static inline double get(int dtype, const void *x, int64_t i) {
    switch (dtype) {
    case LM_F32: return (double)((const float *)x)[i];
    case LM_BF16: return (double)lm_bf16_to_f32(((const uint16_t *)x)[i]);
    case LM_I32: return ((const int32_t *)x)[i];
    case LM_I64: return (double)((const int64_t *)x)[i];
    default: return ((const uint8_t *)x)[i];
    }
}

static inline void set(int dtype, void *x, int64_t i, double v) {
    switch (dtype) {
    case LM_F32: ((float *)x)[i] = (float)v; break;
    case LM_BF16: ((uint16_t *)x)[i] = lm_f32_to_bf16((float)v); break;
    case LM_I32: ((int32_t *)x)[i] = (int32_t)v; break;
    case LM_I64: ((int64_t *)x)[i] = (int64_t)v; break;
    default: ((uint8_t *)x)[i] = (uint8_t)v;
    }
}

double random_uniform(void); /* [0, 1), always the same sequence */

/* floats in [-2, 2), integers in [-9, 9] (u8: 0 or 1) */
static inline void *random_array(int dtype, int64_t n) {
    void *x = array(dtype, n);
    for (int64_t i = 0; i < n; i++) {
        double u = random_uniform();
        set(dtype, x, i,
            dtype == LM_U8     ? (double)(u < 0.5)
            : dtype <= LM_BF16 ? 4 * u - 2
                               : floor(19 * u) - 9);
    }
    return x;
}

/* the rounding of one operation in dtype */
static inline double epsilon(int dtype) {
    return dtype == LM_F32 ? 2e-6 : dtype == LM_BF16 ? 8e-3 : 0;
}

static inline void near(double got, double want, double tolerance) {
    check_count++;
    if (got == want || (got != got && want != want)) return;
    if (fabs(got - want) <= tolerance * (1 + fabs(want))) return;
    check_failures++;
    check_case("got %.9g, want %.9g", got, want);
}
static inline void ok(int status) { near(status, LM_KERNEL_OK, 0); }

/* Sizes where loops begin, end and change their ways. */
static const int64_t sizes[] = {0, 1, 3, 17, 64, 1000};
enum { NSIZES = 6 };

/* Runs the rest of the case with 1 and with 2 threads. */
void threads(int n);

#define TEST(name) void name(void)
TEST(test_elementwise);
TEST(test_copy);
TEST(test_reduce);
TEST(test_gemm);
TEST(test_gemm_cut);
TEST(test_grouped);
TEST(test_ffn);
TEST(test_softmax);
TEST(test_norm);
TEST(test_cross_entropy);
TEST(test_index);
TEST(test_random);
TEST(test_optim);
TEST(test_attention);
TEST(test_sort);
TEST(test_rope);

#endif
