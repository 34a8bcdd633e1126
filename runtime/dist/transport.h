/* transport.h - what a transport does: move bytes between two ranks.
 *
 * The collectives (collective.c) are built on this one operation, so that their
 * arithmetic and its order are ours. A message between two ranks under one tag
 * arrives in the order in which such messages were sent. */
#ifndef LM_TRANSPORT_H
#define LM_TRANSPORT_H

#include <stdint.h>

typedef struct lm__message {
    int peer; /* world rank */
    int64_t bytes;
    void *data; /* read by a send, written by a receive */
} lm__message;

/* Functions return 0, or -1 with a sentence in error (256 bytes). */
typedef struct lm__transport {
    const char *name;
    int (*start)(int *rank, int *size, int *local_rank, int *local_size, char *error);
    /* Sends and receives all of these at once; returns when all are done, or early with -1
     * once *interrupted is set or a rank that is waited for has left. */
    int (*exchange)(int tag, int sends, const lm__message *send, int receives,
                    const lm__message *receive, const volatile int *interrupted, char *error);
    int (*stop)(char *error); /* after every rank has said goodbye */
    void (*abort)(int code);
} lm__transport;

typedef const lm__transport *(*lm__transport_entry)(void);

#endif
