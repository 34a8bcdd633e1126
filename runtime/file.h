/* file.h - files whose loss would hurt: written whole and synced, read with checks.
 *
 * A write either lands in full or fails with a sentence that names the file (a
 * full disk, a quota, a limit of the process). Reads go by offset into memory of
 * the caller rather than through a mapping: a file that shrinks meanwhile is then
 * an error, not a SIGBUS. Both can sum what passes as CRC-32, while it is in the
 * cache: *crc is the sum so far and becomes the sum with these bytes; it starts
 * at 0. */
#ifndef LM_FILE_H
#define LM_FILE_H

#include "runtime/status.h"

typedef struct lm_file lm_file;

/* A new empty file for writing; an old one of that name is emptied. */
LM_API int lm_file_create(const char *path, lm_file **out);
/* An ordinary file for reading: a directory or a device is an error. */
LM_API int lm_file_open(const char *path, lm_file **out);
LM_API double lm_file_size(const lm_file *f); /* when it was opened */

LM_API int lm_file_write(lm_file *f, LM_MAYBE const void *src, int64_t bytes,
                         LM_MAYBE uint32_t *crc);
/* Exactly `bytes` from `offset`; dst NULL only sums them. */
LM_API int lm_file_read(lm_file *f, int64_t offset, LM_MAYBE void *dst, int64_t bytes,
                        LM_MAYBE uint32_t *crc);

/* What was written is on the disk when this returns. */
LM_API int lm_file_sync(lm_file *f);
LM_API void lm_file_close(lm_file *f); /* NULL is a no-op */

/* The names in a directory are on the disk when this returns. */
LM_API int lm_file_sync_dir(const char *path);
/* Gives `from` the name `to` in one step. A `to` that is there, also a directory with content,
 * changes places with it and is then called `from`: *swapped is 1. */
LM_API int lm_file_replace(const char *from, const char *to, int *swapped);

#endif
