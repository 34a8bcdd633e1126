/* bucket.c - gradients on their way to the ranks that need them, while backward goes on.
 *
 * A bucket is some gradients of one unit with the same replicas. At stages 0 and 1
 * it is all-reduced. At stages 2 and 3 every rank's chunks of it go straight to that
 * rank, which adds the parts up in the order of the ranks. A gradient alone in its
 * bucket travels from where it is; several are packed, one after the other. */
#include "runtime/dist/reduce.h"
#include "runtime/shard_impl.h"

#include <stdlib.h>
#include <string.h>

enum { IN_FLIGHT = 4 }; /* full buckets: one more, and the oldest is waited for */

typedef struct buffer {
    void *data;
    int64_t bytes;
    int purpose;
} buffer;

typedef struct bucket {
    struct bucket *next;
    lm_unit *unit;
    lm_shard **shard;
    int count;
    int64_t bytes; /* of its gradients */
    bool divided;
    int recoveries;   /* when it left */
    lm_tensor *alone; /* its only gradient, read or reduced in place */
    buffer send, receive;
    lm_async *under_way;
} bucket;

static bucket *oldest, **newest = &oldest;
static int64_t bucket_bytes = 8 << 20, flying; /* bytes of gradients in all of them */

double lm_shard_set_bucket(double bytes) {
    double before = (double)bucket_bytes;
    bucket_bytes = (int64_t)bytes;
    return before;
}

/* ---- memory ---- */

static int buffer_new(buffer *b, int64_t bytes) {
    int before = lm_memory_set_purpose(LM_MEM_EXCHANGE);
    int st = lm__memory_obtain(bytes, &b->data, &b->purpose);
    lm_memory_set_purpose(before);
    if (st == LM_OK) b->bytes = bytes;
    return st;
}

static void buffer_free(buffer *b) {
    if (b->data) lm__memory_free(b->data, b->bytes, b->purpose);
    b->data = NULL;
}

static void drop_sent(bucket *b) {
    lm_tensor_release(b->alone);
    b->alone = NULL;
    buffer_free(&b->send);
}

static void bucket_free(bucket *b) {
    if (!b) return;
    drop_sent(b);
    buffer_free(&b->receive);
    lm_unit_release(b->unit);
    free(b->shard);
    free(b);
}

/* ---- one gradient ---- */

static int64_t elements(const lm_shard *s, int rank) {
    return s->bytes[rank] / lm_dtype_size(s->param->dtype);
}

/* f32 and contiguous, whatever the user made of it, if others read it. A gradient that did not
 * come is zeros. */
static int whole_gradient(lm_shard *s) {
    lm_tensor *p = s->param, *g = NULL;
    if (p->grad && lm__shard_alone(p)) return LM_OK;
    if (p->grad && p->grad->dtype == LM_F32 && lm_tensor_is_contiguous(p->grad)) return LM_OK;
    int st = p->grad ? lm__tensor_dense(p->grad, LM_F32, &g)
                     : lm_tensor_full(LM_F32, p->ndim, p->shape, 0, &g);
    if (st != LM_OK) return st;
    lm_tensor_set_purpose(g, LM_MEM_GRADIENTS);
    lm_tensor_release(p->grad);
    p->grad = g;
    return LM_OK;
}

/* At stage 1 the optimizer reads the chunk's gradient out of the whole one. */
static int see_through_chunk(lm_shard *s) {
    int64_t one = 1;
    if (s->stage != 1) return LM_OK;
    lm_tensor_release(s->chunk->grad);
    s->chunk->grad = NULL;
    return lm__tensor_view(s->param->grad, 1, &s->count, &one, s->first, &s->chunk->grad);
}

