/* strip_avx512.c - 8 rows by two registers: 16 sums, where 8 would keep the units busy. */
#if defined(__AVX512F__)
#define STRIP  lm__strip_avx512
#define FEW    lm__few_avx512
#define OUTER  lm__outer_avx512
#define ACROSS lm__across_avx512
#define LANES  16
#define HIGH   8
#define MULTIPLY_ADD(sum, word, b)                                                             \
    sum = (lanes)_mm512_fmadd_ps(_mm512_set1_ps(as_float(word)), (__m512)(b), (__m512)(sum))
#define MULTIPLY_ADD_HALF(sum, word, b)                                                        \
    sum = (half_lanes)_mm256_fmadd_ps(_mm256_set1_ps(as_float(word)), (__m256)(b),             \
                                      (__m256)(sum))
#define STREAM(to, sum)               _mm512_stream_ps((float *)(to), (__m512)(sum))
#define NARROW(to, low, high, stream) keep_bf16(to, (__m512i)(low), (__m512i)(high), (stream))
#include <immintrin.h>
#include <stdint.h>
/* as lm_f32_to_bf16 does it */
static inline __attribute__((always_inline)) __m256i rounded(__m512i u) {
    __m512i upper = _mm512_srli_epi32(u, 16);
    __m512i tie = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmpgt_epi32_mask(_mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff)),
                                            _mm512_set1_epi32(0x7f800000));
    up = _mm512_mask_or_epi32(_mm512_srli_epi32(up, 16), nan, upper, _mm512_set1_epi32(64));
    return _mm512_cvtepi32_epi16(up);
}
static inline __attribute__((always_inline)) void keep_bf16(uint16_t *to, __m512i low,
                                                            __m512i high, int stream) {
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(rounded(low)), rounded(high), 1);
    if (stream) _mm512_stream_si512((__m512i *)(void *)to, both);
    else _mm512_storeu_si512(to, both);
}
#include "kernels/cpu/strip_body.h"
#else
typedef int nothing_here; /* another architecture */
#endif
