/* random_avx512.c - Philox, eight blocks to four registers with a 64-bit lane for each word: of
 * the two products of a round a lane keeps both halves, so nothing moves between lanes. What is
 * above 32 bits in a lane never reaches what is below. The rounds of a block wait for each
 * other, so four times eight blocks go side by side. */
#include "kernels/cpu/cpu.h"

#if defined(__AVX512DQ__)
#include <immintrin.h>

enum { LANES = 8, SIDES = 4 };

LM_INLINE __m512i all(uint64_t x) { return _mm512_set1_epi64((long long)x); }
LM_INLINE __m512i high_half(__m512i x) { return _mm512_srli_epi64(x, 32); }
LM_INLINE __m512i xor3(__m512i a, __m512i b, __m512i c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}

/* Words of `sides` times eight blocks from `block` on; of the last eight those in the mask. */
LM_INLINE void draw(int sides, uint32_t *out, uint64_t seed, uint64_t stream, uint64_t block,
                    uint32_t mask) {
    const __m512i count =
        _mm512_add_epi64(all(block), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    __m512i c0[SIDES], c1[SIDES], c2[SIDES], c3[SIDES], k0 = all(seed), k1 = all(seed >> 32);
#pragma GCC unroll 4
    for (int s = 0; s < sides; s++) {
        c0[s] = _mm512_add_epi64(count, all((uint64_t)(LANES * s))), c1[s] = high_half(c0[s]);
        c2[s] = all(stream), c3[s] = high_half(c2[s]);
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
#pragma GCC unroll 4
        for (int s = 0; s < sides; s++) {
            __m512i p0 = _mm512_mul_epu32(c0[s], all(0xD2511F53u));
            __m512i p1 = _mm512_mul_epu32(c2[s], all(0xCD9E8D57u));
            c0[s] = xor3(high_half(p1), c1[s], k0), c1[s] = p1;
            c2[s] = xor3(high_half(p0), c3[s], k1), c3[s] = p0;
        }
        k0 = _mm512_add_epi64(k0, all(0x9E3779B9u)),
        k1 = _mm512_add_epi64(k1, all(0xBB67AE85u));
    }
    /* lanes of the first two words of each block, and of the other two, to blocks in sequence
     */
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i last = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
#pragma GCC unroll 4
    for (int s = 0; s < sides; s++, out += 4 * LANES) {
        __m512i a = _mm512_mask_blend_epi32(0xAAAA, c0[s], _mm512_slli_epi64(c1[s], 32));
        __m512i b = _mm512_mask_blend_epi32(0xAAAA, c2[s], _mm512_slli_epi64(c3[s], 32));
        uint32_t here = s + 1 < sides ? ~0u : mask;
        _mm512_mask_storeu_epi32(out, (__mmask16)here, _mm512_permutex2var_epi64(a, first, b));
        _mm512_mask_storeu_epi32(out + 16, (__mmask16)(here >> 16),
                                 _mm512_permutex2var_epi64(a, last, b));
    }
}

void lm__philox_blocks_avx512(uint32_t *restrict out, uint64_t seed, uint64_t stream,
                              uint64_t block, int64_t blocks) {
    enum { MOST = SIDES * LANES };
    int64_t b = 0;
    for (; b + MOST <= blocks; b += MOST)
        draw(SIDES, out + 4 * b, seed, stream, block + (uint64_t)b, ~0u);
    for (; b < blocks; b += LANES) {
        int64_t words = 4 * lm__min(LANES, blocks - b);
        draw(1, out + 4 * b, seed, stream, block + (uint64_t)b, ~0u >> (32 - words));
    }
}
#else
typedef int nothing_here; /* another architecture */
#endif
