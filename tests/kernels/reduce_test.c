/* reduce_test.c - sums, extrema, arg extrema, running sums, and that threads change no bit. */
#include "tests/kernels/check.h"

static void reduce_case(int dtype, int64_t outer, int64_t n, int64_t inner) {
    void *x = random_array(dtype, outer * n * inner);
    int out_dtype = dtype <= LM_BF16 ? LM_F32 : LM_I64;
    void *out = array(out_dtype, outer * inner), *run = array(dtype, outer * n * inner);
    int64_t *arg = array(LM_I64, outer * inner);
    for (int op = LM_SUM; op <= LM_MIN; op++) {
        if (op == LM_MEAN && dtype > LM_BF16) continue;
        if (op != LM_SUM && n == 0) continue;
        ok(lm_cpu_reduce(op, dtype, outer, n, inner, out, out_dtype, x));
        if (op >= LM_MAX) ok(lm_cpu_argreduce(op, dtype, outer, n, inner, arg, x));
        for (int64_t i = 0; i < outer * inner; i++) {
            double want = op == LM_MAX ? -1e30 : op == LM_MIN ? 1e30 : 0, size = 0;
            int64_t first = 0;
            for (int64_t r = 0; r < n; r++) {
                double v = get(dtype, x, (i / inner * n + r) * inner + i % inner);
                if (op == LM_MAX ? v > want : op == LM_MIN ? v < want : 0) want = v, first = r;
                if (op <= LM_MEAN) want += v, size += fabs(v);
            }
            if (op == LM_MEAN) want /= (double)n, size /= (double)n;
            near(get(out_dtype, out, i), want, dtype <= LM_BF16 ? 1e-6 * (1 + size) : 0);
            if (op >= LM_MAX) near((double)arg[i], (double)first, 0);
        }
    }
    if (dtype != LM_U8) {
        ok(lm_cpu_cumsum(dtype, outer, n, inner, run, x));
        for (int64_t i = 0; i < outer * inner; i++) {
            double want = 0;
            for (int64_t r = 0; r < n; r++) {
                int64_t at = (i / inner * n + r) * inner + i % inner;
                want += get(dtype, x, at);
                near(get(dtype, run, at), want, epsilon(dtype));
            }
        }
    }
    free(x), free(out), free(run), free(arg);
}

static void same_bits(int dtype, int64_t outer, int64_t n, int64_t inner) {
    void *x = random_array(dtype, outer * n * inner);
    float *one = array(LM_F32, outer * inner), *many = array(LM_F32, outer * inner);
    double sum[2], squares[2];
    for (int t = 0; t < 2; t++) {
        threads(t ? 3 : 1);
        ok(lm_cpu_reduce(LM_SUM, dtype, outer, n, inner, t ? many : one, LM_F32, x));
        ok(lm_cpu_sum_all(dtype, outer * n * inner, x, &sum[t]));
        ok(lm_cpu_sqsum(dtype, outer * n * inner, x, &squares[t]));
    }
    near(memcmp(one, many, (size_t)(outer * inner) * 4), 0, 0);
    near(memcmp(&sum[0], &sum[1], 8), 0, 0);
    near(memcmp(&squares[0], &squares[1], 8), 0, 0);
    double want = 0;
    for (int64_t i = 0; i < outer * n * inner; i++) want += get(dtype, x, i) * get(dtype, x, i);
    near(squares[0], want, 1e-6);
    free(x), free(one), free(many);
}

TEST(test_reduce) {
    for (int dtype = 0; dtype < LM_DTYPES; dtype++)
        for (int s = 0; s < NSIZES; s++) {
            reduce_case(dtype, 3, sizes[s], 1);
            reduce_case(dtype, 20, sizes[s], 1);
            reduce_case(dtype, sizes[s], 7, 1);
            reduce_case(dtype, 2, sizes[s], 5);
            reduce_case(dtype, 1, sizes[s], 130);
            reduce_case(dtype, sizes[s], 3, 2);
        }
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++) {
        int before = check_failures;
        same_bits(dtype, 1, 100003, 1);
        same_bits(dtype, 1, 2049, 161);
        same_bits(dtype, 100, 1000, 1);
        if (check_failures > before) check_case("threads changed a sum of dtype %d", dtype);
    }
    float x[300];
    for (int i = 0; i < 300; i++) x[i] = (float)(i % 7);
    int64_t arg, args[3];
    int finite;
    double sum;
    ok(lm_cpu_argreduce(LM_MAX, LM_F32, 1, 300, 1, &arg, x)), near((double)arg, 6, 0);
    ok(lm_cpu_check_finite(LM_F32, 300, x, &finite)), near(finite, 1, 0);
    x[250] = NAN;
    ok(lm_cpu_argreduce(LM_MAX, LM_F32, 1, 300, 1, &arg, x)), near((double)arg, 250, 0);
    ok(lm_cpu_argreduce(LM_MIN, LM_F32, 1, 100, 3, args, x)), near((double)args[0], 0, 0);
    ok(lm_cpu_check_finite(LM_F32, 300, x, &finite)), near(finite, 0, 0);
    ok(lm_cpu_reduce(LM_MAX, LM_F32, 1, 300, 1, x, LM_F32, x)), near((double)x[0], NAN, 0);
    x[250] = -INFINITY;
    ok(lm_cpu_check_finite(LM_F32, 299, x + 1, &finite)), near(finite, 0, 0);
    ok(lm_cpu_sum_all(LM_F32, 0, x, &sum)), near(sum, 0, 0);
    ok(lm_cpu_check_finite(LM_F32, 0, x, &finite)), near(finite, 1, 0);
}
