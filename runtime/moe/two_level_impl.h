/* two_level_impl.h - who takes what to whom, over two levels. */
#ifndef LM_TWO_LEVEL_IMPL_H
#define LM_TWO_LEVEL_IMPL_H

#include "runtime/memory.h"
#include "runtime/moe/plan_impl.h"
#include "runtime/tensor_impl.h"

typedef struct lm__map {
    int ranks, me;
    const int32_t *host;
    const int64_t *pairs;
    bool back;
    int *number; /* of a rank on its host */
    int *size;   /* of a rank's host */
} lm__map;

int lm__map_new(const lm_plan *p, const lm__wire *w, bool back, lm__map *m); /* free number */
bool lm__near(const lm__map *m, int a, int b);
/* Whether rank q takes what s has for the other host on which q is. */
bool lm__receives_from(const lm__map *m, int q, int s);

/* What moves in each step, to and from every rank. */
typedef struct lm__step {
    int64_t *sends, *receives, out, in;
} lm__step;

int lm__step_new(int ranks, lm__step *s); /* free sends */
void lm__count_across(const lm__map *m, lm__step *a);
void lm__count_inside(const lm__map *m, lm__step *b);

/* The order of things in what is sent and received. For each rank across, in turn: what this
 * one has for the ranks of its host. For each rank of this host, in turn: from each source, in
 * turn, what came across or is ours. From bearer after bearer to source after source. */
void lm__pack_across(const lm__map *m, const char *from, int64_t each, char *out);
void lm__pack_inside(const lm__map *m, const char *from, const char *across, int64_t each,
                     char *out);
void lm__unpack(const lm__map *m, const char *in, int64_t each, char *to);

#endif
