/* lane.h - messages between ranks of a host, piece by piece (lane.c). */
#ifndef LM_LANE_H
#define LM_LANE_H

#include <stdbool.h>
#include <stdint.h>

/* A message on its way through a lane of its sender's; either end has one. */
typedef struct lm__stream {
    int peer, lane;
    uint32_t first;  /* the count of its first piece in the lane */
    bool sends, far; /* far: received together with more than the caches hold */
    char *data;
    int64_t bytes, moved;
} lm__stream;

int64_t lm__lanes_bytes(void); /* of a rank, to be shared with those of its host */
/* of_rank[world size]: that memory of every rank, NULL for one on another host. It is kept. */
void lm__lanes_open(void **of_rank, int rank);
void lm__lanes_close(void);
bool lm__lanes_with(int peer);

/* One of this rank's, for one message, whose pieces count from *first; negative when none is
 * free. It goes back when the whole message has been received; from one that was not, when all
 * ranks have renewed. */
int lm__lane_take(uint32_t *first);
void lm__lanes_renew(void);

/* Moves the next piece; false when the other end has to do something first. */
bool lm__stream_move(lm__stream *s);

#endif
