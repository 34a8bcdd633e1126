/* alloc_test.c - streams and batches when each of their allocations fails in turn: every
 * failure is LM_EOOM, nothing leaks, no half of a file stays. Linked with --wrap, so that the
 * calls of runtime/data alone come here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/data.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);
char *__wrap_strdup(const char *s);

static int countdown, live;

static void *counted(void *p) {
    live += p != NULL;
    return p;
}

static int fails(void) { return countdown > 0 && --countdown == 0; }

void *__wrap_malloc(size_t n) { return fails() ? NULL : counted(__real_malloc(n)); }
void *__wrap_calloc(size_t n, size_t m) {
    return fails() ? NULL : counted(__real_calloc(n, m));
}

void *__wrap_realloc(void *p, size_t n) {
    if (fails()) return NULL;
    return p ? __real_realloc(p, n) : counted(__real_malloc(n));
}

void __wrap_free(void *p) {
    live -= p != NULL;
    __real_free(p);
}

char *__wrap_strdup(const char *s) {
    char *copy = __wrap_malloc(strlen(s) + 1);
    return copy ? strcpy(copy, s) : NULL;
}

static int write_stream(const char *path) {
    const lm_stream_info about = {.vocab = 100, .model = 5};
    const int32_t ids[10] = {11, 12, 13, 14, 15, 16, 17, 18, 19, 20}, length = 10;
    lm_stream_writer *w = NULL;
    int st = lm_stream_create(path, &about, &w);
    if (st != LM_OK) return st;
    for (int i = 0; st == LM_OK && i < 3000; i++) st = lm_stream_append(w, ids, &length, 1);
    if (st == LM_OK) return lm_stream_finish(w);
    lm_stream_abandon(w);
    return st;
}

static int use_batches(lm_stream *s) {
    const lm_batches_options options = {.seed = 1,
                                        .tokens = 700,
                                        .micro_batches = 1,
                                        .window = 12,
                                        .max_pieces = 40,
                                        .multiple = 1,
                                        .eos = 2,
                                        .mask = 3,
                                        .temperature = 1,
                                        .denoising = 0.3,
                                        .mask_low = 0.1,
                                        .mask_high = 0.2,
                                        .mean_span = 3};
    const lm_task tasks[] = {{.source = s, .target = s, .weight = 1},
                             {.source = s, .kind = LM_DENOISING, .weight = 1}};
    lm_batches *b = NULL;
    lm_batch_shape shape;
    int st = lm_batches_new(&options, tasks, 2, &b);
    if (st == LM_OK) st = lm_batches_shape(b, 0, 0, 0, 1, &shape);
    if (st == LM_OK) st = lm_batches_shape(b, 40, 0, 0, 1, &shape); /* another window */
    lm_batches_free(b);
    return st;
}

static int run(const char *path) {
    lm_stream *s = NULL;
    int st = write_stream(path);
    if (st == LM_OK) st = lm_stream_open(path, &s);
    if (st == LM_OK) st = use_batches(s);
    lm_stream_close(s);
    return st;
}

int main(void) {
    char dir[] = "/tmp/lumoe-alloc-XXXXXX", path[64];
    if (!mkdtemp(dir)) return 1;
    snprintf(path, sizeof path, "%s/stream", dir);
    int st = LM_EOOM, n = 0;
    while (st == LM_EOOM && n < 1000) {
        live = 0;
        countdown = ++n;
        st = run(path);
        if (live != 0) {
            printf("allocation %d: %d blocks are lost\n", n, live);
            return 1;
        }
    }
    unlink(path);
    if (rmdir(dir) != 0) printf("%s: something is left in it\n", dir);
    if (st != LM_OK || n < 10) printf("allocation %d: status %d: %s\n", n, st, lm_last_error());
    return st != LM_OK || n < 10 || access(dir, F_OK) == 0;
}
