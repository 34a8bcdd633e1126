/* device.c - threads and instruction sets, asked of OpenMP and the kernels. */
#include "runtime/device.h"
#include "kernels/kernels.h"

#include <omp.h>

void lm_set_threads(int n) { omp_set_num_threads(n < 1 ? 1 : n); }
int lm_threads(void) { return omp_get_max_threads(); }
int lm_has_bf16(void) { return lm_cpu_has_bf16(); }
void lm_set_repeatable(int on) { lm_cpu_gemm_repeatable(on); }
