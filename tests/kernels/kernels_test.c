/* kernels_test.c - runs the kernels' tests: each compares with a naive reference in double.
 * usage: kernels_test [name]. Exits with 1 when anything differs. */
#include "tests/kernels/check.h"

#include <omp.h>
#include <stdarg.h>

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
} tests[] = {
    {"elementwise", test_elementwise},
    {"copy", test_copy},
    {"reduce", test_reduce},
    {"gemm", test_gemm},
    {"gemm_cut", test_gemm_cut},
    {"grouped", test_grouped},
    {"ffn", test_ffn},
    {"softmax", test_softmax},
    {"norm", test_norm},
    {"cross_entropy", test_cross_entropy},
    {"index", test_index},
    {"random", test_random},
    {"optim", test_optim},
    {"attention", test_attention},
    {"sort", test_sort},
    {"rope", test_rope},
};

int main(int argc, char **argv) {
    int bad = 0;
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (argc > 1 && strcmp(argv[1], tests[i].name) != 0) continue;
        current = tests[i].name;
        check_failures = check_count = 0;
        for (int t = 1; t <= 2; t++) {
            threads(t);
            tests[i].run();
        }
        printf("%-12s %8d checks, %d failed\n", current, check_count, check_failures);
        bad |= check_failures > 0;
    }
    return bad;
}
