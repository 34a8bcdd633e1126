/* stream_file.h - the layout of a token stream, little-endian:
 *
 *   header     64 bytes
 *   ids        u16 each, or i32 when the vocabulary has more than 65536 pieces
 *   (zeros up to a multiple of 8)
 *   offsets    u64 each, sentences + 1 of them: sentence i is ids[offsets[i] .. offsets[i+1])
 */
#ifndef LM_STREAM_FILE_H
#define LM_STREAM_FILE_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "token streams are mapped as they are: this needs a little-endian machine"
#endif

enum { LM_STREAM_VERSION = 1 };
#define LM_STREAM_MAGIC "LUMOETOK"

typedef struct lm_stream_header {
    char magic[8];
    uint32_t version;
    uint32_t id_bytes; /* 2 or 4 */
    uint64_t sentences, tokens;
    uint32_t vocab, column;
    uint64_t model;
    uint64_t source_bytes, source_time;
} lm_stream_header;

_Static_assert(sizeof(lm_stream_header) == 64, "the header is 64 bytes on disk");

static inline uint64_t lm_stream_offsets_at(const lm_stream_header *h) {
    return sizeof *h + (h->tokens * h->id_bytes + 7) / 8 * 8;
}

#endif
