/* sort.c - sort and topk. Every value becomes an unsigned 64-bit key whose order is the wanted
 * one (NaN greatest, -0 equal to 0), so one stable merge sort serves all dtypes and both
 * directions. topk keeps the k best of a row in a short sorted list: k is small, and most of a
 * long row is passed over in blocks of which none is better than the list's last. */
#include "kernels/cpu/cpu.h"

#include <string.h>

typedef struct {
    uint64_t key;
    int64_t index;
} item;

static uint64_t float_key(float v) {
    uint32_t u;
    if (v != v) return UINT64_MAX;
    if (v == 0) v = 0; /* -0 */
    memcpy(&u, &v, sizeof u);
    return u >> 31 ? (uint32_t)~u : u | 0x80000000u;
}

static uint64_t key_of(int dtype, const void *x, int64_t i) {
    switch (dtype) {
    case LM_F32: return float_key(((const float *)x)[i]);
    case LM_BF16: return float_key(lm_bf16_to_f32(((const uint16_t *)x)[i]));
    case LM_I32: return (uint64_t)((const int32_t *)x)[i] ^ (UINT64_C(1) << 63);
    case LM_I64: return (uint64_t)((const int64_t *)x)[i] ^ (UINT64_C(1) << 63);
    default: return ((const uint8_t *)x)[i];
    }
}

static void move_value(int dtype, void *values, int64_t to, const void *x, int64_t from) {
    size_t size = lm__size(dtype);
    if (values)
        memcpy((char *)values + (size_t)to * size, (const char *)x + (size_t)from * size, size);
}

/* Bottom-up merges of a[0..n) through b; the result's place. Equal keys keep their order. */
static item *merge_sort(item *a, item *b, int64_t n) {
    for (int64_t i = 1; i < n; i++) { /* runs of 8 by insertion */
        item v = a[i];
        int64_t j = i;
        for (; j % 8 != 0 && a[j - 1].key > v.key; j--) a[j] = a[j - 1];
        a[j] = v;
    }
    for (int64_t run = 8; run < n; run *= 2) {
        for (int64_t at = 0; at < n; at += 2 * run) {
            int64_t i = at, mid = lm__min(n, at + run), j = mid, end = lm__min(n, at + 2 * run);
            for (int64_t to = at; to < end; to++)
                b[to] = j == end || (i < mid && a[i].key <= a[j].key) ? a[i++] : a[j++];
        }
        item *swap = a;
        a = b;
        b = swap;
    }
    return a;
}

int lm_cpu_sort(int dtype, int64_t rows, int64_t n, int descending, void *values,
                int64_t *index, const void *x) {
    int failed = 0;
    uint64_t flip = descending ? UINT64_MAX : 0;
#pragma omp parallel num_threads(lm__threads(8 * rows * n)) reduction(| : failed)
    {
        int64_t r, end;
        lm__share(rows, &r, &end);
        item *buf = lm__scratch(LM_SCRATCH_ROW, (size_t)(2 * n) * sizeof *buf);
        failed = !buf;
        for (; r < end && buf; r++) {
            for (int64_t i = 0; i < n; i++)
                buf[i] = (item){key_of(dtype, x, r * n + i) ^ flip, i};
            const item *sorted = merge_sort(buf, buf + n, n);
            for (int64_t i = 0; i < n; i++) {
                index[r * n + i] = sorted[i].index;
                move_value(dtype, values, r * n + i, x, r * n + sorted[i].index);
            }
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}

enum { BLOCK = 128 };

/* Whether one of the n is greater than `least`, or NaN. */
LM_CLONES static int any_above(const float *x, int64_t n, float least) {
    int any = 0;
    for (int64_t i = 0; i < n; i++) any |= !(x[i] <= least);
    return any;
}

/* The k best of x[at..at + n) into the sorted list `best` of `have`; how many it has then. */
static int64_t merge_best(item *best, int64_t have, int64_t k, int dtype, const void *x,
                          int64_t row, int64_t at, int64_t n) {
    for (int64_t i = at; i < at + n; i++) {
        uint64_t key = key_of(dtype, x, row + i);
        if (have == k && key <= best[k - 1].key) continue;
        int64_t j = have < k ? have++ : k - 1;
        for (; j > 0 && best[j - 1].key < key; j--) best[j] = best[j - 1];
        best[j] = (item){key, i};
    }
    return have;
}

static void best_of_row(item *best, int64_t k, int dtype, const void *x, int64_t row,
                        int64_t n) {
    float buf[BLOCK];
    int64_t have = 0;
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t len = lm__min(BLOCK, n - at);
        if (have == k && lm__is_float(dtype)) {
            float least = *lm__load(dtype, x, row + best[k - 1].index, 1, buf);
            if (!any_above(lm__load(dtype, x, row + at, len, buf), len, least)) continue;
        }
        have = merge_best(best, have, k, dtype, x, row, at, len);
    }
}

int lm_cpu_topk(int dtype, int64_t rows, int64_t n, int64_t k, void *values, int64_t *index,
                const void *x) {
    if (k < 0 || k > n) return LM_KERNEL_EARG;
    if (k == 0) return LM_KERNEL_OK;
    int failed = 0;
#pragma omp parallel num_threads(lm__threads(2 * rows * n)) reduction(| : failed)
    {
        int64_t r, end;
        lm__share(rows, &r, &end);
        int all = k > 64; /* a long list: sort the row instead */
        item *best = lm__scratch(LM_SCRATCH_ROW, (size_t)(all ? 2 * n : k) * sizeof *best);
        failed = !best;
        for (; r < end && best; r++) {
            const item *found = best;
            if (all) {
                for (int64_t i = 0; i < n; i++)
                    best[i] = (item){~key_of(dtype, x, r * n + i), i};
                found = merge_sort(best, best + n, n);
            } else best_of_row(best, k, dtype, x, r * n, n);
            for (int64_t i = 0; i < k; i++) {
                index[r * k + i] = found[i].index;
                move_value(dtype, values, r * k + i, x, r * n + found[i].index);
            }
        }
    }
    return failed ? LM_KERNEL_EOOM : LM_KERNEL_OK;
}
