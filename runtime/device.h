/* device.h - what the kernels run on. */
#ifndef LM_DEVICE_H
#define LM_DEVICE_H

#include "runtime/status.h"

LM_API void lm_set_threads(int n);
LM_API int lm_threads(void);
/* 1 when this CPU multiplies bf16 itself, so that bf16 is worth its rounding. */
LM_API int lm_has_bf16(void);
/* 1: a matrix product has the same bits in every process, whatever each has computed before; a
 * little slower where sizes never change. */
LM_API void lm_set_repeatable(int on);

#endif
