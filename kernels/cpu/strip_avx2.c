/* strip_avx2.c - 4 rows by two registers at once, of the 16 that there are. */
#if defined(__AVX2__)
#define STRIP  lm__strip_avx2
#define FEW    lm__few_avx2
#define OUTER  lm__outer_avx2
#define ACROSS lm__across_avx2
#define LANES  8
#define HIGH   4
#define MULTIPLY_ADD(sum, word, b)                                                             \
    sum = (lanes)_mm256_fmadd_ps(_mm256_set1_ps(as_float(word)), (__m256)(b), (__m256)(sum))
#define STREAM(to, sum) _mm256_stream_ps((float *)(to), (__m256)(sum))
#include "kernels/cpu/strip_body.h"
#else
typedef int nothing_here; /* another architecture */
#endif