int lm__shard_take(lm_shard *s, const float *grad) {
    if (s->lodging) return s->lodging->take(s->lodging->self, s, grad);
    lm_tensor *g = s->chunk->grad;
    size_t bytes = (size_t)s->count * sizeof *grad;
    if (g && g->dtype == LM_F32) {
        float *sum = (float *)(void *)g->data;
        for (int64_t i = 0; i < s->count; i++) sum[i] += grad[i];
        g->storage->version++;
        return LM_OK;
    }
    int st = lm_tensor_new(LM_F32, 1, &s->count, &g);
    if (st != LM_OK) return st;
    lm_tensor_set_purpose(g, LM_MEM_GRADIENTS);
    if (bytes) memcpy(g->data, grad, bytes);
    lm_tensor_release(s->chunk->grad);
    s->chunk->grad = g;
    return LM_OK;
}

static void drop_gradient(lm_shard *s) {
    lm_tensor_release(s->param->grad);
    s->param->grad = NULL;
}

/* ---- summed whole: stages 0 and 1 ---- */

static int start_summed(bucket *b) {
    lm_shard *first = b->shard[0];
    int64_t n = 0;
    int st = LM_OK;
    for (int i = 0; i < b->count && st == LM_OK; i++)
        st = whole_gradient(b->shard[i]), n += b->shard[i]->param->numel;
    if (st != LM_OK || first->ranks == 1) return st;
    if (b->count == 1) {
        lm_tensor_retain(b->alone = first->param->grad);
        b->alone->storage->version++;
        return lm_all_reduce_start(first->group, b->alone->data, n, LM_F32, LM_REDUCE_SUM,
                                   &b->under_way);
    }
    st = buffer_new(&b->send, n * (int64_t)sizeof(float));
    if (st != LM_OK) return st;
    char *at = b->send.data;
    for (int i = 0; i < b->count; i++) {
        const lm_tensor *g = b->shard[i]->param->grad;
        size_t bytes = (size_t)g->numel * sizeof(float);
        if (bytes) memcpy(at, g->data, bytes);
        at += bytes;
    }
    return lm_all_reduce_start(first->group, b->send.data, n, LM_F32, LM_REDUCE_SUM,
                               &b->under_way);
}

static int finish_summed(bucket *b) {
    const char *at = b->send.data;
    int st = LM_OK;
    for (int i = 0; i < b->count && st == LM_OK; i++) {
        lm_shard *s = b->shard[i];
        st = whole_gradient(s);
        if (st != LM_OK) break;
        size_t bytes = (size_t)s->param->numel * sizeof(float);
        if (at && bytes) memcpy(s->param->grad->data, at, bytes), at += bytes;
        st = see_through_chunk(s);
    }
    return st;
}

/* ---- divided: stages 2 and 3 ---- */

/* sends[r] is what rank r owns of these gradients; `share` what we do. Bytes. */
static int64_t shares(const bucket *b, int64_t *sends) {
    const lm_shard *first = b->shard[0];
    for (int r = 0; r < first->ranks; r++) {
        sends[r] = 0;
        for (int i = 0; i < b->count; i++)
            sends[r] += elements(b->shard[i], r) * (int64_t)sizeof(float);
    }
    return sends[first->rank];
}

/* Rank after rank, and within it parameter after parameter. Each gradient goes once it is
 * there.
 */
static int pack(bucket *b, const int64_t *sends) {
    const lm_shard *first = b->shard[0];
    int64_t total = 0;
    for (int r = 0; r < first->ranks; r++) total += sends[r];
    int st = buffer_new(&b->send, total);
    if (st != LM_OK) return st;
    for (int i = 0; i < b->count && st == LM_OK; i++) {
        lm_shard *s = b->shard[i];
        bool some = s->param->grad != NULL;
        if (some) st = whole_gradient(s);
        if (st != LM_OK) return st;
        const char *from = some ? s->param->grad->data : NULL;
        char *to = b->send.data;
        for (int r = 0; r < s->ranks; r++) {
            size_t bytes = (size_t)elements(s, r) * sizeof(float), before = 0;
            for (int j = 0; j < i; j++)
                before += (size_t)elements(b->shard[j], r) * sizeof(float);
            if (bytes && from) memcpy(to + before, from, bytes), from += bytes;
            else if (bytes) memset(to + before, 0, bytes);
            to += sends[r];
        }
        drop_gradient(s);
    }
    return st;
}

