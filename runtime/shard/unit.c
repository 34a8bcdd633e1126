/* unit.c - units, the chunks that a rank owns of their parameters, and where their bytes are.
 */
#include "runtime/shard_impl.h"

#include <stdlib.h>
#include <string.h>

static char *copied(const char *text) {
    char *copy = malloc(strlen(text) + 1);
    return copy ? strcpy(copy, text) : NULL;
}

/* ---- life ---- */

int lm_unit_new(const char *name, lm_unit **out) {
    lm_unit *u = calloc(1, sizeof *u);
    if (u) u->refs = 1, u->name = copied(name);
    if (!u || !u->name) {
        free(u);
        return lm_fail(LM_EOOM, "unit: no memory");
    }
    *out = u;
    return LM_OK;
}

static void shard_free(lm_shard *s) {
    if (!s) return;
    if (s->param && lm__shard_of(s->param) == s) s->param->storage->shard = NULL;
    lm_tensor_release(s->chunk);
    lm_tensor_release(s->param);
    lm_group_release(s->group);
    free(s->bytes);
    free(s->name);
    free(s);
}

void lm_unit_retain(lm_unit *u) { u->refs++; }

void lm_unit_release(lm_unit *u) {
    if (!u || --u->refs > 0) return;
    lm__chunks_settle(); /* none of ours may be among them */
    for (int i = 0; i < u->count; i++) shard_free(u->shard[i]);
    free(u->shard);
    free(u->name);
    free(u);
}

/* ---- parameters of a unit ---- */

static int check(const lm_unit *u, lm_tensor *p, const char *name, int stage) {
    char text[96];
    int st = lm__usable("shard", p);
    if (st != LM_OK) return st;
    if (stage < 0 || stage > 3)
        return lm_fail(LM_EARG, "shard: '%s': there is no stage %d", name, stage);
    if (p->storage->shard)
        return lm_fail(LM_EARG, "shard: '%s' is in unit '%s' already", name,
                       p->storage->shard->unit->name);
    if (!lm_tensor_is_contiguous(p) || !lm_tensor_is_leaf(p) ||
        p->storage->bytes != p->numel * lm_dtype_size(p->dtype))
        return lm_fail(LM_EARG, "shard: '%s', %s, is not a whole contiguous tensor of its own",
                       name, lm__describe(p, text));
    if (u->inside) return lm_fail(LM_EARG, "shard: unit '%s' is being run", u->name);
    return LM_OK;
}

static int make_room(lm_unit *u) {
    if (u->count < u->room) return LM_OK;
    int room = u->room ? 2 * u->room : 8;
    lm_shard **grown = realloc(u->shard, (size_t)room * sizeof(lm_shard *));
    if (!grown) return lm_fail(LM_EOOM, "shard: no memory");
    u->shard = grown, u->room = room;
    return LM_OK;
}

static void divide(lm_shard *s) {
    int64_t n = s->param->numel, each = (n + s->ranks - 1) / s->ranks;
    for (int r = 0; r < s->ranks; r++) {
        int64_t first = r * each < n ? r * each : n;
        int64_t count = n - first < each ? n - first : each;
        s->bytes[r] = count * lm_dtype_size(s->param->dtype);
        if (r == s->rank) s->first = first, s->count = count;
    }
}

/* Where our chunk is in the whole parameter, which is here. */
static char *own_place(const lm_shard *s) {
    return s->param->storage->data + s->first * lm_dtype_size(s->param->dtype);
}

static int chunk_new(lm_shard *s) {
    int64_t one = 1;
    if (s->stage == 0) return LM_OK;
    if (s->stage < 3) return lm__tensor_view(s->param, 1, &s->count, &one, s->first, &s->chunk);
    int before = lm_memory_set_purpose(s->param->storage->purpose);
    int st = lm_tensor_new(s->param->dtype, 1, &s->count, &s->chunk);
    lm_memory_set_purpose(before);
    if (st == LM_OK && s->count)
        memcpy(s->chunk->data, own_place(s), (size_t)s->bytes[s->rank]);
    return st;
}

int lm_unit_add(lm_unit *u, lm_tensor *p, const char *name, lm_group *replicas, int stage) {
    int st = check(u, p, name, stage);
    if (st == LM_OK) st = make_room(u);
    if (st != LM_OK) return st;
    lm_shard *s = calloc(1, sizeof *s);
    if (!s) return lm_fail(LM_EOOM, "shard: no memory");
    s->unit = u, s->stage = stage;
    s->ranks = replicas ? lm_group_size(replicas) : 1;
    s->rank = replicas ? lm_group_rank(replicas) : 0;
    s->name = copied(name);
    s->bytes = calloc((size_t)s->ranks, sizeof *s->bytes);
    lm_tensor_retain(s->param = p);
    if (replicas) lm_group_retain(s->group = replicas);
    st = s->name && s->bytes ? LM_OK : lm_fail(LM_EOOM, "shard: no memory");
    if (st == LM_OK) divide(s), st = chunk_new(s);
    if (st != LM_OK) {
        shard_free(s);
        return st;
    }
    u->shard[u->count++] = s;
    p->storage->shard = s;
    if (stage == 3) lm__storage_drop(p->storage);
    return LM_OK;
}

