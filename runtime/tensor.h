/* tensor.h - an n-dimensional array: a shape over reference-counted storage.
 *
 * Owning:  a call that fills `lm_tensor **out` hands the caller one reference,
 *          to drop with lm_tensor_release. Every other argument is borrowed.
 * Failing: 0, or a negative LM_E* and a sentence in lm_last_error(); *out is
 *          then untouched and nothing is leaked. Nothing here prints or aborts.
 * Views:   share storage with their tensor, and gradients flow through them.
 * Counting: dims and positions from 0; a negative one counts from the end.
 * Threads: one thread owns the runtime; counts are plain ints. */
#ifndef LM_TENSOR_H
#define LM_TENSOR_H

#include "kernels/dtype.h"
#include "runtime/status.h"

enum { LM_MAX_DIMS = 6 };

typedef struct lm_tensor lm_tensor;

/* Creation. Contents of lm_tensor_new are undefined. */
LM_API int lm_tensor_new(int dtype, int ndim, const int64_t *shape, lm_tensor **out);
LM_API int lm_tensor_full(int dtype, int ndim, const int64_t *shape, double value,
                          lm_tensor **out);
LM_API int lm_tensor_arange(int dtype, double start, double step, int64_t count,
                            lm_tensor **out);
/* Copies `count` elements of `dtype` from memory, e.g. of a Lua FFI array. */
LM_API int lm_tensor_from(int dtype, int ndim, const int64_t *shape, const void *src,
                          lm_tensor **out);

LM_API void lm_tensor_retain(lm_tensor *t);
LM_API void lm_tensor_release(lm_tensor *t); /* NULL is a no-op */
/* Drops the data now, while references stay valid: later use is LM_EDISPOSED. */
LM_API void lm_tensor_dispose(lm_tensor *t);
/* Gives the bytes of its storage back while everything else of it stays: any use is
 * LM_EDISPOSED until lm_tensor_load, after which they are undefined. */
LM_API int lm_tensor_unload(lm_tensor *t);
LM_API int lm_tensor_load(lm_tensor *t);

/* What it is. */
LM_API int lm_tensor_dtype(const lm_tensor *t);
LM_API int lm_tensor_ndim(const lm_tensor *t);
LM_API double lm_tensor_numel(const lm_tensor *t);
LM_API double lm_tensor_size(const lm_tensor *t, int dim);   /* 0 <= dim < ndim */
LM_API double lm_tensor_stride(const lm_tensor *t, int dim); /* in elements */
LM_API int lm_tensor_is_contiguous(const lm_tensor *t);
LM_API double lm_tensor_id(const lm_tensor *t); /* unique in the process, for table keys */
LM_API int lm_dtype_size(int dtype);
LM_API const char *lm_dtype_name(int dtype);
/* The first element; NULL when disposed or empty. */
LM_API void *lm_tensor_data(const lm_tensor *t);
/* True when both are views of the same bytes. */
LM_API int lm_tensor_shares_storage(const lm_tensor *a, const lm_tensor *b);
/* Books its bytes under a purpose of memory.h. */
LM_API void lm_tensor_set_purpose(lm_tensor *t, int purpose);

/* One element, by position in row-major order, as a double. */
LM_API int lm_tensor_get(const lm_tensor *t, int64_t position, double *out);
/* All elements in row-major order, converted to doubles. */
LM_API int lm_tensor_read(lm_tensor *t, double *dst, int64_t count);

/* Writes, in place. src broadcasts to t and is converted to its dtype. */
LM_API int lm_tensor_copy(lm_tensor *t, lm_tensor *src);
LM_API int lm_tensor_fill(lm_tensor *t, double value);
/* Takes over the storage of src (same shape; dtype and purpose follow src):
 * how a parameter's handle stays while its bytes change. */
LM_API int lm_tensor_set_data(lm_tensor *t, lm_tensor *src);

/* Autograd. A leaf that requires a gradient collects it in lm_tensor_grad. */
LM_API int lm_tensor_requires_grad(const lm_tensor *t);
LM_API int lm_tensor_set_requires_grad(lm_tensor *t, int on);
LM_API int lm_tensor_is_leaf(const lm_tensor *t);
LM_API int lm_tensor_grad(lm_tensor *t, lm_tensor **out); /* *out = NULL when there is none */
LM_API int lm_tensor_set_grad(lm_tensor *t, LM_MAYBE lm_tensor *grad);
/* f32, or bf16: then the gradient of weights of experts' networks is rounded to it, once, if
 * that is all of the gradient: what comes after is added in f32, and so is what other ranks
 * add. */
LM_API int lm_tensor_grad_dtype(const lm_tensor *t);
LM_API int lm_tensor_set_grad_dtype(lm_tensor *t, int dtype);

#endif
