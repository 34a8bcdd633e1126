/* lane.c - messages between ranks of a host, piece by piece through memory that they share.
 *
 * A lane is a ring of pieces in the sender's part of that memory. The sender copies a piece
 * in and counts it as written, the receiver copies it out and counts it as read. Both copies
 * are the processor's own, at the speed of its caches; the kernel's single copy from process
 * to process is slower than both, page by page, and not permitted everywhere.
 *
 * Messages take lanes in turn, and each goes on in the ring where the last one ended: a line
 * that both cores have just used costs more than one that has left their own caches for the
 * cache that they share. */
#include "runtime/dist/mpi/lane.h"
#include "runtime/dist/far_copy.h"

#include <stdlib.h>
#include <string.h>

enum { LANES = 4, PIECES = 8, PIECE = 64 << 10, LINE = 128 };

typedef struct lane {
    _Alignas(LINE) uint32_t written; /* pieces, of all messages so far */
    _Alignas(LINE) uint32_t read;
    _Alignas(LINE) char piece[PIECES][PIECE];
} lane;

static lane **lanes_of; /* [world size] */
static lane *mine;
static bool taken[LANES]; /* by a message that is not all written */

int64_t lm__lanes_bytes(void) { return LANES * sizeof(lane) + LINE; }

static lane *aligned(void *p) {
    return p ? (lane *)(void *)((char *)p + (LINE - (uintptr_t)p % LINE) % LINE) : NULL;
}

void lm__lanes_open(void **of_rank, int rank) {
    lanes_of = (lane **)of_rank;
    mine = aligned(of_rank[rank]);
}

void lm__lanes_close(void) {
    free(lanes_of);
    lanes_of = NULL;
    mine = NULL;
}

bool lm__lanes_with(int peer) { return lanes_of && lanes_of[peer]; }

int lm__lane_take(uint32_t *first) {
    static int last;
    for (int n = 1; n <= LANES; n++) {
        int i = (last + n) % LANES;
        if (taken[i] || __atomic_load_n(&mine[i].read, __ATOMIC_ACQUIRE) != mine[i].written)
            continue;
        taken[i] = true;
        *first = mine[i].written;
        return last = i;
    }
    return -1;
}

void lm__lanes_renew(void) {
    for (int i = 0; i < LANES && mine; i++) mine[i].written = mine[i].read;
    memset(taken, 0, sizeof taken);
}

static bool send_piece(lane *l, const lm__stream *s, uint32_t at, size_t bytes) {
    if (at - __atomic_load_n(&l->read, __ATOMIC_ACQUIRE) == PIECES) return false;
    memcpy(l->piece[at % PIECES], s->data + s->moved, bytes);
    __atomic_store_n(&l->written, at + 1, __ATOMIC_RELEASE);
    return true;
}

static bool receive_piece(lane *l, const lm__stream *s, uint32_t at, size_t bytes) {
    if (__atomic_load_n(&l->written, __ATOMIC_ACQUIRE) == at) return false;
    const char *piece = l->piece[at % PIECES];
    if (s->far) lm__far_copy(s->data + s->moved, piece, bytes);
    else memcpy(s->data + s->moved, piece, bytes);
    __atomic_store_n(&l->read, at + 1, __ATOMIC_RELEASE);
    return true;
}

bool lm__stream_move(lm__stream *s) {
    lane *l = (s->sends ? mine : aligned(lanes_of[s->peer])) + s->lane;
    int64_t left = s->bytes - s->moved;
    size_t bytes = left < PIECE ? (size_t)left : PIECE;
    uint32_t at = s->first + (uint32_t)(s->moved / PIECE);
    if (!(s->sends ? send_piece : receive_piece)(l, s, at, bytes)) return false;
    s->moved += (int64_t)bytes;
    if (s->moved == s->bytes && s->sends) taken[s->lane] = false;
    return true;
}
