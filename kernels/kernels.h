/* kernels.h - the numeric work behind one table of entry points, one table per backend.
 *
 * A kernel is a pure function over pointers and sizes. It knows no tensors, allocates no
 * result, and gives the same bits for any number of threads (matrix products excepted: their
 * library may split the inner dimension among threads).
 *
 * dtype    an LM_F32.. constant. "D" below means f32 or bf16; the arithmetic is f32.
 * strides  in elements, not bytes. Without strides, arrays are contiguous and row-major.
 * bf16     travels as uint16_t.
 * result   0, or one of LM_KERNEL_*: the same numbers as LM_E* of runtime/status.h.
 */
#ifndef LM_KERNELS_H
#define LM_KERNELS_H

#include <stdint.h>

#include "kernels/dtype.h"

enum {
    LM_KERNEL_OK = 0,
    LM_KERNEL_EARG = -1,     /* an id out of range; *bad says which */
    LM_KERNEL_EDTYPE = -3,   /* not a type this kernel has */
    LM_KERNEL_EOOM = -4,     /* no scratch memory */
    LM_KERNEL_EINTERNAL = -9 /* the matrix library refused */
};

enum { LM_KERNEL_MAX_DIMS = 6 };

enum { LM_ADD, LM_SUB, LM_MUL, LM_DIV, LM_MAXIMUM, LM_MINIMUM, LM_POW }; /* binary */
enum { LM_SUM, LM_MEAN, LM_MAX, LM_MIN };                                /* reduce */

/* unary. Its backward reads y for those marked y, x for the others; the other may be NULL. */
enum {
    LM_NEG,
    LM_EXP, /* y */
    LM_LOG,
    LM_SQRT,  /* y */
    LM_RSQRT, /* y */
    LM_ABS,
    LM_RELU,      /* y */
    LM_GELU,      /* with erf, as PyTorch's approximate='none' */
    LM_GELU_TANH, /* PyTorch's approximate='tanh' */
    LM_SILU,
    LM_TANH,    /* y */
    LM_SIGMOID, /* y */
    LM_SQUARE,
    LM_RECIPROCAL, /* y */
    LM_SIN,
    LM_COS,
    LM_UNARY_OPS
};
enum { LM_SWIGLU = LM_UNARY_OPS }; /* where an activation is asked for: silu(gate) up */

/* A matrix, or a batch of them, anywhere in memory. */
typedef struct lm_matrix {
    void *data;
    int dtype;
    int64_t batch_stride, row_stride, col_stride;
} lm_matrix;

/* Where head h of sequence b at time t lies; its dim elements are contiguous. */
typedef struct lm_heads {
    int64_t batch, head, time;
} lm_heads;

typedef struct lm_attention {
    int dtype;                    /* of q k v o and of their gradients */
    int causal;                   /* query i sees keys up to i + (tk - tq) */
    int64_t batch, heads, tq, tk; /* heads of q */
    int64_t kv_heads;             /* divides heads */
    int64_t dim;                  /* of one head */
    double scale;                 /* of the scores, 1 / sqrt(dim) as a rule */
    const uint8_t *key_mask;      /* [batch, tk], 1 = a key that may be seen; or NULL */
    const float *cos, *sin;       /* [tq and tk at least, dim / 2]: rotary positions, by which
                                     q and k turn as they are read; or NULL */
    lm_heads q, k, v, o;          /* strides of the values */
    lm_heads dq, dk, dv, d_o;     /* strides of the gradients, for backward alone */
    const int32_t *rows; /* [batch, rows_step]: in which row of k and v each key of a sequence
                            is; or NULL: its own. Forward only, without rotary positions */
    int64_t rows_step;
} lm_attention;

/* Experts that are feed-forward networks: y = down(f(up(x))), of the rows that each gets. */
typedef struct lm_ffn {
    int dtype;      /* of x, y, the weights, what is saved; f32 or bf16 */
    int activation; /* LM_RELU, LM_GELU, LM_GELU_TANH, LM_SILU or LM_SWIGLU */
    int64_t experts, dim, hidden;
    const int64_t *offset; /* [experts + 1]: expert e has arrivals offset[e] .. */
    const int32_t *row;    /* [arrivals]: which row of x, and of dy; NULL: that number */
    const void *up, *down; /* [experts, wide, dim], gate above up for LM_SWIGLU: wide is
                              hidden or twice that; [experts, dim, hidden] */
    const void *up_bias, *down_bias; /* [experts, wide], [experts, dim], or NULL */
    int bias_dtype;
} lm_ffn;

typedef struct lm_ffn_gradients { /* any may be NULL: not wanted */
    void *dx;                     /* [arrivals, dim] */
    float *dscale;                /* [arrivals]: of what each y was multiplied by */
    void *up, *down;              /* as the weights */
    float *up_bias, *down_bias;   /* as the biases */
    int up_dtype, down_dtype;     /* f32, or bf16, which is written only */
    int add_up, add_down, add_up_bias, add_down_bias; /* to what is there, or written */
} lm_ffn_gradients;

/* Which random numbers: element j of row r has number index(r) * n + j of the sequence
 * (seed, stream), where index(r) = row_ids ? row_ids[r] : first + r. So a token's numbers do
 * not depend on its neighbours, on padding or on the slice that this rank holds. */
typedef struct lm_draw {
    uint64_t seed, stream;
    int64_t first;
    const int64_t *row_ids; /* [rows] or NULL */
} lm_draw;

/* Random bits for the elements of a part of a tensor: element e is number first + e of the
 * part, which is the same number of the whole, or lies in it by blocks of `unit` elements. */
typedef struct lm_dither {
    uint64_t seed, stream;
    int64_t first, unit;
    const int64_t *blocks; /* numbers in the whole; NULL: the part is the whole */
} lm_dither;

typedef struct lm_kernels {
#define KERNEL(name, where, params) int(*name) params;
#include "kernels/kernels.def"
#undef KERNEL
} lm_kernels;

#define KERNEL(name, where, params) int lm_cpu_##name params;
#include "kernels/kernels.def"
#undef KERNEL

extern const lm_kernels lm_cpu_kernels;

/* 1 when this CPU multiplies bf16 itself; otherwise bf16 products run through f32. */
int lm_cpu_has_bf16(void);
/* 1: what lm_cpu_gemm gives depends on its arguments alone, not on its calls before. */
void lm_cpu_gemm_repeatable(int on);

#endif
