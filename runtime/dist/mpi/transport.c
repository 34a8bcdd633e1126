/* transport.c - the MPI transport, a plugin: liblumoe_mpi.so, opened by dist.c
 * when a launcher is there. Linked into liblumoe, libmpi would cost every start
 * its loading and every machine without MPI the whole program.
 *
 * Only nonblocking point-to-point messages are used, so that whoever waits
 * (async.c) can look at other things meanwhile. They go over one communicator
 * at a time, `comm`, and goodbyes over `job`.
 *
 * Of a large message to a rank of this host MPI carries a note, which names the lane (lane.c)
 * that the message goes through; or none, when all are taken, and the message follows. */
#define _GNU_SOURCE /* setenv */
#include "runtime/dist/transport.h"
#include "runtime/dist/far_copy.h"
#include "runtime/dist/mpi/lane.h"

#include <mpi.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHUNK = 1 << 30, LARGE = 8 << 10 }; /* below LARGE bytes, MPI is as fast */
enum { TAG_LEFT = 0, TAG_NEWS = 1, LEFT_SECONDS = 2 };

/* What a request is for: the bytes of a message, a note, or the bytes after a note without a
 * lane; these have tags of their own. */
enum { BYTES, NOTE, NOTED, TAGS_EACH = 2 };

/* No message of numbers is as long, so that a rank that takes one for another notices. */
typedef struct note {
    int64_t bytes;
    int32_t lane; /* negative for none */
    uint32_t first;
    char odd;
} note;

enum { NOTE_BYTES = offsetof(note, odd) + 1 };

typedef struct part {
    int kind;
    bool streams; /* through a lane */
    lm__stream stream;
    note note;
} part;

struct lm__flight {
    int count, receives;   /* requests; the receives come first */
    int open, tag;         /* open: requests and streams that are not done */
    int streams;           /* that are under way */
    bool far;              /* more is to be received than the caches hold */
    bool dropped, kept;    /* dropped: what arrives is for nobody; kept: MPI still reads it */
    part *part;            /* [count], of each request */
    MPI_Status *status;    /* [count] of those that MPI_Testsome finds finished */
    int *finished;         /* [count] which those are */
    MPI_Request request[]; /* [count] */
};

static MPI_Comm job = MPI_COMM_NULL, comm = MPI_COMM_NULL;
static MPI_Comm here = MPI_COMM_NULL; /* the ranks of this host */
static MPI_Win shared[2];             /* windows of memory that its ranks share */
static int windows;
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

static int share(int64_t bytes, void **of_rank, char *error) {
    void *mine = NULL;
    MPI_Group group = MPI_GROUP_NULL, neighbours = MPI_GROUP_NULL;
    int code = MPI_Win_allocate_shared((MPI_Aint)bytes, 1, MPI_INFO_NULL, here, &mine,
                                       &shared[windows]);
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
            code = MPI_Win_shared_query(shared[windows], local, &size, &unit, &of_rank[r]);
    }
    if (group != MPI_GROUP_NULL) MPI_Group_free(&group);
    if (neighbours != MPI_GROUP_NULL) MPI_Group_free(&neighbours);
    if (code != MPI_SUCCESS) return fail(error, "MPI shares no memory", code);
    windows++;
    return 0;
}

/* How bytes move between the ranks of a host. Open MPI's choice is one copy, by a system call
 * for each message; two copies, in pieces that stay in the cache, are faster (tests/bench,
 * group exchange), need no permission that a container lacks, and never read the memory of a
 * rank that has ended. Small messages leave at once. True: large ones shall go through lanes;
 * false: the user has chosen how Open MPI copies them. */
static bool choose_parameters(void) {
    static const char single[] = "OMPI_MCA_btl_vader_single_copy_mechanism";
    bool chosen = getenv(single);
    setenv(single, "none", 0);
    setenv("OMPI_MCA_btl_vader_max_send_size", "131072", 0);
    setenv("OMPI_MCA_btl_vader_eager_limit", "32768", 0);
    return !chosen;
}

/* Where the host has no memory to share, all goes through MPI. */
static int open_lanes(char *error) {
    void **of_rank = calloc((size_t)world_size, sizeof *of_rank);
    if (!of_rank) return snprintf(error, 256, "MPI does not start: no memory"), -1;
    int there = share(lm__lanes_bytes(), of_rank, error) == 0, all = 0;
    int code = MPI_Allreduce(&there, &all, 1, MPI_INT, MPI_MIN, here);
    if (all) lm__lanes_open(of_rank, my_rank);
    else free(of_rank);
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI does not start", code);
}

