/* copy.c - strided copies between any two dtypes, and filling.
 *
 * Dimensions of one are dropped and neighbours that are contiguous in both arrays merge, so
 * most copies become one long row. Where the two arrays have different fast dimensions (a
 * transpose) the copy goes by square tiles, which stay in the cache. */
#include "kernels/cpu/cpu.h"

#include <string.h>

typedef void row_fn(void *dst, int64_t ds, const void *src, int64_t ss, int64_t n);

#define AS_IS(v)      (v)
#define FROM_BF16(v)  lm_bf16_to_f32(v)
#define TO_BF16(v)    lm_f32_to_bf16((float)(v))
#define IS_NONZERO(v) (uint8_t)((v) != 0)

#define ROW(name, DT, ST, LOAD, STORE)                                                         \
    LM_CLONES static void name(void *dst, int64_t ds, const void *src, int64_t ss,             \
                               int64_t n) {                                                    \
        DT *restrict d = dst;                                                                  \
        const ST *restrict s = src;                                                            \
        if (ds == 1 && ss == 1)                                                                \
            for (int64_t i = 0; i < n; i++) d[i] = (DT)STORE(LOAD(s[i]));                      \
        else if (ds == 1 && ss == 0)                                                           \
            for (int64_t i = 0; i < n; i++) d[i] = (DT)STORE(LOAD(s[0]));                      \
        else                                                                                   \
            for (int64_t i = 0; i < n; i++) d[i * ds] = (DT)STORE(LOAD(s[i * ss]));            \
    }

ROW(copy1, uint8_t, uint8_t, AS_IS, AS_IS)
ROW(copy2, uint16_t, uint16_t, AS_IS, AS_IS)
ROW(copy4, uint32_t, uint32_t, AS_IS, AS_IS)
ROW(copy8, uint64_t, uint64_t, AS_IS, AS_IS)

ROW(f32_bf16, float, uint16_t, FROM_BF16, AS_IS)
ROW(f32_i32, float, int32_t, AS_IS, AS_IS)
ROW(f32_i64, float, int64_t, AS_IS, AS_IS)
ROW(f32_u8, float, uint8_t, AS_IS, AS_IS)
ROW(bf16_f32, uint16_t, float, AS_IS, TO_BF16)
ROW(bf16_i32, uint16_t, int32_t, AS_IS, TO_BF16)
ROW(bf16_i64, uint16_t, int64_t, AS_IS, TO_BF16)
ROW(bf16_u8, uint16_t, uint8_t, AS_IS, TO_BF16)
ROW(i32_f32, int32_t, float, AS_IS, AS_IS)
ROW(i32_bf16, int32_t, uint16_t, FROM_BF16, AS_IS)
ROW(i32_i64, int32_t, int64_t, AS_IS, AS_IS)
ROW(i32_u8, int32_t, uint8_t, AS_IS, AS_IS)
ROW(i64_f32, int64_t, float, AS_IS, AS_IS)
ROW(i64_bf16, int64_t, uint16_t, FROM_BF16, AS_IS)
ROW(i64_i32, int64_t, int32_t, AS_IS, AS_IS)
ROW(i64_u8, int64_t, uint8_t, AS_IS, AS_IS)
ROW(u8_f32, uint8_t, float, AS_IS, IS_NONZERO)
ROW(u8_bf16, uint8_t, uint16_t, FROM_BF16, IS_NONZERO)
ROW(u8_i32, uint8_t, int32_t, AS_IS, AS_IS)
ROW(u8_i64, uint8_t, int64_t, AS_IS, AS_IS)

static row_fn *const rows[LM_DTYPES][LM_DTYPES] = {
    [LM_F32] = {copy4, f32_bf16, f32_i32, f32_i64, f32_u8},
    [LM_BF16] = {bf16_f32, copy2, bf16_i32, bf16_i64, bf16_u8},
    [LM_I32] = {i32_f32, i32_bf16, copy4, i32_i64, i32_u8},
    [LM_I64] = {i64_f32, i64_bf16, i64_i32, copy8, i64_u8},
    [LM_U8] = {u8_f32, u8_bf16, u8_i32, u8_i64, copy1},
};

typedef struct {
    int64_t size, dst, src;
} dim;

static int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

/* Drops sizes of one, sorts by dst stride (largest first), merges. Returns the count. */
static int normalise(dim *dims, int ndim, const int64_t *shape, const int64_t *dst_stride,
                     const int64_t *src_stride) {
    int n = 0;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] == 1) continue;
        dim d = {shape[i], dst_stride[i], src_stride[i]};
        int j = n++;
        for (; j > 0 && magnitude(dims[j - 1].dst) < magnitude(d.dst); j--)
            dims[j] = dims[j - 1];
        dims[j] = d;
    }
    int kept = 0;
    for (int i = 0; i < n; i++) {
        dim *last = kept > 0 ? &dims[kept - 1] : NULL;
        if (last && last->dst == dims[i].dst * dims[i].size &&
            last->src == dims[i].src * dims[i].size) {
            last->size *= dims[i].size;
            last->dst = dims[i].dst;
            last->src = dims[i].src;
        } else dims[kept++] = dims[i];
    }
    return kept;
}