int lm_unit_dissolve(lm_unit *u) {
    if (u->inside || u->left) return lm_fail(LM_EARG, "shard: unit '%s' is being run", u->name);
    int st = lm_shard_settle();
    if (st == LM_OK) st = lm__unit_gather(u);
    if (st != LM_OK) return st;
    for (int i = 0; i < u->count; i++) shard_free(u->shard[i]);
    u->count = 0, u->here = false;
    return LM_OK;
}

/* ---- whole parameters: gathered and dropped ---- */

static lm_shard *arriving, **last_arriving = &arriving; /* parameters under way to us */

/* The others' chunks, to where they belong. */
static int begin_arrival(lm_shard *s) {
    if (s->ranks == 1) return LM_OK;
    int st = lm_all_gather_v_start(s->group, own_place(s), s->bytes, s->param->storage->data,
                                   &s->arrival);
    if (st == LM_OK) s->next = NULL, *last_arriving = s, last_arriving = &s->next;
    return st;
}

/* All of them even when one fails: they write into buffers of ours. */
int lm__chunks_settle(void) {
    int st = LM_OK;
    while (arriving) {
        lm_shard *s = arriving;
        arriving = s->next;
        int one = lm_async_wait(s->arrival);
        s->arrival = NULL;
        if (st == LM_OK) st = one;
    }
    last_arriving = &arriving;
    return st;
}

/* Room for the whole, and our chunk in its place there. */
static int make_whole(lm_shard *s) {
    lm_storage *whole = s->param->storage;
    s->version = whole->version;
    if (s->lodging && !whole->data &&
        (whole->data = s->lodging->hand_over(s->lodging->self, s)))
        return LM_OK;
    int st = lm__storage_restore(whole);
    if (st != LM_OK) return st;
    if (s->lodging) return s->lodging->fetch(s->lodging->self, s, own_place(s));
    if (s->count) memcpy(own_place(s), s->chunk->data, (size_t)s->bytes[s->rank]);
    return LM_OK;
}

/* Memory for all of them before the first of them is under way (dist.h). */
int lm__unit_gather(lm_unit *u) {
    int st = LM_OK;
    if (u->here) return LM_OK;
    for (int i = 0; i < u->count && st == LM_OK; i++)
        if (u->shard[i]->stage == 3) st = make_whole(u->shard[i]);
    for (int i = 0; i < u->count && st == LM_OK; i++)
        if (u->shard[i]->stage == 3) st = begin_arrival(u->shard[i]);
    int settled = lm__chunks_settle();
    if (st == LM_OK) st = settled;
    u->here = st == LM_OK;
    if (st != LM_OK)
        for (int i = 0; i < u->count; i++)
            if (u->shard[i]->stage == 3) lm__storage_drop(u->shard[i]->param->storage);
    return st;
}

/* What was written while it was whole stays in the chunk. */
static void keep_writes(lm_shard *s) {
    if (s->param->storage->version == s->version) return;
    if (s->lodging) s->lodging->store(s->lodging->self, s, own_place(s));
    else if (s->count) memcpy(s->chunk->data, own_place(s), (size_t)s->bytes[s->rank]);
}

void lm__unit_drop(lm_unit *u) {
    if (!u->here) return;
    for (int i = 0; i < u->count; i++) {
        lm_shard *s = u->shard[i];
        if (s->stage != 3) continue;
        keep_writes(s);
        lm__storage_drop(s->param->storage);
    }
    u->here = false;
}

int lm__shard_needed(const char *op, lm_storage *storage) {
    const lm_shard *s = storage->shard;
    if (!s) return lm_fail(LM_EDISPOSED, "%s: the tensor's bytes are away", op);
    if (s->unit->inside) return lm__unit_gather(s->unit);
    return lm_fail(LM_EDISPOSED,
                   "%s: parameter '%s' is not gathered: at ZeRO stage 3 it is whole only while "
                   "its unit '%s' runs; see dist.gathered",
                   op, s->name, s->unit->name);
}

/* ---- chunks ---- */

int lm_shard_chunk(lm_tensor *p, lm_tensor **out) {
    const lm_shard *s = lm__shard_of(p);
    *out = s ? s->chunk : NULL;
    if (*out) lm_tensor_retain(*out);
    return LM_OK;
}

double lm_shard_first(const lm_tensor *p) {
    const lm_shard *s = lm__shard_of(p);
    return s && s->chunk ? (double)s->first : 0;
}

int lm_shard_stage(const lm_tensor *p) {
    const lm_shard *s = lm__shard_of(p);
    return s ? s->stage : -1;
}

int lm_shard_ranks(const lm_tensor *p) {
    const lm_shard *s = lm__shard_of(p);
    return s && s->stage ? s->ranks : 1;
}

int lm_shard_updated(lm_tensor *p) {
    lm_shard *s = lm__shard_of(p);
    if (!s || s->stage == 0) return LM_OK;
    p->storage->version++;
    if (s->stage < 3) return begin_arrival(s);
    if (!s->unit->here) return LM_OK;
    int st = make_whole(s);
    return st == LM_OK ? begin_arrival(s) : st;
}
