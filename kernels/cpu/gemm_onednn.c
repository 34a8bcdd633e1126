/* gemm_onednn.c - matrix products by oneDNN's matmul primitive; versions 2 and 3.
 *
 * oneDNN makes machine code for each exact problem, which costs time and memory, more for a
 * long inner dimension. So primitives are kept, per thread, in a table keyed by everything that
 * shapes them, and what must not be is a new one in every step.
 *
 * Batches of sentences and experts' loads make the number of rows different every time. Once a
 * product has been asked for with several row counts (`family` counts them), a new count goes
 * in pieces: of CHUNK rows, then the multiple of GRAIN, then the rest, padded to a multiple of
 * LEAST. A few primitives then serve all counts, at nearly the speed of exact ones
 * (tests/bench/kernels.c, "uneven"). The inner dimension, which is the row count in dW = X^T
 * dY, is treated alike; there the later pieces add to the first.
 *
 * A sum in pieces has other last bits than one in a piece, so what a product gives depends on
 * those before it in its process. Where processes must agree to the last bit, `repeatable` cuts
 * every product by its sizes alone, which costs some speed where sizes never change.
 *
 * What oneDNN cannot take as it is (an operand without a unit stride, mixed types, bf16 on a
 * CPU without bf16 products) is brought into f32 panels first. The smallest products are not
 * worth a call of it (kernels/cpu/small_gemm.c), and a few rows times a weight are faster
 * without (kernels/cpu/thin_gemm.c). Another library takes this file's place by defining
 * lm_cpu_gemm, lm_cpu_gemm_act, lm_cpu_gemm_repeatable and lm_cpu_has_bf16. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/small_gemm.h"
#include "kernels/cpu/thin_gemm.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 16384, /* of the table, a power of two; three quarters may be used */
    VARIANTS = 3,  /* exact sizes a family may have before new ones are split */
    CHUNK = 512,
    GRAIN = 64,
    LEAST = 16
};

typedef struct {
    int64_t batch[3]; /* of A, B, C: 1 broadcasts */
    int64_t m, n, k;
    int64_t stride[3][3];         /* batch, row, column of each */
    int32_t dtype[3], bias_dtype; /* bias_dtype -1: none */
    float alpha, beta;
    int32_t activation; /* LM_RELU.., or -1 */
    int32_t threads;
    int32_t family; /* 0: a primitive; 1, 2: a count of the m, of the k seen */
    int32_t unused; /* 0: there are no holes to hash */
} key;

typedef struct {
    key key;
    uint64_t hash;
    int used;
    int variants; /* of a family */
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[4]; /* A, B, C, bias */
} entry;

static _Thread_local entry *table;
static _Thread_local int table_used;
static _Thread_local dnnl_stream_t stream;
static dnnl_engine_t engine;

/* --- the table */

static uint64_t hash_of(const key *k) {
    const unsigned char *p = (const unsigned char *)k;
    uint64_t h = 1469598103934665603u, word;
    for (size_t i = 0; i + sizeof word <= sizeof *k; i += sizeof word) {
        memcpy(&word, p + i, sizeof word);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    return h;
}

static void entry_clear(entry *e) {
    for (int i = 0; i < 4; i++)
        if (e->memory[i]) dnnl_memory_destroy(e->memory[i]);
    if (e->primitive) dnnl_primitive_destroy(e->primitive);
    memset(e, 0, sizeof *e);
}

/* The entry with this key, or a free one (used == 0) to fill; NULL without memory. A table
 * that has filled up starts anew: rarer and simpler than evicting one by one. */
static entry *find(const key *k) {
    if (!table) table = calloc(SLOTS, sizeof *table);
    if (!table) return NULL;
    if (table_used > SLOTS / 4 * 3) {
        for (int i = 0; i < SLOTS; i++) entry_clear(&table[i]);
        table_used = 0;
    }
    uint64_t h = hash_of(k);
    for (uint64_t i = h % SLOTS;; i = (i + 1) % SLOTS) {
        entry *e = &table[i];
        if (!e->used) {
            e->hash = h;
            return e;
        }
        if (e->hash == h && memcmp(&e->key, k, sizeof *k) == 0) return e;
    }
}

static void keep(entry *e, const key *k) {
    e->key = *k;
    e->used = 1;
    table_used++;
}

/* Counts one more size of this product in m (which == 1) or k (2); the count so far. */
static int family(const key *k, int which, int add) {
    key f = *k;
    f.family = which;
    if (which == 1) f.m = 0;
    else f.k = 0;
    entry *e = find(&f);
    if (!e) return 0;
    if (!e->used) keep(e, &f);
    e->variants += add;
    return e->variants;
}

/* --- oneDNN */

static int start(void) {
    static int failed;
#pragma omp critical(lm_onednn)
    if (!engine && !failed) failed = dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success;
    if (failed) return LM_KERNEL_EINTERNAL;
    if (!stream &&
        dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) != dnnl_success)
        return LM_KERNEL_EINTERNAL;
    return LM_KERNEL_OK;
}

