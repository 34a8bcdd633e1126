/* dist_impl.h - what the files of this folder share. */
#ifndef LM_DIST_IMPL_H
#define LM_DIST_IMPL_H

#include "runtime/dist.h"
#include "runtime/dist/transport.h"

#include <stdbool.h>

enum { LM__SLOTS = 64 }; /* collectives of one group that may be in flight at once */

struct lm_group {
    int refs;
    int size, rank;  /* rank: of this process within the group */
    int number;      /* no two groups that share a pair of ranks have the same */
    int64_t started; /* collectives, since the last recovery */
    bool broken;
    int recovery;    /* how many there were when it was last used */
    int *world_rank; /* [size] */
};

typedef struct lm__record lm__record;         /* watch.h */
typedef struct lm__comparison lm__comparison; /* check.c */

/* One collective under way: stages of messages, each followed by a function. */
struct lm_async {
    lm_async *next; /* in flight, in the order of starting */
    lm_group *group;
    const char *name;
    int tag;
    lm__flight *flight;      /* this stage's messages; NULL: they have arrived */
    int (*then)(lm_async *); /* the next stage, NULL after the last: posts messages, sets it */
    bool done, uncounted;    /* uncounted: this stage's messages are not the caller's */
    int status;
    char *error; /* NULL: none, or no memory for it */

    /* what the stages know */
    char *data, *recv, *scratch;
    int64_t count, scratch_bytes;
    int dtype, op, reach, scratch_purpose;

    /* [group size] each: what goes to and comes from every rank */
    char **send, **receive;
    int64_t *sends, *receives;
    lm__message *out, *in; /* [group size]: this stage's; so many */
    int posted_out, posted_in;

    lm__record *record;         /* NULL: nothing is watched */
    lm__comparison *comparison; /* NULL: not in debug mode */
};

/* dist.c */
lm_group *lm__group(const lm_group *g); /* the world when g is NULL; NULL: lm_last_error */
const lm__transport *lm__transport_of_job(void); /* NULL once left */
bool lm__dist_crowded(void);                     /* this host has fewer cores than ranks */

/* group.c */
int lm__world_new(int size, int rank, lm_group **out);

/* async.c: new, fill in, start. When filling in failed, start frees a and returns that status.
 */
int lm__async_new(lm_group *g, const char *name, int (*first)(lm_async *), lm_async **out);
int lm__async_start(lm_async *a, int st, lm_async **out);
int lm__async_scratch(lm_async *a, int64_t bytes);
/* For stages. Peers of post are ranks of the group. */
int lm__async_post(lm_async *a, int sends, lm__message *send, int receives,
                   lm__message *receive);
int lm__async_everyone(lm_async *a);     /* sends[r] bytes at send[r] to rank r, and so on */
void lm__async_give_up(const char *why); /* all that is in flight fails */

/* traffic.c */
void lm__traffic_count(int peer, int64_t bytes);

#endif
