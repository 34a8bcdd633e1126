/* dropout.c - zeroes elements at random and scales the rest; forward says which were kept, a
 * bit each, so that backward draws nothing. The words are Philox's (kernels/philox.h): in
 * vectors a lane of 64 bits is a counter, whose four words stand in the lower halves of four
 * registers, since the vectors' product is of just those. */
#include "kernels/cpu/dropout.h"
#include "kernels/philox.h"

#include <string.h>

static void keep64_plain(uint64_t *bits, const lm_draw *d, uint64_t block, int64_t groups,
                         uint32_t below) {
    for (int64_t g = 0; g < groups; g++) {
        uint64_t kept = 0;
        for (int b = 0; b < 16; b++) {
            uint32_t word[4];
            lm_philox(d->seed, d->stream, block + 16 * (uint64_t)g + (uint64_t)b, word);
            for (int i = 0; i < 4; i++) kept |= (uint64_t)(word[i] >= below) << (4 * b + i);
        }
        bits[g] = kept;
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* Pairs of bits, of words 0 and 1 and of words 2 and 3 of each counter, into fours. */
static inline uint64_t spread(uint64_t k) {
    k = (k | k << 16) & 0x0000ffff0000ffffu;
    k = (k | k << 8) & 0x00ff00ff00ff00ffu;
    k = (k | k << 4) & 0x0f0f0f0f0f0f0f0fu;
    return (k | k << 2) & 0x3333333333333333u;
}
static inline uint64_t join_pairs(uint32_t first, uint32_t second) {
    return spread(first) | spread(second) << 2;
}

#define ROUNDS(MUL, SHIFT, XOR3, SET)                                                          \
    for (int r = 0; r < 10; r++) {                                                             \
        __typeof__(c0) p0 = MUL(m0, c0), p1 = MUL(m1, c2);                                     \
        c0 = XOR3(SHIFT(p1, 32), c1, SET((int)k0));                                            \
        c1 = p1;                                                                               \
        c2 = XOR3(SHIFT(p0, 32), c3, SET((int)k1));                                            \
        c3 = p0;                                                                               \
        k0 += 0x9E3779B9u;                                                                     \
        k1 += 0xBB67AE85u;                                                                     \
    }

__attribute__((target("arch=x86-64-v3"))) static void
keep64_avx2(uint64_t *bits, const lm_draw *d, uint64_t block, int64_t groups, uint32_t below) {
    const __m256i m0 = _mm256_set1_epi32((int)0xD2511F53u),
                  lanes = _mm256_set_epi64x(3, 2, 1, 0);
    const __m256i m1 = _mm256_set1_epi32((int)0xCD9E8D57u),
                  least = _mm256_set1_epi32((int)below);
    for (int64_t g = 0; g < groups; g++) {
        uint32_t kept[2] = {0, 0};
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; quarter++) {
            uint32_t k0 = (uint32_t)d->seed, k1 = (uint32_t)(d->seed >> 32);
            __m256i c0 = _mm256_add_epi64(
                _mm256_set1_epi64x((int64_t)(block + 16 * (uint64_t)g) + 4 * quarter), lanes);
            __m256i c1 = _mm256_srli_epi64(c0, 32), c2 = _mm256_set1_epi64x((int64_t)d->stream);
            __m256i c3 = _mm256_srli_epi64(c2, 32);
#define XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
            ROUNDS(_mm256_mul_epu32, _mm256_srli_epi64, XOR3, _mm256_set1_epi32)
#undef XOR3
            __m256i w[2] = {_mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xaa),
                            _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xaa)};
            for (int pair = 0; pair < 2; pair++) {
                __m256i enough = _mm256_cmpeq_epi32(_mm256_max_epu32(w[pair], least), w[pair]);
                kept[pair] |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(enough))
                              << 8 * quarter;
            }
        }
        bits[g] = join_pairs(kept[0], kept[1]);
    }
}

__attribute__((target("arch=x86-64-v4"))) static void
keep64_avx512(uint64_t *bits, const lm_draw *d, uint64_t block, int64_t groups,
              uint32_t below) {
    const __m512i m0 = _mm512_set1_epi32((int)0xD2511F53u);
    const __m512i m1 = _mm512_set1_epi32((int)0xCD9E8D57u);
    const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i least = _mm512_set1_epi32((int)below);
    for (int64_t g = 0; g < groups; g++) {
        uint32_t kept[2] = {0, 0};
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            uint32_t k0 = (uint32_t)d->seed, k1 = (uint32_t)(d->seed >> 32);
            __m512i c0 = _mm512_add_epi64(
                _mm512_set1_epi64((int64_t)(block + 16 * (uint64_t)g) + 8 * half), lanes);
            __m512i c1 = _mm512_srli_epi64(c0, 32), c2 = _mm512_set1_epi64((int64_t)d->stream);
            __m512i c3 = _mm512_srli_epi64(c2, 32);
#define XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
            ROUNDS(_mm512_mul_epu32, _mm512_srli_epi64, XOR3, _mm512_set1_epi32)
#undef XOR3
            __m512i w01 = _mm512_mask_blend_epi32(0xaaaa, c0, _mm512_slli_epi64(c1, 32));
            __m512i w23 = _mm512_mask_blend_epi32(0xaaaa, c2, _mm512_slli_epi64(c3, 32));
            kept[0] |= (uint32_t)_mm512_cmpge_epu32_mask(w01, least) << 16 * half;
            kept[1] |= (uint32_t)_mm512_cmpge_epu32_mask(w23, least) << 16 * half;
        }
        bits[g] = join_pairs(kept[0], kept[1]);
    }
}

