/* philox.h - Philox4x32-10 (Salmon et al. 2011): random numbers as a pure function of a key
 * and a counter. Number i of a sequence is lane i % 4 of counter i / 4, so any thread or rank
 * can make any part of it, in any order.
 *
 * A sequence is (seed, stream): the seed is the key, the stream the upper half of the counter.
 */
#ifndef LM_PHILOX_H
#define LM_PHILOX_H

#include <math.h>
#include <stdint.h>

static inline void lm_philox(uint64_t seed, uint64_t stream, uint64_t block, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* [0, 1), 24 bits: every value is exact in f32 */
static inline float lm_philox_uniform(uint32_t bits) {
    return (float)(bits >> 8) * (1.0f / 16777216.0f);
}

/* Two standard normals from two words (Box-Muller); the first is never log(0). */
static inline void lm_philox_normal(uint32_t a, uint32_t b, float out[2]) {
    double u = ((double)a + 1.0) * (1.0 / 4294967296.0); /* (0, 1] */
    double angle = 6.283185307179586 * ((double)b * (1.0 / 4294967296.0));
    double radius = sqrt(-2.0 * log(u));
    out[0] = (float)(radius * cos(angle));
    out[1] = (float)(radius * sin(angle));
}

/* Number i of the sequence, for callers who want one. */
static inline uint32_t lm_philox_at(uint64_t seed, uint64_t stream, uint64_t i) {
    uint32_t block[4];
    lm_philox(seed, stream, i / 4, block);
    return block[i % 4];
}

#endif
