/* dtype.h - the element types. No includes: the FFI's declarations are made from it too. */
#ifndef LM_DTYPE_H
#define LM_DTYPE_H

enum { LM_F32 = 0, LM_BF16 = 1, LM_I32 = 2, LM_I64 = 3, LM_U8 = 4, LM_DTYPES = 5 };

#endif
