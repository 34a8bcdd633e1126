/* tensor_impl.h - what the runtime's own files know of a tensor. */
#ifndef LM_TENSOR_IMPL_H
#define LM_TENSOR_IMPL_H

#include "runtime/memory.h"
#include "runtime/tensor.h"

#include <stdbool.h>

typedef struct lm_node lm_node;
typedef struct lm_shard lm_shard; /* shard_impl.h */

/* The bytes. They may be away (data NULL) while tensors, views and what the tape saved go on
 * pointing here; when they come back they may lie elsewhere. */
typedef struct lm_storage {
    int refs;
    int purpose;
    uint32_t
        version; /* counts writes, so that backward can tell what it saved from what is there */
    int64_t bytes;
    char *data;
    bool moved;      /* they were away: what a header says of their place may be old */
    lm_shard *shard; /* borrowed: of the parameter that is divided between ranks, else NULL */
} lm_storage;

/* What every operation looks at comes first; of shape and stride few have all. */
struct lm_tensor {
    int refs;
    int8_t dtype;
    int8_t ndim;
    bool requires_grad;
    int8_t grad_dtype; /* tensor.h */
    int64_t numel;
    char *data;          /* the first element; where it was when lm__usable last looked */
    lm_storage *storage; /* NULL once disposed */
    int64_t offset;      /* in bytes, of the first element in storage */
    lm_node *node;       /* what computed it, or its leaf node; NULL without gradients */
    lm_tensor *grad;     /* leaves only */
    int output;          /* which output of node */
    int64_t id;
    int64_t shape[LM_MAX_DIMS];
    int64_t stride[LM_MAX_DIMS]; /* in elements; 0 where expanded */
};

/* memory.c */
int lm__memory_alloc(int64_t bytes, void **out, int *purpose);
void lm__memory_free(void *p, int64_t bytes, int purpose);
/* The same, but when there is no memory, what is held for later or is under way gives up some:
 * each of these functions is asked in turn, and says whether it did. */
int lm__memory_obtain(int64_t bytes, void **out, int *purpose);
bool lm__memory_is_short(int64_t bytes); /* so many more would be over the soft limit */
void lm__memory_on_pressure(bool (*relieve)(void));
void lm__memory_rebook(int64_t bytes, int from, int to);
/* pin.c: for memory that may still be read or written when whoever has it frees it: the memory
 * is then used for nothing else until whoever pinned it unpins. */
void lm__memory_pin(const void *p, int64_t bytes, const void *by);
void lm__memory_unpin(const void *by);
extern int lm__memory_pins;                                  /* how many there are */
bool lm__memory_pinned(void *p, int64_t bytes, int purpose); /* takes it when it is */
/* Small things that come and go with every operation: undefined contents, NULL when there is
 * no memory; freed with the size they were made with. */
void *lm__object_new(size_t size);
void lm__object_free(void *p, size_t size);

/* A contiguous tensor of another's shape. */
int lm__tensor_like(const lm_tensor *x, int dtype, lm_tensor **out);
/* A new header over x's storage, without gradients. */
int lm__tensor_alias(lm_tensor *x, lm_tensor **out);
/* A view with its own shape and strides, offset in elements from x's first. No gradients. */
int lm__tensor_view(lm_tensor *x, int ndim, const int64_t *shape, const int64_t *stride,
                    int64_t offset, lm_tensor **out);
/* x itself (retained) when it is contiguous and of the dtype, else a copy. No gradients. */
int lm__tensor_dense(lm_tensor *x, int dtype, lm_tensor **out);
/* lm_sum with an f32 result, also of bf16: sums of sums are not rounded in between. */
int lm__sum_f32(lm_tensor *x, int64_t dim, int keepdim, lm_tensor **out);
/* LM_EDISPOSED or LM_EARG unless x can be read by `op`. Whoever reads x->data asks first: bytes
 * that were away and came back are found again here. */
int lm__usable(const char *op, const lm_tensor *x);
/* The same of its header alone: its bytes may be away. */
int lm__exists(const char *op, const lm_tensor *x);

/* Gives the bytes back to the pool; brings them again, with undefined contents. Neither is a
 * write: versions stay. Both may be called when there is nothing to do. */
void lm__storage_drop(lm_storage *s);
int lm__storage_restore(lm_storage *s);

bool lm__is_float(int dtype);
bool lm__same_shape(const lm_tensor *a, const lm_tensor *b);
/* dim in [-ndim, ndim) to [0, ndim); a scalar counts as one dim. */
int lm__dim(const char *op, const lm_tensor *x, int64_t dim, int *out);
/* "[2, 3] f32" into buf, which it returns. */
char *lm__describe(const lm_tensor *t, char buf[96]);
char *lm__shape_text(int ndim, const int64_t *shape, char buf[96]);
void lm__contiguous_strides(int ndim, const int64_t *shape, int64_t *stride);
/* Strides under which src reads as `shape`; LM_ESHAPE (no sentence) when it does not broadcast.
 */
int lm__broadcast_strides(const lm_tensor *src, int ndim, const int64_t *shape,
                          int64_t *stride);

#endif
