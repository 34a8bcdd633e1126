/* transport.c - the MPI transport, a plugin: liblumoe_mpi.so, opened by dist.c
 * when a launcher is there. Linked into liblumoe, libmpi would cost every start
 * its loading and every machine without MPI the whole program.
 *
 * Only nonblocking point-to-point messages are used, so that whoever waits
 * (async.c) can look at other things meanwhile. They go over one communicator
 * at a time, `comm`, and goodbyes over `job`. */
#define _GNU_SOURCE /* setenv */
#include "runtime/dist/transport.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHUNK = 1 << 30, TAG_LEFT = 0, TAG_NEWS = 1, LEFT_SECONDS = 2 };

struct lm__flight {
    int count, receives;   /* the receives come first */
    int open;              /* those not done */
    int *peer, *finished;  /* of each request; room for MPI_Testsome */
    MPI_Request request[]; /* [count] */
};

static MPI_Comm job = MPI_COMM_NULL, comm = MPI_COMM_NULL;
static MPI_Comm here = MPI_COMM_NULL; /* the ranks of this host */
static MPI_Win shared = MPI_WIN_NULL;
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

/* How Open MPI moves bytes between the ranks of a host, where nobody has said it. Its choice is
 * one copy, by a system call for each message; two copies, in pieces that stay in the cache,
 * are faster (tests/bench, group exchange), need no permission that a container lacks, and
 * never read the memory of a rank that has ended. */
static void choose_parameters(void) {
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    setenv("OMPI_MCA_btl_vader_max_send_size", "131072", 0);
}

