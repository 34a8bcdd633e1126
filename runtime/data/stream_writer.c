/* stream_writer.c - makes a token stream: ids as they come, offsets after them, the header
 * last.
 *
 * All goes to `path.PID.part`, which is synced and renamed only when whole, so that a stream
 * under its own name is never half of one. */
#include "runtime/data/data_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct lm_stream_writer {
    char *path, *aside;
    FILE *file;
    lm_stream_header header;
    uint64_t *offsets; /* [room] */
    size_t room;
};

static int io_failure(const lm_stream_writer *w) {
    return lm_fail(LM_EIO, "%s: cannot write it: %s", w->path, strerror(errno));
}

static int reserve(lm_stream_writer *w, uint64_t offsets) {
    if (offsets <= w->room) return LM_OK;
    size_t room = w->room * 2 > offsets ? w->room * 2 : (size_t)offsets + 1023;
    uint64_t *grown = realloc(w->offsets, room * sizeof *grown);
    if (!grown) return lm_fail(LM_EOOM, "%s: no memory for %zu offsets", w->path, room);
    w->offsets = grown;
    w->room = room;
    return LM_OK;
}

int lm_stream_create(const char *path, const lm_stream_info *about, lm_stream_writer **out) {
    if (about->vocab <= 0)
        return lm_fail(LM_EARG, "%s: a vocabulary of %d", path, about->vocab);
    lm_stream_writer *w = calloc(1, sizeof *w);
    size_t room = strlen(path) + 32;
    if (w) w->path = strdup(path);
    if (w) w->aside = malloc(room);
    if (!w || !w->path || !w->aside || reserve(w, 1) != LM_OK) {
        lm_stream_abandon(w);
        return lm_fail(LM_EOOM, "%s: no memory to write it", path);
    }
    snprintf(w->aside, room, "%s.%ld.part", path, (long)getpid());
    w->header = (lm_stream_header){.version = LM_STREAM_VERSION,
                                   .id_bytes = about->vocab > 65536 ? 4 : 2,
                                   .vocab = (uint32_t)about->vocab,
                                   .column = (uint32_t)about->column,
                                   .model = about->model,
                                   .source_bytes = (uint64_t)about->source_bytes,
                                   .source_time = (uint64_t)about->source_time};
    memcpy(w->header.magic, LM_STREAM_MAGIC, sizeof w->header.magic);
    w->offsets[0] = 0;
    w->file = fopen(w->aside, "wbe");
    if (!w->file || fwrite(&w->header, sizeof w->header, 1, w->file) != 1) {
        int st = io_failure(w);
        lm_stream_abandon(w);
        return st;
    }
    *out = w;
    return LM_OK;
}

static int put_ids(lm_stream_writer *w, const int32_t *ids, int64_t n) {
    uint16_t narrow[4096];
    if (w->header.id_bytes == 4)
        return fwrite(ids, 4, (size_t)n, w->file) == (size_t)n ? LM_OK : io_failure(w);
    for (int64_t at = 0, len; at < n; at += len) {
        len = n - at < 4096 ? n - at : 4096;
        for (int64_t i = 0; i < len; i++) narrow[i] = (uint16_t)ids[at + i];
        if (fwrite(narrow, 2, (size_t)len, w->file) != (size_t)len) return io_failure(w);
    }
    return LM_OK;
}

int lm_stream_append(lm_stream_writer *w, const int32_t *ids, const int32_t *lengths,
                     int64_t sentences) {
    int64_t total = 0;
    for (int64_t i = 0; i < sentences; i++) {
        if (lengths[i] < 0)
            return lm_fail(LM_EARG, "%s: a sentence of length %d", w->path, lengths[i]);
        total += lengths[i];
    }
    for (int64_t i = 0; i < total; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= w->header.vocab)
            return lm_fail(LM_EARG, "%s: id %d, but the vocabulary has %u", w->path, ids[i],
                           w->header.vocab);
    int st = reserve(w, w->header.sentences + (uint64_t)sentences + 1);
    if (st == LM_OK) st = put_ids(w, ids, total);
    if (st != LM_OK) return st;
    for (int64_t i = 0; i < sentences; i++) {
        w->header.tokens += (uint64_t)lengths[i];
        w->offsets[++w->header.sentences] = w->header.tokens;
    }
    return LM_OK;
}

int lm_stream_finish(lm_stream_writer *w) {
    static const char zeros[8] = {0};
    size_t count = (size_t)w->header.sentences + 1;
    size_t gap = (8 - w->header.tokens * w->header.id_bytes % 8) % 8;
    bool ok = fwrite(zeros, 1, gap, w->file) == gap &&
              fwrite(w->offsets, 8, count, w->file) == count &&
              fseek(w->file, 0, SEEK_SET) == 0 &&
              fwrite(&w->header, sizeof w->header, 1, w->file) == 1 && fflush(w->file) == 0 &&
              fsync(fileno(w->file)) == 0;
    int st = ok ? LM_OK : io_failure(w);
    bool closed = fclose(w->file) == 0;
    w->file = NULL;
    if (st == LM_OK && (!closed || rename(w->aside, w->path) != 0)) st = io_failure(w);
    if (st != LM_OK) unlink(w->aside);
    lm_stream_abandon(w);
    return st;
}

void lm_stream_abandon(lm_stream_writer *w) {
    if (!w) return;
    if (w->file) {
        fclose(w->file);
        unlink(w->aside);
    }
    free(w->offsets);
    free(w->aside);
    free(w->path);
    free(w);
}
