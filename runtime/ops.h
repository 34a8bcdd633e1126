/* ops.h - the operations, one line each in ops.def. */
#ifndef LM_OPS_H
#define LM_OPS_H

#include "runtime/tensor.h"

#define OP(name, params) LM_API int lm_##name params;
#include "runtime/ops.def"
#undef OP

/* "rms_norm(lm_tensor *x, ...)" of the i-th operation, NULL after the last: what Lua binds. */
LM_API const char *lm_op_signature(int i);

#endif
