/* transport.c - the MPI transport, a plugin: liblumoe_mpi.so, opened by dist.c
 * when a launcher is there. Linked into liblumoe, libmpi would cost every start
 * its loading and every machine without MPI the whole program.
 *
 * Only nonblocking point-to-point messages on one communicator are used, so
 * that whoever waits (async.c) can look at other things meanwhile. */
#include "runtime/dist/transport.h"

#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHUNK = 1 << 30, TAG_LEFT = 0, TAG_FIRST = 1, PATIENCE = 4000 };

struct lm__flight {
    int count, receives;   /* the receives come first */
    int open;              /* those not done */
    int *peer, *finished;  /* of each request; room for MPI_Testsome */
    MPI_Request request[]; /* [count] */
};

static MPI_Comm comm = MPI_COMM_NULL;
static int my_rank, world_size;
static char *left; /* [world_size]: said goodbye */

static int fail(char *error, const char *what, int code) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    snprintf(error, 256, "%s: %s", what, text);
    return -1;
}

/* ---- the job ---- */

static int start(int *rank, int *size, char *error) {
    int code = MPI_SUCCESS, on = 0;
    MPI_Initialized(&on);
    if (!on) code = MPI_Init(NULL, NULL);
    if (code == MPI_SUCCESS) code = MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    if (code == MPI_SUCCESS) code = MPI_Comm_rank(comm, &my_rank);
    if (code == MPI_SUCCESS) code = MPI_Comm_size(comm, &world_size);
    if (code != MPI_SUCCESS) return fail(error, "MPI does not start", code);
    left = calloc((size_t)world_size, 1);
    if (!left) return snprintf(error, 256, "MPI does not start: no memory"), -1;
    *rank = my_rank;
    *size = world_size;
    return 0;
}

static int hosts(int *host, char *error) {
    MPI_Comm here = MPI_COMM_NULL;
    int first = my_rank; /* rank 0 of `here`, as the ranks keep their order */
    int code = MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
    if (code == MPI_SUCCESS) code = MPI_Bcast(&first, 1, MPI_INT, 0, here);
    if (here != MPI_COMM_NULL) MPI_Comm_free(&here);
    if (code == MPI_SUCCESS) code = MPI_Allgather(&first, 1, MPI_INT, host, 1, MPI_INT, comm);
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI does not start", code);
}

static int tags(void) {
    int *highest = NULL, there = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &highest, &there);
    return (there ? *highest : 32767) - TAG_FIRST;
}

/* ---- messages ---- */

static int64_t chunks(int n, const lm__message *m) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) total += (m[i].bytes + CHUNK - 1) / CHUNK;
    return total;
}

static lm__flight *flight_new(int64_t count) {
    size_t each = sizeof(MPI_Request) + 2 * sizeof(int);
    lm__flight *f = malloc(sizeof *f + (size_t)count * each);
    if (!f) return NULL;
    f->count = 0;
    f->receives = f->open = 0;
    f->peer = (int *)(void *)(f->request + count);
    f->finished = f->peer + count;
    return f;
}

static int post_chunk(lm__flight *f, const lm__message *m, int64_t at, int tag, bool sends) {
    char *data = (char *)m->data + at;
    int bytes = m->bytes - at < CHUNK ? (int)(m->bytes - at) : CHUNK;
    MPI_Request *r = &f->request[f->count];
    f->peer[f->count] = m->peer;
    int code = sends ? MPI_Isend(data, bytes, MPI_BYTE, m->peer, tag, comm, r)
                     : MPI_Irecv(data, bytes, MPI_BYTE, m->peer, tag, comm, r);
    if (code == MPI_SUCCESS) f->count++, f->open++;
    return code;
}

static int post_all(lm__flight *f, int n, const lm__message *m, int tag, bool sends) {
    int code = MPI_SUCCESS;
    for (int i = 0; i < n; i++)
        for (int64_t at = 0; at < m[i].bytes && code == MPI_SUCCESS; at += CHUNK)
            code = post_chunk(f, &m[i], at, tag, sends);
    return code;
}

