/* weights.c - how much of each expert: w[t, s] = scores[t, id[t, s]] / sum.
 *
 * The router only says which; the gradient flows through the scores gathered
 * here. With S the sum over the routes R that count (chosen, or kept):
 *   w_i = s_i / S,   ds_j = (g_j - sum over i in R of g_i w_i) / S   for j in R.
 * A route that does not count has the weight 0. */
#include "runtime/moe/exchange_impl.h"

static bool counts(const lm_plan *p, int64_t route, int normalize) {
    return p->expert_id[route] >= 0 && !(normalize == LM_NORMALIZE_KEPT && p->dropped[route]);
}

static const float *floats(const lm_tensor *t) { return (const float *)(const void *)t->data; }

static float sum_of(const lm_plan *p, const float *score, int64_t t, int normalize) {
    float sum = 0;
    for (int64_t r = t * p->top_k; r < (t + 1) * p->top_k; r++)
        if (counts(p, r, normalize)) sum += score[p->expert_id[r]];
    return sum;
}

static int weights_backward(lm_node *n) {
    const lm_plan *p = n->extra;
    int normalize = (int)n->i[0];
    lm_tensor *scores, *w, *dy = NULL, *dx = NULL;
    int st = lm__saved(n, 0, &scores);
    if (st == LM_OK) st = lm__saved(n, 1, &w);
    if (st == LM_OK) st = lm__tensor_dense(lm__grad(n, 0), LM_F32, &dy);
    if (st == LM_OK) st = lm_tensor_full(LM_F32, 2, scores->shape, 0, &dx);
    for (int64_t t = 0; t < p->tokens && st == LM_OK; t++) {
        const float *g = floats(dy), *score = floats(scores) + t * p->experts;
        float *d = (float *)(void *)dx->data + t * p->experts, dot = 0, sum = 1;
        int64_t first = t * p->top_k, end = first + p->top_k;
        if (normalize != LM_NORMALIZE_NONE) {
            sum = sum_of(p, score, t, normalize);
            if (sum == 0) continue;
            for (int64_t r = first; r < end; r++)
                if (counts(p, r, normalize)) dot += g[r] * floats(w)[r];
        }
        for (int64_t r = first; r < end; r++)
            if (counts(p, r, normalize)) d[p->expert_id[r]] += (g[r] - dot) / sum;
    }
    if (st == LM_OK) st = lm__give(n, 0, dx), dx = NULL;
    lm_tensor_release(dx);
    lm_tensor_release(dy);
    return st;
}

int lm_moe_weights(lm_plan *p, lm_tensor *scores, int normalize, lm_tensor **out) {
    char text[96];
    lm_tensor *dense = NULL, *y = NULL;
    lm_node *n = NULL;
    int st = lm__floating("weights", scores);
    if (st == LM_OK &&
        (scores->ndim != 2 || scores->shape[0] != p->tokens || scores->shape[1] != p->experts))
        st = lm_fail(LM_ESHAPE,
                     "weights: scores are %s, but the plan has %lld tokens, %d experts",
                     lm__describe(scores, text), (long long)p->tokens, p->experts);
    if (st == LM_OK) st = lm__tensor_dense(scores, LM_F32, &dense);
    if (st == LM_OK) st = lm_tensor_new(LM_F32, 2, (int64_t[]){p->tokens, p->top_k}, &y);
    for (int64_t t = 0; t < p->tokens && st == LM_OK; t++) {
        const float *score = floats(dense) + t * p->experts;
        float *w = (float *)(void *)y->data;
        float sum = normalize == LM_NORMALIZE_NONE ? 1 : sum_of(p, score, t, normalize);
        for (int64_t r = t * p->top_k; r < (t + 1) * p->top_k; r++)
            w[r] = counts(p, r, normalize) && sum != 0 ? score[p->expert_id[r]] / sum : 0;
    }
    if (st == LM_OK) st = lm__record("weights", weights_backward, 1, &scores, 1, &y, &n);
    if (st == LM_OK) st = lm__save(n, 0, dense);
    if (st == LM_OK && n) {
        /* an alias of y: saving y itself would make a circle of node and output */
        st = lm__save(n, 1, y);
        n->i[0] = normalize;
        lm__hold_plan(n, p);
    }
    lm_tensor_release(dense);
    return lm__finish(st, y, out);
}
