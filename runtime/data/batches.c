/* batches.c - from a step's number to its rows.
 *
 * Step -> (window, place in it) is arithmetic; the window says which examples its micro-batches
 * hold; rank r of R takes rows [r n / R, (r + 1) n / R) of each, perhaps none. Padding is put
 * in here, to the longest row of the slice: nothing else may depend on it. */
#include "runtime/data/data_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Making them ------------------------------------------------------------------------ */

static int check_options(const lm_batches_options *o) {
    if (o->tokens < 1)
        return lm_fail(LM_EARG, "batches: %lld tokens a step", (long long)o->tokens);
    if (o->micro_batches < 1 || o->window < 1 || o->window % o->micro_batches != 0)
        return lm_fail(LM_EARG,
                       "batches: a window of %d micro-batches, where a step has %d: it must"
                       " be a multiple",
                       o->window, o->micro_batches);
    if (o->max_pieces < 1 || o->max_pieces > 32000)
        return lm_fail(LM_EARG, "batches: max_pieces is %d, not within 1..32000",
                       o->max_pieces);
    if (o->multiple < 1)
        return lm_fail(LM_EARG, "batches: lengths in multiples of %d", o->multiple);
    if (!(o->temperature > 0))
        return lm_fail(LM_EARG, "batches: temperature is %g", o->temperature);
    if (!(o->denoising >= 0 && o->denoising <= 1))
        return lm_fail(LM_EARG, "batches: a share of denoising of %g", o->denoising);
    if (!(o->mask_low >= 0 && o->mask_low <= o->mask_high && o->mask_high < 1))
        return lm_fail(LM_EARG, "batches: masks from %g to %g of a sentence", o->mask_low,
                       o->mask_high);
    if (!(o->mean_span >= 1))
        return lm_fail(LM_EARG, "batches: spans of %g pieces", o->mean_span);
    return LM_OK;
}

static int check_id(int place, const char *what, int32_t id, const lm_stream *s) {
    if (id >= 0 && (uint32_t)id < s->header->vocab) return LM_OK;
    return lm_fail(LM_EARG, "batches: task %d: %s is id %d, but %s has a vocabulary of %u",
                   place, what, id, s->path, s->header->vocab);
}

static int check_task(const lm_batches_options *o, const lm_task *t, int place,
                      const lm_stream *first) {
    if (!t->source) return lm_fail(LM_EARG, "batches: task %d has no source", place);
    const lm_stream_header *src = t->source->header;
    if (t->kind != LM_TRANSLATION && t->kind != LM_DENOISING)
        return lm_fail(LM_EARG, "batches: task %d is of kind %d", place, t->kind);
    if (t->kind == LM_DENOISING && t->target)
        return lm_fail(LM_EARG, "batches: task %d denoises, so its target is its source",
                       place);
    if (t->kind == LM_TRANSLATION && !t->target && !o->fixed)
        return lm_fail(LM_EARG, "batches: task %d has no target", place);
    if (t->target && t->target->header->sentences != src->sentences)
        return lm_fail(LM_EARG, "batches: task %d: %s has %llu sentences, but %s has %llu",
                       place, t->source->path, (unsigned long long)src->sentences,
                       t->target->path, (unsigned long long)t->target->header->sentences);
    const lm_stream *streams[] = {t->source, t->target};
    for (int i = 0; i < 2; i++)
        if (streams[i] && streams[i]->header->model != first->header->model)
            return lm_fail(LM_EARG, "batches: %s and %s were made by different tokenizers",
                           first->path, streams[i]->path);
    if (src->sentences > UINT32_MAX)
        return lm_fail(LM_EARG, "batches: %s has too many sentences", t->source->path);
    if (t->prefixes < 0 || t->prefixes > LM_MAX_PREFIX)
        return lm_fail(LM_EARG, "batches: task %d has %d prefixes, not within 0..%d", place,
                       t->prefixes, LM_MAX_PREFIX);
    if (!(t->weight >= 0) || isinf(t->weight))
        return lm_fail(LM_EARG, "batches: task %d has weight %g", place, t->weight);
    int st = check_id(place, "start", t->start, t->source);
    for (int i = 0; st == LM_OK && i < t->prefixes; i++)
        st = check_id(place, "a prefix", t->prefix[i], t->source);
    if (st == LM_OK) st = check_id(place, "eos", o->eos, t->source);
    if (st == LM_OK && t->kind == LM_DENOISING)
        st = check_id(place, "mask", o->mask, t->source);
    return st;
}

