/* plan.c - from expert ids to a plan: checks, counts over all ranks, capacity.
 *
 *   1. each rank checks its ids and counts its routes per expert;
 *   2. all ranks exchange these counts, and any error;
 *   3. select.c drops what is over capacity;
 *   4. layout.c orders the rows.
 * The plan of one process takes the same steps, without messages. */
#include "runtime/moe/plan_impl.h"
#include "runtime/tensor_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int lm__plan_array(lm_plan *p, int64_t count, size_t size, void *out) {
    if (p->blocks == LM_PLAN_BLOCKS) return lm_fail(LM_EINTERNAL, "plan: too many arrays");
    lm__plan_block *b = &p->block[p->blocks];
    int before = lm_memory_set_purpose(LM_MEM_EXCHANGE);
    b->bytes = (count > 0 ? count : 1) * (int64_t)size;
    int st = lm__memory_alloc(b->bytes, &b->data, &b->purpose);
    lm_memory_set_purpose(before);
    if (st != LM_OK) return st;
    memset(b->data, 0, (size_t)b->bytes);
    p->blocks++;
    *(void **)out = b->data;
    return LM_OK;
}

void lm_plan_retain(lm_plan *p) { (p->whole ? p->whole : p)->refs++; }

static void plan_free(lm_plan *p) {
    if (!p) return;
    for (int i = 0; i < p->parts; i++) plan_free(p->part[i]);
    for (int i = 0; i < 2 * LM_LEGS; i++) {
        lm__carry_drop(p->flight[i].carry);
        lm_tensor_release(p->flight[i].from);
        lm_tensor_release(p->flight[i].to);
    }
    for (int i = 0; i < p->blocks; i++)
        lm__memory_free(p->block[i].data, p->block[i].bytes, p->block[i].purpose);
    if (!p->whole) lm_group_release(p->expert);
    free(p->part);
    free(p);
}

void lm_plan_release(lm_plan *p) {
    if (p && p->whole) p = p->whole;
    if (p && --p->refs == 0) plan_free(p);
}

/* ---- 1. this rank's routes ---- */

static int check_spec(const lm_plan_spec *s, const lm_group *expert) {
    const char *who = s->router;
    int ranks = expert ? lm_group_size(expert) : 1, etp = s->etp ? s->etp : 1;
    if (s->experts < 1) return lm_fail(LM_EARG, "router '%s': %d experts", who, s->experts);
    if (s->top_k < 0) return lm_fail(LM_EARG, "router '%s': top_k is %d", who, s->top_k);
    if (s->tokens < 0 || (s->top_k && s->tokens > INT32_MAX / s->top_k))
        return lm_fail(LM_EARG, "router '%s': %lld tokens on one rank", who,
                       (long long)s->tokens);
    if (s->expert_ids_dtype != LM_I32 && s->expert_ids_dtype != LM_I64)
        return lm_fail(LM_EDTYPE, "router '%s': expert_ids must be i32 or i64", who);
    if (s->select < LM_SELECT_RANDOM || s->select > LM_SELECT_PRIORITY)
        return lm_fail(LM_EARG, "router '%s': no selection has number %d", who, s->select);
    if (isnan(s->capacity_factor))
        return lm_fail(LM_EARG, "router '%s': the capacity factor is NaN", who);
    if (s->capacity_factor >= 0 && s->select == LM_SELECT_PROBABILITY && !s->scores)
        return lm_fail(LM_EARG, "router '%s': selection by probability needs scores", who);
    if (s->capacity_factor >= 0 && s->select == LM_SELECT_PRIORITY && !s->priorities)
        return lm_fail(LM_EARG, "router '%s': selection by priority needs priorities", who);
    if (etp < 1 || ranks % etp != 0)
        return lm_fail(LM_EARG, "plan: etp = %d does not divide the %d ranks of the experts",
                       etp, ranks);
    if (s->way < LM_WAY_DIRECT || s->way > LM_WAY_TWO_LEVEL)
        return lm_fail(LM_EARG, "plan: no way has number %d", s->way);
    if (s->parts < 0) return lm_fail(LM_EARG, "plan: %d parts", s->parts);
    if (!(s->shadow >= 0) || (s->shadow > 0 && etp > 1))
        return lm_fail(
            LM_EARG,
            "plan: experts over %g times the mean load cannot be shadowed with etp = %d",
            s->shadow, etp);
    for (int e = 0; s->owner && e < s->experts; e++)
        if (s->owner[e] < 0 || s->owner[e] >= ranks / etp)
            return lm_fail(LM_EARG, "plan: expert %d belongs to place %d of %d", e, s->owner[e],
                           ranks / etp);
    return LM_OK;
}

/* A rank's id of a token says more than its place on this rank. */
static int64_t name_of(const lm_plan *p, int64_t t) { return p->token_id[t]; }