static int start(int *rank, int *size, char *error) {
    int code = MPI_SUCCESS, on = 0;
    choose_parameters();
    MPI_Initialized(&on);
    if (!on) code = MPI_Init(NULL, NULL);
    if (code == MPI_SUCCESS) code = MPI_Comm_dup(MPI_COMM_WORLD, &job);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(job, MPI_ERRORS_RETURN);
    if (code == MPI_SUCCESS) code = MPI_Comm_dup(job, &comm);
    if (code == MPI_SUCCESS) code = MPI_Comm_rank(job, &my_rank);
    if (code == MPI_SUCCESS) code = MPI_Comm_size(job, &world_size);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_split_type(job, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
    if (code != MPI_SUCCESS) return fail(error, "MPI does not start", code);
    left = calloc((size_t)world_size, 1);
    if (!left) return snprintf(error, 256, "MPI does not start: no memory"), -1;
    *rank = my_rank;
    *size = world_size;
    return 0;
}

static int hosts(int *host, char *error) {
    int first = my_rank; /* rank 0 of `here`, as the ranks keep their order */
    int code = MPI_Bcast(&first, 1, MPI_INT, 0, here);
    if (code == MPI_SUCCESS) code = MPI_Allgather(&first, 1, MPI_INT, host, 1, MPI_INT, job);
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI does not start", code);
}

static int share(int64_t bytes, void **of_rank, char *error) {
    void *mine = NULL;
    MPI_Group group = MPI_GROUP_NULL, neighbours = MPI_GROUP_NULL;
    int code = MPI_Win_allocate_shared((MPI_Aint)bytes, 1, MPI_INFO_NULL, here, &mine, &shared);
    if (code == MPI_SUCCESS) memset(mine, 0, (size_t)bytes);
    if (code == MPI_SUCCESS) code = MPI_Barrier(here);
    if (code == MPI_SUCCESS) code = MPI_Comm_group(job, &group);
    if (code == MPI_SUCCESS) code = MPI_Comm_group(here, &neighbours);
    for (int r = 0; r < world_size && code == MPI_SUCCESS; r++) {
        MPI_Aint size;
        int unit, local;
        code = MPI_Group_translate_ranks(group, 1, &r, neighbours, &local);
        of_rank[r] = NULL;
        if (code == MPI_SUCCESS && local != MPI_UNDEFINED)
            code = MPI_Win_shared_query(shared, local, &size, &unit, &of_rank[r]);
    }
    if (group != MPI_GROUP_NULL) MPI_Group_free(&group);
    if (neighbours != MPI_GROUP_NULL) MPI_Group_free(&neighbours);
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI shares no memory", code);
}

static int tags(void) {
    int *highest = NULL, there = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &highest, &there);
    return there ? *highest : 32767;
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

/* What has arrived stays; a receive that is half arrived goes on. Sends cannot be taken back:
 * their requests are left to MPI. */
static bool drop(lm__flight *f) {
    int done = 1;
    for (int i = 0; i < f->receives; i++)
        if (f->request[i] != MPI_REQUEST_NULL) MPI_Cancel(&f->request[i]);
    for (int i = f->receives; i < f->count; i++)
        if (f->request[i] != MPI_REQUEST_NULL) MPI_Request_free(&f->request[i]);
    f->count = f->receives;
    f->open = 0;
    for (int i = 0; i < f->count; i++) f->open += f->request[i] != MPI_REQUEST_NULL;
    if (f->open > 0) MPI_Testall(f->count, f->request, &done, MPI_STATUSES_IGNORE);
    if (done) free(f);
    return done;
}

static int post(int tag, int sends, const lm__message *send, int receives,
                const lm__message *receive, lm__flight **out, char *error) {
    int64_t total = chunks(sends, send) + chunks(receives, receive);
    *out = NULL;
    if (total == 0) return 0;
    lm__flight *f = flight_new(total);
    if (!f) return snprintf(error, 256, "no memory for %lld requests", (long long)total), -1;
    int code = post_all(f, receives, receive, tag, false);
    f->receives = f->count;
    if (code == MPI_SUCCESS) code = post_all(f, sends, send, tag, true);
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
    while (MPI_Iprobe(MPI_ANY_SOURCE, TAG_LEFT, job, &there, &status) == MPI_SUCCESS && there) {
        MPI_Recv(NULL, 0, MPI_BYTE, status.MPI_SOURCE, TAG_LEFT, job, MPI_STATUS_IGNORE);
        left[status.MPI_SOURCE] = 1;
    }
}

static int deserter(const lm__flight *f) {
    note_goodbyes();
    for (int i = 0; i < f->receives; i++)
        if (f->request[i] != MPI_REQUEST_NULL && left[f->peer[i]]) return f->peer[i];
    return -1;
}

/* ---- news, and what all ranks do together ---- */

/* Short enough to leave at once: nobody has to be there to receive it. */
static int tell(const void *news, int bytes, char *error) {
    for (int peer = 0; peer < world_size; peer++) {
        if (peer == my_rank) continue;
        int code = MPI_Send(news, bytes, MPI_BYTE, peer, TAG_NEWS, job);
        if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    }
    return 0;
}

static int hear(void *news, int bytes) {
    int there = 0;
    MPI_Status status;
    int code = MPI_Iprobe(MPI_ANY_SOURCE, TAG_NEWS, job, &there, &status);
    if (code != MPI_SUCCESS || !there) return -1;
    code = MPI_Recv(news, bytes, MPI_BYTE, status.MPI_SOURCE, TAG_NEWS, job, MPI_STATUS_IGNORE);
    return code == MPI_SUCCESS ? status.MPI_SOURCE : -1;
}

/* Whether a rank that is to take part has left. Its part may still be under way: it gets a
 * moment. */
static int all_are_here(char *error) {
    static double since;
    note_goodbyes();
    const char *gone = memchr(left, 1, (size_t)world_size);
    if (!gone) return since = 0, 0;
    if (since == 0) since = MPI_Wtime();
    if (MPI_Wtime() - since < LEFT_SECONDS) return 0;
    return snprintf(error, 256, "rank %d has already left the job", (int)(gone - left)), -1;
}

static int least(int *number, char *error) {
    static MPI_Request request = MPI_REQUEST_NULL;
    static int mine, all;
    int code = MPI_SUCCESS, done = 0;
    if (request == MPI_REQUEST_NULL) {
        mine = *number;
        code = MPI_Iallreduce(&mine, &all, 1, MPI_INT, MPI_MIN, job, &request);
    }
    if (code == MPI_SUCCESS) code = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    if (!done) return all_are_here(error);
    *number = all;
    return 1;
}

/* A new communicator for messages. The old one stays for good: were its number given to
 * another, what is still under way on it would arrive there. */
static int renew(char *error) {
    static MPI_Request request = MPI_REQUEST_NULL;
    static MPI_Comm next;
    int code = MPI_SUCCESS, done = 0;
    if (request == MPI_REQUEST_NULL) code = MPI_Comm_idup(job, &next, &request);
    if (code == MPI_SUCCESS) code = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    if (!done) return all_are_here(error);
    comm = next;
    return 1;
}

/* Says goodbye, then waits until all have: MPI_Finalize itself cannot be interrupted. */
static int stop(char *error) {
    for (int peer = 0; peer < world_size; peer++) {
        if (peer == my_rank) continue;
        int code = MPI_Send(NULL, 0, MPI_BYTE, peer, TAG_LEFT, job); /* eager: never waits */
        if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    }
    left[my_rank] = 1;
    for (note_goodbyes(); memchr(left, 0, (size_t)world_size); note_goodbyes())
        nanosleep(&(struct timespec){0, 500000}, NULL);
    free(left);
    left = NULL;
    if (shared != MPI_WIN_NULL) MPI_Win_free(&shared);
    MPI_Comm_free(&here);
    MPI_Comm_free(&comm);
    MPI_Comm_free(&job);
    int code = MPI_Finalize();
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI_Finalize", code);
}

static void stop_now(int code) { MPI_Abort(MPI_COMM_WORLD, code); }

static const lm__transport mpi = {.name = "mpi",
                                  .start = start,
                                  .hosts = hosts,
                                  .share = share,
                                  .tags = tags,
                                  .post = post,
                                  .test = test,
                                  .deserter = deserter,
                                  .drop = drop,
                                  .tell = tell,
                                  .hear = hear,
                                  .least = least,
                                  .renew = renew,
                                  .stop = stop,
                                  .abort = stop_now};

__attribute__((visibility("default"))) const lm__transport *lm__transport_mpi(void);
const lm__transport *lm__transport_mpi(void) { return &mpi; }
