/* strip_avx512.c - 8 rows by two registers: 16 sums, where 8 would keep the units busy. */
#if defined(__AVX512F__)
#define STRIP           lm__strip_avx512
#define FEW             lm__few_avx512
#define OUTER           lm__outer_avx512
#define ACROSS          lm__across_avx512
#define LANES           16
#define HIGH            8
#define STREAM(to, sum) _mm512_stream_ps((float *)(to), (__m512)(sum))
#include "kernels/cpu/strip_body.h"
#else
typedef int nothing_here; /* another architecture */
#endif
