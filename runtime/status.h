/* status.h - how every public call reports failure: 0, or a negative LM_E*
 * and a sentence in lm_last_error(). Nothing here prints or aborts. */
#ifndef LM_STATUS_H
#define LM_STATUS_H

#ifndef LM_CDEF
#include <stddef.h>
#include <stdint.h>
#define LM_API __attribute__((visibility("default")))
#else
#define LM_API
#endif

#define LM_MAYBE /* before a pointer parameter: NULL (Lua's nil) is allowed */

enum {
    LM_OK = 0,
    LM_EARG = -1,      /* a value that cannot be */
    LM_ESHAPE = -2,    /* sizes do not fit */
    LM_EDTYPE = -3,    /* types do not fit */
    LM_EOOM = -4,      /* no memory, or over the limit */
    LM_EDISPOSED = -5, /* a handle whose data was dropped */
    LM_EIO = -6,       /* a file or a socket */
    LM_ECOMM = -7,     /* a collective */
    LM_EGRAD = -8,     /* autograd used wrongly */
    LM_EINTERNAL = -9, /* a fault of Lumoe's own */
    LM_EUSER = -10     /* what the program was asked for cannot be */
};

/* The sentence of the last failure on this thread. */
LM_API const char *lm_last_error(void);

#ifndef LM_CDEF
/* Writes the sentence, returns the code: `return lm_fail(LM_EARG, "topk: k is %d", k);` */
LM_API int lm_fail(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#endif

#endif
