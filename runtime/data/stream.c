/* stream.c - a token stream, mapped read-only and checked when opened.
 *
 * Opening looks at the header, the file's size and every offset, so that reading needs no check
 * but the ids' own: a file cut short or made by someone else is refused by name. */
#include "runtime/data/data_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_header(const lm_stream_header *h, uint64_t bytes, const char *path) {
    if (bytes < sizeof *h || memcmp(h->magic, LM_STREAM_MAGIC, sizeof h->magic) != 0)
        return lm_fail(LM_EIO, "%s: not a token stream", path);
    if (h->version != LM_STREAM_VERSION)
        return lm_fail(LM_EIO, "%s: a token stream of version %u, but this program reads %d",
                       path, h->version, LM_STREAM_VERSION);
    bool sane = (h->id_bytes == 2 || h->id_bytes == 4) && h->vocab > 0 &&
                h->vocab <= INT32_MAX && h->tokens < bytes &&
                h->sentences < bytes; /* so that nothing below overflows */
    uint64_t whole = sane ? lm_stream_offsets_at(h) + 8 * (h->sentences + 1) : 0;
    if (whole != bytes)
        return lm_fail(LM_EIO,
                       "%s: a damaged token stream (%llu bytes, where its header tells %llu)",
                       path, (unsigned long long)bytes, (unsigned long long)whole);
    return LM_OK;
}

static int check_offsets(const lm_stream *s) {
    const uint64_t *at = s->offsets;
    uint64_t n = s->header->sentences;
    bool ok = at[0] == 0 && at[n] == s->header->tokens;
    for (uint64_t i = 0; ok && i < n; i++)
        ok = at[i] <= at[i + 1] && at[i + 1] - at[i] <= INT32_MAX;
    if (!ok)
        return lm_fail(LM_EIO, "%s: a damaged token stream (its offsets are in disorder)",
                       s->path);
    return LM_OK;
}

static int map_file(lm_stream *s) {
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lm_fail(LM_EIO, "%s: %s", s->path, strerror(errno));
    int st = LM_OK;
    struct stat about;
    if (fstat(fd, &about) != 0) st = lm_fail(LM_EIO, "%s: %s", s->path, strerror(errno));
    if (st == LM_OK &&
        (!S_ISREG(about.st_mode) || about.st_size < (off_t)sizeof(lm_stream_header)))
        st = lm_fail(LM_EIO, "%s: not a token stream", s->path);
    if (st == LM_OK) {
        s->bytes = (size_t)about.st_size;
        s->map = mmap(NULL, s->bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (s->map == MAP_FAILED) {
            s->map = NULL;
            st = lm_fail(LM_EIO, "%s: %s", s->path, strerror(errno));
        }
    }
    close(fd);
    return st;
}

int lm_stream_open(const char *path, lm_stream **out) {
    lm_stream *s = calloc(1, sizeof *s);
    if (!s || !(s->path = strdup(path))) {
        free(s);
        return lm_fail(LM_EOOM, "%s: no memory to open it", path);
    }
    int st = map_file(s);
    if (st == LM_OK) {
        s->header = s->map;
        st = check_header(s->header, s->bytes, path);
    }
    if (st == LM_OK) {
        s->ids = (const char *)s->map + sizeof *s->header;
        s->offsets = (const uint64_t *)((const char *)s->map + lm_stream_offsets_at(s->header));
        st = check_offsets(s);
    }
    if (st == LM_OK) *out = s;
    else lm_stream_close(s);
    return st;
}

void lm_stream_close(lm_stream *s) {
    if (!s) return;
    if (s->map) munmap(s->map, s->bytes);
    free(s->path);
    free(s);
}

void lm_stream_about(const lm_stream *s, lm_stream_info *out) {
    const lm_stream_header *h = s->header;
    *out = (lm_stream_info){.sentences = (int64_t)h->sentences,
                            .tokens = (int64_t)h->tokens,
                            .vocab = (int32_t)h->vocab,
                            .column = (int32_t)h->column,
                            .model = h->model,
                            .source_bytes = (int64_t)h->source_bytes,
                            .source_time = (int64_t)h->source_time};
}

int lm_stream_current(const char *path, const char *source, int column, uint64_t model) {
    struct stat file;
    lm_stream *s = NULL;
    if (stat(source, &file) != 0 || access(path, R_OK) != 0) return 0;
    if (lm_stream_open(path, &s) != LM_OK) return 0;
    const lm_stream_header *h = s->header;
    int64_t time = file.st_mtim.tv_sec * INT64_C(1000000000) + file.st_mtim.tv_nsec;
    int current = h->model == model && h->column == (uint32_t)column &&
                  h->source_bytes == (uint64_t)file.st_size && h->source_time == (uint64_t)time;
    lm_stream_close(s);
    return current;
}

int lm__stream_copy(const lm_stream *s, int64_t sentence, int64_t count, int32_t *ids) {
    uint64_t at = s->offsets[sentence];
    uint32_t highest = 0;
    if (s->header->id_bytes == 2) {
        const uint16_t *from = (const uint16_t *)s->ids + at;
        for (int64_t i = 0; i < count; i++) {
            ids[i] = from[i];
            if (from[i] > highest) highest = from[i];
        }
    } else {
        const uint32_t *from = (const uint32_t *)s->ids + at;
        for (int64_t i = 0; i < count; i++) {
            ids[i] = (int32_t)from[i];
            if (from[i] > highest) highest = from[i];
        }
    }
    if (highest >= s->header->vocab)
        return lm_fail(LM_EIO, "%s: a damaged token stream (sentence %lld has id %u, of %u)",
                       s->path, (long long)sentence, highest, s->header->vocab);
    return LM_OK;
}

int lm_stream_read(const lm_stream *s, int64_t sentence, int32_t *ids, int64_t room,
                   int64_t *length) {
    int64_t n = (int64_t)s->header->sentences;
    if (sentence < 0 || sentence >= n)
        return lm_fail(LM_EARG, "%s: sentence %lld of %lld", s->path, (long long)sentence,
                       (long long)n);
    int64_t have = lm__stream_length(s, sentence);
    int st = lm__stream_copy(s, sentence, have < room ? have : room, ids);
    if (st == LM_OK) *length = have;
    return st;
}
