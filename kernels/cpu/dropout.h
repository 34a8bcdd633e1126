/* dropout.h - masks of dropout: a bit for each element, 1 = kept. Rows of a mask begin at whole
 * bytes, element 0 of a row is the lowest bit of its first. */
#ifndef LM_DROPOUT_H
#define LM_DROPOUT_H

#include "kernels/cpu/cpu.h"

/* Words below this are dropped. */
static inline uint32_t lm__drop_below(double p) {
    return p >= 1 ? UINT32_MAX : (uint32_t)(p * 4294967296.0);
}
static inline float lm__drop_scale(double p) { return p >= 1 ? 0.0f : (float)(1 / (1 - p)); }

static inline int64_t lm__mask_row(int64_t n) { return (n + 7) / 8; } /* bytes */

/* The number in its sequence of the first element of row r, of n. */
static inline uint64_t lm__draw_at(const lm_draw *d, int64_t r, int64_t n) {
    return (uint64_t)(d->row_ids ? d->row_ids[r] : d->first + r) * (uint64_t)n;
}

/* bits[j] = word i + j of the sequence is not below; n of them, and zeros up to a whole byte.
 */
void lm__keep_bits(uint8_t *bits, const lm_draw *d, uint64_t i, int64_t n, uint32_t below);

/* y = kept ? x scale : 0; y may be x */
void lm__drop_row(float *y, const float *x, const uint8_t *bits, float scale, int64_t n);

/* 64 words of the sequence at a time, from counter `block` on: bit j of bits[g] is that of word
 * 64 g + j. One for each instruction set; NULL where the CPU lacks it. */
typedef void lm__keep64_fn(uint64_t *bits, const lm_draw *d, uint64_t block, int64_t groups,
                           uint32_t below);
enum { LM_KEEP64_PLAIN, LM_KEEP64_AVX2, LM_KEEP64_AVX512, LM_KEEP64_COUNT };
lm__keep64_fn *lm__keep64(int isa);

#endif
