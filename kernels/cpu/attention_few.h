/* attention_few.h - attention for a few queries of each sequence. */
#ifndef LM_CPU_ATTENTION_FEW_H
#define LM_CPU_ATTENTION_FEW_H

#include "kernels/cpu/cpu.h"

enum { LM_ATTENTION_FEW = 8 };

/* As lm_cpu_attention_fwd, which hands over: without rotary positions; any number of queries,
 * so many of them at a time. */
int lm__attention_few(const lm_attention *p, void *o, float *lse, const void *q, const void *k,
                      const void *v);

#endif