static uint64_t fold(uint64_t hash, uint64_t value) { return lm__key(hash, 0, value, 0); }

static uint64_t fold_real(uint64_t hash, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return fold(hash, bits);
}

static uint64_t fold_stream(uint64_t hash, const lm_stream *s) {
    if (!s) return fold(hash, 0);
    uint64_t n = s->header->sentences, offsets = 0;
    for (uint64_t i = 0; i < n; i++)
        offsets = offsets * 0x9E3779B97F4A7C15u + s->offsets[i + 1];
    return fold(fold(fold(hash, n), s->header->model), offsets);
}

static uint64_t fingerprint(const lm_batches *b) {
    const lm_batches_options *o = &b->options;
    const int64_t numbers[] = {o->seed, o->tokens, o->micro_batches, o->window, o->max_pieces,
                               o->cut,  o->pad,    o->eos,           o->mask,   o->fixed};
    const double reals[] = {o->temperature, o->denoising, o->mask_low, o->mask_high,
                            o->mean_span};
    uint64_t hash = LM_STREAM_VERSION;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        hash = fold(hash, (uint64_t)numbers[i]);
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) hash = fold_real(hash, reals[i]);
    for (int i = 0; i < b->n; i++) {
        const lm_task *t = &b->sources[i].task;
        const int32_t fields[] = {t->kind, t->source_language, t->target_language,
                                  t->tag,  t->start,           t->prefixes};
        for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
            hash = fold(hash, (uint64_t)fields[k]);
        for (int k = 0; k < t->prefixes; k++) hash = fold(hash, (uint64_t)t->prefix[k]);
        hash = fold_real(hash, t->weight);
        hash = fold_stream(fold_stream(hash, t->source), t->target);
    }
    return hash;
}

int lm_batches_new(const lm_batches_options *options, const lm_task *tasks, int n,
                   lm_batches **out) {
    int st = n > 0 ? check_options(options) : lm_fail(LM_EARG, "batches: no tasks");
    for (int i = 0; st == LM_OK && i < n; i++)
        st = check_task(options, &tasks[i], i, tasks[0].source);
    if (st != LM_OK) return st;

    lm_batches *b = calloc(1, sizeof *b);
    if (b) {
        b->options = *options;
        b->window.number = -1;
        b->sources = calloc((size_t)n, sizeof *b->sources);
        b->scratch = malloc((size_t)options->max_pieces * sizeof *b->scratch);
    }
    if (!b || !b->sources || !b->scratch) {
        lm_batches_free(b);
        return lm_fail(LM_EOOM, "batches: no memory for %d tasks", n);
    }
    b->n = n;
    for (int i = 0; i < n; i++) b->sources[i].task = tasks[i];
    b->fingerprint = fingerprint(b);
    st = lm__mixture(b);
    if (st == LM_OK && options->fixed) st = lm__window_load(b, 0);
    if (st == LM_OK) *out = b;
    else lm_batches_free(b);
    return st;
}

void lm_batches_free(lm_batches *b) {
    if (!b) return;
    for (int i = 0; i < b->n; i++) free(b->sources[i].kept);
    lm__window_free(&b->window);
    free(b->sources);
    free(b->scratch);
    free(b);
}

/* ---- Asking them ------------------------------------------------------------------------ */

static int check_place(const lm_batches *b, int task) {
    if (task >= 0 && task < b->n) return LM_OK;
    return lm_fail(LM_EARG, "batches: task %d of %d", task, b->n);
}

