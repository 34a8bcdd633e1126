/* cross_entropy_test.c - the loss in PyTorch's terms, with smoothing, z-loss and ignored rows.
 */
#include "tests/kernels/check.h"

static void loss_case(int dtype, int64_t rows, int64_t n, double smoothing, double z,
                      int in_place) {
    void *x = random_array(dtype, rows * n), *dx = array(dtype, rows * n);
    int64_t *t = array(LM_I64, rows), bad;
    float *loss = array(LM_F32, rows), *lse = array(LM_F32, rows),
          *scale = random_array(LM_F32, rows);
    for (int64_t r = 0; r < rows; r++) t[r] = r % 5 == 2 ? -100 : (r * 7919 + n - 1) % n;
    ok(lm_cpu_cross_entropy_fwd(dtype, rows, n, loss, lse, x, t, LM_I64, -100, smoothing, z,
                                &bad));
    void *to = dx;
    if (in_place) {
        memcpy(dx, x, (size_t)(rows * n) * size_of(dtype));
        ok(lm_cpu_cross_entropy_bwd(dtype, rows, n, dx, dx, lse, t, LM_I64, -100, smoothing, z,
                                    scale, 0, n));
    } else
        ok(lm_cpu_cross_entropy_bwd(dtype, rows, n, to, x, lse, t, LM_I64, -100, smoothing, z,
                                    scale, 0, n));
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0, mean = 0;
        for (int64_t i = 0; i < n; i++) {
            sum += exp(get(dtype, x, r * n + i));
            mean += get(dtype, x, r * n + i) / (double)n;
        }
        double l = log(sum), want = 0;
        if (t[r] >= 0)
            want = (1 - smoothing) * (l - get(dtype, x, r * n + t[r])) +
                   smoothing * (l - mean) + z * l * l;
        near((double)loss[r], want, 2e-6);
        for (int64_t i = 0; i < n; i++) {
            double p = exp(get(dtype, x, r * n + i)) / sum, d = 0;
            if (t[r] >= 0)
                d = (double)scale[r] * (p * (1 + 2 * z * l) - (1 - smoothing) * (i == t[r]) -
                                        smoothing / (double)n);
            near(get(dtype, dx, r * n + i), d, epsilon(dtype));
        }
    }
    free(x), free(dx), free(t), free(loss), free(lse), free(scale);
}

/* Classes cut in two: the parts give the whole's lse, logit and sum, and its gradient. */
static void part_case(int dtype, int64_t rows, int64_t n, int64_t cut) {
    void *x = random_array(dtype, rows * n), *dx = array(dtype, rows * n);
    int64_t *t = array(LM_I64, rows), bad, width[2] = {cut, n - cut};
    float *loss = array(LM_F32, rows), *lse = array(LM_F32, rows),
          *scale = random_array(LM_F32, rows), *parts[2];
    for (int64_t r = 0; r < rows; r++) t[r] = r % 5 == 2 ? -100 : (r * 7919 + n - 1) % n;
    ok(lm_cpu_cross_entropy_fwd(dtype, rows, n, loss, lse, x, t, LM_I64, -100, 0.1, 1e-3,
                                &bad));
    ok(lm_cpu_cross_entropy_bwd(dtype, rows, n, dx, x, lse, t, LM_I64, -100, 0.1, 1e-3, scale,
                                0, n));
    for (int p = 0; p < 2; p++) {
        int64_t first = p * cut;
        void *own = array(dtype, rows * width[p]);
        size_t bytes = (size_t)width[p] * size_of(dtype);
        for (int64_t r = 0; r < rows; r++)
            memcpy((char *)own + (size_t)r * bytes,
                   (char *)x + (size_t)(r * n + first) * size_of(dtype), bytes);
        parts[p] = array(LM_F32, 3 * rows);
        ok(lm_cpu_cross_entropy_part(dtype, rows, width[p], parts[p], own, t, LM_I64, -100,
                                     first));
        ok(lm_cpu_cross_entropy_bwd(dtype, rows, width[p], own, own, lse, t, LM_I64, -100, 0.1,
                                    1e-3, scale, first, n));
        for (int64_t i = 0; i < rows * width[p]; i++)
            near(get(dtype, own, i), get(dtype, dx, i / width[p] * n + first + i % width[p]),
                 1e-6);
        free(own);
    }
    for (int64_t r = 0; r < rows; r++) {
        float *a = parts[0] + 3 * r, *b = parts[1] + 3 * r;
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += get(dtype, x, r * n + i);
        if (t[r] < 0) {
            for (int i = 0; i < 3; i++) near((double)a[i] + (double)b[i], 0, 0);
            continue;
        }
        near(log(exp((double)a[0]) + exp((double)b[0])), (double)lse[r], 2e-6);
        near((double)a[1] + (double)b[1], get(dtype, x, r * n + t[r]), 0);
        near((double)a[2] + (double)b[2], sum, 1e-5);
    }
    free(x), free(dx), free(t), free(loss), free(lse), free(scale), free(parts[0]);
    free(parts[1]);
}

TEST(test_cross_entropy) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int f = 0; f < 8; f++)
            for (int s = 1; s < NSIZES; s++) {
                loss_case(dtype, 7, sizes[s], f & 1 ? 0.1 : 0, f & 2 ? 1e-3 : 0, f >> 2);
                loss_case(dtype, sizes[s], 11, f & 1 ? 0.1 : 0, f & 2 ? 1e-3 : 0, f >> 2);
            }
    loss_case(LM_BF16, 40, 8001, 0.1, 0, 0);
    loss_case(LM_F32, 0, 5, 0, 0, 0);
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        part_case(dtype, 9, 1000, 301), part_case(dtype, 6, 3, 2);
    float x[6] = {0}, loss[2], lse[2];
    const int32_t t[2] = {1, 3};
    int64_t bad;
    near(lm_cpu_cross_entropy_fwd(LM_F32, 2, 3, loss, lse, x, t, LM_I32, -1, 0, 0, &bad),
         LM_KERNEL_EARG, 0);
    near((double)bad, 1, 0);
}
