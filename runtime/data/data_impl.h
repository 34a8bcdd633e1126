/* data_impl.h - what the files of runtime/data share; see runtime/data.h for the idea. */
#ifndef LM_DATA_IMPL_H
#define LM_DATA_IMPL_H

#include <stdbool.h>

#include "runtime/data.h"
#include "runtime/data/stream_file.h"

struct lm_stream {
    char *path;
    void *map;
    size_t bytes;
    const lm_stream_header *header;
    const void *ids;         /* [tokens] u16 or i32 */
    const uint64_t *offsets; /* [sentences + 1] */
};

static inline int64_t lm__stream_length(const lm_stream *s, int64_t sentence) {
    return (int64_t)(s->offsets[sentence + 1] - s->offsets[sentence]);
}

/* The first `count` pieces of a sentence; LM_EIO if one is outside the vocabulary. */
int lm__stream_copy(const lm_stream *s, int64_t sentence, int64_t count, int32_t *ids);

/* ---- permute.c */

/* What a draw is for: keys of different purposes never meet. */
enum { LM_KEY_EPOCH = 1, LM_KEY_ORDER = 2, LM_KEY_NOISE = 3 };
uint64_t lm__key(uint64_t seed, uint64_t purpose, uint64_t a, uint64_t b);

/* Where i of 0..n-1 goes in a random order of them that is known by its key alone. */
uint64_t lm__permute(uint64_t key, uint64_t n, uint64_t i);

/* ---- noise.c: span corruption */

typedef struct lm_noise {
    int64_t masked, spans; /* pieces replaced, and the masks they become */
} lm_noise;

lm_noise lm__noise_plan(const lm_batches_options *o, uint64_t key, int64_t pieces);

/* pieces[n] -> corrupted[n - masked + spans] */
void lm__noise_apply(lm_noise plan, uint64_t key, const int32_t *pieces, int64_t n,
                     int32_t mask, int32_t *corrupted);

/* ---- window.c: the examples that are sorted by length together */

typedef struct lm_example {
    uint32_t task, sentence;
    int32_t src_len, tgt_len; /* with prefix and eos */
    uint64_t draw;            /* the task's how-manieth; keys its noise */
} lm_example;

typedef struct lm_micro {
    int64_t first, rows; /* of window.examples */
    int64_t src_tokens, tgt_tokens;
} lm_micro;

typedef struct lm_window {
    int64_t number;       /* which one; -1: none yet */
    lm_example *examples; /* [rows], in the order of the micro-batches' lengths */
    lm_micro *micros;     /* [count], in the order of training */
    int64_t rows, count;
} lm_window;

typedef struct lm_source { /* a task, and what is known of its data */
    lm_task task;
    lm_task_info about;
    uint32_t *kept; /* [about.kept] sentences to draw from */
    uint64_t quota; /* examples per window, in units of 2^-LM_QUOTA_BITS */
    double mean;    /* tokens of an example */
} lm_source;

enum { LM_QUOTA_BITS = 16, LM_MAX_WINDOWS = 1 << 22, LM_MAX_ROWS = 1 << 25 };

struct lm_batches {
    lm_batches_options options;
    lm_source *sources; /* [n] */
    int n;
    uint64_t fingerprint;
    lm_window window;
    int32_t *scratch; /* [max_pieces] */
};

/* How many examples of the task came before window w. */
static inline uint64_t lm__drawn(const lm_source *s, uint64_t w) {
    return w * s->quota >> LM_QUOTA_BITS; /* w < LM_MAX_WINDOWS: no overflow */
}

/* Which sentence draw number d is, and how long its row. */
lm_example lm__example(const lm_batches *b, uint32_t task, uint64_t draw);

int lm__window_load(lm_batches *b, int64_t number); /* makes it b->window, if it is not */
void lm__window_free(lm_window *w);

/* ---- mixture.c */
int lm__mixture(lm_batches *b); /* fills sources[].kept, .about, .quota */

#endif
