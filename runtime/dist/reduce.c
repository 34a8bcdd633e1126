/* reduce.c - sums, maxima and minima of several arrays, from left to right.
 *
 * Block by block over all the parts, so that out may be any of them and
 * nothing is rounded between two ranks' shares of a bf16 sum. */
#include "runtime/dist/reduce.h"
#include "runtime/dist.h"

#include <string.h>

enum { BLOCK = 1024 }; /* elements added up at a time, in the first-level cache */

int64_t lm__reduce_size(int dtype) {
    switch (dtype) {
    case LM_F64:
    case LM_I64: return 8;
    case LM_F32:
    case LM_I32: return 4;
    case LM_BF16: return 2;
    case LM_U8: return 1;
    default: return 0;
    }
}

static float from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint16_t to_bf16(float f) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#define SAME(x) (x)
/* A NaN wins a maximum: one rank's fault must not vanish. */
#define MAX_OF(a, b)      ((b) > (a) || (b) != (b) ? (b) : (a))
#define MIN_OF(a, b)      ((b) < (a) || (b) != (b) ? (b) : (a))
#define SUM_OF(a, b)      ((a) + (b))
#define WRAPPED_SUM(a, b) ((uint64_t)(a) + (uint64_t)(b)) /* integers wrap, as in PyTorch */

#define LOOP(T, ACC, GET, PUT, OP)                                                             \
    for (int64_t first = 0; first < n; first += BLOCK) {                                       \
        ACC acc[BLOCK];                                                                        \
        int64_t len = n - first < BLOCK ? n - first : BLOCK;                                   \
        const T *x = (const T *)parts[0] + first;                                              \
        for (int64_t i = 0; i < len; i++) acc[i] = GET(x[i]);                                  \
        for (int p = 1; p < count; p++) {                                                      \
            x = (const T *)parts[p] + first;                                                   \
            for (int64_t i = 0; i < len; i++) acc[i] = (ACC)OP(acc[i], GET(x[i]));             \
        }                                                                                      \
        for (int64_t i = 0; i < len; i++) ((T *)out)[first + i] = (T)PUT(acc[i]);              \
    }

#define REDUCE(name, T, ACC, GET, PUT, SUM)                                                    \
    static void name(int op, int count, const void *const *parts, int64_t n, void *out) {      \
        if (op == LM_REDUCE_MAX) LOOP(T, ACC, GET, PUT, MAX_OF)                                \
        else if (op == LM_REDUCE_MIN) LOOP(T, ACC, GET, PUT, MIN_OF)                           \
        else LOOP(T, ACC, GET, PUT, SUM)                                                       \
    }

REDUCE(reduce_f32, float, float, SAME, SAME, SUM_OF)
REDUCE(reduce_f64, double, double, SAME, SAME, SUM_OF)
REDUCE(reduce_bf16, uint16_t, float, from_bf16, to_bf16, SUM_OF)
REDUCE(reduce_i32, int32_t, int32_t, SAME, SAME, WRAPPED_SUM)
REDUCE(reduce_i64, int64_t, int64_t, SAME, SAME, WRAPPED_SUM)
REDUCE(reduce_u8, uint8_t, uint8_t, SAME, SAME, WRAPPED_SUM)

void lm__reduce_parts(int dtype, int op, int count, const void *const *parts, int64_t n,
                      void *out) {
    switch (dtype) {
    case LM_F32: reduce_f32(op, count, parts, n, out); break;
    case LM_F64: reduce_f64(op, count, parts, n, out); break;
    case LM_BF16: reduce_bf16(op, count, parts, n, out); break;
    case LM_I32: reduce_i32(op, count, parts, n, out); break;
    case LM_I64: reduce_i64(op, count, parts, n, out); break;
    default: reduce_u8(op, count, parts, n, out); break;
    }
}