static int start_divided(bucket *b) {
    lm_shard *s = b->shard[0];
    int64_t *sends = calloc(2 * (size_t)s->ranks, sizeof *sends), *receives = sends + s->ranks;
    if (!sends) return lm_fail(LM_EOOM, "gradients: no memory");
    int64_t share = shares(b, sends);
    int st = LM_OK;
    const void *from;
    for (int r = 0; r < s->ranks; r++) receives[r] = share;
    if (b->count == 1) {
        st = whole_gradient(s);
        if (st == LM_OK) lm_tensor_retain(b->alone = s->param->grad), drop_gradient(s);
        from = st == LM_OK ? b->alone->data : NULL;
    } else {
        st = pack(b, sends);
        from = b->send.data;
    }
    if (st == LM_OK && s->ranks > 1) {
        st = buffer_new(&b->receive, share * s->ranks);
        if (st == LM_OK)
            st = lm_all_to_all_v_start(s->group, from, sends, b->receive.data, receives,
                                       &b->under_way);
    }
    free(sends);
    return st;
}

/* What was sent goes before the chunks' gradients are made: everyone's part of them, ours too,
 * has been received. */
static int finish_divided(bucket *b) {
    const lm_shard *first = b->shard[0];
    int st = LM_OK;
    const float *sum = b->alone ? (const float *)(const void *)b->alone->data : b->send.data;
    if (first->ranks > 1) {
        drop_sent(b);
        int64_t share = b->receive.bytes / first->ranks;
        const void **parts = malloc((size_t)first->ranks * sizeof *parts);
        if (!parts) return lm_fail(LM_EOOM, "gradients: no memory");
        for (int r = 0; r < first->ranks; r++) parts[r] = (char *)b->receive.data + r * share;
        lm__reduce_parts(LM_F32, LM_REDUCE_SUM, first->ranks, parts,
                         share / (int64_t)sizeof(float), b->receive.data);
        free(parts);
        sum = b->receive.data;
    }
    for (int i = 0; i < b->count && st == LM_OK; i++) {
        st = lm__shard_take(b->shard[i], sum);
        sum += b->shard[i]->count;
    }
    return st;
}

/* ---- the queue ---- */

static int finish_oldest(void) {
    bucket *b = oldest;
    oldest = b->next;
    if (!oldest) newest = &oldest;
    flying -= b->bytes;
    bool lost = b->recoveries != lm_dist_recoveries(); /* as the user knows, who recovered */
    int st = lm_async_wait(b->under_way);
    b->under_way = NULL;
    if (lost) st = LM_OK;
    else if (st == LM_OK) st = b->divided ? finish_divided(b) : finish_summed(b);
    bucket_free(b);
    return st;
}

/* All of them even when one fails: what is under way writes into buffers of ours. */
int lm_shard_settle(void) {
    int st = lm__chunks_settle();
    while (oldest) {
        int one = finish_oldest();
        if (st == LM_OK) st = one;
    }
    return st;
}

int lm__buckets_progress(void) {
    int st = LM_OK;
    if (!oldest) return LM_OK;
    lm_dist_progress();
    while (st == LM_OK && oldest && lm_async_test(oldest->under_way)) st = finish_oldest();
    return st;
}

/* Where memory is short, fewer are under way. */
static bool relieve(void) { return oldest && finish_oldest() == LM_OK; }

