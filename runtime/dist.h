/* dist.h - ranks, groups of ranks, and the collectives between them.
 *
 * A process alone is a world of one rank and needs no MPI: every collective is
 * then a copy. Under mpirun or srun the transport starts at the first call here
 * (MPI is slow to start), from a plugin that nothing else links.
 *
 * Sums are taken in the order of the ranks, by every rank alike: the same bits
 * everywhere, so that routing decided from a sum cannot differ between ranks.
 * Every member of a group calls the same collectives in the same order. A
 * failure is LM_ECOMM; a group on which one failed or was interrupted is broken
 * and says so until lm_dist_recover.
 *
 * Buffers are plain CPU memory. A group parameter may be NULL: the world. */
#ifndef LM_DIST_H
#define LM_DIST_H

#include "kernels/dtype.h"
#include "runtime/status.h"

typedef struct lm_group lm_group;
typedef struct lm_async lm_async; /* a collective under way */

enum { LM_REDUCE_SUM = 0, LM_REDUCE_MAX = 1, LM_REDUCE_MIN = 2 };

/* Starts the transport when a launcher started us. Idempotent; everything below calls it. */
LM_API int lm_dist_init(void);
/* Waits for every rank, then leaves the job. Nothing may be called here afterwards. */
LM_API int lm_dist_finalize(void);
/* Ends every rank of the job with this exit code; returns only in a world of one. */
LM_API void lm_dist_abort(int code);
/* For a signal handler: collectives now waiting return LM_ECOMM. */
LM_API void lm_dist_interrupt(void);
/* After an interrupt on all ranks, called by all: what was in flight has failed, and every
 * group can be used again. Waits for the last rank, whatever interrupts come meanwhile. What
 * interrupted collectives were to write is undefined. */
LM_API int lm_dist_recover(void);
/* How many there were: who keeps collectives can tell that those from before are gone. */
LM_API int lm_dist_recoveries(void);

/* A launcher started this process; needs no transport. */
LM_API int lm_dist_launched(void);
/* The transport runs: there are other ranks, and they expect a finalize or an abort. */
LM_API int lm_dist_running(void);
/* These are negative, an LM_E*, when the transport does not start. */
LM_API int lm_dist_rank(void);
LM_API int lm_dist_world_size(void);
LM_API int lm_dist_local_rank(void); /* among the ranks of this host */
LM_API int lm_dist_local_size(void);
/* The number of a rank's host, from 0. LUMOE_HOSTS=2,2 in the environment pretends that the
 * first two ranks share a host and the next two another. */
LM_API int lm_dist_host(int rank);

/* A group of world ranks, in the order given; called by exactly its members. */
LM_API int lm_group_new(const int32_t *ranks, int count, lm_group **out);
LM_API void lm_group_retain(lm_group *g);
LM_API void lm_group_release(lm_group *g); /* NULL is a no-op */
LM_API int lm_group_size(LM_MAYBE const lm_group *g);
LM_API int lm_group_rank(LM_MAYBE const lm_group *g); /* of this process within g */
LM_API int lm_group_world_rank(LM_MAYBE const lm_group *g, int rank);

LM_API int lm_barrier(LM_MAYBE lm_group *g);
/* In place. f32, f64 (dtype LM_F64), bf16 (summed in f32), i32, i64, u8. */
LM_API int lm_all_reduce(LM_MAYBE lm_group *g, void *data, int64_t count, int dtype, int op);
LM_API int lm_broadcast(LM_MAYBE lm_group *g, void *data, int64_t bytes, int root);
/* recv is [size, bytes]; send may be this rank's place in it. */
LM_API int lm_all_gather(LM_MAYBE lm_group *g, const void *send, int64_t bytes, void *recv);
/* bytes[size] differ between ranks and are known to all; recv holds them one after the other.
 */
LM_API int lm_all_gather_v(LM_MAYBE lm_group *g, const void *send, const int64_t *bytes,
                           void *recv);
/* data is [size, count] and scratch afterwards; recv [count] gets this rank's sum. */
LM_API int lm_reduce_scatter(LM_MAYBE lm_group *g, void *data, int64_t count, int dtype, int op,
                             void *recv);
/* Exact rows: send holds sends[size] bytes for each rank, one after the other; recv likewise.
 */
LM_API int lm_all_to_all_v(LM_MAYBE lm_group *g, const void *send, const int64_t *sends,
                           void *recv, const int64_t *receives);

