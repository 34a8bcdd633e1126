/* strip.c - which strip this CPU runs, the one for all CPUs, and operands made of numbers. */
#define STRIP  lm__strip_baseline
#define LANES  4
#define HIGH   4
#define FEW    lm__few_baseline
#define OUTER  lm__outer_baseline
#define ACROSS lm__across_baseline
#include "kernels/cpu/strip_body.h"

void lm__strip_settle(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_ia32_sfence();
#endif
}

static int most = LM_STRIPS_PAIRS;
void lm__strips_at_most(int level) { most = level; }

#if defined(__x86_64__) && defined(__GNUC__)
static int has_avx2(void) {
    return most >= LM_STRIPS_AVX2 && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma");
}
static int has_avx512(void) {
    return most >= LM_STRIPS_AVX512 && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}
/* Intel's products of bf16 pairs take twice the time of those of f32 (a Xeon of family 6, model
 * 207, one thread: 73 against 136 GFLOP/s in tests/bench/kernels.c). */
static int multiplies_pairs(void) {
    return most >= LM_STRIPS_PAIRS && has_avx512() && __builtin_cpu_supports("avx512bf16") &&
           !__builtin_cpu_is("intel");
}
/* Whether few rows are multiplied faster than memory follows. AMD's family 19h multiplies 512
 * bits in two clocks, which memory keeps up with: there turns cost more than they hide (a Zen
 * 4, 16 rows an expert, tests/bench/kernels.c). */
static int outruns_memory(void) { return !__builtin_cpu_is("amdfam19h"); }
#endif

lm_words lm__words(int dtype) {
    lm_words w = {
        dtype, 0, lm__strip_baseline, lm__outer_baseline, lm__few_baseline, lm__across_baseline,
        0,
    };
#if defined(__x86_64__) && defined(__GNUC__)
    if (dtype == LM_BF16 && multiplies_pairs())
        return (lm_words){dtype,
                          1,
                          lm__strip_avx512bf16,
                          lm__outer_avx512bf16,
                          lm__few_avx512bf16,
                          lm__across_avx512bf16,
                          outruns_memory()};
    if (has_avx512())
        w = (lm_words){dtype,
                       0,
                       lm__strip_avx512,
                       lm__outer_avx512,
                       lm__few_avx512,
                       lm__across_avx512,
                       outruns_memory()};
    else if (has_avx2())
        w = (lm_words){
            dtype, 0, lm__strip_avx2, lm__outer_avx2, lm__few_avx2, lm__across_avx2, 1,
        };
#endif
    if (dtype == LM_BF16) w.across = NULL;
    return w;
}

const uint32_t *lm__row_words(lm_words w, const void *x, int64_t n, uint32_t *room) {
    if (w.dtype == LM_F32 || (w.pairs && n % 2 == 0)) return x;
    if (!w.pairs) lm__from_bf16((float *)(void *)room, x, n);
    else {
        room[n / 2] = 0; /* the other half of the last */
        memcpy(room, x, (size_t)n * sizeof(uint16_t));
    }
    return room;
}

lm_left lm__left_rows(lm_words w, const void *x, int64_t ld, int64_t rows, int64_t n,
                      uint32_t *room) {
    if (w.dtype == LM_F32) return (lm_left){x, ld, 1};
    if (w.pairs && n % 2 == 0 && ld % 2 == 0) return (lm_left){x, ld / 2, 1};
    int64_t k = lm__words_of(w, n);
    for (int64_t i = 0; i < rows; i++) {
        const uint32_t *row = lm__row_words(w, (const uint16_t *)x + i * ld, n, room + i * k);
        if (row != room + i * k) memcpy(room + i * k, row, (size_t)k * sizeof *room);
    }
    return (lm_left){room, k, 1};
}

/* groups of 8 columns, each to its place */
LM_CLONES static void spread_words(uint32_t *to, int64_t step, const uint32_t *x, int64_t n) {
    for (int64_t g = 0; g < n; g++)
        for (int i = 0; i < 8; i++) to[g * step + i] = x[g * 8 + i];
}
LM_CLONES static void spread_bf16(uint32_t *to, int64_t step, const uint16_t *x, int64_t n) {
    for (int64_t g = 0; g < n; g++)
        for (int i = 0; i < 8; i++) to[g * step + i] = (uint32_t)x[g * 8 + i] << 16;
}
LM_CLONES static void spread_pairs(uint32_t *to, int64_t step, const uint16_t *x,
                                   const uint16_t *y, int64_t n) {
    for (int64_t g = 0; g < n; g++)
        for (int i = 0; i < 8; i++)
            to[g * step + i] = x[g * 8 + i] | (uint32_t)y[g * 8 + i] << 16;
}

void lm__left_turned(lm_words w, const void *x, int64_t ld, int64_t n, int64_t cols,
                     uint32_t *room, int64_t step) {
    size_t size = lm__size(w.dtype);
    int64_t k = lm__words_of(w, n), whole = cols / 8;
    for (int64_t p = 0; p < k; p++) {
        const char *row = (const char *)x + (size_t)((w.pairs ? 2 * p : p) * ld) * size;
        const char *next = w.pairs && 2 * p + 1 < n ? row + (size_t)ld * size : NULL;
        uint32_t *to = room + p * 8;
        const void *at = row, *below = next;
        if (w.dtype == LM_F32) spread_words(to, step, at, whole);
        else if (!w.pairs) spread_bf16(to, step, at, whole);
        else if (next) spread_pairs(to, step, at, below, whole);
        else
            for (int64_t g = 0; g < whole; g++)
                lm__pair(w, row + (size_t)(g * 8) * size, NULL, 8, to + g * step);
        if (cols == whole * 8) continue;
        memset(to + whole * step, 0, 8 * sizeof *to);
        lm__pair(w, row + (size_t)(whole * 8) * size,
                 next ? next + (size_t)(whole * 8) * size : NULL, cols - whole * 8,
                 to + whole * step);
    }
}