static int read_ids(lm_plan *p, const lm_plan_spec *s, int64_t *counts) {
    for (int64_t t = 0; t < p->tokens; t++) {
        bool valid = !s->valid || s->valid[t];
        p->valid_tokens += valid;
        for (int64_t r = t * p->top_k; r < (t + 1) * p->top_k; r++) {
            int64_t id = s->expert_ids_dtype == LM_I64 ? ((const int64_t *)s->expert_ids)[r]
                                                       : ((const int32_t *)s->expert_ids)[r];
            p->expert_id[r] = -1;
            if (!valid || id == -1) continue;
            if (id < 0 || id >= p->experts)
                return lm_fail(
                    LM_EARG,
                    "router '%s': expert id %lld, for token %lld in slot %lld, is not "
                    "one of 0 to %d (nor -1, for none)",
                    s->router, (long long)id, (long long)name_of(p, t),
                    (long long)(r % p->top_k), p->experts - 1);
            p->expert_id[r] = (int32_t)id;
            counts[id]++;
        }
    }
    return LM_OK;
}

static int check_scores(const lm_plan *p, const lm_plan_spec *s) {
    for (int64_t t = 0; s->scores && t < p->tokens; t++) {
        const float *row = s->scores + t * p->experts;
        int nans = 0;
        for (int e = 0; e < p->experts; e++) nans += row[e] != row[e];
        if (nans == 0 || (s->valid && !s->valid[t])) continue;
        int e = 0;
        while (row[e] == row[e]) e++;
        return lm_fail(LM_EARG, "router '%s': the score of token %lld for expert %d is NaN",
                       s->router, (long long)name_of(p, t), e);
    }
    for (int64_t r = 0; s->priorities && r < p->tokens * p->top_k; r++)
        if (p->expert_id[r] >= 0 && isnan(s->priorities[r]))
            return lm_fail(
                LM_EARG, "router '%s': the priority of token %lld in slot %lld is NaN",
                s->router, (long long)name_of(p, r / p->top_k), (long long)(r % p->top_k));
    return LM_OK;
}

typedef struct named {
    int64_t id;
    int32_t at;
} named;

