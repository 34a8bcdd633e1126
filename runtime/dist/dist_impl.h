/* dist_impl.h - what the files of this folder share. */
#ifndef LM_DIST_IMPL_H
#define LM_DIST_IMPL_H

#include "runtime/dist.h"
#include "runtime/dist/transport.h"

#include <stdbool.h>

struct lm_group {
    int refs;
    int size, rank; /* rank: of this process within the group */
    int tag;        /* no two groups that share a pair of ranks have the same */
    bool broken;
    int *world_rank; /* [size] */
};

/* The world when g is NULL; starts the transport. NULL: lm_last_error says why. */
lm_group *lm__group(const lm_group *g);
int lm__world_new(int size, int rank, lm_group **out);
/* Messages within g, peers by rank of the group. A failure breaks the group. */
int lm__exchange(lm_group *g, const char *op, int sends, lm__message *send, int receives,
                 lm__message *receive);
int lm__exchange_world(lm_group *g, const char *op, int sends, const lm__message *send,
                       int receives, const lm__message *receive);

#endif
