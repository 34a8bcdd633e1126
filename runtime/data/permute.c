/* permute.c - a random order of n things that is never written down.
 *
 * A Feistel network is a bijection of 0..4^h-1 whatever its round function. With 4^h >= n,
 * going through it again while the result is n or more ("cycle walking", Black and Rogaway
 * 2002) makes it one of 0..n-1; 4^h < 4n, so that takes under four rounds on average. Every
 * position of every epoch is thus found on its own, without the ones before it. */
#include "runtime/data/data_impl.h"

/* splitmix64's finalizer (Steele et al. 2014) */
static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

uint64_t lm__key(uint64_t seed, uint64_t purpose, uint64_t a, uint64_t b) {
    const uint64_t golden = 0x9E3779B97F4A7C15u;
    uint64_t key = mix(seed + golden);
    key = mix(key ^ (purpose + golden));
    key = mix(key ^ (a + golden));
    return mix(key ^ (b + golden));
}

uint64_t lm__permute(uint64_t key, uint64_t n, uint64_t i) {
    unsigned half = 1;
    while (half < 31 && (uint64_t)1 << (2 * half) < n) half++;
    const uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 1; round <= 6; round++) {
            uint64_t next = left ^ (mix(key + (round << 56) + right) & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}
