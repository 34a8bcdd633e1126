/* far_copy.h - copies of more than the caches hold.
 *
 * An ordinary store reads its line of memory first: a third of what a large copy moves. A
 * streaming store does not, but it leaves nothing in the cache for whoever reads next. It is
 * for what a rank receives in amounts that would not stay there. */
#ifndef LM_FAR_COPY_H
#define LM_FAR_COPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* From so many bytes on that come to a rank at once, it wins; its reader included. */
enum { LM__FAR = 6 << 20 };

/* to and from do not overlap. */
static inline void lm__far_copy(char *to, const char *from, size_t bytes) {
#ifdef __SSE2__
    enum { LINE = 64, WORD = sizeof(__m128i) };
    size_t head = (LINE - (uintptr_t)to % LINE) % LINE;
    if (bytes >= head + LINE) {
        memcpy(to, from, head);
        to += head, from += head, bytes -= head;
        for (; bytes >= LINE; to += LINE, from += LINE, bytes -= LINE)
            for (int i = 0; i < LINE; i += WORD)
                _mm_stream_si128((__m128i *)(void *)(to + i),
                                 _mm_loadu_si128((const __m128i *)(const void *)(from + i)));
        _mm_sfence(); /* before whatever says that it is here */
    }
#endif
    memcpy(to, from, bytes);
}

#endif