static int by_id(const void *a, const void *b) {
    const named *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Rows go in the order of the tokens' ids; most often that is how they come. */
static int order_tokens(lm_plan *p, const lm_plan_spec *s) {
    bool sorted = true;
    for (int64_t t = 0; t < p->tokens; t++) {
        p->token_id[t] = s->token_ids ? s->token_ids[t] : t;
        if (p->token_id[t] < 0)
            return lm_fail(LM_EARG, "plan: token id %lld is negative",
                           (long long)p->token_id[t]);
        sorted = sorted && (t == 0 || p->token_id[t - 1] < p->token_id[t]);
    }
    if (sorted) return LM_OK;

    named *order = malloc((size_t)p->tokens * sizeof *order);
    int st =
        order ? lm__plan_array(p, p->tokens, sizeof *p->by_token, &p->by_token)
              : lm_fail(LM_EOOM, "plan: no memory to sort %lld tokens", (long long)p->tokens);
    for (int64_t t = 0; t < p->tokens && st == LM_OK; t++)
        order[t] = (named){p->token_id[t], (int32_t)t};
    if (st == LM_OK) qsort(order, (size_t)p->tokens, sizeof *order, by_id);
    for (int64_t t = 0; t < p->tokens && st == LM_OK; t++) {
        p->by_token[t] = order[t].at;
        if (t > 0 && order[t - 1].id == order[t].id)
            st = lm_fail(LM_EARG, "plan: two tokens have the id %lld", (long long)order[t].id);
    }
    free(order);
    return st;
}

static int read_routes(lm_plan *p, const lm_plan_spec *s, int64_t *counts) {
    int64_t routes = p->tokens * p->top_k;
    int st = lm__plan_array(p, p->tokens, sizeof *p->token_id, &p->token_id);
    if (st == LM_OK) st = lm__plan_array(p, routes, sizeof *p->expert_id, &p->expert_id);
    if (st == LM_OK) st = lm__plan_array(p, routes, sizeof *p->dropped, &p->dropped);
    if (st == LM_OK) st = lm__plan_array(p, routes, sizeof *p->row_of, &p->row_of);
    if (st == LM_OK) st = order_tokens(p, s);
    if (st == LM_OK) st = read_ids(p, s, counts);
    if (st == LM_OK) st = check_scores(p, s);
    return st;
}

/* ---- 2. all ranks' ---- */

static int heads_new(lm__plan_heads *h, int ranks, int experts) {
    *h = (lm__plan_heads){ranks, experts, NULL};
    return lm__room_new((int64_t)ranks * (5 + experts), sizeof *h->words, &h->words);
}

static int exchange_heads(lm_plan *p, lm__plan_heads *h, lm_group *data, int rank, int st) {
    lm__plan_head *mine = lm__head(h, rank);
    mine->status = st;
    mine->valid_tokens = p->valid_tokens;
    mine->tokens = p->tokens;
    if (st == LM_OK && p->tokens) {
        mine->first_id = p->token_id[p->by_token ? p->by_token[0] : 0];
        mine->last_id = p->token_id[p->by_token ? p->by_token[p->tokens - 1] : p->tokens - 1];
    }
    if (!data) return st;
    char own[1024];
    snprintf(own, sizeof own, "%s", lm_last_error());
    int sent =
        lm_all_gather(data, mine, (5 + h->experts) * (int64_t)sizeof *h->words, h->words);
    if (sent != LM_OK) return sent;
    bool failed = false;
    for (int r = 0; r < h->ranks; r++) failed |= lm__head(h, r)->status != LM_OK;
    return failed ? lm_dist_agree_text(data, st, own) : LM_OK;
}

static void add_up(lm_plan *p, const lm__plan_heads *h, double factor) {
    p->valid_tokens = 0;
    for (int r = 0; r < h->ranks; r++) {
        p->valid_tokens += lm__head(h, r)->valid_tokens;
        for (int e = 0; e < p->experts; e++) p->routed[e] += lm__head_counts(h, r)[e];
    }
    p->capacity = -1;
    if (factor >= 0) { /* 1.1 * 40 / 4 is 11.000000000000002, and means 11 */
        double exact = factor * p->top_k * (double)p->valid_tokens / p->experts;
        p->capacity = (int64_t)fmin(ceil(exact - 1e-9 * fmax(exact, 1)), 9e15);
    }
    for (int e = 0; e < p->experts; e++) {
        bool over = p->capacity >= 0 && p->routed[e] > p->capacity;
        p->kept[e] = over ? p->capacity : p->routed[e];
        p->over |= over;
    }
}

/* ---- the whole ---- */

static void take_hash(lm_plan *p) {
    uint64_t h = lm__mix((uint64_t)p->top_k, (uint64_t)p->experts);
    h = lm__mix(h, (uint64_t)p->capacity);
    for (int e = 0; e < p->experts; e++) h = lm__mix(h, (uint64_t)p->owner[e]);
    for (int64_t r = 0; r < p->tokens * p->top_k; r++)
        h = lm__mix(h, (uint64_t)(uint32_t)p->expert_id[r] << 1 | p->dropped[r]);
    for (int64_t t = 0; t < p->tokens; t++) h = lm__mix(h, (uint64_t)p->token_id[t]);
    snprintf(p->hash, sizeof p->hash, "%016llx", (unsigned long long)h);
}

/* Expert e of E at place e * places / E: blocks as even as can be. */
static int place_experts(lm_plan *p, const int32_t *owner, lm_group *expert) {
    int places = expert ? lm_group_size(expert) / p->etp : 1;
    int me = expert ? lm_group_rank(expert) / p->etp : 0;
    int st = lm__plan_array(p, p->experts, sizeof *p->owner, &p->owner);
    if (st == LM_OK) st = lm__plan_array(p, p->experts, sizeof *p->expert_of, &p->expert_of);
    for (int e = 0; e < p->experts && st == LM_OK; e++) {
        p->owner[e] = owner ? owner[e] : (int32_t)((int64_t)e * places / p->experts);
        if (p->owner[e] == me) p->expert_of[p->local_experts++] = e;
    }
    p->place = me;
    p->own_experts = p->local_experts;
    return st;
}

/* How rows travel. One rank alone has nobody to send to. */
static int choose_way(lm_plan *p, const lm_plan_spec *s) {
    int ranks = lm__plan_ranks(p);
    p->once =
        s->once && p->expert && s->parts <= 1; /* of parts, each is; the whole moves nothing */
    p->way = s->way;
    int st = lm__plan_array(p, LM_LEGS * ranks * 3, sizeof *p->traffic, &p->traffic);
    if (st == LM_OK) st = lm__plan_array(p, ranks, sizeof *p->host, &p->host);
    for (int r = 0; r < ranks && p->expert && st == LM_OK; r++) {
        p->host[r] = s->hosts ? s->hosts[r] : lm_dist_host(lm_group_world_rank(p->expert, r));
        if (p->host[r] < 0 && !s->hosts) st = p->host[r];
    }
    return st;
}

int lm_plan_new(const lm_plan_spec *s, lm_group *data, lm_group *expert, lm_plan **out) {
    int ranks = data ? lm_group_size(data) : 1, rank = data ? lm_group_rank(data) : 0;
    lm__plan_heads heads = {0};
    lm_plan *p = calloc(1, sizeof *p);
    if (!p) return lm_fail(LM_EOOM, "plan: no memory");
    p->refs = 1;
    p->expert = expert && lm_group_size(expert) > 1 ? expert : NULL;
    if (p->expert) lm_group_retain(p->expert);
    p->experts = s->experts > 0 ? s->experts : 0;
    int st = heads_new(&heads, ranks, p->experts);
    if (st != LM_OK) { /* too early to tell the others */
        lm_plan_release(p);
        return st;
    }
    st = s->status == LM_OK ? check_spec(s, expert) : lm_fail(s->status, "%s", s->error);
    if (st == LM_OK) st = lm__plan_array(p, p->experts, sizeof *p->routed, &p->routed);
    if (st == LM_OK) st = lm__plan_array(p, p->experts, sizeof *p->kept, &p->kept);
    p->etp = s->etp ? s->etp : 1;
    if (st == LM_OK) st = place_experts(p, s->owner, expert);
    if (st == LM_OK) st = choose_way(p, s);
    if (st == LM_OK) {
        p->tokens = s->tokens;
        p->top_k = s->top_k;
        st = read_routes(p, s, lm__head_counts(&heads, rank));
    }
    st = exchange_heads(p, &heads, data, rank, st);
    if (st == LM_OK) add_up(p, &heads, s->capacity_factor);
    if (st == LM_OK && p->over) st = lm__plan_select(p, s, data);
    if (st == LM_OK) st = lm__plan_shadow(p, s->shadow);
    if (st == LM_OK) st = lm__plan_layout(p, &heads, s, data, expert);
    if (st == LM_OK) take_hash(p);
    lm__room_free(heads.words);
    if (st == LM_OK) *out = p;
    else lm_plan_release(p);
    return st;
}

/* ---- what it says ---- */

double lm_plan_tokens(const lm_plan *p) { return (double)p->tokens; }
int lm_plan_parts(const lm_plan *p) { return p->parts; }
lm_plan *lm_plan_part(const lm_plan *p, int part) { return p->part[part]; }
int lm_plan_top_k(const lm_plan *p) { return p->top_k; }
int lm_plan_experts(const lm_plan *p) { return p->experts; }
int lm_plan_local_experts(const lm_plan *p) { return p->local_experts; }
int lm_plan_own_experts(const lm_plan *p) { return p->own_experts; }
int lm_plan_shadows(const lm_plan *p) { return p->shadows; }
int lm_plan_is_shadow(const lm_plan *p, int expert) { return p->shadow && p->shadow[expert]; }
double lm_plan_rows(const lm_plan *p) { return (double)p->rows; }
double lm_plan_arrivals(const lm_plan *p) { return (double)p->arrivals; }
double lm_plan_capacity(const lm_plan *p) { return (double)p->capacity; }
double lm_plan_valid_tokens(const lm_plan *p) { return (double)p->valid_tokens; }
const char *lm_plan_hash(const lm_plan *p) { return p->hash; }
const int64_t *lm_plan_routed(const lm_plan *p) { return p->routed; }
const int64_t *lm_plan_kept(const lm_plan *p) { return p->kept; }
const int64_t *lm_plan_traffic(const lm_plan *p) { return p->traffic; }
const int32_t *lm_plan_expert_ids(const lm_plan *p) { return p->expert_id; }
const int32_t *lm_plan_row_of(const lm_plan *p) { return p->row_of; }
const int32_t *lm_plan_route_of(const lm_plan *p) { return p->route_of; }
const int64_t *lm_plan_sends(const lm_plan *p) { return p->wire.sends; }
const int32_t *lm_plan_expert_of(const lm_plan *p) { return p->expert_of; }
const int64_t *lm_plan_offsets(const lm_plan *p) { return p->offsets; }
const int64_t *lm_plan_receives(const lm_plan *p) { return p->wire.receives; }
const int32_t *lm_plan_arrival_of(const lm_plan *p) { return p->arrival_of; }

int lm_max_tag(const int32_t *tag_of, int64_t n) {
    int32_t most = -1;
    for (int64_t i = 0; i < n; i++) most = tag_of[i] > most ? tag_of[i] : most;
    return most;
}

int lm_plan_count_by_tag(const lm_plan *p, const int32_t *tag_of, int tags, int64_t *routed,
                         int64_t *dropped) {
    for (int64_t r = 0; r < p->tokens * p->top_k; r++) {
        int32_t tag = tag_of[r / p->top_k], e = p->expert_id[r];
        if (e < 0 || tag < 0 || tag >= tags) continue;
        routed[(int64_t)tag * p->experts + e]++;
        dropped[(int64_t)tag * p->experts + e] += p->dropped[r];
    }
    return LM_OK;
}
