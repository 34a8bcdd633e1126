/* region.c - a parallel region of one thread is an ordinary call.
 *
 * libgomp makes a team even for one thread: half a microsecond, more than a small kernel. The
 * link replaces its entry (--wrap, in CMakeLists.txt) by this one, so that every kernel keeps
 * one plain pragma. Inside another region a team of one is still made, since the body asks
 * for its number. */
#include <omp.h>

#if defined(__GNUC__) && !defined(__clang__)

void __real_GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags);
void __wrap_GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags);

void __wrap_GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
    if (threads == 1 && !omp_in_parallel()) body(data);
    else __real_GOMP_parallel(body, data, threads, flags);
}

#endif
