/* transport.h - what a transport does: move bytes between two ranks, without waiting.
 *
 * The collectives (collective.c) are built on this one operation, so that their
 * arithmetic and its order are ours. A message between two ranks under one tag
 * arrives in the order in which such messages were posted. */
#ifndef LM_TRANSPORT_H
#define LM_TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct lm__message {
    int peer; /* world rank */
    int64_t bytes;
    void *data; /* read by a send, written by a receive */
} lm__message;

typedef struct lm__flight lm__flight; /* messages on their way */

enum { LM__NEWS = 1024 };

/* Functions return 0, or -1 with a sentence in error (256 bytes). */
typedef struct lm__transport {
    const char *name;
    int (*start)(int *rank, int *size, char *error);
    int (*hosts)(int *host, char *error); /* host[size]: the first rank on each rank's host */
    /* Zeroed memory of each rank of this host, [size] pointers, that they all can read. */
    int (*share)(int64_t bytes, void **of_rank, char *error);
    int (*tags)(void); /* messages have tags from 0 to below this */

    /* Posts these; *out is NULL when none has a byte. Buffers stay the caller's until test has
     * given 1. */
    int (*post)(int tag, int sends, const lm__message *send, int receives,
                const lm__message *receive, lm__flight **out, char *error);
    /* 1: all are done, and f is gone; 0: not yet; 2: not yet, but some bytes have moved. */
    int (*test)(lm__flight *f, char *error);
    /* A rank that has left the job while something is still to come from it, or -1. */
    int (*deserter)(const lm__flight *f);
    /* Takes back what has not begun to arrive. True: f is gone; false: something is still being
     * written to, until test gives 1. What was being sent may be read until all ranks have
     * renewed. */
    bool (*drop)(lm__flight *f);

    /* News of at most LM__NEWS bytes to every other rank, whatever it does; and what has come,
     * if anything has: the rank it is from, or -1. */
    int (*tell)(const void *news, int bytes, char *error);
    int (*hear)(void *news, int bytes);

    /* Both are to be called by all ranks until they give 1 (0: not yet). */
    int (*least)(int *number, char *error); /* of the ranks' numbers */
    /* From when every rank has got 1 here, messages posted before no longer match any. */
    int (*renew)(char *error);
    int (*stop)(char *error); /* after every rank has said goodbye */
    void (*abort)(int code);
} lm__transport;

typedef const lm__transport *(*lm__transport_entry)(void);

#endif