static int start(int *rank, int *size, char *error) {
    int code = MPI_SUCCESS, on = 0;
    bool lanes = choose_parameters();
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
    return lanes ? open_lanes(error) : 0;
}

static int hosts(int *host, char *error) {
    int first = my_rank; /* rank 0 of `here`, as the ranks keep their order */
    int code = MPI_Bcast(&first, 1, MPI_INT, 0, here);
    if (code == MPI_SUCCESS) code = MPI_Allgather(&first, 1, MPI_INT, host, 1, MPI_INT, job);
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI does not start", code);
}

static int tags(void) {
    static int *highest, there;
    if (!highest) MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &highest, &there);
    return (there ? *highest : 32767) / TAGS_EACH;
}

/* ---- messages ---- */

static bool is_large(const lm__message *m) {
    return m->bytes >= LARGE && lm__lanes_with(m->peer);
}

/* That n messages need, if a large one needs `large` for each of its chunks. */
static int64_t requests(int n, const lm__message *m, int large) {
    int64_t total = 0;
    for (int i = 0; i < n; i++)
        total += (m[i].bytes + CHUNK - 1) / CHUNK * (is_large(&m[i]) ? large : 1);
    return total;
}

static int64_t bytes_of(int n, const lm__message *m) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) total += m[i].bytes;
    return total;
}

static lm__flight *flight_new(int tag, int64_t count) {
    size_t n = (size_t)count;
    size_t each = sizeof(MPI_Request) + sizeof(part) + sizeof(MPI_Status) + sizeof(int);
    lm__flight *f = malloc(sizeof *f + n * each);
    if (!f) return NULL;
    *f = (lm__flight){.tag = tag};
    f->part = (part *)(void *)(f->request + n);
    f->status = (MPI_Status *)(void *)(f->part + n);
    f->finished = (int *)(void *)(f->status + n);
    return f;
}

static void flight_free(lm__flight *f) {
    if (!f->kept) free(f);
}

/* Makes the request of f's part i. */
static int request(lm__flight *f, int i) {
    part *p = &f->part[i];
    const lm__stream *s = &p->stream;
    void *data = p->kind == NOTE ? (void *)&p->note : s->data;
    int bytes = p->kind == NOTE ? NOTE_BYTES : (int)s->bytes;
    int tag = f->tag + (p->kind == NOTED ? tags() : 0);
    MPI_Request *r = &f->request[i];
    int code = s->sends ? MPI_Isend(data, bytes, MPI_BYTE, s->peer, tag, comm, r)
                        : MPI_Irecv(data, bytes, MPI_BYTE, s->peer, tag, comm, r);
    if (code == MPI_SUCCESS) f->open++;
    return code;
}

static int add(lm__flight *f, part p) {
    f->part[f->count] = p;
    int code = request(f, f->count);
    if (code == MPI_SUCCESS) f->count++;
    return code;
}

static void begin_stream(lm__flight *f, part *p) {
    p->stream.lane = p->note.lane;
    p->stream.first = p->note.first;
    p->streams = true;
    f->streams++;
    f->open++;
}

/* Tells of the message, and sends it. */
static int add_note(lm__flight *f, part p) {
    p.note.bytes = p.stream.bytes;
    p.note.lane = lm__lane_take(&p.note.first);
    int code = add(f, p);
    if (code != MPI_SUCCESS) return code;
    if (p.note.lane >= 0) return begin_stream(f, &f->part[f->count - 1]), MPI_SUCCESS;
    p.kind = NOTED;
    return add(f, p);
}

static int add_message(lm__flight *f, bool sends, const lm__message *m) {
    int code = MPI_SUCCESS, kind = is_large(m) ? NOTE : BYTES;
    for (int64_t at = 0; at < m->bytes && code == MPI_SUCCESS; at += CHUNK) {
        part p = {.kind = kind,
                  .stream = {.peer = m->peer,
                             .sends = sends,
                             .far = f->far,
                             .data = (char *)m->data + at,
                             .bytes = m->bytes - at < CHUNK ? m->bytes - at : CHUNK}};
        code = sends && kind == NOTE ? add_note(f, p) : add(f, p);
    }
    return code;
}

/* What has arrived stays; a receive that is half arrived goes on. Sends cannot be taken back:
 * their requests are left to MPI. */
