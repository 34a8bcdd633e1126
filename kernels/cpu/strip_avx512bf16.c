/* strip_avx512bf16.c - the strip over words of two bf16, by the instruction that is for it. */
#if defined(__AVX512BF16__)
#define STRIP lm__strip_avx512bf16
#define FEW   lm__few_avx512bf16
#define LANES 16
#define HIGH  8
#define MULTIPLY_ADD(sum, word, b)                                                             \
    sum = (lanes)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_set1_epi32((int)(word)),     \
                                  (__m512bh)(b))
#define STREAM(to, sum) _mm512_stream_ps((float *)(to), (__m512)(sum))
#include "kernels/cpu/strip_body.h"
#else
typedef int nothing_here; /* another architecture */
#endif
