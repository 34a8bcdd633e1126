/* lane.c - large messages between ranks of a host, piece by piece through memory that they
 * share.
 *
 * A lane is a ring of pieces in the receiver's part of that memory. The sender copies a
 * piece in and counts it as written, the receiver copies it out and counts it as read.
 * Both copies are the processor's own, at the speed of its caches, as a ring fits into
 * one; the kernel's single copy from process to process is slower than both, page by page,
 * and not permitted everywhere.
 *
 * The receiver gives a lane to a message for which both ends are ready, so that whatever
 * is in a lane is soon read. */
#include "runtime/dist/mpi/lane.h"
#include "runtime/dist/far_copy.h"

#include <stdlib.h>
#include <string.h>

enum { LANES = 4, PIECES = 8, PIECE = 64 << 10, LINE = 128 };

typedef struct lane {
    _Alignas(LINE) uint32_t written; /* pieces of this message */
    _Alignas(LINE) uint32_t read;
    _Alignas(LINE) char piece[PIECES][PIECE];
} lane;

static lane **lanes_of; /* [world size] */
static lane *mine;
static bool taken[LANES];

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
}

bool lm__lanes_with(int peer) { return lanes_of && lanes_of[peer]; }

int lm__lane_take(void) {
    int i = 0;
    while (i < LANES && taken[i]) i++;
    if (i == LANES) return -1;
    taken[i] = true;
    mine[i].written = mine[i].read = 0;
    return i;
}

void lm__lanes_renew(void) { memset(taken, 0, sizeof taken); }

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
    lane *l = s->sends ? aligned(lanes_of[s->peer]) + s->lane : mine + s->lane;
    int64_t left = s->bytes - s->moved;
    size_t bytes = left < PIECE ? (size_t)left : PIECE;
    uint32_t at = (uint32_t)(s->moved / PIECE);
    if (!(s->sends ? send_piece : receive_piece)(l, s, at, bytes)) return false;
    s->moved += (int64_t)bytes;
    if (s->moved == s->bytes && !s->sends) taken[s->lane] = false;
    return true;
}
