/* random_avx512.c - Philox blocks with a 64-bit lane for each word: of the two products of a
 * round a lane keeps both halves, so nothing moves between lanes. What is above 32 bits in a
 * lane never reaches what is below. */
#include "kernels/cpu/cpu.h"

#if defined(__AVX512DQ__)
#define LOW 0xFFFFFFFFu

typedef uint64_t two_words __attribute__((may_alias, aligned(4)));

void lm__philox_blocks_avx512(uint32_t *restrict out, uint64_t seed, uint64_t stream,
                              uint64_t block, int64_t blocks) {
    two_words *restrict to = (two_words *)out;
    for (int64_t b = 0; b < blocks; b++) {
        uint64_t k0 = seed & LOW, k1 = seed >> 32, count = block + (uint64_t)b;
        uint64_t c0 = count, c1 = count >> 32, c2 = stream, c3 = stream >> 32;
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = 0xD2511F53u * (c0 & LOW), p1 = 0xCD9E8D57u * (c2 & LOW);
            c0 = (p1 >> 32) ^ c1 ^ k0;
            c1 = p1;
            c2 = (p0 >> 32) ^ c3 ^ k1;
            c3 = p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        to[2 * b] = (c0 & LOW) | c1 << 32;
        to[2 * b + 1] = (c2 & LOW) | c3 << 32;
    }
}
#else
typedef int nothing_here; /* another architecture */
#endif