/* What has arrived stays; a receive that is half arrived gets a moment to end. Sends cannot be
 * taken back: their requests are left to MPI. */
static bool drop(lm__flight *f) {
    int done = f->receives == 0;
    for (int i = 0; i < f->receives; i++)
        if (f->request[i] != MPI_REQUEST_NULL) MPI_Cancel(&f->request[i]);
    for (int turn = 0; !done && turn < PATIENCE; turn++) {
        MPI_Testall(f->receives, f->request, &done, MPI_STATUSES_IGNORE);
        sched_yield();
    }
    for (int i = f->receives; i < f->count; i++)
        if (f->request[i] != MPI_REQUEST_NULL) MPI_Request_free(&f->request[i]);
    free(f);
    return done;
}

static int post(int tag, int sends, const lm__message *send, int receives,
                const lm__message *receive, lm__flight **out, char *error) {
    int64_t total = chunks(sends, send) + chunks(receives, receive);
    *out = NULL;
    if (total == 0) return 0;
    lm__flight *f = flight_new(total);
    if (!f) return snprintf(error, 256, "no memory for %lld requests", (long long)total), -1;
    int code = post_all(f, receives, receive, TAG_FIRST + tag, false);
    f->receives = f->count;
    if (code == MPI_SUCCESS) code = post_all(f, sends, send, TAG_FIRST + tag, true);
    if (code != MPI_SUCCESS) return drop(f), fail(error, "MPI", code);
    *out = f;
    return 0;
}

static int test(lm__flight *f, char *error) {
    int finished = 0;
    int code = MPI_Testsome(f->count, f->request, &finished, f->finished, MPI_STATUSES_IGNORE);
    if (code == MPI_ERR_IN_STATUS || code == MPI_ERR_TRUNCATE)
        return snprintf(error, 256,
                        "a message does not fit; do all ranks make the same calls "
                        "in the same order?"),
               -1;
    if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    if (finished > 0) f->open -= finished; /* MPI_UNDEFINED is negative */
    if (f->open > 0) return 0;
    free(f);
    return 1;
}

/* ---- goodbyes ---- */

/* Reads the goodbyes that have come. */
static void note_goodbyes(void) {
    int there = 1;
    MPI_Status status;
    while (MPI_Iprobe(MPI_ANY_SOURCE, TAG_LEFT, comm, &there, &status) == MPI_SUCCESS &&
           there) {
        MPI_Recv(NULL, 0, MPI_BYTE, status.MPI_SOURCE, TAG_LEFT, comm, MPI_STATUS_IGNORE);
        left[status.MPI_SOURCE] = 1;
    }
}

static int deserter(const lm__flight *f) {
    note_goodbyes();
    for (int i = 0; i < f->receives; i++)
        if (f->request[i] != MPI_REQUEST_NULL && left[f->peer[i]]) return f->peer[i];
    return -1;
}

/* Says goodbye, then waits until all have: MPI_Finalize itself cannot be interrupted. */
static int stop(char *error) {
    for (int peer = 0; peer < world_size; peer++) {
        if (peer == my_rank) continue;
        int code = MPI_Send(NULL, 0, MPI_BYTE, peer, TAG_LEFT, comm); /* eager: never waits */
        if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    }
    left[my_rank] = 1;
    for (note_goodbyes(); memchr(left, 0, (size_t)world_size); note_goodbyes())
        nanosleep(&(struct timespec){0, 500000}, NULL);
    free(left);
    left = NULL;
    MPI_Comm_free(&comm);
    int code = MPI_Finalize();
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI_Finalize", code);
}

static void stop_now(int code) { MPI_Abort(MPI_COMM_WORLD, code); }

static const lm__transport mpi = {"mpi", start,    hosts, tags, post,
                                  test,  deserter, drop,  stop, stop_now};

__attribute__((visibility("default"))) const lm__transport *lm__transport_mpi(void);
const lm__transport *lm__transport_mpi(void) { return &mpi; }