/* Offsets of the outer dims' element number i. */
static void locate(const dim *dims, int n, int64_t i, int64_t *dst, int64_t *src) {
    *dst = *src = 0;
    for (int d = n - 1; d >= 0; d--) {
        int64_t at = i % dims[d].size;
        i /= dims[d].size;
        *dst += at * dims[d].dst;
        *src += at * dims[d].src;
    }
}

static void copy_tile(row_fn *row, char *dst, size_t dst_size, dim outer, dim inner,
                      const char *src, size_t src_size, int64_t o0, int64_t i0, int64_t side) {
    int64_t o1 = lm__min(o0 + side, outer.size), len = lm__min(side, inner.size - i0);
    for (int64_t o = o0; o < o1; o++)
        row(dst + (o * outer.dst + i0 * inner.dst) * (int64_t)dst_size, inner.dst,
            src + (o * outer.src + i0 * inner.src) * (int64_t)src_size, inner.src, len);
}

int lm_cpu_copy_strided(void *dst, int dst_dtype, const void *src, int src_dtype, int ndim,
                        const int64_t *shape, const int64_t *dst_stride,
                        const int64_t *src_stride) {
    enum { SIDE = 32, SPLIT = 16384 };
    row_fn *row = rows[dst_dtype][src_dtype];
    size_t dst_size = lm__size(dst_dtype), src_size = lm__size(src_dtype);
    dim dims[LM_KERNEL_MAX_DIMS + 1];
    int64_t total = 1;
    for (int i = 0; i < ndim; i++) total *= shape[i];
    if (total == 0) return LM_KERNEL_OK;
    int n = normalise(dims, ndim, shape, dst_stride, src_stride);
    if (n == 0) {
        row(dst, 1, src, 1, 1);
        return LM_KERNEL_OK;
    }
    dim inner = dims[--n];
    char *d = dst;
    const char *s = src;

    /* the dim in which src is fast, if that is another than the inner one: tiles over both */
    int fast = -1;
    if (inner.src != 1 && inner.src != 0)
        for (int i = 0; i < n; i++)
            if (dims[i].src == 1) fast = i;
    if (fast >= 0) {
        dim outer = dims[fast];
        for (int i = fast; i + 1 < n; i++) dims[i] = dims[i + 1];
        n--;
        int64_t across = lm__ceil_div(inner.size, SIDE), down = lm__ceil_div(outer.size, SIDE);
        int64_t plane = outer.size * inner.size;
#pragma omp parallel for schedule(static) num_threads(lm__threads(total))
        for (int64_t t = 0; t < total / plane * across * down; t++) {
            int64_t to, from, at = t % (across * down);
            locate(dims, n, t / (across * down), &to, &from);
            copy_tile(row, d + to * (int64_t)dst_size, dst_size, outer, inner,
                      s + from * (int64_t)src_size, src_size, at / across * SIDE,
                      at % across * SIDE, SIDE);
        }
        return LM_KERNEL_OK;
    }

    int64_t pieces = lm__ceil_div(inner.size, SPLIT);
#pragma omp parallel for schedule(static) num_threads(lm__threads(total))
    for (int64_t t = 0; t < total / inner.size * pieces; t++) {
        int64_t to, from, at = t % pieces * SPLIT;
        locate(dims, n, t / pieces, &to, &from);
        row(d + (to + at * inner.dst) * (int64_t)dst_size, inner.dst,
            s + (from + at * inner.src) * (int64_t)src_size, inner.src,
            lm__min(SPLIT, inner.size - at));
    }
    return LM_KERNEL_OK;
}

int lm_cpu_fill(void *dst, int dtype, int64_t n, double value) {
    union {
        float f32;
        uint16_t bf16;
        int32_t i32;
        int64_t i64;
        uint8_t u8;
    } one = {.i64 = 0};
    switch (dtype) {
    case LM_F32: one.f32 = (float)value; break;
    case LM_BF16: one.bf16 = lm_f32_to_bf16((float)value); break;
    case LM_I32: one.i32 = (int32_t)value; break;
    case LM_I64: one.i64 = (int64_t)value; break;
    case LM_U8: one.u8 = (uint8_t)value; break;
    default: return LM_KERNEL_EDTYPE;
    }
    if (value == 0 && n <= LM_PARALLEL_FROM) {
        memset(dst, 0, (size_t)n * lm__size(dtype));
        return LM_KERNEL_OK;
    }
    const int64_t to = 1, from = 0;
    return lm_cpu_copy_strided(dst, dtype, &one, dtype, 1, &n, &to, &from);
}
