/* bf16.h - bfloat16 is the upper half of a float. To f32 it is exact; from f32 it rounds to
 * nearest, ties to even, and a NaN stays a (quiet) NaN. Both are plain integer code, so that
 * loops over them vectorise. */
#ifndef LM_BF16_H
#define LM_BF16_H

#include <stdint.h>
#include <string.h>

static inline float lm_bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint16_t lm_f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    uint32_t nan = (u >> 16) | 64u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#endif