static int repeatable;

void lm_cpu_gemm_repeatable(int on) { repeatable = on; }

int lm_cpu_has_bf16(void) {
    static int answer = -1;
    if (answer < 0) {
        int want = (int)dnnl_cpu_isa_avx512_core_bf16;
        answer = ((int)dnnl_get_effective_cpu_isa() & want) == want;
    }
    return answer;
}

static dnnl_data_type_t type_of(int dtype) { return dtype == LM_F32 ? dnnl_f32 : dnnl_bf16; }

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t desc;
static int desc_make(desc *d, int n, const dnnl_dims_t dims, int dtype,
                     const dnnl_dims_t stride) {
    return dnnl_memory_desc_create_with_strides(d, n, dims, type_of(dtype), stride);
}
static void desc_free(desc *d) {
    if (*d) dnnl_memory_desc_destroy(*d);
}
static int matmul_make(dnnl_primitive_desc_t *pd, desc *d, desc *bias,
                       dnnl_primitive_attr_t attr) {
    return dnnl_matmul_primitive_desc_create(pd, engine, d[0], d[1], bias ? *bias : NULL, d[2],
                                             attr);
}
static int memory_make(dnnl_memory_t *m, desc *d) {
    return dnnl_memory_create(m, *d, engine, DNNL_MEMORY_NONE);
}
static int add_sum(dnnl_post_ops_t ops, float scale) {
    return dnnl_post_ops_append_sum(ops, scale, 0, dnnl_data_type_undef);
}
static int add_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t kind, float alpha) {
    return dnnl_post_ops_append_eltwise(ops, kind, alpha, 0.0f);
}
#else
typedef dnnl_memory_desc_t desc;
static int desc_make(desc *d, int n, const dnnl_dims_t dims, int dtype,
                     const dnnl_dims_t stride) {
    return dnnl_memory_desc_init_by_strides(d, n, dims, type_of(dtype), stride);
}
static void desc_free(desc *d) { (void)d; }
static int matmul_make(dnnl_primitive_desc_t *pd, desc *d, desc *bias,
                       dnnl_primitive_attr_t attr) {
    dnnl_matmul_desc_t op;
    int st = dnnl_matmul_desc_init(&op, &d[0], &d[1], bias, &d[2]);
    if (st == dnnl_success) st = dnnl_primitive_desc_create(pd, &op, attr, engine, NULL);
    return st;
}
static int memory_make(dnnl_memory_t *m, desc *d) {
    return dnnl_memory_create(m, d, engine, DNNL_MEMORY_NONE);
}
static int add_sum(dnnl_post_ops_t ops, float scale) {
    return dnnl_post_ops_append_sum(ops, scale);
}
static int add_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t kind, float alpha) {
    return dnnl_post_ops_append_eltwise(ops, 1.0f, kind, alpha, 0.0f);
}
#endif

