/* mixture.c - what there is to draw from, and how much of it a window takes.
 *
 * Each task keeps a list of the sentences that may be drawn: no empty side, none too long (or
 * cut). Within a kind, a task's share of the examples is its size to the power 1/temperature;
 * denoising as a whole has the share it was given. A window takes `quota` examples of each,
 * a fixed-point number, so that the draws before any window are one multiplication. */
#include "runtime/data/data_impl.h"

#include <math.h>
#include <stdlib.h>

static int64_t clip(int64_t pieces, int64_t limit) { return pieces < limit ? pieces : limit; }

/* Tokens of a row, on average over the noise. */
static double row_tokens(const lm_batches_options *o, const lm_task *t, int64_t sentence) {
    double fixed = t->prefixes + 2;
    double pieces = (double)clip(lm__stream_length(t->source, sentence), o->max_pieces);
    if (t->kind == LM_DENOISING) {
        double rate = 0.5 * (o->mask_low + o->mask_high);
        return fixed + pieces * (2 - rate + rate / o->mean_span);
    }
    return fixed + pieces + (double)clip(lm__stream_length(t->target, sentence), o->max_pieces);
}

static int keep_sentences(lm_source *s, const lm_batches_options *o, int place) {
    const lm_task *t = &s->task;
    const lm_stream *other = t->target ? t->target : t->source;
    int64_t n = (int64_t)t->source->header->sentences;
    s->about.sentences = n;
    s->kept = malloc(((size_t)n + 1) * sizeof *s->kept);
    if (!s->kept) return lm_fail(LM_EOOM, "batches: no memory for task %d's sentences", place);
    double tokens = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t here = lm__stream_length(t->source, i), there = lm__stream_length(other, i);
        bool is_long = here > o->max_pieces || there > o->max_pieces;
        bool is_empty = here == 0 || there == 0;
        s->about.empty_ones += is_empty;
        s->about.long_ones += is_long && !is_empty;
        if (!o->fixed && (is_empty || (is_long && !o->cut))) continue;
        s->kept[s->about.kept++] = (uint32_t)i;
        if (!o->fixed) tokens += row_tokens(o, t, i);
    }
    if (s->about.kept > 0) s->mean = tokens / (double)s->about.kept;
    return LM_OK;
}

/* The shares, which sum to 1: first each task's among its kind, then the kinds'. */
static int set_shares(lm_batches *b) {
    double sums[2] = {0, 0};
    for (int i = 0; i < b->n; i++) {
        lm_source *s = &b->sources[i];
        s->about.share = s->about.kept == 0 ? 0
                                            : s->task.weight * pow((double)s->about.kept,
                                                                   1 / b->options.temperature);
        sums[s->task.kind] += s->about.share;
    }
    if (sums[0] + sums[1] <= 0)
        return lm_fail(LM_EARG,
                       "batches: nothing to draw: every sentence is empty, longer than %d"
                       " pieces, or of a task with weight 0",
                       b->options.max_pieces);
    double denoising = b->options.denoising;
    if (sums[LM_DENOISING] <= 0) denoising = 0;
    else if (sums[LM_TRANSLATION] <= 0) denoising = 1;
    const double kinds[2] = {1 - denoising, denoising};
    for (int i = 0; i < b->n; i++) {
        lm_source *s = &b->sources[i];
        if (s->about.share > 0) s->about.share *= kinds[s->task.kind] / sums[s->task.kind];
    }
    return LM_OK;
}

static int set_quotas(lm_batches *b) {
    const lm_batches_options *o = &b->options;
    double mean = 0; /* tokens of an example of the mixture */
    for (int i = 0; i < b->n; i++) mean += b->sources[i].about.share * b->sources[i].mean;
    double rows = (double)o->window * (double)o->tokens / o->micro_batches / mean;
    double least = 2.0 * o->window + b->n; /* so that no micro-batch is without rows */
    if (rows < least) rows = least;
    if (rows > LM_MAX_ROWS)
        return lm_fail(LM_EARG,
                       "batches: %.0f examples in a window of %d micro-batches are too many;"
                       " make the window or the tokens of a step smaller",
                       rows, o->window);
    for (int i = 0; i < b->n; i++) {
        lm_source *s = &b->sources[i];
        s->quota = (uint64_t)llround(rows * s->about.share * (1 << LM_QUOTA_BITS));
    }
    return LM_OK;
}

int lm__mixture(lm_batches *b) {
    int st = LM_OK;
    for (int i = 0; st == LM_OK && i < b->n; i++)
        st = keep_sentences(&b->sources[i], &b->options, i);
    if (st == LM_OK && !b->options.fixed) st = set_shares(b);
    if (st == LM_OK && !b->options.fixed) st = set_quotas(b);
    return st;
}
