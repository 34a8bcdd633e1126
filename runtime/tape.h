/* tape.h - how an operation records itself and gives gradients.
 *
 *   forward:   lm__record ties outputs to inputs; *node is NULL when no gradient
 *              is wanted. lm__save keeps what backward needs (an alias: the tape
 *              never holds the user's handle), i[] and f[] the small things.
 *   backward:  reads lm__grad(n, 0) and lm__saved(n, slot), and hands each input's
 *              gradient to lm__give, which takes the reference whatever happens and
 *              sums over what was broadcast. */
#ifndef LM_TAPE_H
#define LM_TAPE_H

#include "runtime/autograd.h"
#include "runtime/tensor_impl.h"

enum { LM_MAX_SAVED = 12, LM_MAX_SCALARS = 8 };

typedef struct lm_edge {
    lm_node *node; /* NULL: this input wants no gradient */
    int output;
    int ndim; /* of the input: its gradient is reduced to this shape when it was broadcast */
    int64_t shape[LM_MAX_DIMS];
} lm_edge;

typedef int (*lm_backward_fn)(lm_node *n);

struct lm_node {
    int refs;
    int custom;
    int64_t seq; /* rises: inputs come before what uses them */
    const char *op;
    lm_backward_fn backward; /* NULL for leaves and custom functions */
    int inputs, outputs;
    lm_edge *edge;    /* [inputs] */
    lm_tensor **grad; /* [outputs], collected during backward */
    int8_t *dtype;    /* [outputs] */
    lm_tensor *leaf;  /* weak; leaves only */
    struct lm_region
        *region; /* the unit being run when it was recorded; NULL: none (shard.h) */
    int64_t walk;
    void *extra; /* anything else; freed with free_extra */
    void (*free_extra)(void *);
    bool done; /* backward went through it and freed what it saved */
    int slots; /* of saved, those that may be in use; version, f and i are undefined until set
                */
    lm_tensor *saved[LM_MAX_SAVED];
    uint32_t version[LM_MAX_SAVED];
    int64_t i[LM_MAX_SCALARS];
    double f[LM_MAX_SCALARS];
};

bool lm__grad_enabled(void);
/* Whether lm__record would: gradients are recorded, and some input, if not NULL, wants one. */
bool lm__recording(int inputs, lm_tensor *const *in);
int lm__record(const char *op, lm_backward_fn backward, int inputs, lm_tensor *const *in,
               int outputs, lm_tensor *const *out, lm_node **node);
int lm__save(lm_node *n, int slot, lm_tensor *t); /* n or t may be NULL */
/* Borrowed. LM_EGRAD when it was written since. *out may come back NULL if NULL was saved. */
int lm__saved(lm_node *n, int slot, lm_tensor **out);
lm_tensor *lm__grad(lm_node *n, int output); /* borrowed; NULL when none arrived */
bool lm__wants(const lm_node *n, int input);
int lm__give(lm_node *n, int input, lm_tensor *grad);
/* The same for a part of the input, which lies there by these strides and offset (of the input
 * when it is contiguous); the rest of the gradient is 0. Borrows part. */
int lm__give_part(lm_node *n, int input, lm_tensor *part, const int64_t *stride,
                  int64_t offset);
/* What has been given to an input so far, where the gradient may be written in place: of the
 * dtype, and nobody else's. Borrowed; NULL otherwise, and when nothing was given. */
lm_tensor *lm__given(lm_node *n, int input, int dtype);
bool lm__ours_alone(const lm_tensor *t); /* contiguous, and no other handle or view of it */
/* The contiguous f32 gradient of a leaf input, for kernels that add into it (which saves a
 * buffer and a pass); NULL when the input is no leaf. Borrowed. *fresh: it was made just now
 * and holds nothing; then it is of the leaf's grad_dtype, if that may be `narrow`. */
int lm__leaf_grad(lm_node *n, int input, bool narrow, lm_tensor **out, bool *fresh);

void lm__node_release(lm_node *n);
void lm__node_release_from(lm_node *n, lm_tensor *t); /* t is going away */
bool lm__node_is_leaf(const lm_node *n);

#endif
