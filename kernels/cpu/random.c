/* random.c - arrays of random numbers, and dropout. Element j of row r is number
 * index(r) * n + j of the sequence (lm_draw), whatever thread makes it. */
#include "kernels/cpu/cpu.h"
#include "kernels/philox.h"

/* Words at, at + 1, ... of the sequence. */
static void words(const lm_draw *d, uint64_t at, int64_t n, uint32_t *out) {
    uint32_t block[4];
    for (int64_t j = 0; j < n;) {
        uint64_t i = at + (uint64_t)j;
        lm_philox(d->seed, d->stream, i / 4, block);
        for (uint64_t lane = i % 4; lane < 4 && j < n; lane++) out[j++] = block[lane];
    }
}

static uint64_t row_start(const lm_draw *d, int64_t row, int64_t n) {
    return (uint64_t)(d->row_ids ? d->row_ids[row] : d->first + row) * (uint64_t)n;
}

/* A normal needs two words: those of the pair of elements it stands in. */
static void normals(const lm_draw *d, uint64_t at, int64_t n, float *out) {
    uint32_t block[4];
    float pair[2];
    for (int64_t j = 0; j < n; j++) {
        uint64_t i = at + (uint64_t)j;
        lm_philox(d->seed, d->stream, i / 4, block);
        int p = (int)(i % 4 / 2);
        lm_philox_normal(block[2 * p], block[2 * p + 1], pair);
        out[j] = pair[i % 2];
        if (i % 2 == 0 && j + 1 < n) out[++j] = pair[1];
    }
}

int lm_cpu_rand(int normal, int dtype, int64_t rows, int64_t n, void *out, double a, double b,
                const lm_draw *draw) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    int64_t pieces = lm__ceil_div(n, LM_CHUNK);
    float scale = (float)(normal ? b : b - a), shift = (float)a;
#pragma omp parallel for collapse(2) num_threads(lm__threads(rows *n))
    for (int64_t r = 0; r < rows; r++)
        for (int64_t p = 0; p < pieces; p++) {
            float buf[LM_CHUNK];
            uint32_t bits[LM_CHUNK];
            int64_t from = p * LM_CHUNK, count = lm__min(n - from, LM_CHUNK);
            uint64_t at = row_start(draw, r, n) + (uint64_t)from;
            if (normal) normals(draw, at, count, buf);
            else {
                words(draw, at, count, bits);
                for (int64_t j = 0; j < count; j++) buf[j] = lm_philox_uniform(bits[j]);
            }
            float *y = lm__open(dtype, out, r * n + from, buf);
            for (int64_t j = 0; j < count; j++) y[j] = shift + scale * buf[j];
            lm__close(dtype, out, r * n + from, count, y);
        }
    return LM_KERNEL_OK;
}

int lm_cpu_dropout(int dtype, int64_t rows, int64_t n, void *y, const void *x, double p,
                   const lm_draw *draw) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    int64_t pieces = lm__ceil_div(n, LM_CHUNK);
    float keep = p < 1 ? (float)(1 / (1 - p)) : 0;
    uint32_t below = (uint32_t)(p * 16777216.0); /* of 2^24, as lm_philox_uniform */
#pragma omp parallel for collapse(2) num_threads(lm__threads(rows *n))
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < pieces; c++) {
            float in[LM_CHUNK], out[LM_CHUNK];
            uint32_t bits[LM_CHUNK];
            int64_t from = c * LM_CHUNK, count = lm__min(n - from, LM_CHUNK), at = r * n + from;
            words(draw, row_start(draw, r, n) + (uint64_t)from, count, bits);
            const float *xs = lm__load(dtype, x, at, count, in);
            float *ys = lm__open(dtype, y, at, out);
            for (int64_t j = 0; j < count; j++) ys[j] = bits[j] >> 8 < below ? 0 : xs[j] * keep;
            lm__close(dtype, y, at, count, ys);
        }
    return LM_KERNEL_OK;
}
