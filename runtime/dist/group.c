/* group.c - ordered subsets of the ranks.
 *
 * A group is a list of ranks and a number, from which its messages' tags come.
 * Its members agree on the smallest number that none of them has used: two
 * groups that share a pair of ranks then always differ, and making a group
 * involves its members alone. */
#include "runtime/dist/dist_impl.h"

#include <stdlib.h>

enum { WORLD = 0, MAKING = 1, OTHERS = 2 };

static int next_number = OTHERS;

static int group_alloc(int size, lm_group **out) {
    lm_group *g = calloc(1, sizeof *g);
    if (g) g->world_rank = calloc((size_t)size, sizeof *g->world_rank);
    if (!g || !g->world_rank) {
        free(g);
        return lm_fail(LM_EOOM, "no memory for a group of %d ranks", size);
    }
    g->refs = 1;
    g->size = size;
    *out = g;
    return LM_OK;
}

int lm__world_new(int size, int rank, lm_group **out) {
    lm_group *g = NULL;
    int st = group_alloc(size, &g);
    if (st != LM_OK) return st;
    for (int i = 0; i < size; i++) g->world_rank[i] = i;
    g->rank = rank;
    g->number = WORLD;
    *out = g;
    return LM_OK;
}

static int fill(lm_group *g, const int32_t *ranks, int count) {
    int me = lm_dist_rank(), world = lm_dist_world_size();
    g->rank = -1;
    for (int i = 0; i < count; i++) {
        if (ranks[i] < 0 || ranks[i] >= world)
            return lm_fail(LM_EARG, "group: rank %d of a world of %d", ranks[i], world);
        for (int j = 0; j < i; j++)
            if (ranks[j] == ranks[i])
                return lm_fail(LM_EARG, "group: rank %d is there twice", ranks[i]);
        if (ranks[i] == me) g->rank = i;
        g->world_rank[i] = ranks[i];
    }
    if (g->rank < 0)
        return lm_fail(LM_EARG, "group: rank %d makes a group it is no member of", me);
    return LM_OK;
}

/* The members agree on a number. */
static int agree_number(lm_group *g) {
    int32_t number = next_number;
    g->number = MAKING;
    int st = lm_all_reduce(g, &number, 1, LM_I32, LM_REDUCE_MAX);
    if (st == LM_OK && number >= lm__transport_of_job()->tags() / LM__SLOTS)
        st = lm_fail(LM_ECOMM, "group: %d groups were made, and MPI has no more tags", number);
    if (st != LM_OK) return st;
    g->number = number;
    g->started = 0;
    next_number = number + 1;
    return LM_OK;
}

int lm_group_new(const int32_t *ranks, int count, lm_group **out) {
    lm_group *g = NULL;
    int st = lm_dist_init();
    if (st == LM_OK && count < 1) st = lm_fail(LM_EARG, "group: no ranks given");
    if (st == LM_OK) st = group_alloc(count, &g);
    if (st == LM_OK) st = fill(g, ranks, count);
    if (st == LM_OK && count > 1) st = agree_number(g);
    if (st == LM_OK) *out = g;
    else lm_group_release(g);
    return st;
}

void lm_group_retain(lm_group *g) { g->refs++; }

void lm_group_release(lm_group *g) {
    if (!g || --g->refs > 0) return;
    free(g->world_rank);
    free(g);
}

int lm_group_size(const lm_group *g) {
    g = lm__group(g);
    return g ? g->size : LM_ECOMM;
}

int lm_group_rank(const lm_group *g) {
    g = lm__group(g);
    return g ? g->rank : LM_ECOMM;
}

int lm_group_world_rank(const lm_group *g, int rank) {
    g = lm__group(g);
    if (!g) return LM_ECOMM;
    if (rank < 0 || rank >= g->size)
        return lm_fail(LM_EARG, "group: rank %d of a group of %d", rank, g->size);
    return g->world_rank[rank];
}
