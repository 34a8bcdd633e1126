/* dtype.h - the element types and the comparisons. No includes: the FFI reads it too. */
#ifndef LM_DTYPE_H
#define LM_DTYPE_H

enum { LM_F32 = 0, LM_BF16 = 1, LM_I32 = 2, LM_I64 = 3, LM_U8 = 4, LM_DTYPES = 5 };

enum { LM_EQ, LM_NE, LM_LT, LM_LE, LM_GT, LM_GE };

#endif
