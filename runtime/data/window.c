/* window.c - the examples of some hundreds of micro-batches, drawn, sorted by length, cut.
 *
 * Draw d of a task is sentence permute(epoch d / n)(d mod n) of its n: every sentence once in
 * an epoch. The window's examples are sorted by length, so that little is padded, and cut into
 * micro-batches of nearly equal tokens; these are then shuffled, so that a step mixes lengths
 * when it has several. (A fixed list is one window: every sentence, longest first, cut where
 * the padded size would pass the budget.) */
#include "runtime/data/data_impl.h"

#include <stdlib.h>
#include <string.h>

lm_example lm__example(const lm_batches *b, uint32_t task, uint64_t draw) {
    const lm_source *s = &b->sources[task];
    const lm_batches_options *o = &b->options;
    uint64_t n = (uint64_t)s->about.kept, at = draw;
    if (!o->fixed) {
        uint64_t key = lm__key((uint64_t)o->seed, LM_KEY_EPOCH, task, draw / n);
        at = lm__permute(key, n, draw % n);
    }
    lm_example e = {.task = task, .sentence = s->kept[at], .draw = draw};
    int64_t source = lm__stream_length(s->task.source, e.sentence);
    int64_t target = s->task.target ? lm__stream_length(s->task.target, e.sentence) : 0;
    if (source > o->max_pieces) source = o->max_pieces;
    if (target > o->max_pieces) target = o->max_pieces;
    if (s->task.kind == LM_DENOISING) {
        uint64_t key = lm__key((uint64_t)o->seed, LM_KEY_NOISE, task, draw);
        lm_noise noise = lm__noise_plan(o, key, source);
        target = source;
        source += noise.spans - noise.masked;
    }
    e.src_len = (int32_t)source + s->task.prefixes + 1;
    e.tgt_len = (int32_t)target + 1;
    return e;
}

typedef struct sort_item {
    uint64_t key;
    lm_example example;
} sort_item;

static int by_key(const void *x, const void *y) {
    const sort_item *a = x, *b = y;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    if (a->example.task != b->example.task) return a->example.task < b->example.task ? -1 : 1;
    if (a->example.draw != b->example.draw) return a->example.draw < b->example.draw ? -1 : 1;
    return 0;
}

/* Bands of targets of about one length (one padded length, where those are coarse), in them by
 * source, up and down by turns so that neighbours stay alike from one band to the next; among
 * equals, random. (Bands of 3, windows of 512: 3.8% padding on the default data; 7.2% with
 * 128.) */
static uint64_t training_key(const lm_batches_options *o, const lm_example *e) {
    uint64_t width = o->multiple > 3 ? (uint64_t)o->multiple : 3, source = (uint64_t)e->src_len;
    uint64_t band = ((uint64_t)e->tgt_len + width - 1) / width;
    if (band % 2 == 1) source = 0xFFFF - (source & 0xFFFF);
    uint64_t among = lm__key((uint64_t)o->seed, LM_KEY_ORDER, e->task, e->draw);
    return band << 48 | (source & 0xFFFF) << 32 | among >> 32;
}

static uint64_t fixed_key(const lm_example *e) {
    return UINT64_MAX - ((uint64_t)e->src_len << 32 | (uint64_t)e->tgt_len);
}

static int draw_examples(const lm_batches *b, lm_window *w) {
    uint64_t number = (uint64_t)w->number;
    for (int t = 0; t < b->n; t++) {
        const lm_source *s = &b->sources[t];
        w->rows += b->options.fixed
                       ? s->about.kept
                       : (int64_t)(lm__drawn(s, number + 1) - lm__drawn(s, number));
    }
    size_t room = (size_t)w->rows + 1;
    sort_item *items = malloc(room * sizeof *items);
    w->examples = malloc(room * sizeof *w->examples);
    if (!items || !w->examples) {
        free(items);
        return lm_fail(LM_EOOM, "batches: no memory for a window of %lld examples",
                       (long long)w->rows);
    }
    int64_t i = 0;
    for (int t = 0; t < b->n; t++) {
        const lm_source *s = &b->sources[t];
        uint64_t from = 0, to = (uint64_t)s->about.kept;
        if (!b->options.fixed) {
            from = lm__drawn(s, number);
            to = lm__drawn(s, number + 1);
        }
        for (uint64_t draw = from; draw < to; draw++) {
            lm_example e = lm__example(b, (uint32_t)t, draw);
            uint64_t key = b->options.fixed ? fixed_key(&e) : training_key(&b->options, &e);
            items[i++] = (sort_item){key, e};
        }
    }
    qsort(items, (size_t)w->rows, sizeof *items, by_key);
    for (i = 0; i < w->rows; i++) w->examples[i] = items[i].example;
    free(items);
    return LM_OK;
}

