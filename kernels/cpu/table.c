/* table.c - the CPU backend: kernels.def once more, as rows. A kernel that is listed but not
 * written is a link error. */
#include "kernels/kernels.h"

const lm_kernels lm_cpu_kernels = {
#define KERNEL(name, where, params) .name = lm_cpu_##name,
#include "kernels/kernels.def"
#undef KERNEL
};