LM_CLONES static void pair_numbers(uint32_t *restrict to, const uint16_t *restrict even,
                                   const uint16_t *restrict odd, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = even[i] | (uint32_t)odd[i] << 16;
}

void lm__pair(lm_words w, const void *even, const void *odd, int64_t n, uint32_t *to) {
    if (w.dtype == LM_F32) memcpy(to, even, (size_t)n * sizeof *to);
    else if (!w.pairs) lm__from_bf16((float *)(void *)to, even, n);
    else if (odd) pair_numbers(to, even, odd, n);
    else
        for (int64_t i = 0; i < n; i++) to[i] = ((const uint16_t *)even)[i];
}

LM_CLONES static void pair_floats(uint32_t *restrict to, const float *restrict even,
                                  const float *restrict odd, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        to[i] = lm_f32_to_bf16(even[i]) | (uint32_t)lm_f32_to_bf16(odd[i]) << 16;
}

void lm__pair_floats(lm_words w, const float *even, const float *odd, int64_t n, uint32_t *to) {
    if (w.pairs) pair_floats(to, even, odd, n);
    else memcpy(to, even, (size_t)n * sizeof *to);
}

typedef uint32_t word4 __attribute__((vector_size(16), aligned(2), may_alias));

static word4 four(const uint32_t *row, int64_t p) {
    return row ? *(const word4 *)(row + p) : (word4){0};
}

/* 4 rows, 4 words of each at a time */
static void turn4(const uint32_t *const row[4], int64_t n, uint32_t *to) {
    int64_t p = 0;
    for (; p + 4 <= n; p += 4) {
        word4 a = four(row[0], p), b = four(row[1], p);
        word4 c = four(row[2], p), d = four(row[3], p);
        word4 ab0 = __builtin_shuffle(a, b, (word4){0, 4, 1, 5});
        word4 ab1 = __builtin_shuffle(a, b, (word4){2, 6, 3, 7});
        word4 cd0 = __builtin_shuffle(c, d, (word4){0, 4, 1, 5});
        word4 cd1 = __builtin_shuffle(c, d, (word4){2, 6, 3, 7});
        uint32_t *at = to + p * LM_STRIP_COLS;
        *(word4 *)at = __builtin_shuffle(ab0, cd0, (word4){0, 1, 4, 5});
        *(word4 *)(at + LM_STRIP_COLS) = __builtin_shuffle(ab0, cd0, (word4){2, 3, 6, 7});
        *(word4 *)(at + 2 * LM_STRIP_COLS) = __builtin_shuffle(ab1, cd1, (word4){0, 1, 4, 5});
        *(word4 *)(at + 3 * LM_STRIP_COLS) = __builtin_shuffle(ab1, cd1, (word4){2, 3, 6, 7});
    }
    for (; p < n; p++)
        for (int i = 0; i < 4; i++) {
            to[p * LM_STRIP_COLS + i] = 0;
            if (row[i]) memcpy(to + p * LM_STRIP_COLS + i, row[i] + p, sizeof *to);
        }
}

void lm__turn(const uint32_t *const rows[LM_STRIP_COLS], int64_t n, uint32_t *to) {
    for (int i = 0; i < LM_STRIP_COLS; i += 4) turn4(rows + i, n, to + i);
}

int lm__few_rows(int rows, const uint32_t *b[LM_FEW]) {
    int up = 1;
    while (up < rows) up *= 2;
    for (int r = rows; r < up; r++) b[r] = b[rows - 1];
    return up;
}

void lm__few_product(lm_words w, lm_part a, int64_t p, const uint32_t *const b[LM_FEW],
                     int rows, float *c, int64_t ldc, int add, uint32_t *room) {
    int64_t k = lm__words_of(w, a.n), size = (int64_t)lm__size(w.dtype), ld = a.ld * size / 4;
    int as_they_lie = w.dtype == LM_F32 || (w.pairs && a.n % 2 == 0 && a.ld % 2 == 0);
    const char *from = a.x;
    const char *then =
        p + a.n < a.ld ? from + a.n * size : from + (LM_FEW_OUT * a.ld - p) * size;
    const uint32_t *rows_of_a = a.x;
    if (!as_they_lie || a.rows < LM_FEW_OUT) { /* brought together, zeros below */
        for (int64_t r = 0; r < LM_FEW_OUT; r++) {
            uint32_t *to = room + r * k;
            const uint32_t *row = to;
            if (r < a.rows) row = lm__row_words(w, from + r * a.ld * size, a.n, to);
            else memset(to, 0, (size_t)k * sizeof *to);
            if (row != to) memcpy(to, row, (size_t)k * sizeof *to);
        }
        rows_of_a = room, ld = k;
    }
    w.few(k, rows_of_a, ld, b, rows, c, ldc, add, then);
}
