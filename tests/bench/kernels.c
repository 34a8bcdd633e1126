/* kernels.c - what the CPU kernels reach: GFLOP/s of products and attention, GB/s (read plus
 * written) of the rest, at the sizes of a small translator's step.
 * usage: kernels_bench [threads [parts]]. Best of the repeats in 0.1 s each.
 * GLIBC_TUNABLES=glibc.malloc.hugetlb=1 gives it huge pages, which the runtime has. */
#define _GNU_SOURCE
#include <omp.h>
#include <time.h>

#include "tests/kernels/check.h"

int check_failures, check_count;
void check_case(const char *format, ...) { (void)format; }
double random_uniform(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 40) / 16777216.0;
}
void threads(int n) { omp_set_num_threads(n); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* seconds of the fastest run */
#define BEST(call)                                                                             \
    ({                                                                                         \
        double best_ = 1e9, from_ = now();                                                     \
        for (int i_ = 0; i_ < 3 || now() - from_ < 0.1; i_++) {                                \
            double t_ = now();                                                                 \
            if ((call) != 0) abort();                                                          \
            best_ = fmin(best_, now() - t_);                                                   \
        }                                                                                      \
        best_;                                                                                 \
    })

/* ns of one call among many: of those too short for the clock */
#define EACH(call)                                                                             \
    (1e6 * BEST({                                                                              \
         int failed_ = 0;                                                                      \
         for (int j_ = 0; j_ < 1000; j_++) failed_ |= (call);                                  \
         failed_;                                                                              \
     }))

static const char *name_of(int dtype) { return dtype == LM_F32 ? "f32" : "bf16"; }

static void rate(const char *what, int dtype, double bytes, double seconds) {
    printf("  %-28s %-4s %8.1f us %7.1f GB/s\n", what, name_of(dtype), seconds * 1e6,
           bytes / seconds * 1e-9);
}
static void flops(const char *what, int dtype, double n, double seconds) {
    printf("  %-28s %-4s %8.1f us %7.1f GFLOP/s\n", what, name_of(dtype), seconds * 1e6,
           n / seconds * 1e-9);
}

/* y = x w, dx = dy w^T, dw += x^T dy as a layer asks for them */
static void layer(int64_t m, int64_t k, int64_t n, int dtype) {
    void *x = random_array(dtype, m * k), *w = random_array(dtype, k * n),
         *y = random_array(dtype, m * n);
    float *dw = array(LM_F32, k * n);
    lm_matrix mx = {x, dtype, 0, k, 1}, mw = {w, dtype, 0, n, 1}, my = {y, dtype, 0, n, 1};
    lm_matrix wt = {w, dtype, 0, 1, n}, xt = {x, dtype, 0, 1, k}, mdw = {dw, LM_F32, 0, n, 1};
    double work = 2.0 * (double)(m * n * k);
    char name[64];
    snprintf(name, sizeof name, "x w    %d x %d x %d", (int)m, (int)k, (int)n);
    flops(name, dtype, work, BEST(lm_cpu_gemm(1, m, n, k, 1, &mx, &mw, 0, &my, NULL, 0)));
    flops("  dy w^T", dtype, work, BEST(lm_cpu_gemm(1, m, k, n, 1, &my, &wt, 0, &mx, NULL, 0)));
    flops("  x^T dy, added in f32", dtype, work,
          BEST(lm_cpu_gemm(1, k, n, m, 1, &xt, &my, 1, &mdw, NULL, 0)));
    free(x), free(w), free(y), free(dw);
}

/* a new row count each time, as batches of sentences have */
static void uneven(int dtype) {
    enum { K = 256, N = 640, MOST = 2200 };
    void *x = random_array(dtype, MOST * K), *w = random_array(dtype, K * N),
         *y = array(dtype, MOST * N);
    float *dw = array(LM_F32, K * N);
    lm_matrix mx = {x, dtype, 0, K, 1}, mw = {w, dtype, 0, N, 1}, my = {y, dtype, 0, N, 1};
    lm_matrix xt = {x, dtype, 0, 1, K}, mdw = {dw, LM_F32, 0, N, 1};
    double spent[2] = {0}, work[2] = {0};
    for (int i = 0; i < 400; i++) {
        int64_t m = 1800 + (int64_t)(random_uniform() * 400);
        double t = now();
        if (lm_cpu_gemm(1, m, N, K, 1, &mx, &mw, 0, &my, NULL, 0)) abort();
        if (lm_cpu_gemm(1, K, N, m, 1, &xt, &my, 1, &mdw, NULL, 0)) abort();
        spent[i >= 200] += now() - t;
        work[i >= 200] += 4.0 * (double)(m * N * K);
    }
    flops("new row counts, first 200", dtype, work[0], spent[0]);
    flops("  the next 200", dtype, work[1], spent[1]);
    free(x), free(w), free(y), free(dw);
}

static void experts(int64_t groups, int64_t rows, int64_t k, int64_t n, int dtype) {
    int64_t offset[65] = {0};
    for (int64_t g = 0; g < groups; g++)
        offset[g + 1] = g == groups - 1 ? rows : offset[g] + rows / groups + (g % 3 - 1) * 17;
    void *x = random_array(dtype, rows * k), *w = random_array(dtype, groups * k * n),
         *y = array(dtype, rows * n);
    float *dw = array(LM_F32, groups * k * n);
    double work = 2.0 * (double)(rows * k * n);
    char name[64];
    snprintf(name, sizeof name, "%d experts %d x %d x %d", (int)groups, (int)rows, (int)k,
             (int)n);
    flops(name, dtype, work,
          BEST(lm_cpu_grouped_gemm(groups, offset, n, k, y, dtype, x, dtype, w, dtype, 0, NULL,
                                   0)));
    flops("  dx", dtype, work,
          BEST(lm_cpu_grouped_gemm(groups, offset, k, n, x, dtype, y, dtype, w, dtype, 1, NULL,
                                   0)));
    flops("  dw", dtype, work,
          BEST(lm_cpu_grouped_gemm_dw(groups, offset, n, k, dw, LM_F32, x, dtype, y, dtype, 0,
                                      1)));
    free(x), free(w), free(y), free(dw);
}

/* as the runtime has it: it begins a line of the cache */
static void *aligned(int dtype, int64_t n) {
    size_t bytes = ((size_t)n * size_of(dtype) + 63) / 64 * 64;
    void *p = aligned_alloc(64, bytes);
    if (!p) abort();
    return memset(p, 0, bytes);
}

/* the experts' networks as a layer asks for them: SwiGLU, by strips (kernels/cpu/strip.h); of
 * one expert weights and gradients stay in the caches */
static void networks(int64_t groups, int64_t rows, int64_t dim, int64_t hidden, int dtype) {
    int64_t offset[129] = {0}, bytes = 0, uneven = rows / groups > 17 ? 17 : 0;
    for (int64_t g = 0; g < groups; g++)
        offset[g + 1] =
            g == groups - 1 ? rows : offset[g] + rows / groups + (g % 3 - 1) * uneven;
    lm_ffn f = {.dtype = dtype,
                .activation = LM_SWIGLU,
                .experts = groups,
                .dim = dim,
                .hidden = hidden,
                .offset = offset,
                .up = random_array(dtype, groups * 2 * hidden * dim),
                .down = random_array(dtype, groups * dim * hidden)};
    void *x = random_array(dtype, rows * dim), *y = array(dtype, rows * dim),
         *dx = array(dtype, rows * dim), *pre = array(dtype, rows * 2 * hidden);
    lm_ffn_gradients to = {.dx = dx,
                           .up_dtype = dtype,
                           .down_dtype = dtype,
                           .up = aligned(dtype, groups * 2 * hidden * dim),
                           .down = aligned(dtype, groups * dim * hidden)};
    if (lm_cpu_ffn_room(&f, &bytes)) abort();
    void *room = aligned_alloc(64, (size_t)((bytes + 63) / 64 * 64));
    double work = 2.0 * 3 * (double)(rows * dim * hidden);
    char name[64];
    snprintf(name, sizeof name, "%d networks %d x %d x %d", (int)groups, (int)rows, (int)dim,
             (int)hidden);
    flops(name, dtype, work, BEST(lm_cpu_ffn_fwd(&f, y, pre, x)));
    flops("  backward", dtype, 2 * work, BEST(lm_cpu_ffn_bwd(&f, &to, y, x, pre, NULL, room)));
    free((void *)(uintptr_t)f.up), free((void *)(uintptr_t)f.down), free(x), free(y), free(dx);
    free(pre), free(to.up), free(to.down), free(room);
}

static void attention(int64_t b, int64_t h, int64_t t, int64_t d, int dtype) {
    int64_t n = b * h * t * d;
    void *q = random_array(dtype, n), *k = random_array(dtype, n), *v = random_array(dtype, n);
    void *o = array(dtype, n), *g = random_array(dtype, n), *dq = array(dtype, n),
         *dk = array(dtype, n), *dv = array(dtype, n);
    float *lse = array(LM_F32, b * h * t);
    lm_heads s = {t * h * d, d, h * d};
    lm_attention p = {.dtype = dtype,
                      .batch = b,
                      .heads = h,
                      .kv_heads = h,
                      .tq = t,
                      .tk = t,
                      .dim = d,
                      .scale = 0.2,
                      .q = s,
                      .k = s,
                      .v = s,
                      .o = s,
                      .dq = s,
                      .dk = s,
                      .dv = s,
                      .d_o = s};
    double work = 4.0 * (double)(n * t);
    char name[64];
    snprintf(name, sizeof name, "attention b%d h%d t%d d%d", (int)b, (int)h, (int)t, (int)d);
    flops(name, dtype, work, BEST(lm_cpu_attention_fwd(&p, o, lse, q, k, v)));
    flops("  backward", dtype, 2.5 * work,
          BEST(lm_cpu_attention_bwd(&p, dq, dk, dv, g, q, k, v, o, lse)));
    free(q), free(k), free(v), free(o), free(g), free(dq), free(dk), free(dv), free(lse);
}

static void memory(int dtype) {
    enum { ROWS = 2048, D = 256, H = 640, VOCAB = 8000, N = ROWS * D };
    double s = (double)size_of(dtype);
    void *x = random_array(dtype, ROWS * 2 * H), *y = array(dtype, ROWS * 2 * H),
         *z = random_array(dtype, ROWS * 2 * H);
    float *mean = array(LM_F32, ROWS), *rstd = array(LM_F32, ROWS),
          *w = random_array(LM_F32, 2 * H), *dw = array(LM_F32, 2 * H),
          *db = array(LM_F32, 2 * H);
    const int64_t shape[2] = {ROWS, D}, dense[2] = {D, 1}, row[2] = {0, 1},
                  turned[2] = {1, ROWS};
    const lm_draw draw = {1, 2, 0, NULL};
    rate("add", dtype, 3 * s * N,
         BEST(lm_cpu_binary(LM_ADD, dtype, 2, shape, y, x, dense, z, dense)));
    rate("add a row", dtype, 2 * s * N,
         BEST(lm_cpu_binary(LM_ADD, dtype, 2, shape, y, x, dense, z, row)));
    rate("transpose", dtype, 2 * s * N,
         BEST(lm_cpu_copy_strided(y, dtype, x, dtype, 2, shape, dense, turned)));
    rate("gelu", dtype, 2 * s * N, BEST(lm_cpu_unary(LM_GELU, dtype, N, y, x)));
    rate("swiglu", dtype, 3 * s * ROWS * H, BEST(lm_cpu_swiglu_fwd(dtype, ROWS, H, y, x)));
    rate("swiglu backward", dtype, 5 * s * ROWS * H,
         BEST(lm_cpu_swiglu_bwd(dtype, ROWS, H, y, z, x)));
    rate("dropout", dtype, 2 * s * N,
         BEST(lm_cpu_dropout_fwd(dtype, ROWS, D, y, NULL, x, 0.1, &draw)));
    rate("layer norm", dtype, 2 * s * N,
         BEST(lm_cpu_norm_fwd(dtype, ROWS, D, y, mean, rstd, x, w, w, LM_F32, 1e-5)));
    rate("layer norm backward", dtype, 3 * s * N,
         BEST(lm_cpu_norm_bwd(dtype, ROWS, D, y, dw, db, z, x, mean, rstd, w, LM_F32, NULL,
                              NULL, NULL, 0)));
    rate("rms norm", dtype, 2 * s * N,
         BEST(lm_cpu_norm_fwd(dtype, ROWS, D, y, NULL, rstd, x, w, NULL, LM_F32, 1e-5)));
    rate("sum over rows", dtype, s * N,
         BEST(lm_cpu_reduce(LM_SUM, dtype, 1, ROWS, D, dw, LM_F32, x)));
    rate("sum over columns", dtype, s * N,
         BEST(lm_cpu_reduce(LM_SUM, dtype, ROWS, D, 1, mean, LM_F32, x)));
    rate("softmax of 8", dtype, 2 * s * N, BEST(lm_cpu_softmax_fwd(dtype, N / 8, 8, 0, y, x)));
    rate("softmax of 256", dtype, 2 * s * N, BEST(lm_cpu_softmax_fwd(dtype, ROWS, D, 0, y, x)));
    rate("softmax of 256 backward", dtype, 3 * s * N,
         BEST(lm_cpu_softmax_bwd(dtype, ROWS, D, 0, y, z, x)));
    rate("gelu backward", dtype, 3 * s * N,
         BEST(lm_cpu_unary_bwd(LM_GELU, dtype, N, y, z, x, NULL)));
    int64_t *top = array(LM_I64, N);
    rate("top 2 of 8", dtype, s * N, BEST(lm_cpu_topk(dtype, N / 8, 8, 2, y, top, x)));

    void *logits = random_array(dtype, ROWS * VOCAB), *grad = array(dtype, ROWS * VOCAB);
    int32_t *target = array(LM_I32, ROWS), *ids = array(LM_I32, ROWS);
    int64_t bad;
    for (int i = 0; i < ROWS; i++) target[i] = ids[i] = (int32_t)(random_uniform() * VOCAB);
    rate("cross entropy, 8k", dtype, s * ROWS * VOCAB,
         BEST(lm_cpu_cross_entropy_fwd(dtype, ROWS, VOCAB, mean, rstd, logits, target, LM_I32,
                                       -1, 0.1, 0, &bad)));
    rate("cross entropy backward", dtype, 2 * s * ROWS * VOCAB,
         BEST(lm_cpu_cross_entropy_bwd(dtype, ROWS, VOCAB, grad, logits, rstd, target, LM_I32,
                                       -1, 0.1, 0, mean, 0, VOCAB)));
    float *table = array(LM_F32, VOCAB * D);
    rate("embedding", dtype, 2 * s * N,
         BEST(lm_cpu_gather_rows(dtype, ROWS, D, VOCAB, y, logits, LM_I32, ids, &bad)));
    rate("embedding backward", dtype, (8 + s) * N,
         BEST(lm_cpu_scatter_add_rows(dtype, ROWS, D, VOCAB, table, x, LM_I32, ids)));
    int32_t *inv = array(LM_I32, ROWS);
    for (int i = 0; i < ROWS; i++) inv[i] = i * 5 % ROWS;
    rate("combine, 2 slots", dtype, 3 * s * N / 2,
         BEST(lm_cpu_combine_fwd(dtype, ROWS / 2, 2, D, y, x, w, inv)));

    enum { P = 3000000 };
    float *p = random_array(LM_F32, P), *m = array(LM_F32, P), *v = array(LM_F32, P);
    void *g = random_array(dtype, P);
    uint16_t *copy = dtype == LM_BF16 ? array(LM_BF16, P) : NULL;
    int64_t step = 1;
    double norm;
    rate("adamw of 3 M", dtype, (24 + s + (copy ? 2 : 0)) * P,
         BEST(lm_cpu_adamw(P, p, copy, NULL, g, dtype, m, v, LM_F32, 1e-3, 0.9, 0.98, 1e-8,
                           0.01, step++, 1)));
    rate("sum of squares of 3 M", dtype, s * P, BEST(lm_cpu_sqsum(dtype, P, g, &norm)));
    free(x), free(y), free(z), free(mean), free(rstd), free(w), free(dw), free(db), free(top),
        free(logits), free(grad);
    free(target), free(ids), free(table), free(inv), free(p), free(m), free(v), free(g),
        free(copy);
}

/* What the kernels have of the operations on 6 elements in programs/ops.lua. */
static void small(void) {
    float x[6] = {1, 1, 1, 1, 1, 1}, y[6], row[3] = {1, 1, 1}, w[9] = {1}, mean[2], rstd[2];
    const int64_t ids[3] = {0, 1, 1}, shape[2] = {2, 3}, dense[2] = {3, 1}, along[2] = {0, 1};
    int64_t bad;
    lm_matrix mx = {x, LM_F32, 0, 3, 1}, mw = {w, LM_F32, 0, 1, 3}, my = {y, LM_F32, 0, 3, 1};
#define SMALL(name, call) printf("  small %-16s %6.1f ns\n", name, EACH(call))
    SMALL("x + 1", lm_cpu_binary_scalar(LM_ADD, LM_F32, 6, y, x, 1, 0));
    SMALL("x + x", lm_cpu_binary(LM_ADD, LM_F32, 2, shape, y, x, dense, x, dense));
    SMALL("x * row", lm_cpu_binary(LM_MUL, LM_F32, 2, shape, y, x, dense, row, along));
    SMALL("relu", lm_cpu_unary(LM_RELU, LM_F32, 6, y, x));
    SMALL("softmax", lm_cpu_softmax_fwd(LM_F32, 2, 3, 0, y, x));
    SMALL("layer_norm",
          lm_cpu_norm_fwd(LM_F32, 2, 3, y, mean, rstd, x, row, row, LM_F32, 1e-5));
    SMALL("sum", lm_cpu_reduce(LM_SUM, LM_F32, 2, 3, 1, y, LM_F32, x));
    SMALL("index_select", lm_cpu_index_select(LM_F32, 2, 3, 1, 3, y, x, LM_I64, ids, &bad));
    SMALL("linear", lm_cpu_gemm(1, 2, 3, 3, 1, &mx, &mw, 0, &my, NULL, 0));
}

int main(int argc, char **argv) {
    int most = argc > 1 ? atoi(argv[1]) : omp_get_max_threads();
    int parts =
        argc > 2 ? atoi(argv[2])
                 : 31; /* 1 products, 2 uneven and experts, 4 attention, 8 memory, 16 small */
    static const int64_t kn[][2] = {{160, 160}, {160, 640}, {256, 256}, {256, 1280},
                                    {640, 256}, {512, 512}, {256, 8000}};
    for (int t = 1; t <= most; t *= 2) {
        threads(t);
        printf("%d thread%s\n", t, t > 1 ? "s" : "");
        if (parts & 16) small();
        for (int dtype = LM_F32; dtype <= LM_BF16; dtype++) {
            for (size_t i = 0; i < sizeof kn / sizeof kn[0] && parts & 1; i++)
                layer(2048, kn[i][0], kn[i][1], dtype);
            if (parts & 2) {
                uneven(dtype);
                experts(8, 2048, 256, 1280, dtype);
                experts(32, 4096, 512, 1024, dtype);
                networks(8, 4096, 512, 2048, dtype);
                networks(32, 4096, 512, 2048, dtype);
                networks(128, 2048, 512, 2048, dtype);
                networks(128, 1024, 512, 2048, dtype);
                networks(1, 16, 512, 2048, dtype);
            }
            if (parts & 4) {
                attention(64, 4, 32, 64, dtype);
                attention(128, 8, 16, 32, dtype);
                attention(8, 4, 256, 64, dtype);
            }
            if (parts & 8) memory(dtype);
        }
    }
    return 0;
}
