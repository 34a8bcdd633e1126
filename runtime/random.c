/* random.c - seeds, steps and streams over kernels/philox.h. */
#include "runtime/random.h"
#include "runtime/ops/op.h"

static uint64_t seed = 1, step_now;

void lm_random_seed(double s) { seed = (uint64_t)(int64_t)s; }
double lm_random_get_seed(void) { return (double)seed; }
void lm_random_set_step(double s) { step_now = (uint64_t)(int64_t)s; }
double lm_random_step(void) { return (double)step_now; }

static uint64_t mix(uint64_t h) { /* the finalizer of splitmix64 */
    h ^= h >> 30, h *= 0xbf58476d1ce4e5b9u;
    h ^= h >> 27, h *= 0x94d049bb133111ebu;
    return h ^ h >> 31;
}

uint64_t lm_random_stream(const char *site, double call, int without_step) {
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *c = site; *c; c++) h = (h ^ (uint8_t)*c) * 0x100000001b3u;
    h = mix(h + 0x9e3779b97f4a7c15u * (uint64_t)(int64_t)call);
    return without_step ? h : mix(h + 0x9e3779b97f4a7c15u * (step_now + 1));
}

int lm_random_fill(lm_tensor *t, int normal, double a, double b, uint64_t stream, int dims,
                   double first, lm_tensor *row_ids) {
    char ts[96];
    int st = lm__floating("random", t);
    if (st != LM_OK) return st;
    if (!lm_tensor_is_contiguous(t) || dims < 0 || dims > t->ndim)
        return lm_fail(LM_ESHAPE, "random: cannot fill %s in rows of %d dims",
                       lm__describe(t, ts), dims);
    int64_t n = 1, rows;
    for (int d = t->ndim - dims; d < t->ndim; d++) n *= t->shape[d];
    rows = n ? t->numel / n : 0;
    if (row_ids && (row_ids->dtype != LM_I64 || row_ids->numel != rows ||
                    !lm_tensor_is_contiguous(row_ids)))
        return lm_fail(LM_ESHAPE, "random: %lld rows want as many i64 ids, not %s",
                       (long long)rows, lm__describe(row_ids, ts));
    lm_draw draw = {seed, stream, (int64_t)first,
                    row_ids ? (const int64_t *)(const void *)row_ids->data : NULL};
    t->storage->version++;
    return lm__kernels(t)->rand(normal, t->dtype, rows, n, t->data, a, b, &draw);
}