int lm_batches_task(const lm_batches *b, int task, lm_task_info *out) {
    int st = check_place(b, task);
    if (st == LM_OK) *out = b->sources[task].about;
    return st;
}

double lm_batches_steps(const lm_batches *b) {
    return b->options.fixed ? (double)b->window.count : -1;
}

uint64_t lm_batches_fingerprint(const lm_batches *b) { return b->fingerprint; }

double lm_batches_epoch(const lm_batches *b, int task, double step) {
    if (check_place(b, task) != LM_OK || b->sources[task].about.kept == 0) return 0;
    if (b->options.fixed) return 0;
    const lm_source *s = &b->sources[task];
    double windows = step * b->options.micro_batches / b->options.window;
    double per_window = (double)s->quota / (1 << LM_QUOTA_BITS);
    return windows * per_window / (double)s->about.kept;
}

typedef struct slice { /* what a rank has of a micro-batch */
    const lm_example *examples;
    int64_t rows;
    const lm_micro *micro;
    lm_batch_shape shape;
} slice;

static int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static int find_slice(lm_batches *b, double step, int micro, int rank, int ranks, slice *out) {
    const lm_batches_options *o = &b->options;
    const int per_step = o->fixed ? 1 : o->micro_batches;
    const int64_t per_window = o->fixed ? b->window.count : o->window / per_step;
    const double steps =
        o->fixed ? (double)b->window.count : (double)LM_MAX_WINDOWS * (double)per_window;
    if (!(step >= 0 && step < steps) || step != floor(step))
        return lm_fail(LM_EARG, "batches: step %.17g, not a whole number below %.0f", step,
                       steps);
    if (micro < 0 || micro >= per_step)
        return lm_fail(LM_EARG, "batches: micro-batch %d of %d", micro, per_step);
    if (ranks < 1 || rank < 0 || rank >= ranks)
        return lm_fail(LM_EARG, "batches: rank %d of %d", rank, ranks);

    int64_t number = (int64_t)step;
    int st = lm__window_load(b, number / per_window);
    if (st != LM_OK) return st;
    const lm_micro *first = &b->window.micros[number % per_window * per_step];
    const lm_micro *m = &first[micro];
    int64_t from = m->rows * rank / ranks, to = m->rows * (rank + 1) / ranks;

    slice s = {.examples = &b->window.examples[m->first + from], .rows = to - from, .micro = m};
    lm_batch_shape *shape = &s.shape;
    shape->rows = s.rows;
    shape->first = from;
    for (int i = 0; i < per_step; i++) {
        if (i < micro) shape->first += first[i].rows;
        shape->step_rows += first[i].rows;
        shape->step_src_tokens += first[i].src_tokens;
        shape->step_tgt_tokens += first[i].tgt_tokens;
    }
    shape->micro_rows = m->rows;
    shape->micro_src_tokens = m->src_tokens;
    shape->micro_tgt_tokens = m->tgt_tokens;
    for (int64_t i = 0; i < s.rows; i++) {
        const lm_example *e = &s.examples[i];
        shape->src_tokens += e->src_len;
        shape->tgt_tokens += e->tgt_len;
        if (e->src_len > shape->src_len) shape->src_len = e->src_len;
        if (e->tgt_len > shape->tgt_len) shape->tgt_len = e->tgt_len;
    }
    shape->src_len = round_up(shape->src_len, o->multiple);
    shape->tgt_len = round_up(shape->tgt_len, o->multiple);
    *out = s;
    return LM_OK;
}

int lm_batches_shape(lm_batches *b, double step, int micro, int rank, int ranks,
                     lm_batch_shape *out) {
    slice s = {0};
    int st = find_slice(b, step, micro, rank, ranks, &s);
    if (st == LM_OK) *out = s.shape;
    return st;
}

static int64_t clipped(const lm_batches *b, const lm_stream *s, uint32_t sentence) {
    int64_t n = s ? lm__stream_length(s, sentence) : 0;
    return n < b->options.max_pieces ? n : b->options.max_pieces;
}

