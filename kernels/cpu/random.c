/* random.c - random arrays. Number i is a function of (seed, stream, i) alone
 * (kernels/philox.h), so threads may take any part. */
#include "kernels/cpu/cpu.h"
#include "kernels/philox.h"

LM_CLONES static void philox_blocks(uint32_t *out, uint64_t seed, uint64_t stream,
                                    uint64_t block, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++) {
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
        uint32_t c0 = (uint32_t)(block + (uint64_t)b),
                 c1 = (uint32_t)((block + (uint64_t)b) >> 32);
        uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)p1;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        out[4 * b] = c0;
        out[4 * b + 1] = c1;
        out[4 * b + 2] = c2;
        out[4 * b + 3] = c3;
    }
}

const uint32_t *lm__random_words(uint32_t *buf, uint64_t seed, uint64_t stream, uint64_t i,
                                 int64_t n) {
    uint64_t skip = i % 4;
    int64_t blocks = lm__ceil_div(n + (int64_t)skip, 4);
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512dq")) {
        lm__philox_blocks_avx512(buf, seed, stream, i / 4, blocks);
        return buf + skip;
    }
#endif
    philox_blocks(buf, seed, stream, i / 4, blocks);
    return buf + skip;
}

static const uint32_t *words(uint32_t *buf, const lm_draw *d, uint64_t i, int64_t n) {
    return lm__random_words(buf, d->seed, d->stream, i, n);
}

LM_CLONES static void uniform_row(float *y, const uint32_t *w, float lo, float width,
                                  int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = lo + width * lm_philox_uniform(w[i]);
}

static uint64_t first_of_row(const lm_draw *d, int64_t r, int64_t n) {
    return (uint64_t)(d->row_ids ? d->row_ids[r] : d->first + r) * (uint64_t)n;
}

/* A matrix in chunks: row r, columns j to j + len - 1. Short rows in sequence join into long
 * ones, as their numbers do. */
static void join_rows(const lm_draw *d, int64_t *rows, int64_t *n, lm_draw *joined) {
    *joined = *d;
    if (d->row_ids || *n == 0) return;
    joined->first = 0;
    *n *= *rows;
    *rows = *n > 0;
}

typedef struct {
    int dtype, normal;
    float lo, width; /* uniform; mean and standard deviation when normal */
} distribution;

static void fill_chunk(const distribution *how, float *y, const lm_draw *d, uint64_t i,
                       int64_t n) {
    uint32_t buf[LM_CHUNK + 8];
    const uint32_t *w = words(buf, d, i, n);
    if (!how->normal) {
        uniform_row(y, w, how->lo, how->width, n);
        return;
    }
    for (int64_t j = 0; j < n; j++) { /* a pair lies at even numbers; a chunk may cut it */
        float pair[2];
        int odd = (int)((i + (uint64_t)j) & 1);
        const uint32_t *p = w + j - odd;
        lm_philox_normal(p[0], p[1], pair);
        y[j] = how->lo + how->width * pair[odd];
        if (!odd && j + 1 < n) y[++j] = how->lo + how->width * pair[1];
    }
}

static int fill_random(const distribution *how, int64_t rows, int64_t n, void *out,
                       const lm_draw *draw) {
    if (!lm__is_float(how->dtype)) return LM_KERNEL_EDTYPE;
    lm_draw d;
    uint64_t start = draw->row_ids ? 0 : (uint64_t)draw->first * (uint64_t)n;
    join_rows(draw, &rows, &n, &d);
    int64_t pieces = lm__ceil_div(n, LM_CHUNK);
#pragma omp parallel for schedule(static) num_threads(lm__threads(rows *n))
    for (int64_t t = 0; t < rows * pieces; t++) {
        float buf[LM_CHUNK];
        int64_t r = t / pieces, j = t % pieces * LM_CHUNK, len = lm__min(LM_CHUNK, n - j);
        float *y = lm__open(how->dtype, out, r * n + j, buf);
        fill_chunk(how, y, &d, start + first_of_row(&d, r, n) + (uint64_t)j, len);
        lm__close(how->dtype, out, r * n + j, len, y);
    }
    return LM_KERNEL_OK;
}

int lm_cpu_rand(int normal, int dtype, int64_t rows, int64_t n, void *out, double a, double b,
                const lm_draw *draw) {
    distribution how = {dtype, normal, (float)a, (float)(normal ? b : b - a)};
    return fill_random(&how, rows, n, out, draw);
}

int lm_cpu_random_bits(int64_t rows, int64_t n, uint32_t *out, const lm_draw *draw) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j += LM_CHUNK) {
            uint32_t buf[LM_CHUNK + 8];
            int64_t len = lm__min(LM_CHUNK, n - j);
            const uint32_t *w = words(buf, draw, first_of_row(draw, r, n) + (uint64_t)j, len);
            for (int64_t i = 0; i < len; i++) out[r * n + j + i] = w[i];
        }
    return LM_KERNEL_OK;
}
