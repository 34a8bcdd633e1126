/* transport.c - the MPI transport, a plugin: liblumoe_mpi.so, opened by dist.c
 * when a launcher is there. Linked into liblumoe, libmpi would cost every start
 * its loading and every machine without MPI the whole program.
 *
 * Only point-to-point messages on one communicator are used, and never a
 * blocking call: the wait is a loop over MPI_Testall, which lets an interrupt in
 * and notices ranks that have left. */
#include "runtime/dist/transport.h"

#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHUNK = 1 << 30, TAG_LEFT = 1, TAG_FIRST = 2 };
enum { SPINS = 200, YIELDS = 4000, LEFT_SECONDS = 2 };

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

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int start(int *rank, int *size, int *local_rank, int *local_size, char *error) {
    int code = MPI_SUCCESS, on = 0;
    MPI_Comm host = MPI_COMM_NULL;
    MPI_Initialized(&on);
    if (!on) code = MPI_Init(NULL, NULL);
    if (code == MPI_SUCCESS) code = MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    if (code == MPI_SUCCESS) code = MPI_Comm_rank(comm, &my_rank);
    if (code == MPI_SUCCESS) code = MPI_Comm_size(comm, &world_size);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    if (code == MPI_SUCCESS) code = MPI_Comm_rank(host, local_rank);
    if (code == MPI_SUCCESS) code = MPI_Comm_size(host, local_size);
    if (host != MPI_COMM_NULL) MPI_Comm_free(&host);
    if (code != MPI_SUCCESS) return fail(error, "MPI does not start", code);
    left = calloc((size_t)world_size, 1);
    if (!left) return snprintf(error, 256, "MPI does not start: no memory"), -1;
    *rank = my_rank;
    *size = world_size;
    return 0;
}

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

/* A short wait spins, a longer one gives its core away, a long one sleeps. */
static void pause_for(int64_t turn) {
    if (turn < SPINS) return;
    if (turn < YIELDS) {
        sched_yield();
        return;
    }
    nanosleep(&(struct timespec){0, turn < 3 * YIELDS ? 50000 : 1000000}, NULL);
}

static int wait_all(int count, MPI_Request *requests, int receives, const lm__message *receive,
                    const volatile int *interrupted, char *error) {
    double deadline = 0;
    for (int64_t turn = 0;; turn++) {
        int done = 0;
        int code = MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE);
        if (code == MPI_ERR_IN_STATUS)
            return snprintf(error, 256,
                            "a message does not fit; do all ranks make the same calls "
                            "in the same order?"),
                   -1;
        if (code != MPI_SUCCESS) return fail(error, "MPI", code);
        if (done) return 0;
        if (*interrupted) return snprintf(error, 256, "interrupted"), -1;
        pause_for(turn);
        if (turn < YIELDS || turn % 100 != 0) continue;
        note_goodbyes(); /* what it sent before leaving may still be on its way */
        for (int i = 0; i < receives; i++) {
            if (!left[receive[i].peer]) continue;
            if (deadline == 0) deadline = seconds() + LEFT_SECONDS;
            if (seconds() > deadline)
                return snprintf(error, 256, "rank %d has already left the job",
                                receive[i].peer),
                       -1;
        }
    }
}

static int64_t chunks(int n, const lm__message *m) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) total += (m[i].bytes + CHUNK - 1) / CHUNK;
    return total;
}

typedef int (*post_fn)(const lm__message *m, int64_t offset, int bytes, int tag,
                       MPI_Request *r);

static int post_send(const lm__message *m, int64_t offset, int bytes, int tag, MPI_Request *r) {
    return MPI_Isend((char *)m->data + offset, bytes, MPI_BYTE, m->peer, tag, comm, r);
}

static int post_receive(const lm__message *m, int64_t offset, int bytes, int tag,
                        MPI_Request *r) {
    return MPI_Irecv((char *)m->data + offset, bytes, MPI_BYTE, m->peer, tag, comm, r);
}

static int post(post_fn fn, int n, const lm__message *m, int tag, MPI_Request *requests,
                int *count) {
    int code = MPI_SUCCESS;
    for (int i = 0; i < n && code == MPI_SUCCESS; i++)
        for (int64_t at = 0; at < m[i].bytes && code == MPI_SUCCESS; at += CHUNK) {
            int64_t rest = m[i].bytes - at;
            code = fn(&m[i], at, (int)(rest < CHUNK ? rest : CHUNK), tag, &requests[*count]);
            if (code == MPI_SUCCESS) ++*count;
        }
    return code;
}

/* After a failure the caller's buffers go away: takes back the receives still open. One that
 * is half arrived gets a moment to end. */
static void abandon(int receives, MPI_Request *requests) {
    int done = 0;
    for (int i = 0; i < receives; i++)
        if (requests[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests[i]);
    for (int64_t turn = 0; !done && turn < YIELDS; turn++) {
        MPI_Testall(receives, requests, &done, MPI_STATUSES_IGNORE);
        sched_yield();
    }
}

static int exchange(int tag, int sends, const lm__message *send, int receives,
                    const lm__message *receive, const volatile int *interrupted, char *error) {
    MPI_Request few[32], *requests = few;
    int64_t total = chunks(sends, send) + chunks(receives, receive);
    if (total > 32) requests = malloc((size_t)total * sizeof *requests);
    if (!requests)
        return snprintf(error, 256, "no memory for %lld requests", (long long)total), -1;
    int count = 0, st = 0;
    int code = post(post_receive, receives, receive, TAG_FIRST + tag, requests, &count);
    int posted_receives = count;
    if (code == MPI_SUCCESS)
        code = post(post_send, sends, send, TAG_FIRST + tag, requests, &count);
    if (code != MPI_SUCCESS) st = fail(error, "MPI", code);
    else st = wait_all(count, requests, receives, receive, interrupted, error);
    if (st != 0) abandon(posted_receives, requests);
    if (requests != few && st == 0) free(requests); /* else MPI may still hold a send */
    return st;
}

/* Says goodbye, then waits until all have: MPI_Finalize itself cannot be interrupted. */
static int stop(char *error) {
    for (int peer = 0; peer < world_size; peer++) {
        if (peer == my_rank) continue;
        int code = MPI_Send(NULL, 0, MPI_BYTE, peer, TAG_LEFT, comm); /* eager: never waits */
        if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    }
    left[my_rank] = 1;
    for (int64_t turn = 0; memchr(left, 0, (size_t)world_size); turn++) {
        note_goodbyes();
        pause_for(turn);
    }
    free(left);
    left = NULL;
    MPI_Comm_free(&comm);
    int code = MPI_Finalize();
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI_Finalize", code);
}

static void stop_now(int code) { MPI_Abort(MPI_COMM_WORLD, code); }

static const lm__transport mpi = {"mpi", start, exchange, stop, stop_now};

__attribute__((visibility("default"))) const lm__transport *lm__transport_mpi(void);
const lm__transport *lm__transport_mpi(void) { return &mpi; }