static lm_micro micro_of(const lm_window *w, int64_t first, int64_t end) {
    lm_micro m = {.first = first, .rows = end - first};
    for (int64_t i = first; i < end; i++) {
        m.src_tokens += w->examples[i].src_len;
        m.tgt_tokens += w->examples[i].tgt_len;
    }
    return m;
}

/* Border k lies where k/count of the tokens have passed, moved where a micro-batch would be
 * left without rows. */
static void cut_evenly(const lm_batches *b, lm_window *w) {
    const int64_t count = w->count;
    uint64_t key =
        lm__key((uint64_t)b->options.seed, LM_KEY_ORDER, UINT64_MAX, (uint64_t)w->number);
    lm_micro all = micro_of(w, 0, w->rows);
    int64_t total = all.src_tokens + all.tgt_tokens, passed = 0, first = 0, end = 0;
    for (int64_t k = 1; k <= count; k++) {
        int64_t highest = w->rows - (count - k) > end ? w->rows - (count - k) : end;
        int64_t tokens =
            end < w->rows ? w->examples[end].src_len + w->examples[end].tgt_len : 0;
        while (end < highest &&
               (end == first || k == count || (passed + tokens / 2) * count < total * k)) {
            passed += tokens;
            end++;
            tokens = end < w->rows ? w->examples[end].src_len + w->examples[end].tgt_len : 0;
        }
        w->micros[lm__permute(key, (uint64_t)count, (uint64_t)(k - 1))] =
            micro_of(w, first, end);
        first = end;
    }
}

static void cut_by_size(const lm_batches *b, lm_window *w) {
    int64_t first = 0;
    int32_t src = 0, tgt = 0;
    w->count = 0;
    for (int64_t i = 0; i < w->rows; i++) {
        const lm_example *e = &w->examples[i];
        int32_t wide_src = e->src_len > src ? e->src_len : src;
        int32_t wide_tgt = e->tgt_len > tgt ? e->tgt_len : tgt;
        if (i > first && (i + 1 - first) * (wide_src + wide_tgt) > b->options.tokens) {
            w->micros[w->count++] = micro_of(w, first, i);
            first = i;
            wide_src = e->src_len;
            wide_tgt = e->tgt_len;
        }
        src = wide_src;
        tgt = wide_tgt;
    }
    if (first < w->rows) w->micros[w->count++] = micro_of(w, first, w->rows);
}

int lm__window_load(lm_batches *b, int64_t number) {
    if (b->window.number == number) return LM_OK;
    lm_window w = {.number = number};
    int st = draw_examples(b, &w);
    if (st == LM_OK) {
        w.count = b->options.fixed ? w.rows + 1 : b->options.window;
        w.micros = calloc((size_t)w.count, sizeof *w.micros);
        if (!w.micros)
            st = lm_fail(LM_EOOM, "batches: no memory for %lld batches", (long long)w.count);
    }
    if (st == LM_OK) {
        if (b->options.fixed) cut_by_size(b, &w);
        else cut_evenly(b, &w);
        lm__window_free(&b->window);
        b->window = w;
    } else {
        lm__window_free(&w);
    }
    return st;
}

void lm__window_free(lm_window *w) {
    free(w->examples);
    free(w->micros);
    *w = (lm_window){.number = -1};
}
