/* file.c - the tier that is a file: a disk behind the CPU's memory.
 *
 * Space is given to the file when it is reserved (posix_fallocate), so a disk that is full says
 * so then. The system keeps in its page cache what memory it has to spare for it. Bytes move by
 * pread and pwrite: a failing disk is then an error code. Of a mapped file they are copied from
 * and to the cache's own pages: no calls, but a fault for each page, and a failing disk is a
 * signal (SIGBUS) that ends the process. */
#define _GNU_SOURCE /* O_TMPFILE */
#include "runtime/tensor_impl.h"
#include "runtime/tier/tier_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CHUNK = 8 << 20 }; /* bytes a call moves at most */

typedef struct {
    lm_tier base;
    int fd;
    char *map; /* where the file is in memory: `range` bytes of addresses; NULL: nowhere */
    size_t range;
    size_t size;   /* of this object */
    char place[1]; /* as long as it is */
} file_tier;

static int fd_of(const lm_tier *t) { return ((const file_tier *)(const void *)t)->fd; }

static int file_grow(lm_tier *t, int64_t before, int64_t size) {
    int error;
    do error = posix_fallocate(fd_of(t), before, size - before);
    while (error == EINTR);
    if (!error) return LM_OK;
    (void)!ftruncate(fd_of(t), before); /* what it got before it failed */
    return lm_fail(LM_EIO, "offload: no room for %lld bytes in %s, which has %lld: %s",
                   (long long)(size - before), t->place, (long long)before, strerror(error));
}

static size_t piece(int64_t bytes) { return bytes < CHUNK ? (size_t)bytes : CHUNK; }

static int file_write(lm_tier *t, int64_t offset, const char *src, int64_t bytes) {
    while (bytes > 0) {
        ssize_t n = pwrite(fd_of(t), src, piece(bytes), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return -1;
        src += n, offset += n, bytes -= n;
    }
    return 0;
}

static int file_read(lm_tier *t, int64_t offset, char *dst, int64_t bytes) {
    while (bytes > 0) {
        ssize_t n = pread(fd_of(t), dst, piece(bytes), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return -1;
        dst += n, offset += n, bytes -= n;
    }
    return 0;
}

/* ---- mapped ---- */

enum { LEAST_RANGE = 1 << 30 };

/* Addresses for all that may ever be reserved, so that the mapping never moves. */
static int map_nothing(file_tier *f) {
    for (f->range = (size_t)1 << 42; f->range >= LEAST_RANGE; f->range /= 2) {
        void *p =
            mmap(NULL, f->range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p != MAP_FAILED) return f->map = p, LM_OK;
    }
    return lm_fail(LM_EOOM, "offload: no addresses for %s", f->place);
}

/* The page in which the old end lies is mapped again, to the same bytes. */
static int mapped_grow(lm_tier *t, int64_t before, int64_t size) {
    file_tier *f = (file_tier *)(void *)t;
    int64_t from = before - before % sysconf(_SC_PAGESIZE);
    if (size > (int64_t)f->range)
        return lm_fail(LM_EOOM, "offload: no addresses for %lld bytes of %s", (long long)size,
                       f->place);
    int st = file_grow(t, before, size);
    if (st != LM_OK) return st;
    void *p = mmap(f->map + from, (size_t)(size - from), PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_FIXED, f->fd, from);
    if (p != MAP_FAILED) return LM_OK;
    st = lm_fail(LM_EOOM, "offload: cannot map %lld bytes of %s: %s", (long long)size, f->place,
                 strerror(errno));
    (void)!ftruncate(f->fd, before);
    return st;
}

static int mapped_write(lm_tier *t, int64_t offset, const char *src, int64_t bytes) {
    memcpy(((file_tier *)(void *)t)->map + offset, src, (size_t)bytes);
    return 0;
}

static int mapped_read(lm_tier *t, int64_t offset, char *dst, int64_t bytes) {
    memcpy(dst, ((file_tier *)(void *)t)->map + offset, (size_t)bytes);
    return 0;
}

/* ---- both ---- */

static void file_free(lm_tier *t) {
    file_tier *f = (file_tier *)(void *)t;
    if (f->map) munmap(f->map, f->range);
    if (f->fd >= 0) close(f->fd);
    lm__object_free(f, f->size);
}

static const lm_tier_kind file_kind = {file_grow, file_write, file_read, file_free},
                          mapped_kind = {mapped_grow, mapped_write, mapped_read, file_free};

/* A file without a name; where the file system has no such thing, one whose name is taken away
 * at once. -1 with errno. */
static int open_nameless(const char *dir) {
    int fd;
    do fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    while (fd < 0 && errno == EINTR);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
    char name[4096];
    if (snprintf(name, sizeof name, "%s/lumoe-XXXXXX", dir) >= (int)sizeof name) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = mkostemp(name, O_CLOEXEC);
    if (fd >= 0) unlink(name);
    return fd;
}

int lm_tier_file(const char *dir, int mapped, lm_tier **out) {
    static const char words[] = "a file in ";
    size_t size = sizeof(file_tier) + strlen(words) + strlen(dir);
    file_tier *f = lm__object_new(size);
    if (!f) return lm_fail(LM_EOOM, "offload: no memory for a tier");
    memset(f, 0, size);
    f->size = size;
    strcat(strcpy(f->place, words), dir);
    f->base.kind = mapped ? &mapped_kind : &file_kind, f->base.place = f->place;
    f->fd = open_nameless(dir);
    int st = LM_OK;
    if (f->fd < 0)
        st = lm_fail(LM_EIO, "offload: cannot make %s: %s", f->place, strerror(errno));
    if (st == LM_OK && mapped) st = map_nothing(f);
    if (st == LM_OK) st = lm__tier_start(&f->base);
    if (st == LM_OK) *out = &f->base;
    else file_free(&f->base);
    return st;
}
