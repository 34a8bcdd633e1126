/* rope.h - the table of rotary positions. */
#ifndef LM_OPS_ROPE_H
#define LM_OPS_ROPE_H

#include "runtime/ops/op.h"

enum { LM_ROPE_MAX_DIM = 1024 };

/* cos and sin, [positions or more, dim / 2], until the next call. x: on whose device. */
int lm__rope_table(const lm_tensor *x, int64_t dim, double base, int64_t positions,
                   const float **cos_table, const float **sin_table);

#endif
