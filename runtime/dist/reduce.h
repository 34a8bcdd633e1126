/* reduce.h - the arithmetic of reductions. */
#ifndef LM_REDUCE_H
#define LM_REDUCE_H

#include <stdint.h>

/* Bytes of an element, 0 for a dtype that cannot be reduced. */
int64_t lm__reduce_size(int dtype);
/* out = parts[0] op parts[1] op ... from left to right. out may be one of the parts.
 * bf16 is summed in f32 and rounded once. */
void lm__reduce_parts(int dtype, int op, int count, const void *const *parts, int64_t n,
                      void *out);

#endif
