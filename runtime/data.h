/* data.h - token streams on disk, and the batches that training draws from them.
 *
 * A stream is one file with the pieces of many sentences, mapped into memory. A batches object
 * mixes tasks (a direction of translation, or denoising) over such streams and answers, for any
 * step, which rows its micro-batches hold. The answer is a pure function of (options, data,
 * step): there is no state to save but the step, and the number of ranks only decides who takes
 * which rows. */
#ifndef LM_DATA_H
#define LM_DATA_H

#include "runtime/status.h"

/* ---- Token streams ---------------------------------------------------------------------- */

typedef struct lm_stream lm_stream;
typedef struct lm_stream_writer lm_stream_writer;

typedef struct lm_stream_info {
    int64_t sentences, tokens; /* when writing: counted by the writer */
    int32_t vocab;             /* every id is below */
    int32_t column;            /* of the text file it was made from, from 0 */
    uint64_t model;            /* hash of the tokenizer's file */
    int64_t source_bytes; /* size and time (ns) of the text file: is the stream still its? */
    int64_t source_time;
} lm_stream_info;

LM_API int lm_stream_open(const char *path, lm_stream **out);
LM_API void lm_stream_close(lm_stream *s); /* NULL is a no-op */
LM_API void lm_stream_about(const lm_stream *s, lm_stream_info *out);

/* 1 if the stream at `path` is whole and was made of this column of this very file, by size and
 * time, with this tokenizer; else 0. */
LM_API int lm_stream_current(const char *path, const char *source, int column, uint64_t model);

/* *length: the sentence's pieces, of which at most `room` are copied. */
LM_API int lm_stream_read(const lm_stream *s, int64_t sentence, int32_t *ids, int64_t room,
                          int64_t *length);

/* Written aside; under its own name only once finished. finish frees the writer, come what may.
 */
LM_API int lm_stream_create(const char *path, const lm_stream_info *about,
                            lm_stream_writer **out);
LM_API int lm_stream_append(lm_stream_writer *w, const int32_t *ids, const int32_t *lengths,
                            int64_t sentences);
LM_API int lm_stream_finish(lm_stream_writer *w);
LM_API void lm_stream_abandon(lm_stream_writer *w); /* NULL is a no-op */

/* ---- Batches ---------------------------------------------------------------------------- */

typedef struct lm_batches lm_batches;

enum { LM_TRANSLATION = 0, LM_DENOISING = 1, LM_MAX_PREFIX = 4 };

/* A row of a task:  source      prefix... pieces eos
 *                   target in   start pieces
 *                   target out  pieces eos               (denoising: source with spans masked)
 */
typedef struct lm_task {
    lm_stream *source; /* borrowed for the life of the batches, as target is */
    lm_stream *target; /* sentence i of both belong together; NULL in denoising */
    int32_t kind;
    int32_t source_language, target_language, tag; /* the caller's numbers, given back by row */
    int32_t start;
    int32_t prefixes, prefix[4];
    double weight; /* multiplies the task's share of the mixture */
} lm_task;

typedef struct lm_batches_options {
    int64_t seed;
    int64_t tokens; /* of a step: source and target, padding not counted; about so many */
    int32_t micro_batches; /* in a step */
    int32_t window;        /* micro-batches that are sorted by length together */
    int32_t max_pieces;    /* longer sentences (tags and eos apart) are dropped ... */
    int32_t cut;           /* ... or, if 1, cut */
    int32_t multiple;      /* padded lengths are multiples of it */
    int32_t pad, eos, mask;
    int32_t fixed; /* 1: each sentence once, longest first, for evaluation; none is dropped */
    double temperature; /* a task's share of its kind is its size to the power 1/temperature */
    double denoising;   /* the share of denoising among all examples */
    double mask_low, mask_high; /* masked share of a sentence: uniform between */
    double mean_span;
} lm_batches_options;

typedef struct lm_task_info {
    int64_t sentences, kept, long_ones, empty_ones; /* long ones were dropped or cut */
    double share;                                   /* of the examples drawn */
} lm_task_info;

/* One rank's slice of one micro-batch, and totals that every rank knows without asking. */
typedef struct lm_batch_shape {
    int64_t rows, src_len, tgt_len; /* of the slice; lengths padded, 0 when it has no rows */
    int64_t first;                  /* the slice's first row, as numbered in the step */
    int64_t src_tokens, tgt_tokens; /* of the slice, padding not counted */
    int64_t micro_rows, micro_src_tokens, micro_tgt_tokens; /* of the micro-batch, all ranks */
    int64_t step_rows, step_src_tokens, step_tgt_tokens;    /* of the step */
} lm_batch_shape;

/* Where a slice goes; a NULL field is not wanted. [rows, src_len], [rows, tgt_len] or [rows].
 */
typedef struct lm_batch_buffers {
    int32_t *src, *tgt_in, *tgt_out;
    int32_t *src_lens, *tgt_lens;
    int32_t *src_language, *tgt_language, *tag;
    int32_t *task; /* its place in the list given to lm_batches_new */
    int64_t
        *sequence; /* the row's number in the step; if fixed, the sentence's in its stream */
} lm_batch_buffers;

LM_API int lm_batches_new(const lm_batches_options *options, const lm_task *tasks, int n,
                          lm_batches **out);
LM_API void lm_batches_free(lm_batches *b); /* NULL is a no-op */
LM_API int lm_batches_task(const lm_batches *b, int task, lm_task_info *out);

/* How many steps there are: endlessly many (-1), or the number of batches if fixed. */
LM_API double lm_batches_steps(const lm_batches *b);

/* Of all that the batches depend on: a run resumed with another one sees other batches. */
LM_API uint64_t lm_batches_fingerprint(const lm_batches *b);

/* How often the task's examples have been seen when `step` begins. */
LM_API double lm_batches_epoch(const lm_batches *b, int task, double step);

LM_API int lm_batches_shape(lm_batches *b, double step, int micro, int rank, int ranks,
                            lm_batch_shape *out);
LM_API int lm_batches_fill(lm_batches *b, double step, int micro, int rank, int ranks,
                           const lm_batch_buffers *out);

#endif