/* prefix... pieces eos pad... ; the pieces, corrupted or not, are put there by the caller */
static void frame_source(const lm_batches *b, const lm_task *t, int64_t pieces, int64_t width,
                         int32_t *row) {
    memcpy(row, t->prefix, (size_t)t->prefixes * sizeof *row);
    int64_t at = t->prefixes + pieces;
    row[at++] = b->options.eos;
    while (at < width) row[at++] = b->options.pad;
}

static int fill_source(lm_batches *b, const lm_example *e, int64_t width, int32_t *row) {
    const lm_task *t = &b->sources[e->task].task;
    const lm_batches_options *o = &b->options;
    int64_t n = clipped(b, t->source, e->sentence);
    int32_t *pieces = row + t->prefixes;
    int st;
    if (t->kind == LM_DENOISING) {
        uint64_t key = lm__key((uint64_t)o->seed, LM_KEY_NOISE, e->task, e->draw);
        lm_noise noise = lm__noise_plan(o, key, n);
        st = lm__stream_copy(t->source, e->sentence, n, b->scratch);
        if (st == LM_OK) lm__noise_apply(noise, key, b->scratch, n, o->mask, pieces);
        n += noise.spans - noise.masked;
    } else {
        st = lm__stream_copy(t->source, e->sentence, n, pieces);
    }
    if (st == LM_OK) frame_source(b, t, n, width, row);
    return st;
}

static int fill_target(lm_batches *b, const lm_example *e, int64_t width, int32_t *in,
                       int32_t *out) {
    const lm_task *t = &b->sources[e->task].task;
    const lm_stream *s = t->kind == LM_DENOISING ? t->source : t->target;
    int64_t n = clipped(b, s, e->sentence);
    int st = s ? lm__stream_copy(s, e->sentence, n, b->scratch) : LM_OK;
    if (st != LM_OK) return st;
    size_t bytes = (size_t)n * sizeof *in;
    if (in) {
        in[0] = t->start;
        memcpy(in + 1, b->scratch, bytes);
        for (int64_t i = n + 1; i < width; i++) in[i] = b->options.pad;
    }
    if (out) {
        memcpy(out, b->scratch, bytes);
        out[n] = b->options.eos;
        for (int64_t i = n + 1; i < width; i++) out[i] = b->options.pad;
    }
    return LM_OK;
}

static void fill_tags(const lm_batches *b, const slice *s, int64_t i,
                      const lm_batch_buffers *out) {
    const lm_example *e = &s->examples[i];
    const lm_task *t = &b->sources[e->task].task;
    if (out->src_lens) out->src_lens[i] = e->src_len;
    if (out->tgt_lens) out->tgt_lens[i] = e->tgt_len;
    if (out->src_language) out->src_language[i] = t->source_language;
    if (out->tgt_language) out->tgt_language[i] = t->target_language;
    if (out->tag) out->tag[i] = t->tag;
    if (out->task) out->task[i] = (int32_t)e->task;
    if (out->sequence)
        out->sequence[i] = b->options.fixed ? (int64_t)e->sentence : s->shape.first + i;
}

int lm_batches_fill(lm_batches *b, double step, int micro, int rank, int ranks,
                    const lm_batch_buffers *out) {
    slice s = {0};
    int st = find_slice(b, step, micro, rank, ranks, &s);
    if (st != LM_OK) return st;
    const int64_t src_len = s.shape.src_len, tgt_len = s.shape.tgt_len;
    for (int64_t i = 0; st == LM_OK && i < s.rows; i++) {
        const lm_example *e = &s.examples[i];
        fill_tags(b, &s, i, out);
        if (out->src) st = fill_source(b, e, src_len, out->src + i * src_len);
        if (st == LM_OK && (out->tgt_in || out->tgt_out))
            st = fill_target(b, e, tgt_len, out->tgt_in ? out->tgt_in + i * tgt_len : NULL,
                             out->tgt_out ? out->tgt_out + i * tgt_len : NULL);
    }
    return st;
}
