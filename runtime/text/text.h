/* text.h - SentencePiece tokenizers for Lua: liblumoe_text.so, loaded when first needed.
 *
 * Failing: as everywhere, 0 or a negative LM_E* and a sentence in lm_last_error(); no C++
 * exception leaves. A tokenizer may be used by several threads but for lm_text_decode and
 * lm_text_encode, whose results are its own until the next call of the same. */
#ifndef LM_TEXT_H
#define LM_TEXT_H

#ifndef LM_CDEF
#ifdef __cplusplus
extern "C" {
#endif
#include "runtime/status.h"
#else
#define LM_API /* the declarations are read on their own, after those of runtime/lumoe.h */
#endif

typedef struct lm_text lm_text;

enum { LM_TEXT_PAD = 0, LM_TEXT_UNK = 1, LM_TEXT_BOS = 2, LM_TEXT_EOS = 3 };

LM_API int lm_text_open(const char *path, lm_text **out);
LM_API void lm_text_close(lm_text *t); /* NULL is a no-op */
LM_API int lm_text_size(const lm_text *t);
LM_API int lm_text_special(const lm_text *t, int which); /* its id, or -1 */
LM_API uint64_t lm_text_hash(const lm_text *t);          /* of the model file */

LM_API int lm_text_id(const lm_text *t, const char *piece, int64_t bytes); /* -1: not there */
LM_API int lm_text_piece(const lm_text *t, int id, const char **piece, int64_t *bytes);

LM_API int lm_text_encode(lm_text *t, const char *text, int64_t bytes, const int32_t **ids,
                          int64_t *count);
LM_API int lm_text_decode(lm_text *t, const int32_t *ids, int64_t count, const char **text,
                          int64_t *bytes);

/* Columns (from 0) of a file of tab-separated lines, each to a token stream of its own;
 * a column that a line lacks is an empty sentence. */
LM_API int lm_text_encode_file(const lm_text *t, const char *path, int columns,
                               const int32_t *column, const char *const *stream, int threads,
                               int64_t *lines);

/* How to train a tokenizer. The sentences are `lines`, or else a sample of the columns named.
 */
typedef struct lm_text_training {
    const char *model;         /* the file to write */
    const char *type;          /* bpe, unigram, word or char */
    const char *normalization; /* nmt_nfkc, nfkc, identity, ... */
    const char *symbols; /* one a line: pieces that no text becomes, after pad unk bos eos */
    int32_t vocab_size, byte_fallback, threads;
    double coverage;   /* share of the characters' occurrences that get a piece */
    const char *lines; /* sentences, one a line; or NULL */
    int64_t lines_bytes;
    int32_t columns;         /* how many paths and columns follow */
    const char *const *path; /* [columns] */
    const int32_t *column;   /* [columns], -1: the whole line */
    int64_t sample, seed;    /* at most so many sentences in all, chosen evenly by the seed */
    double temperature; /* a column's share of them is its size to the power 1/temperature */
} lm_text_training;

LM_API int lm_text_train(const lm_text_training *how, int64_t *sentences);

#ifndef LM_CDEF
#ifdef __cplusplus
}
#endif
#endif
#endif