static int add_activation(dnnl_post_ops_t ops, int activation) {
    switch (activation) {
    case LM_RELU: return add_eltwise(ops, dnnl_eltwise_relu, 0.0f);
    case LM_GELU: return add_eltwise(ops, dnnl_eltwise_gelu_erf, 0.0f);
    case LM_GELU_TANH: return add_eltwise(ops, dnnl_eltwise_gelu_tanh, 0.0f);
    default: return add_eltwise(ops, dnnl_eltwise_swish, 1.0f);
    }
}

/* alpha, beta and the activation as what follows the product */
static int attr_make(const key *k, dnnl_primitive_attr_t *attr) {
    dnnl_post_ops_t ops = NULL;
    *attr = NULL;
    if (k->alpha == 1.0f && k->beta == 0.0f && k->activation < 0) return dnnl_success;
    int st = dnnl_primitive_attr_create(attr);
    if (st == dnnl_success) st = dnnl_post_ops_create(&ops);
    if (st == dnnl_success && k->alpha != 1.0f)
        st = add_eltwise(ops, dnnl_eltwise_linear, k->alpha);
    if (st == dnnl_success && k->beta != 0.0f) st = add_sum(ops, k->beta);
    if (st == dnnl_success && k->activation >= 0) st = add_activation(ops, k->activation);
    if (st == dnnl_success) st = dnnl_primitive_attr_set_post_ops(*attr, ops);
    if (ops) dnnl_post_ops_destroy(ops);
    return st;
}

static int entry_make(entry *e, const key *k) {
    const int64_t rows[3] = {k->m, k->k, k->m}, cols[3] = {k->k, k->n, k->n};
    int nd = k->batch[2] > 1 ? 3 : 2, st = dnnl_success;
    desc d[3], bias;
    memset(d, 0, sizeof d);
    memset(&bias, 0, sizeof bias);
    for (int i = 0; i < 3 && st == dnnl_success; i++) {
        dnnl_dims_t dims = {0}, stride = {0};
        int at = 0;
        if (nd == 3) {
            dims[at] = k->batch[i];
            stride[at++] = k->stride[i][0];
        }
        dims[at] = rows[i];
        stride[at++] = k->stride[i][1];
        dims[at] = cols[i];
        stride[at] = k->stride[i][2];
        st = desc_make(&d[i], nd, dims, k->dtype[i], stride);
    }
    if (st == dnnl_success && k->bias_dtype >= 0) {
        dnnl_dims_t dims = {1, 1, 1}, stride = {k->n, k->n, k->n};
        dims[nd - 1] = k->n;
        stride[nd - 1] = 1;
        st = desc_make(&bias, nd, dims, k->bias_dtype, stride);
    }
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    if (st == dnnl_success) st = attr_make(k, &attr);
    if (st == dnnl_success) st = matmul_make(&pd, d, k->bias_dtype >= 0 ? &bias : NULL, attr);
    if (st == dnnl_success) st = dnnl_primitive_create(&e->primitive, pd);
    for (int i = 0; i < 3 && st == dnnl_success; i++) st = memory_make(&e->memory[i], &d[i]);
    if (st == dnnl_success && k->bias_dtype >= 0) st = memory_make(&e->memory[3], &bias);

    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    for (int i = 0; i < 3; i++) desc_free(&d[i]);
    desc_free(&bias);
    if (st == dnnl_success) keep(e, k);
    else entry_clear(e);
    return st == dnnl_success ? LM_KERNEL_OK : LM_KERNEL_EINTERNAL;
}

static int run(entry *e, void *const data[3], const void *bias) {
    static const int arg[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[4];
    int n = 3, st = dnnl_success;
    for (int i = 0; i < 3 && st == dnnl_success; i++) {
        st = dnnl_memory_set_data_handle(e->memory[i], data[i]);
        args[i] = (dnnl_exec_arg_t){arg[i], e->memory[i]};
    }
    if (e->memory[3] && st == dnnl_success) {
        union {
            const void *in;
            void *out;
        } b = {bias};
        st = dnnl_memory_set_data_handle(e->memory[3], b.out);
        args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, e->memory[3]};
    }
    if (st == dnnl_success) st = dnnl_primitive_execute(e->primitive, stream, n, args);
    return st == dnnl_success ? LM_KERNEL_OK : LM_KERNEL_EINTERNAL;
}

