/* elementwise_test.c - unary, binary, compare, where, scalars, swiglu against the C library. */
#include "tests/kernels/check.h"

static double gelu_ref(double x) { return 0.5 * x * erfc(-x / sqrt(2.0)); }
static double gelu_tanh_ref(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double sigmoid_ref(double x) { return 1 / (1 + exp(-x)); }

static double unary_ref(int op, double x) {
    switch (op) {
    case LM_NEG: return -x;
    case LM_EXP: return exp(x);
    case LM_LOG: return log(x);
    case LM_SQRT: return sqrt(x);
    case LM_RSQRT: return 1 / sqrt(x);
    case LM_ABS: return fabs(x);
    case LM_RELU: return x < 0 ? 0 : x;
    case LM_GELU: return gelu_ref(x);
    case LM_GELU_TANH: return gelu_tanh_ref(x);
    case LM_SILU: return x * sigmoid_ref(x);
    case LM_TANH: return tanh(x);
    case LM_SIGMOID: return sigmoid_ref(x);
    case LM_SQUARE: return x * x;
    case LM_RECIPROCAL: return 1 / x;
    case LM_SIN: return sin(x);
    default: return cos(x);
    }
}

static int positive_only(int op) { return op == LM_LOG || op == LM_SQRT || op == LM_RSQRT; }

static void unary_case(int op, int dtype, int64_t n) {
    void *x = random_array(dtype, n), *y = array(dtype, n), *dy = random_array(dtype, n),
         *dx = array(dtype, n);
    for (int64_t i = 0; i < n; i++) {
        double v = get(dtype, x, i);
        if (positive_only(op)) v = fabs(v) + 0.125;
        else if (op == LM_RECIPROCAL && fabs(v) < 0.125) v = 0.5;
        set(dtype, x, i, v);
    }
    ok(lm_cpu_unary(op, dtype, n, y, x));
    ok(lm_cpu_unary_bwd(op, dtype, n, dx, dy, x, y));
    for (int64_t i = 0; i < n; i++) {
        double v = get(dtype, x, i), h = 1e-6;
        near(get(dtype, y, i), unary_ref(op, v), epsilon(dtype) / 2);
        if (fabs(v) < 1e-3) continue; /* kinks */
        double slope = (unary_ref(op, v + h) - unary_ref(op, v - h)) / (2 * h);
        near(get(dtype, dx, i), get(dtype, dy, i) * slope, 5 * epsilon(dtype));
    }
    free(x), free(y), free(dy), free(dx);
}

/* units in the last place between a float and the true value */
static double ulps(float got, double want) {
    if (isinf(want) || (float)want == got) return got == (float)want ? 0 : 1e9;
    double unit = ldexp(1, (int)fmax(floor(log2(fabs(want))) - 23, -149));
    return fabs((double)got - want) / unit;
}

static void accuracy(int op, double lo, double hi, double limit) {
    enum { N = 200000 };
    float *x = array(LM_F32, N), *y = array(LM_F32, N);
    double worst = 0;
    for (int i = 0; i < N; i++) x[i] = (float)(lo + (hi - lo) * i / (N - 1));
    ok(lm_cpu_unary(op, LM_F32, N, y, x));
    for (int i = 0; i < N; i++) worst = fmax(worst, ulps(y[i], unary_ref(op, (double)x[i])));
    check_count++;
    if (worst > limit) {
        check_failures++;
        check_case("op %d on [%g, %g]: %.2f ulp, limit %.2f", op, lo, hi, worst, limit);
    }
    free(x), free(y);
}

static void special_values(void) {
    const float in[] = {INFINITY, -INFINITY, NAN, 0.0f, 1000.0f, -1000.0f};
    float y[6];
    const float want_exp[] = {INFINITY, 0, NAN, 1, INFINITY, 0};
    const float want_tanh[] = {1, -1, NAN, 0, 1, -1};
    const float want_log[] = {INFINITY, NAN, NAN, -INFINITY, 6.90775528f, NAN};
    const float want_sigmoid[] = {1, 0, NAN, 0.5f, 1, 0};
    const float want_relu[] = {INFINITY, 0, NAN, 0, 1000, 0};
    const float want_gelu[] = {INFINITY, 0, NAN, 0, 1000, 0};
    const float want_slope[] = {1, 0, NAN, 0.5f, 1, 0};
    const struct {
        int op;
        const float *want;
    } cases[] = {{LM_EXP, want_exp},         {LM_TANH, want_tanh}, {LM_LOG, want_log},
                 {LM_SIGMOID, want_sigmoid}, {LM_RELU, want_relu}, {LM_GELU, want_gelu}};
    for (size_t c = 0; c < 6; c++) {
        ok(lm_cpu_unary(cases[c].op, LM_F32, 6, y, in));
        for (int i = 0; i < 6; i++) near((double)y[i], (double)cases[c].want[i], 1e-6);
    }
    const float ones[] = {1, 1, 1, 1, 1, 1};
    ok(lm_cpu_unary_bwd(LM_GELU, LM_F32, 6, y, ones, in, NULL));
    for (int i = 0; i < 6; i++) near((double)y[i], (double)want_slope[i], 1e-6);
}

static double binary_ref(int op, int dtype, double a, double b) {
    switch (op) {
    case LM_ADD: return a + b;
    case LM_SUB: return a - b;
    case LM_MUL: return a * b;
    case LM_DIV: return dtype <= LM_BF16 ? a / b : b == 0 ? 0 : trunc(a / b);
    case LM_MAXIMUM: return a > b ? a : b;
    case LM_MINIMUM: return a < b ? a : b;
    default: return pow(a, b);
    }
}
static int compare_ref(int op, double a, double b) {
    switch (op) {
    case LM_EQ: return a == b;
    case LM_NE: return a != b;
    case LM_LT: return a < b;
    case LM_LE: return a <= b;
    case LM_GT: return a > b;
    default: return a >= b;
    }
}

/* Three dims; which of them each operand lacks (broadcasts over) is a bit mask; `turned` lays b
 * out with its first dim fastest. */
static void broadcast_case(int dtype, const int64_t shape[3], int lacks_a, int lacks_b,
                           int turned) {
    int64_t sa[3], sb[3], na = 1, nb = 1, total = shape[0] * shape[1] * shape[2];
    for (int d = 2; d >= 0; d--) {
        sa[d] = lacks_a >> d & 1 ? 0 : na;
        if (sa[d]) na *= shape[d];
        int e = turned ? 2 - d : d;
        sb[e] = lacks_b >> e & 1 ? 0 : nb;
        if (sb[e]) nb *= shape[e];
    }
    void *a = random_array(dtype, na), *b = random_array(dtype, nb), *out = array(dtype, total);
    uint8_t *truth = array(LM_U8, total);
    for (int op = LM_ADD; op <= LM_POW && dtype != LM_U8; op++) {
        if (op == LM_POW)
            for (int64_t i = 0; i < na; i++) set(dtype, a, i, fabs(get(dtype, a, i)) + 1);
        if (op == LM_POW && dtype > LM_BF16)
            for (int64_t i = 0; i < nb; i++) set(dtype, b, i, fabs(get(dtype, b, i)));
        ok(lm_cpu_binary(op, dtype, 3, shape, out, a, sa, b, sb));
        for (int64_t i = 0; i < total; i++) {
            int64_t k = i % shape[2], j = i / shape[2] % shape[1], h = i / shape[2] / shape[1];
            double va = get(dtype, a, h * sa[0] + j * sa[1] + k * sa[2]);
            double vb = get(dtype, b, h * sb[0] + j * sb[1] + k * sb[2]);
            double want = binary_ref(op, dtype, va, vb);
            if (dtype == LM_I32 && fabs(want) > 2e9) continue; /* wraps */
            if (op == LM_DIV && fabs(vb) < 1e-2) continue;
            near(get(dtype, out, i), want, dtype == LM_I64 ? 1e-12 : epsilon(dtype));
        }
    }
    for (int op = LM_EQ; op <= LM_GE; op++) {
        ok(lm_cpu_compare(op, dtype, 3, shape, truth, a, sa, b, sb));
        for (int64_t i = 0; i < total; i++) {
            int64_t k = i % shape[2], j = i / shape[2] % shape[1], h = i / shape[2] / shape[1];
            double va = get(dtype, a, h * sa[0] + j * sa[1] + k * sa[2]);
            double vb = get(dtype, b, h * sb[0] + j * sb[1] + k * sb[2]);
            near(truth[i], compare_ref(op, va, vb), 0);
        }
    }
    uint8_t *cond = random_array(LM_U8, shape[1]);
    const int64_t sc[3] = {0, 1, 0};
    ok(lm_cpu_where(dtype, 3, shape, out, cond, sc, a, sa, b, sb));
    for (int64_t i = 0; i < total; i++) {
        int64_t k = i % shape[2], j = i / shape[2] % shape[1], h = i / shape[2] / shape[1];
        near(get(dtype, out, i),
             cond[j] ? get(dtype, a, h * sa[0] + j * sa[1] + k * sa[2])
                     : get(dtype, b, h * sb[0] + j * sb[1] + k * sb[2]),
             0);
    }
    free(a), free(b), free(out), free(truth), free(cond);
}

static void scalar_case(int dtype, int64_t n) {
    void *a = random_array(dtype, n), *out = array(dtype, n);
    uint8_t *truth = array(LM_U8, n);
    for (int reversed = 0; reversed < 2; reversed++)
        for (int op = LM_ADD; op <= LM_MINIMUM; op++) {
            ok(lm_cpu_binary_scalar(op, dtype, n, out, a, 3, reversed));
            for (int64_t i = 0; i < n; i++) {
                double v = get(dtype, a, i);
                if (op == LM_DIV && reversed && fabs(v) < 1e-2) continue;
                near(get(dtype, out, i),
                     reversed ? binary_ref(op, dtype, 3, v) : binary_ref(op, dtype, v, 3),
                     epsilon(dtype));
            }
        }
    ok(lm_cpu_compare_scalar(LM_LT, dtype, n, truth, a, 1));
    for (int64_t i = 0; i < n; i++) near(truth[i], get(dtype, a, i) < 1, 0);
    free(a), free(out), free(truth);
}

static void swiglu_case(int dtype, int64_t rows, int64_t h) {
    void *x = random_array(dtype, rows * 2 * h), *y = array(dtype, rows * h);
    void *dy = random_array(dtype, rows * h), *dx = array(dtype, rows * 2 * h);
    ok(lm_cpu_swiglu_fwd(dtype, rows, h, y, x));
    ok(lm_cpu_swiglu_bwd(dtype, rows, h, dx, dy, x));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < h; j++) {
            double g = get(dtype, x, r * 2 * h + j), u = get(dtype, x, r * 2 * h + h + j);
            double s = sigmoid_ref(g), d = get(dtype, dy, r * h + j);
            near(get(dtype, y, r * h + j), g * s * u, epsilon(dtype));
            near(get(dtype, dx, r * 2 * h + h + j), d * g * s, epsilon(dtype));
            near(get(dtype, dx, r * 2 * h + j), d * u * s * (1 + g * (1 - s)), epsilon(dtype));
        }
    free(x), free(y), free(dy), free(dx);
}

