/* kernels_test.c - runs the kernels' tests: each compares with a naive reference in double.
 * usage: kernels_test [name]. Exits with 1 when anything differs. */
#include "tests/kernels/check.h"

#include <omp.h>
#include <stdarg.h>

#include "kernels/cpu/strip.h"

int check_failures, check_count;
static const char *current;

void check_case(const char *format, ...) {
    if (check_failures > 40) return;
    va_list args;
    va_start(args, format);
    printf("  %s: ", current);
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

double random_uniform(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 40) / 16777216.0;
}

void threads(int n) { omp_set_num_threads(n); }

static const struct {
    const char *name;
    void (*run)(void);
    int by_strips; /* run with each of them that this CPU has */
} tests[] = {
    {"elementwise", test_elementwise, 0},
    {"copy", test_copy, 0},
    {"reduce", test_reduce, 0},
    {"gemm", test_gemm, 0},
    {"gemm_cut", test_gemm_cut, 0},
    {"grouped", test_grouped, 0},
    {"ffn", test_ffn, 1},
    {"softmax", test_softmax, 0},
    {"norm", test_norm, 0},
    {"cross_entropy", test_cross_entropy, 0},
    {"index", test_index, 0},
    {"random", test_random, 0},
    {"optim", test_optim, 0},
    {"attention", test_attention, 0},
    {"sort", test_sort, 0},
    {"rope", test_rope, 0},
};

int main(int argc, char **argv) {
    int bad = 0;
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (argc > 1 && strcmp(argv[1], tests[i].name) != 0) continue;
        current = tests[i].name;
        check_failures = check_count = 0;
        for (int level = tests[i].by_strips ? LM_STRIPS_BASELINE : LM_STRIPS_PAIRS;
             level <= LM_STRIPS_PAIRS; level++) {
            lm__strips_at_most(level);
            for (int t = 1; t <= 2; t++) {
                threads(t);
                tests[i].run();
            }
        }
        printf("%-12s %8d checks, %d failed\n", current, check_count, check_failures);
        bad |= check_failures > 0;
    }
    return bad;
}