static void *offset(void *p, int dtype, int64_t elements) {
    return (char *)p + elements * (int64_t)lm__size(dtype);
}

static int product(const key *k, void *const data[3], const void *bias);

/* The first `rows` rows, then the others. */
static int in_rows(const key *k, void *const data[3], const void *bias, int64_t rows) {
    key head = *k, tail = *k;
    head.m = rows;
    tail.m = k->m - rows;
    void *const rest[3] = {offset(data[0], k->dtype[0], rows * k->stride[0][1]), data[1],
                           offset(data[2], k->dtype[2], rows * k->stride[2][1])};
    int st = product(&head, data, bias);
    return st == LM_KERNEL_OK ? product(&tail, rest, bias) : st;
}

/* The sum over the first `inner` of the inner dimension, then the others added. */
static int in_sums(const key *k, void *const data[3], const void *bias, int64_t inner) {
    key head = *k, tail = *k;
    head.k = inner;
    head.activation = -1; /* of the whole sum only */
    tail.k = k->k - inner;
    tail.beta = 1.0f;
    tail.bias_dtype = -1;
    void *const rest[3] = {offset(data[0], k->dtype[0], inner * k->stride[0][2]),
                           offset(data[1], k->dtype[1], inner * k->stride[1][1]), data[2]};
    int st = product(&head, data, bias);
    return st == LM_KERNEL_OK ? product(&tail, rest, NULL) : st;
}

/* Operand i of k in scratch, grown with zeros to rows x cols in the same order of dims. */
static int padded(key *k, void **data, int i, int64_t rows, int64_t cols, int64_t had_rows,
                  int64_t had_cols) {
    int64_t size = rows * cols, *stride = k->stride[i];
    const int64_t from[2] = {stride[1], stride[2]}, had[2] = {had_rows, had_cols};
    void *p = lm__scratch(LM_SCRATCH_PAD_A + i, (size_t)size * lm__size(k->dtype[i]));
    if (!p) return LM_KERNEL_EOOM;
    int turned = from[1] != 1 && from[0] == 1;
    stride[1] = turned ? 1 : cols;
    stride[2] = turned ? rows : 1;
    memset(p, 0, (size_t)size * lm__size(k->dtype[i]));
    const void *x = data[i];
    data[i] = p;
    return lm_cpu_copy_strided(p, k->dtype[i], x, k->dtype[i], 2, had, stride + 1, from);
}

/* With more rows and a longer sum, of zeros. Both at once: there is one place for each operand,
 * so what is padded must not be padded again. */
static int with_padding(const key *k, void *const data[3], const void *bias, int64_t m,
                        int64_t inner) {
    key q = *k;
    void *d[3] = {data[0], data[1], data[2]};
    q.m = m;
    q.k = inner;
    int st = padded(&q, d, 0, m, inner, k->m, k->k);
    if (st == LM_KERNEL_OK && inner > k->k) st = padded(&q, d, 1, inner, k->n, k->k, k->n);
    if (st == LM_KERNEL_OK && m > k->m) st = padded(&q, d, 2, m, k->n, k->m, k->n);
    if (st == LM_KERNEL_OK) st = product(&q, d, bias);
    if (st != LM_KERNEL_OK || m == k->m) return st;
    const int64_t shape[2] = {k->m, k->n};
    return lm_cpu_copy_strided(data[2], k->dtype[2], d[2], k->dtype[2], 2, shape,
                               k->stride[2] + 1, q.stride[2] + 1);
}

static int64_t up_to_least(int64_t n) { return lm__ceil_div(n, LEAST) * LEAST; }

/* One product that oneDNN takes as it is: by a primitive we have, in pieces, or by a new one.
 */
