/* random.h - random numbers that depend on what they are for, not on who draws them.
 *
 * A draw is keyed by (seed, step, site, call, element): site is the path of the
 * module or a word of the script's, call counts draws at a site within a step.
 * Rows of a tensor may carry ids of their own (global tokens), so that padding
 * and ranks change nothing. */
#ifndef LM_RANDOM_H
#define LM_RANDOM_H

#include "runtime/tensor.h"

LM_API void lm_random_seed(double seed);
LM_API double lm_random_get_seed(void);
LM_API void lm_random_set_step(double step);
LM_API double lm_random_step(void);
/* The stream of (step, site, call), as the kernels take it. Without steps for initial weights.
 */
LM_API uint64_t lm_random_stream(const char *site, double call, int without_step);

/* Fills t, contiguous f32 or bf16: normal with mean a and deviation b, or uniform in [a, b).
 * The last `dims` dims are one row; rows count from `first` (of a sharded tensor), or have ids.
 */
LM_API int lm_random_fill(lm_tensor *t, int normal, double a, double b, uint64_t stream,
                          int dims, double first, LM_MAYBE lm_tensor *row_ids);

#endif
