/* noise.c - span corruption as in BART (Lewis et al. 2020): spans of pieces, three long on
 * average, each become one <mask>; the target is the whole sentence.
 *
 * BART's form rather than T5's, whose target is the masked spans between sentinels: here a
 * decoder practises what translation asks of it, to write a whole sentence of the language its
 * first token names, and the vocabulary needs one more piece, not a hundred.
 *
 * Of n pieces, m are masked and u = n - m kept. The s spans go to s different ones of the u + 1
 * places before, between and after the kept pieces (so two masks never touch), and s - 1
 * different ones of the m - 1 inner borders of the masked pieces part them into spans. Which
 * ones is decided place by place: with `need` to choose of `left`, take one with probability
 * need / left. The length alone, n - m + s, costs one draw: batches are cut before any span is.
 */
#include "kernels/philox.h"
#include "runtime/data/data_impl.h"

#include <math.h>

enum { RATE_STREAM, PLACE_STREAM, BORDER_STREAM };

lm_noise lm__noise_plan(const lm_batches_options *o, uint64_t key, int64_t n) {
    const int64_t one = 1 << 16; /* the rate in whole numbers, alike on every machine */
    int64_t low = llround(o->mask_low * (double)one),
            high = llround(o->mask_high * (double)one);
    int64_t draw = lm_philox_at(key, RATE_STREAM, 0);
    int64_t rate = low + (((high - low) * draw) >> 32);
    int64_t masked = (rate * n + one / 2) / one;
    if (masked < 1) masked = 1;
    if (masked > n - 1) masked = n - 1; /* something must be left to go by */
    if (n < 2 || high == 0) return (lm_noise){0, 0};

    int64_t spans = llround((double)masked / o->mean_span);
    if (spans > n - masked + 1) spans = n - masked + 1;
    if (spans > masked) spans = masked;
    if (spans < 1) spans = 1;
    return (lm_noise){masked, spans};
}

static bool take(uint64_t key, uint64_t stream, int64_t place, int64_t need, int64_t left) {
    uint64_t draw = lm_philox_at(key, stream, (uint64_t)place);
    return (int64_t)((draw * (uint64_t)left) >> 32) < need;
}

void lm__noise_apply(lm_noise plan, uint64_t key, const int32_t *pieces, int64_t n,
                     int32_t mask, int32_t *corrupted) {
    int64_t kept = n - plan.masked, need = plan.spans;
    int64_t border = 0, borders = plan.masked - 1, borders_need = plan.spans - 1;
    int64_t from = 0, to = 0;
    for (int64_t place = 0; place <= kept; place++) {
        if (take(key, PLACE_STREAM, place, need, kept + 1 - place)) {
            need--;
            corrupted[to++] = mask;
            bool last = false;
            while (!last) { /* over one span */
                from++;
                last = border == borders ||
                       take(key, BORDER_STREAM, border, borders_need, borders - border);
                if (last && border < borders) borders_need--;
                border++;
            }
        }
        if (place < kept) corrupted[to++] = pieces[from++];
    }
}