static int product(const key *k, void *const data[3], const void *bias) {
    entry *e = find(k);
    if (!e) return LM_KERNEL_EOOM;
    if (e->used && !repeatable) return run(e, data, bias);
    if (k->batch[2] == 1) {
        int adds = k->dtype[2] == LM_F32; /* sums in bf16 would be rounded at each piece */
        if (adds && k->k > 2 * CHUNK) return in_sums(k, data, bias, CHUNK);
        int rows = repeatable || family(k, 1, 0) >= VARIANTS;
        int sums = adds && (repeatable || family(k, 2, 0) >= VARIANTS);
        if (rows && k->m > CHUNK) return in_rows(k, data, bias, CHUNK);
        if (rows && k->m > GRAIN && k->m % GRAIN)
            return in_rows(k, data, bias, k->m / GRAIN * GRAIN);
        if (sums && k->k > CHUNK) return in_sums(k, data, bias, CHUNK);
        if (sums && k->k > GRAIN && k->k % GRAIN)
            return in_sums(k, data, bias, k->k / GRAIN * GRAIN);
        if ((rows && k->m % LEAST) || (sums && k->k % LEAST))
            return with_padding(k, data, bias, up_to_least(k->m),
                                adds ? up_to_least(k->k) : k->k);
        if (repeatable && e->used) return run(e, data, bias);
        family(k, 1, 1);
        family(k, 2, 1);
        e = find(k); /* counting may have filled its place */
        if (!e) return LM_KERNEL_EOOM;
    }
    int st = e->used ? LM_KERNEL_OK : entry_make(e, k);
    return st == LM_KERNEL_OK ? run(e, data, bias) : st;
}

/* --- from any matrices to those */

/* oneDNN wants one unit stride and rows (or columns) that do not overlap. */
static int plain(const lm_matrix *x, int64_t rows, int64_t cols) {
    if (x->col_stride == 1 && x->row_stride >= cols) return 1;
    return x->row_stride == 1 && x->col_stride >= rows;
}

/* Strides of sizes one mean nothing: give them the value that is always the same. */
static lm_matrix canonical(const lm_matrix *x, int64_t batch, int64_t rows, int64_t cols) {
    lm_matrix c = *x;
    if (cols == 1 && rows == 1) c.row_stride = c.col_stride = 1;
    else if (cols == 1) {
        c.col_stride = 1;
        if (c.row_stride == 1) c.col_stride = rows;
    } else if (rows == 1) {
        c.row_stride = cols;
        if (c.col_stride != 1) c.row_stride = 1; /* a column in disguise */
    }
    if (batch == 1) c.batch_stride = 0;
    return c;
}

/* A dense copy in scratch, as dtype; from C it may be just the room. */
static int panel(lm_matrix *x, int slot, int dtype, int64_t batch, int64_t rows, int64_t cols,
                 int filled) {
    int64_t count = x->batch_stride == 0 ? 1 : batch;
    void *p = lm__scratch(slot, (size_t)(count * rows * cols) * lm__size(dtype));
    if (!p) return LM_KERNEL_EOOM;
    const int64_t shape[3] = {count, rows, cols}, to[3] = {rows * cols, cols, 1};
    const int64_t from[3] = {x->batch_stride, x->row_stride, x->col_stride};
    int st = filled ? lm_cpu_copy_strided(p, dtype, x->data, x->dtype, 3, shape, to, from)
                    : LM_KERNEL_OK;
    *x = (lm_matrix){p, dtype, count == 1 ? 0 : rows * cols, cols, 1};
    return st;
}