lm__keep64_fn *lm__keep64(int isa) {
    switch (isa) {
    case LM_KEEP64_PLAIN: return keep64_plain;
    case LM_KEEP64_AVX2: return __builtin_cpu_supports("avx2") ? keep64_avx2 : NULL;
    default:
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl")
                   ? keep64_avx512
                   : NULL;
    }
}
#else
lm__keep64_fn *lm__keep64(int isa) { return isa == LM_KEEP64_PLAIN ? keep64_plain : NULL; }
#endif

static lm__keep64_fn *best_keep64(void) {
    static lm__keep64_fn *best; /* threads may find it at once: all find the same */
    for (int isa = LM_KEEP64_AVX512; !best; isa--) best = lm__keep64(isa);
    return best;
}

void lm__keep_bits(uint8_t *bits, const lm_draw *d, uint64_t i, int64_t n, uint32_t below) {
    enum { GROUPS = 16 };
    lm__keep64_fn *keep64 = best_keep64();
    int skip = (int)(i % 4); /* a row may begin inside a counter's four */
    for (int64_t at = 0; at < n; at += 64 * GROUPS) {
        uint64_t groups[GROUPS + 1] = {0};
        int64_t len = lm__min(64 * GROUPS, n - at);
        keep64(groups, d, (i + (uint64_t)at) / 4, (len + skip + 63) / 64, below);
        for (int64_t g = 0; 64 * g < len; g++) {
            int64_t left = lm__min(64, len - 64 * g);
            uint64_t kept = skip ? groups[g] >> skip | groups[g + 1] << (64 - skip) : groups[g];
            if (left < 64) kept &= ((uint64_t)1 << left) - 1;
            for (int64_t b = 0; b < left; b += 8)
                bits[at / 8 + 8 * g + b / 8] = (uint8_t)(kept >> b);
        }
    }
}

LM_CLONES void lm__drop_row(float *y, const float *x, const uint8_t *bits, float scale,
                            int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint32_t kept = bits[i / 8];
#pragma omp simd
        for (int j = 0; j < 8; j++) y[i + j] = kept >> j & 1 ? x[i + j] * scale : 0.0f;
    }
    for (; i < n; i++) y[i] = bits[i / 8] >> (i % 8) & 1 ? x[i] * scale : 0.0f;
}

/* Rows in sequence are one long row, where that keeps the mask's bits where they are. */
static void join_rows(int64_t *rows, int64_t *n) {
    if (*n % 8 || *rows == 0) return;
    *n *= *rows;
    *rows = 1;
}

int lm_cpu_dropout_fwd(int dtype, int64_t rows, int64_t n, void *y, uint8_t *mask,
                       const void *x, double p, const lm_draw *draw) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    uint64_t first = draw->row_ids ? 0 : lm__draw_at(draw, 0, n);
    int64_t width = n;
    if (!draw->row_ids) join_rows(&rows, &n);
    int64_t pieces = lm__ceil_div(n, LM_CHUNK);
#pragma omp parallel for schedule(static) num_threads(lm__threads(4 * rows * n))
    for (int64_t t = 0; t < rows * pieces; t++) {
        float in[LM_CHUNK], out[LM_CHUNK];
        uint8_t here[LM_CHUNK / 8], *bits = here;
        int64_t r = t / pieces, j = t % pieces * LM_CHUNK, len = lm__min(LM_CHUNK, n - j);
        uint64_t at =
            n == width ? lm__draw_at(draw, r, n) : first; /* one long row: where it begins */
        if (mask) bits = mask + r * lm__mask_row(n) + j / 8;
        lm__keep_bits(bits, draw, at + (uint64_t)j, len, lm__drop_below(p));
        float *to = lm__open(dtype, y, r * n + j, out);
        lm__drop_row(to, lm__load(dtype, x, r * n + j, len, in), bits, lm__drop_scale(p), len);
        lm__close(dtype, y, r * n + j, len, to);
    }
    return LM_KERNEL_OK;
}

int lm_cpu_dropout_bwd(int dtype, int64_t rows, int64_t n, void *dx, const void *dy,
                       const uint8_t *mask, double p) {
    if (!lm__is_float(dtype)) return LM_KERNEL_EDTYPE;
    join_rows(&rows, &n);
    int64_t pieces = lm__ceil_div(n, LM_CHUNK);
#pragma omp parallel for schedule(static) num_threads(lm__threads(rows *n))
    for (int64_t t = 0; t < rows * pieces; t++) {
        float in[LM_CHUNK], out[LM_CHUNK];
        int64_t r = t / pieces, j = t % pieces * LM_CHUNK, len = lm__min(LM_CHUNK, n - j);
        float *to = lm__open(dtype, dx, r * n + j, out);
        lm__drop_row(to, lm__load(dtype, dy, r * n + j, len, in),
                     mask + r * lm__mask_row(n) + j / 8, lm__drop_scale(p), len);
        lm__close(dtype, dx, r * n + j, len, to);
    }
    return LM_KERNEL_OK;
}
