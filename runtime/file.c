/* file.c - whole writes, checked reads, renames that survive a crash. */
#define _GNU_SOURCE /* renameat2, sync_file_range */
#include "runtime/file.h"
#include "runtime/tensor_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum {
    CHUNK = 1 << 20, /* bytes summed and written at once: they stay in the cache between */
    FLUSH = 8 << 20  /* bytes after which the disk is told to begin */
};

struct lm_file {
    int fd;
    int64_t size;    /* reading: when it was opened; writing: so far */
    int64_t flushed; /* writing: the disk has begun with all before */
    char path[1];    /* as long as it is */
};

static size_t object_size(const char *path) { return sizeof(lm_file) + strlen(path); }

static int open_file(const char *path, int flags, lm_file **out) {
    lm_file *f = lm__object_new(object_size(path));
    if (!f) return lm_fail(LM_EOOM, "%s: no memory", path);
    strcpy(f->path, path);
    f->size = f->flushed = 0;
    do f->fd = open(path, flags | O_CLOEXEC, 0666);
    while (f->fd < 0 && errno == EINTR);
    if (f->fd < 0) {
        int st = lm_fail(LM_EIO, "%s: %s", path, strerror(errno));
        lm__object_free(f, object_size(path));
        return st;
    }
    *out = f;
    return LM_OK;
}

int lm_file_create(const char *path, lm_file **out) {
    return open_file(path, O_WRONLY | O_CREAT | O_TRUNC, out);
}

int lm_file_open(const char *path, lm_file **out) {
    lm_file *f = NULL;
    int st = open_file(path, O_RDONLY | O_NONBLOCK, &f); /* a pipe must not hold us up */
    if (st != LM_OK) return st;
    struct stat info;
    if (fstat(f->fd, &info) != 0) st = lm_fail(LM_EIO, "%s: %s", path, strerror(errno));
    else if (S_ISDIR(info.st_mode))
        st = lm_fail(LM_EIO, "%s: is a directory, not a file", path);
    else if (!S_ISREG(info.st_mode)) st = lm_fail(LM_EIO, "%s: is not an ordinary file", path);
    if (st != LM_OK) {
        lm_file_close(f);
        return st;
    }
    f->size = info.st_size;
    *out = f;
    return LM_OK;
}

double lm_file_size(const lm_file *f) { return (double)f->size; }

static void sum(uint32_t *crc, const void *bytes, size_t count) {
    if (crc) *crc = (uint32_t)crc32_z(*crc, bytes, count);
}

int lm_file_write(lm_file *f, const void *src, int64_t bytes, uint32_t *crc) {
    for (const char *from = src; bytes > 0;) {
        size_t chunk = bytes < CHUNK ? (size_t)bytes : CHUNK;
        sum(crc, from, chunk);
        for (size_t done = 0; done < chunk;) {
            ssize_t n = write(f->fd, from + done, chunk - done);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0)
                return lm_fail(LM_EIO, "%s: cannot write: %s", f->path,
                               n < 0 ? strerror(errno) : "nothing was taken");
            done += (size_t)n;
        }
        from += chunk, bytes -= (int64_t)chunk, f->size += (int64_t)chunk;
        if (f->size - f->flushed >= FLUSH) { /* a hint: the sync will find less to do */
            (void)sync_file_range(f->fd, f->flushed, f->size - f->flushed,
                                  SYNC_FILE_RANGE_WRITE);
            f->flushed = f->size;
        }
    }
    return LM_OK;
}

/* One chunk of a read, in full. */
static int read_chunk(lm_file *f, int64_t offset, char *dst, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(f->fd, dst + done, bytes - done, offset + (int64_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return lm_fail(LM_EIO, "%s: cannot read: %s", f->path, strerror(errno));
        if (n == 0)
            return lm_fail(LM_EIO, "%s: ends at byte %lld; it is cut off", f->path,
                           (long long)(offset + (int64_t)done));
        done += (size_t)n;
    }
    return LM_OK;
}

int lm_file_read(lm_file *f, int64_t offset, void *dst, int64_t bytes, uint32_t *crc) {
    char *to = dst, *scratch = NULL;
    if (!to && bytes > 0) {
        scratch = lm__object_new(CHUNK);
        if (!scratch) return lm_fail(LM_EOOM, "%s: no memory", f->path);
    }
    int st = LM_OK;
    for (int64_t done = 0; st == LM_OK && done < bytes;) {
        size_t chunk = bytes - done < CHUNK ? (size_t)(bytes - done) : CHUNK;
        char *at = scratch ? scratch : to + done;
        st = read_chunk(f, offset + done, at, chunk);
        if (st == LM_OK) sum(crc, at, chunk);
        done += (int64_t)chunk;
    }
    if (scratch) lm__object_free(scratch, CHUNK);
    return st;
}

static int sync_fd(int fd, const char *path) {
    int st;
    do st = fsync(fd);
    while (st != 0 && errno == EINTR);
    if (st == 0 || errno == EINVAL) return LM_OK; /* EINVAL: there is nothing to sync there */
    return lm_fail(LM_EIO, "%s: cannot write to the disk: %s", path, strerror(errno));
}

int lm_file_sync(lm_file *f) { return sync_fd(f->fd, f->path); }

void lm_file_close(lm_file *f) {
    if (!f) return;
    close(f->fd);
    lm__object_free(f, object_size(f->path));
}

int lm_file_sync_dir(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return lm_fail(LM_EIO, "%s: %s", path, strerror(errno));
    int st = sync_fd(fd, path);
    close(fd);
    return st;
}

/* Three renames where the file system cannot exchange names (NFS). A kill between them leaves
 * the former `to` as `to.old`. */
static int exchange(const char *from, const char *to) {
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return -1;
    char aside[4096];
    if (snprintf(aside, sizeof aside, "%s.old", to) >= (int)sizeof aside) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return rename(to, aside) == 0 && rename(from, to) == 0 && rename(aside, from) == 0 ? 0 : -1;
}

int lm_file_replace(const char *from, const char *to, int *swapped) {
    *swapped = 0;
    if (rename(from, to) == 0) return LM_OK;
    if ((errno == ENOTEMPTY || errno == EEXIST) && exchange(from, to) == 0) {
        *swapped = 1;
        return LM_OK;
    }
    return lm_fail(LM_EIO, "%s: cannot take the name of %s: %s", to, from, strerror(errno));
}