/* C = beta C + bias, when nothing is multiplied */
static int without_product(int64_t batch, int64_t m, int64_t n, double beta, const lm_matrix *c,
                           const void *bias, int bias_dtype, int activation) {
    const int64_t shape[3] = {batch, m, n};
    const int64_t stride[3] = {c->batch_stride, c->row_stride, c->col_stride};
    const int64_t dense[3] = {m * n, n, 1}, none[3] = {0, 0, 0};
    float *sum = lm__scratch(LM_SCRATCH_C, (size_t)(batch * m * n) * sizeof(float));
    if (!sum) return LM_KERNEL_EOOM;
    float zero = 0;
    int st = beta != 0
                 ? lm_cpu_copy_strided(sum, LM_F32, c->data, c->dtype, 3, shape, dense, stride)
                 : lm_cpu_copy_strided(sum, LM_F32, &zero, LM_F32, 3, shape, dense, none);
    for (int64_t i = 0; i < batch * m * n; i++) {
        float b = !bias                  ? 0.0f
                  : bias_dtype == LM_F32 ? ((const float *)bias)[i % n]
                                         : lm_bf16_to_f32(((const uint16_t *)bias)[i % n]);
        sum[i] = (float)beta * sum[i] + b;
    }
    if (st == LM_KERNEL_OK && activation >= 0)
        st = lm_cpu_unary(activation, LM_F32, batch * m * n, sum, sum);
    if (st == LM_KERNEL_OK)
        st = lm_cpu_copy_strided(c->data, c->dtype, sum, LM_F32, 3, shape, stride, dense);
    return st;
}

/* With few rows oneDNN gains little by a second thread: each makes some columns then. */
enum { WIDE_ROWS = 64, WIDE_COLS = 64 };

static int is_wide(const key *q) {
    return q->threads > 1 && q->batch[2] == 1 && q->m <= WIDE_ROWS && q->n >= 2 * WIDE_COLS &&
           q->stride[2][2] == 1 && q->n * q->k >= LM_PARALLEL_FROM;
}

static void *moved(void *data, int dtype, int64_t by) {
    return data ? (char *)data + by * (int64_t)lm__size(dtype) : NULL;
}

static int in_columns(const key *k, void *const data[3], const void *bias) {
    int64_t parts = lm__ceil_div(k->n, WIDE_COLS);
    int st = LM_KERNEL_OK;
#pragma omp parallel num_threads(k->threads) reduction(min : st)
    {
        int64_t first, last;
        lm__share(parts, &first, &last);
        first *= WIDE_COLS, last = lm__min(last * WIDE_COLS, k->n);
        if (first < last) st = start();
        if (first < last && st == LM_KERNEL_OK) {
            key q = *k;
            void *part[3] = {data[0], moved(data[1], k->dtype[1], first * k->stride[1][2]),
                             moved(data[2], k->dtype[2], first)};
            const void *from =
                bias ? (const char *)bias + (size_t)first * lm__size(k->bias_dtype) : NULL;
            q.n = last - first, q.threads = 1;
            st = product(&q, part, from);
        }
    }
    return st;
}

/* bias as oneDNN takes it: f32 beside f32, and before the scaling by alpha */
static int bias_panel(const void **bias, int *dtype, int64_t n, int input, double alpha) {
    if (!*bias || (alpha == 1.0 && (*dtype == LM_F32 || input == LM_BF16))) return LM_KERNEL_OK;
    float *p = lm__scratch(LM_SCRATCH_ROW, (size_t)n * sizeof(float));
    if (!p) return LM_KERNEL_EOOM;
    for (int64_t i = 0; i < n; i++)
        p[i] = (*dtype == LM_F32 ? ((const float *)*bias)[i]
                                 : lm_bf16_to_f32(((const uint16_t *)*bias)[i])) /
               (float)alpha;
    *bias = p;
    *dtype = LM_F32;
    return LM_KERNEL_OK;
}

int lm_cpu_gemm(int64_t batch, int64_t m, int64_t n, int64_t k, double alpha,
                const lm_matrix *a, const lm_matrix *b, double beta, const lm_matrix *c,
                const void *bias, int bias_dtype) {
    return lm_cpu_gemm_act(batch, m, n, k, alpha, a, b, beta, c, bias, bias_dtype, -1);
}

static int known(int activation) {
    return activation == -1 || activation == LM_RELU || activation == LM_GELU ||
           activation == LM_GELU_TANH || activation == LM_SILU;
}

