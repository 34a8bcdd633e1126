/* traffic.c - what this rank has sent to each other rank. */
#include "runtime/dist/dist_impl.h"

#include <stdlib.h>
#include <string.h>

static lm_traffic *traffic; /* [world size]; NULL before the first message */

/* Without memory nothing is counted: no reason to fail a message. */
static lm_traffic *of(int peer) {
    if (!traffic) traffic = calloc((size_t)lm_dist_world_size(), sizeof *traffic);
    return traffic ? &traffic[peer] : NULL;
}

void lm__traffic_count(int peer, int64_t bytes) {
    lm_traffic *t = bytes > 0 ? of(peer) : NULL;
    if (!t) return;
    t->bytes += (double)bytes;
    t->messages += 1;
}

int lm_dist_count_rows(lm_group *g, const int64_t *rows) {
    g = lm__group(g);
    if (!g) return LM_ECOMM;
    for (int r = 0; r < g->size; r++) {
        lm_traffic *t = r != g->rank ? of(g->world_rank[r]) : NULL;
        if (t) t->rows += (double)rows[r];
    }
    return LM_OK;
}

int lm_dist_counters(lm_traffic *out) {
    int size = lm_dist_world_size();
    if (size < 0) return size;
    for (int r = 0; r < size; r++) out[r] = traffic ? traffic[r] : (lm_traffic){0, 0, 0};
    return LM_OK;
}

void lm_dist_counters_reset(void) {
    free(traffic);
    traffic = NULL;
}
