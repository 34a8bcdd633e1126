/* softmax_test.c - softmax, log-softmax, logsumexp and their gradients. */
#include "tests/kernels/check.h"

static void softmax_case(int dtype, int64_t rows, int64_t n, int log_form) {
    void *x = random_array(dtype, rows * n), *y = array(dtype, rows * n);
    void *dy = random_array(dtype, rows * n), *dx = array(dtype, rows * n);
    float *lse = array(LM_F32, rows);
    if (rows > 1 && n > 0) set(dtype, x, n, 80); /* far above the rest */
    ok(lm_cpu_softmax_fwd(dtype, rows, n, log_form, y, x));
    ok(lm_cpu_softmax_bwd(dtype, rows, n, log_form, dx, dy, y));
    ok(lm_cpu_logsumexp(dtype, rows, n, lse, x));
    for (int64_t r = 0; r < rows && n > 0; r++) {
        double sum = 0, dot = 0, g_sum = 0;
        for (int64_t i = 0; i < n; i++) sum += exp(get(dtype, x, r * n + i));
        near((double)lse[r], log(sum), 1e-6);
        for (int64_t i = 0; i < n; i++) {
            double v = get(dtype, x, r * n + i);
            near(get(dtype, y, r * n + i), log_form ? v - log(sum) : exp(v) / sum,
                 epsilon(dtype) / 2);
            dot += get(dtype, dy, r * n + i) * get(dtype, y, r * n + i);
            g_sum += get(dtype, dy, r * n + i);
        }
        for (int64_t i = 0; i < n; i++) {
            double p = get(dtype, y, r * n + i), g = get(dtype, dy, r * n + i);
            double want = log_form ? g - exp(p) * g_sum : p * (g - dot);
            near(get(dtype, dx, r * n + i), want, 10 * epsilon(dtype));
        }
    }
    free(x), free(y), free(dy), free(dx), free(lse);
}

/* Rows narrower than a vector go many at a time: each as if alone, whatever its neighbours are.
 */
static void narrow_rows(void) {
    enum { ROWS = 150 };
    for (int64_t n = 1; n <= 17; n++)
        for (int log_form = 0; log_form < 2; log_form++) {
            float *x = random_array(LM_F32, ROWS * n), *y = array(LM_F32, ROWS * n);
            for (int64_t i = 0; i < n; i++) x[3 * n + i] = -INFINITY;
            x[5 * n] = NAN, x[7 * n] = INFINITY, x[9 * n] = -INFINITY, x[11 * n] = -1e30f;
            for (int64_t r = 0; r < ROWS; r++)
                ok(lm_cpu_softmax_fwd(LM_F32, 1, n, log_form, y + r * n, x + r * n));
            ok(lm_cpu_softmax_fwd(LM_F32, ROWS, n, log_form, x, x)); /* in place */
            for (int64_t i = 0; i < ROWS * n; i++) {
                int64_t r = i / n;
                int nan = r == 3 || r == 5 || r == 7 || (n == 1 && r == 9);
                near(isnan(x[i]) != 0, nan, 0);
                if (!nan) near(x[i] == y[i], 1, 0);
            }
            if (n > 1) near((double)x[9 * n], log_form ? (double)-INFINITY : 0, 0);
            if (n > 1 && !log_form) near((double)x[11 * n], 0, 0);
            free(x), free(y);
        }
}

TEST(test_softmax) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int log_form = 0; log_form < 2; log_form++) {
            for (int s = 0; s < NSIZES; s++) {
                softmax_case(dtype, 3, sizes[s], log_form);
                softmax_case(dtype, sizes[s], 8, log_form);
            }
            softmax_case(dtype, 60, 1001, log_form);
            for (int64_t n = 1; n <= 17; n++) softmax_case(dtype, 200, n, log_form);
        }
    const float x[3] = {-INFINITY, 1, 1};
    float y[3], lse;
    ok(lm_cpu_softmax_fwd(LM_F32, 1, 3, 0, y, x));
    near((double)y[0], 0, 0), near((double)y[1], 0.5, 1e-7);
    ok(lm_cpu_logsumexp(LM_F32, 1, 1, &lse, x)), near((double)lse, -INFINITY, 0);
    narrow_rows();
}