static void clamp_axpy_case(int dtype, int64_t n) {
    void *x = random_array(dtype, n), *y = array(dtype, n), *dy = random_array(dtype, n);
    ok(lm_cpu_clamp(dtype, n, y, x, -0.5, 1));
    for (int64_t i = 0; i < n; i++)
        near(get(dtype, y, i), fmin(1, fmax(-0.5, get(dtype, x, i))), 0);
    ok(lm_cpu_clamp_bwd(dtype, n, y, dy, x, -0.5, 1));
    for (int64_t i = 0; i < n; i++) {
        double v = get(dtype, x, i);
        near(get(dtype, y, i), v >= -0.5 && v <= 1 ? get(dtype, dy, i) : 0, 0);
    }
    float *sum = random_array(LM_F32, n), *before = array(LM_F32, n);
    memcpy(before, sum, (size_t)n * 4);
    ok(lm_cpu_axpy(n, 0.5, sum, LM_F32, x, dtype));
    for (int64_t i = 0; i < n; i++)
        near((double)sum[i], (double)before[i] + 0.5 * get(dtype, x, i), 1e-6);
    free(x), free(y), free(dy), free(sum), free(before);
}

TEST(test_elementwise) {
    for (int dtype = LM_F32; dtype <= LM_BF16; dtype++)
        for (int s = 0; s < NSIZES; s++) {
            for (int op = 0; op < LM_UNARY_OPS; op++) unary_case(op, dtype, sizes[s]);
            swiglu_case(dtype, 3, sizes[s]);
            swiglu_case(dtype, sizes[s], 5);
            clamp_axpy_case(dtype, sizes[s]);
        }
    unary_case(LM_SILU, LM_BF16, 50001);
    unary_case(LM_SILU, LM_F32, 50001);
    accuracy(LM_EXP, -87, 88.7, 2);
    accuracy(LM_LOG, 1e-4, 50, 2);
    accuracy(LM_LOG, 1e30, 3e38, 2);
    accuracy(LM_TANH, -10, 10, 3);
    accuracy(LM_SIGMOID, -40, 40, 3);
    special_values();
    const int64_t shapes[][3] = {{2, 3, 5},  {1, 1, 1},    {0, 3, 5},
                                 {4, 1, 17}, {3, 5, 1300}, {70, 90, 11}};
    for (int dtype = 0; dtype < LM_DTYPES; dtype++) {
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            broadcast_case(dtype, shapes[s], 0, 0, 0);
            broadcast_case(dtype, shapes[s], 0, 0, 1);
            broadcast_case(dtype, shapes[s], 0, 4, 0);
            broadcast_case(dtype, shapes[s], 0, 3, 0);
            broadcast_case(dtype, shapes[s], 5, 2, 0);
            broadcast_case(dtype, shapes[s], 7, 0, 1);
            broadcast_case(dtype, shapes[s], 7, 7, 0);
        }
        if (dtype != LM_U8)
            for (int s = 0; s < NSIZES; s++) scalar_case(dtype, sizes[s]);
    }
}