static int send_bucket(bucket *b) {
    int st = LM_OK;
    lm__memory_on_pressure(relieve);
    while (oldest && flying + b->bytes > IN_FLIGHT * bucket_bytes && st == LM_OK)
        st = finish_oldest();
    if (st == LM_OK) st = b->divided ? start_divided(b) : start_summed(b);
    if (st != LM_OK) {
        bucket_free(b);
        return st;
    }
    b->recoveries = lm_dist_recoveries();
    *newest = b, newest = &b->next;
    flying += b->bytes;
    return b->under_way ? LM_OK : lm__buckets_progress();
}

/* ---- what goes into a bucket ---- */

static bool due(const lm_shard *s, bool all, bool once) {
    if (!s->param->requires_grad) return false;
    if (s->stage < 2) return all && !s->sent;
    return !once || !s->sent;
}

/* The first that is due, and the others that fit in with it: where nothing travels, none does,
 * as packing would only copy. NULL (st LM_OK): none is due. */
static bucket *next_bucket(lm_unit *u, bool all, bool once, bool *taken, int *st) {
    bucket *b = NULL;
    *st = LM_OK;
    for (int i = 0; i < u->count; i++) {
        lm_shard *s = u->shard[i];
        int64_t more = s->param->numel * (int64_t)sizeof(float);
        if (taken[i] || !due(s, all, once)) continue;
        if (b && (s->ranks == 1 || s->group != b->shard[0]->group ||
                  (s->stage > 1) != b->divided || b->bytes + more > bucket_bytes))
            continue;
        if (!b) {
            b = calloc(1, sizeof *b);
            if (b) b->shard = malloc((size_t)u->count * sizeof(lm_shard *));
            if (!b || !b->shard) {
                free(b);
                *st = lm_fail(LM_EOOM, "gradients: no memory");
                return NULL;
            }
            lm_unit_retain(b->unit = u);
            b->divided = s->stage > 1;
        }
        taken[i] = true;
        b->shard[b->count++] = s;
        b->bytes += more;
    }
    return b;
}

int lm__unit_send(lm_unit *u, bool all, bool once) {
    bucket *b;
    int st = LM_OK;
    bool *taken = calloc((size_t)u->count + 1, sizeof *taken);
    if (!taken) return lm_fail(LM_EOOM, "gradients: no memory");
    while (st == LM_OK && (b = next_bucket(u, all, once, taken, &st)) != NULL)
        st = send_bucket(b);
    for (int i = 0; i < u->count; i++) u->shard[i]->sent |= taken[i];
    free(taken);
    return st;
}

int lm_shard_reduce(lm_unit **units, int count) {
    int st = LM_OK;
    for (int i = 0; i < count && st == LM_OK; i++) st = lm__unit_send(units[i], true, true);
    int settled = lm_shard_settle();
    if (st == LM_OK) st = settled;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < units[i]->count; j++) {
            lm_shard *s = units[i]->shard[j];
            s->sent = false;
            if (st == LM_OK && s->stage > 1 && s->param->grad)
                st = lm_fail(LM_EGRAD,
                             "reduce: parameter '%s' has a gradient that no backward finished; "
                             "zero_grad drops it",
                             s->name);
        }
    return st;
}

/* ---- when a gradient goes, or comes too late ---- */

int lm__shard_forget(lm_tensor *p) {
    lm_shard *s = lm__shard_of(p);
    if (!s) return LM_OK;
    int st = lm_shard_settle();
    if (s->chunk) lm_tensor_release(s->chunk->grad), s->chunk->grad = NULL;
    if (s->lodging) s->lodging->forget(s->lodging->self);
    s->sent = false;
    return st;
}

int lm__shard_late(const char *op, const lm_tensor *p) {
    const lm_shard *s = lm__shard_of(p);
    if (!s || s->stage > 1 || !s->sent) return LM_OK;
    return lm_fail(
        LM_EGRAD,
        "backward of %s: a gradient of '%s' comes after its sum was sent to the other "
        "ranks; `last` is for the last backward of a step",
        op, s->name);
}