static bool drop(lm__flight *f) {
    int done;
    for (int i = 0; i < f->receives; i++)
        if (f->request[i] != MPI_REQUEST_NULL) MPI_Cancel(&f->request[i]);
    for (int i = f->receives; i < f->count; i++) {
        MPI_Test(&f->request[i], &done, MPI_STATUS_IGNORE);
        if (done) continue;
        MPI_Request_free(&f->request[i]);
        f->kept |= f->part[i].kind == NOTE;
    }
    f->dropped = true;
    f->streams = 0;
    f->count = f->receives;
    f->open = 0;
    for (int i = 0; i < f->count; i++) f->open += f->request[i] != MPI_REQUEST_NULL;
    done = 1;
    if (f->open > 0) MPI_Testall(f->count, f->request, &done, MPI_STATUSES_IGNORE);
    if (done) flight_free(f);
    return done;
}

static int post(int tag, int sends, const lm__message *send, int receives,
                const lm__message *receive, lm__flight **out, char *error) {
    int code = MPI_SUCCESS;
    int64_t total = requests(sends, send, 2) + requests(receives, receive, 1);
    *out = NULL;
    if (total == 0) return 0;
    lm__flight *f = flight_new(tag, total);
    if (!f) return snprintf(error, 256, "no memory for %lld requests", (long long)total), -1;
    f->far = bytes_of(receives, receive) >= LM__FAR;
    for (int i = 0; i < receives && code == MPI_SUCCESS; i++)
        code = add_message(f, false, &receive[i]);
    f->receives = f->count;
    for (int i = 0; i < sends && code == MPI_SUCCESS; i++)
        code = add_message(f, true, &send[i]);
    if (code != MPI_SUCCESS) return drop(f), fail(error, "MPI", code);
    *out = f;
    return 0;
}

/* A note has come: its message follows, through its lane or else through MPI. */
static int take_note(lm__flight *f, int i) {
    part *p = &f->part[i];
    if (p->note.lane >= 0) return begin_stream(f, p), MPI_SUCCESS;
    p->kind = NOTED;
    return request(f, i);
}

static int misfit(char *error) {
    return snprintf(error, 256,
                    "a message does not fit; do all ranks make the same calls "
                    "in the same order?"),
           -1;
}

/* The request of part i has ended. */
static int received(lm__flight *f, int i, const MPI_Status *status, char *error) {
    const part *p = &f->part[i];
    int bytes = 0, code = MPI_SUCCESS;
    MPI_Get_count(status, MPI_BYTE, &bytes);
    if (p->kind == BYTES && bytes == NOTE_BYTES && p->stream.bytes != bytes)
        return misfit(error);
    if (p->kind == NOTE && (bytes != NOTE_BYTES || p->note.bytes != p->stream.bytes))
        return misfit(error);
    if (p->kind == NOTE) code = take_note(f, i);
    return code == MPI_SUCCESS ? 0 : fail(error, "MPI", code);
}

/* A piece of each stream; then MPI has its turn, which brings the notes of others. */
static bool move_streams(lm__flight *f) {
    bool any = false;
    for (int i = 0; i < f->count && f->streams > 0; i++) {
        part *p = &f->part[i];
        if (!p->streams || !lm__stream_move(&p->stream)) continue;
        any = true;
        if (p->stream.moved < p->stream.bytes) continue;
        p->streams = false;
        f->streams--;
        f->open--;
    }
    return any;
}

static int test(lm__flight *f, char *error) {
    int finished = 0, st = 0;
    int code = MPI_Testsome(f->count, f->request, &finished, f->finished, f->status);
    if (code == MPI_ERR_IN_STATUS || code == MPI_ERR_TRUNCATE) return misfit(error);
    if (code != MPI_SUCCESS) return fail(error, "MPI", code);
    if (finished == MPI_UNDEFINED) finished = 0;
    f->open -= finished;
    for (int k = 0; k < finished && st == 0 && !f->dropped; k++) {
        int i = f->finished[k];
        if (i < f->receives) st = received(f, i, &f->status[k], error);
    }
    if (st != 0) return -1;
    bool moved = move_streams(f);
    if (f->open > 0) return moved ? 2 : 0;
    flight_free(f);
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
    for (int i = 0; i < f->count; i++) {
        const part *p = &f->part[i];
        bool waits = p->streams || (i < f->receives && f->request[i] != MPI_REQUEST_NULL);
        if (waits && left[p->stream.peer]) return p->stream.peer;
    }
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
    lm__lanes_renew();
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
    lm__lanes_close();
    while (windows > 0) MPI_Win_free(&shared[--windows]);
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
