/* watch.h - what every rank is doing, for jobs that hang or whose ranks disagree.
 *
 * Off unless LUMOE_DEBUG has `collectives` or LUMOE_TIMEOUT is set. */
#ifndef LM_WATCH_H
#define LM_WATCH_H

#include "runtime/dist/dist_impl.h"

/* A collective as one rank made it. */
typedef struct lm__call {
    char name[16], line[128], ranks[64]; /* ranks: of its group, as text */
    int64_t place, count;                /* place: in the order of its group's collectives */
    int32_t dtype, op;                   /* op: a reduction, or the root of a broadcast */
} lm__call;

struct lm__record {
    lm__call call;
    int64_t sizes[]; /* [group size] bytes to each member, then [group size] from each */
};

int lm__watch_open(const lm__transport *transport, int size, int rank);
/* Gives a new collective its record, with the line of the script that runs now. */
int lm__watch_new(lm_async *a);
void lm__watch_started(lm_async *a); /* it is filled in: completes the record */
void lm__watch_waits(const lm_async *a, bool waits);
/* Whether a wait that began at `since` (seconds) has lasted too long; `text` then says what
 * every rank is doing. */
bool lm__watch_expired(double since, double now, char *text, size_t room);

/* One rank's error is enough, if it ends the job: the others wait with theirs. */
void lm__watch_let_others_speak(void);

/* "all_reduce of 10 f32 (sum), at script.lua:4" */
void lm__call_text(const lm__call *c, char *text, size_t room);

/* A line for each of n ranks, where those with the same line share it. */
typedef void (*lm__line_fn)(const void *of, int i, char *text, size_t room);
void lm__list_ranks(int n, const int *rank, lm__line_fn line, const void *of, char *text,
                    size_t room);

/* check.c */
bool lm__checking(void);    /* debug mode is on */
int lm__check(lm_async *a); /* in debug mode, puts a comparison before its first stage */

#endif