int lm_cpu_gemm_act(int64_t batch, int64_t m, int64_t n, int64_t k, double alpha,
                    const lm_matrix *a, const lm_matrix *b, double beta, const lm_matrix *c,
                    const void *bias, int bias_dtype, int activation) {
    if (!lm__is_float(a->dtype) || !lm__is_float(b->dtype) || !lm__is_float(c->dtype) ||
        !known(activation))
        return LM_KERNEL_EDTYPE;
    if (activation == -1 && lm__gemm_is_small(batch, m, n, k)) {
        lm__gemm_small(batch, m, n, k, alpha, a, b, beta, c, bias, bias_dtype);
        return LM_KERNEL_OK;
    }
    if (batch == 0 || m == 0 || n == 0) return LM_KERNEL_OK;
    if (k == 0 || alpha == 0)
        return without_product(batch, m, n, beta, c, bias, bias_dtype, activation);
    if (lm__gemm_is_thin(batch, m, n, k, a, b, c))
        return lm__gemm_thin(m, n, k, alpha, a, b, beta, c, bias, bias_dtype, activation);
    int st = start();
    if (st != LM_KERNEL_OK) return st;

    lm_matrix x[3] = {*a, *b, *c};
    if (batch > 1 && x[1].batch_stride == 0 && x[0].batch_stride == m * x[0].row_stride &&
        x[2].batch_stride == m * x[2].row_stride) { /* the batch is only more rows */
        m *= batch;
        batch = 1;
    }
    const int64_t rows[3] = {m, k, m}, cols[3] = {k, n, n};
    for (int i = 0; i < 3; i++) x[i] = canonical(&x[i], batch, rows[i], cols[i]);

    int bf16 = x[0].dtype == LM_BF16 && x[1].dtype == LM_BF16 && lm_cpu_has_bf16();
    int input = bf16 ? LM_BF16 : LM_F32;
    for (int i = 0; i < 2 && st == LM_KERNEL_OK; i++)
        if (x[i].dtype != input || !plain(&x[i], rows[i], cols[i]))
            st = panel(&x[i], LM_SCRATCH_A + i, input, batch, rows[i], cols[i], 1);
    lm_matrix out = x[2];
    int aside = !plain(&out, m, n) || out.row_stride == 1 || (!bf16 && out.dtype != LM_F32);
    if (out.row_stride == 1 && n == 1) aside = !bf16 && out.dtype != LM_F32;
    if (aside && st == LM_KERNEL_OK)
        st = panel(&x[2], LM_SCRATCH_C, bf16 ? out.dtype : LM_F32, batch, m, n, beta != 0);
    if (st == LM_KERNEL_OK) st = bias_panel(&bias, &bias_dtype, n, input, alpha);
    if (st != LM_KERNEL_OK) return st;

    key q;
    memset(&q, 0, sizeof q); /* padding takes part in the hash */
    q.m = m;
    q.n = n;
    q.k = k;
    void *data[3];
    for (int i = 0; i < 3; i++) {
        q.batch[i] = i < 2 && x[i].batch_stride == 0 ? 1 : batch;
        if (batch > 1) q.stride[i][0] = q.batch[i] == 1 ? rows[i] * cols[i] : x[i].batch_stride;
        q.stride[i][1] = x[i].row_stride;
        q.stride[i][2] = x[i].col_stride;
        q.dtype[i] = x[i].dtype;
        data[i] = x[i].data;
    }
    q.bias_dtype = bias ? bias_dtype : -1;
    q.activation = activation;
    q.alpha = (float)alpha;
    q.beta = (float)beta;
    q.threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    st = is_wide(&q) ? in_columns(&q, data, bias) : product(&q, data, bias);
    if (st == LM_KERNEL_OK && aside) {
        const int64_t shape[3] = {batch, m, n}, from[3] = {m * n, n, 1};
        const int64_t to[3] = {out.batch_stride, out.row_stride, out.col_stride};
        st =
            lm_cpu_copy_strided(out.data, out.dtype, x[2].data, x[2].dtype, 3, shape, to, from);
    }
    return st;
}
