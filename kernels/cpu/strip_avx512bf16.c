/* strip_avx512bf16.c - the strip over words of two bf16, by the instruction that is for it. */
#if defined(__AVX512BF16__)
#define STRIP  lm__strip_avx512bf16
#define FEW    lm__few_avx512bf16
#define OUTER  lm__outer_avx512bf16
#define ACROSS lm__across_avx512bf16
#define LANES  16
#define HIGH   8
#define MULTIPLY_ADD(sum, word, b)                                                             \
    sum = (lanes)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_set1_epi32((int)(word)),     \
                                  (__m512bh)(b))
/* half of what MULTIPLY_ADD has spread */
#define MULTIPLY_ADD_HALF(sum, word, b)                                                        \
    sum = (half_lanes)_mm256_dpbf16_ps(                                                        \
        (__m256)(sum), (__m256bh)_mm512_castsi512_si256(_mm512_set1_epi32((int)(word))),       \
        (__m256bh)(b))
#define STREAM(to, sum) _mm512_stream_ps((float *)(to), (__m512)(sum))
#define COLUMNS(v, row, below)                                                                 \
    ((v)[0] = (lanes)woven(weave[0], row, below), (v)[1] = (lanes)woven(weave[1], row, below))
#define NARROW(to, low, high, stream) keep_bf16(to, (__m512)(low), (__m512)(high), stream)
#include <immintrin.h>
#include <stdint.h>
static inline __attribute__((always_inline)) void keep_bf16(uint16_t *to, __m512 low,
                                                            __m512 high, int stream) {
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (stream) _mm512_stream_si512((__m512i *)(void *)to, both);
    else _mm512_storeu_si512(to, both);
}
/* numbers of a row and of the one below it, in turns */
static const uint16_t weave[2][32] = {
    {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
    {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
     24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
static inline __attribute__((always_inline)) __m512i woven(const uint16_t *by, const void *row,
                                                           const void *below) {
    return _mm512_permutex2var_epi16(_mm512_loadu_si512(row), _mm512_loadu_si512(by),
                                     _mm512_loadu_si512(below));
}
#include "kernels/cpu/strip_body.h"
#else
typedef int nothing_here; /* another architecture */
#endif