/* An error on one rank becomes an error on all: every member passes its own status (its
 * sentence in lm_last_error when negative) and gets LM_OK, or the first failing rank's. */
LM_API int lm_dist_agree(LM_MAYBE lm_group *g, int status);
/* The same, for errors that did not come from C. */
LM_API int lm_dist_agree_text(LM_MAYBE lm_group *g, int status, LM_MAYBE const char *text);

/* ---- a rank that fails alone ----
 *
 * What one rank lacks, memory above all, the others cannot know. The rule for everything that
 * has a collective in it, here and above:
 *   - It asks for what it needs before its first collective starts. One that fails then has
 *     taken part in nothing, and may be tried again.
 *   - A rank that fails waits for nobody but what is under way already, which the others have
 *     started too. Its error goes up, and ends the script; that ends the job, with the error's
 *     sentence first (runtime/host/main.c).
 *   - Where ranks shall survive it, as at a prompt, they do together what may fail, and end
 *     with lm_dist_rejoin.
 *   - A failed collective leaves nothing behind that another rank reads or writes: memory of
 *     its messages that was freed is used again when all have recovered. */

/* The end of something that all ranks began together: each passes how it went, and comes from
 * wherever it failed. What the others wait in then fails with its sentence, as do all their
 * collectives until they come here. All get LM_OK, or the first failing rank's status and
 * sentence, and every group can be used again. */
LM_API int lm_dist_rejoin(int status, LM_MAYBE const char *text);

/* ---- finding what makes ranks wait for ever ----
 *
 * LUMOE_DEBUG=collectives: before a collective, its members compare what they are about
 * to do; where they differ, each gets an error with every one's operation and line of the
 * script. LUMOE_TIMEOUT=SECONDS (60 in debug mode, else off): a wait that takes longer is an
 * error that tells what each rank is doing. */
LM_API int lm_dist_debug(void); /* 1 in debug mode */
/* A function of C that writes where the script is, as file:line; called in debug mode only. */
LM_API void lm_dist_where(int (*where)(char *text, int room));

/* ---- without waiting ----
 *
 * The same collectives, started: they go on while this rank computes, whenever it
 * calls lm_dist_progress or waits for anything here. Their buffers stay untouched
 * until lm_async_wait; their results have the same bits. Any number may be in
 * flight, beside others that block, and be waited for in any order; the order of
 * starting is what all members share. *out may be NULL: done already. */
LM_API int lm_all_reduce_start(LM_MAYBE lm_group *g, void *data, int64_t count, int dtype,
                               int op, lm_async **out);
LM_API int lm_all_gather_start(LM_MAYBE lm_group *g, const void *send, int64_t bytes,
                               void *recv, lm_async **out);
LM_API int lm_all_gather_v_start(LM_MAYBE lm_group *g, const void *send, const int64_t *bytes,
                                 void *recv, lm_async **out);
LM_API int lm_reduce_scatter_start(LM_MAYBE lm_group *g, void *data, int64_t count, int dtype,
                                   int op, void *recv, lm_async **out);
LM_API int lm_all_to_all_v_start(LM_MAYBE lm_group *g, const void *send, const int64_t *sends,
                                 void *recv, const int64_t *receives, lm_async **out);

/* Waits for it, frees it, and gives its status. NULL is done. */
LM_API int lm_async_wait(LM_MAYBE lm_async *a);
/* 1 when lm_async_wait would not wait, else 0. */
LM_API int lm_async_test(LM_MAYBE lm_async *a);
/* Frees it, finished or not; if it was not, its group is broken. */
LM_API void lm_async_drop(LM_MAYBE lm_async *a);
/* Moves on what is in flight; next to nothing when nothing is. */
LM_API void lm_dist_progress(void);

/* ---- what was sent ---- */

/* By this rank to one other, since the start or the last reset. */
typedef struct lm_traffic {
    double bytes, messages;
    double rows; /* as told to lm_dist_count_rows */
} lm_traffic;

LM_API int lm_dist_counters(lm_traffic *out); /* [world size] */
LM_API void lm_dist_counters_reset(void);
/* Whoever sends rows with an all_to_all says how many went to each rank of g. */
LM_API int lm_dist_count_rows(LM_MAYBE lm_group *g, const int64_t *rows);
/* Seconds that this process has spent in collectives that were not done yet. */
LM_API double lm_dist_waited(void);

enum { LM_F64 = 16 }; /* no tensor has it; only all_reduce and reduce_scatter do */

#endif
