/* cpu.c - scratch memory and the two conversions between f32 and bf16. */
#include "kernels/cpu/cpu.h"

#include <stdlib.h>

static _Thread_local struct {
    void *data;
    size_t bytes;
} slots[LM_SCRATCH_SLOTS];

void *lm__scratch(int slot, size_t bytes) {
    if (bytes == 0) bytes = 1; /* NULL means failure, even for nothing */
    if (slots[slot].bytes < bytes) {
        size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096; /* room to grow */
        free(slots[slot].data);
        slots[slot].data = aligned_alloc(64, rounded);
        slots[slot].bytes = slots[slot].data ? rounded : 0;
    }
    return slots[slot].data;
}

LM_CLONES void lm__from_bf16(float *restrict dst, const uint16_t *restrict src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = lm_bf16_to_f32(src[i]);
}

LM_CLONES static void to_bf16(uint16_t *restrict dst, const float *restrict src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = lm_f32_to_bf16(src[i]);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* The CPU's own instruction rounds alike, but takes numbers under 2^-126 for 0. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) static void
to_bf16_native(uint16_t *dst, const float *src, int64_t n) {
    for (; n >= 32; n -= 32, src += 32, dst += 32)
        _mm512_storeu_si512(
            dst, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(src + 16), _mm512_loadu_ps(src)));
    for (; n > 0; n--) *dst++ = lm_f32_to_bf16(*src++);
}

static int has_native_bf16(void) {
    static int answer = -1;
    if (answer < 0)
        answer = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl");
    return answer;
}

void lm__to_bf16(uint16_t *restrict dst, const float *restrict src, int64_t n) {
    if (has_native_bf16()) to_bf16_native(dst, src, n);
    else to_bf16(dst, src, n);
}
#else
void lm__to_bf16(uint16_t *restrict dst, const float *restrict src, int64_t n) {
    to_bf16(dst, src, n);
}
#endif
