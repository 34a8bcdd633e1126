/* tier.c - the queue between the runtime's thread and the worker of a tier.
 *
 * One lock guards the queue; the worker holds it only between two jobs. Since jobs are done in
 * order, one number says how far it is. After a failure it passes over everything: what follows
 * may depend on what failed. */
#include "runtime/tier/tier_impl.h"

#include <signal.h>
#include <string.h>

static int do_job(lm_tier *t, const lm_tier_job *job) {
    if (job->dst) return t->kind->read(t, job->offset, job->dst, job->bytes);
    return t->kind->write(t, job->offset, job->src, job->bytes);
}

static void *work(void *arg) {
    lm_tier *t = arg;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->done == t->last && !t->closing) pthread_cond_wait(&t->changed, &t->lock);
        if (t->done == t->last) break;
        lm_tier_job job = t->queue[(t->done + 1) % LM_TIER_QUEUE];
        bool skip = t->error != 0;
        pthread_mutex_unlock(&t->lock);
        int error = skip ? 0 : do_job(t, &job);
        pthread_mutex_lock(&t->lock);
        if (error) t->error = error, t->failed = job;
        t->done++;
        pthread_cond_broadcast(&t->changed);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

int lm__tier_start(lm_tier *t) {
    t->refs = 1;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed, NULL);
    sigset_t all, before; /* signals are for the runtime's thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&t->worker, NULL, work, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error) return LM_OK;
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    return lm_fail(LM_EOOM, "offload: cannot start a thread: %s", strerror(error));
}

int lm_tier_reserve(lm_tier *t, int64_t bytes, int64_t *offset) {
    if (bytes < 0)
        return lm_fail(LM_EARG, "offload: cannot reserve %lld bytes", (long long)bytes);
    int st = bytes ? t->kind->grow(t, t->reserved, t->reserved + bytes) : LM_OK;
    if (st != LM_OK) return st;
    *offset = t->reserved;
    t->reserved += bytes;
    return LM_OK;
}

/* With the lock held. */
static int failure(const lm_tier *t) {
    if (!t->error) return LM_OK;
    const lm_tier_job *j = &t->failed;
    return lm_fail(LM_EIO, "offload: cannot %s %lld bytes at byte %lld of %s: %s",
                   j->dst ? "read" : "write", (long long)j->bytes, (long long)j->offset,
                   t->place, t->error < 0 ? "it is cut off there" : strerror(t->error));
}

static int begin(lm_tier *t, lm_tier_job job) {
    if (job.offset < 0 || job.bytes < 0 || job.bytes > t->reserved - job.offset)
        return lm_fail(LM_EARG, "offload: %lld bytes at byte %lld, but %lld are reserved in %s",
                       (long long)job.bytes, (long long)job.offset, (long long)t->reserved,
                       t->place);
    if (job.bytes == 0) return LM_OK;
    pthread_mutex_lock(&t->lock);
    while (t->last - t->done == LM_TIER_QUEUE) pthread_cond_wait(&t->changed, &t->lock);
    int st = failure(t);
    if (st == LM_OK) {
        t->queue[++t->last % LM_TIER_QUEUE] = job;
        t->begun = t->last;
        *(job.dst ? &t->read : &t->written) += job.bytes;
        pthread_cond_broadcast(&t->changed);
    }
    pthread_mutex_unlock(&t->lock);
    return st;
}

int lm_tier_write(lm_tier *t, int64_t offset, const void *src, int64_t bytes) {
    return begin(t, (lm_tier_job){.offset = offset, .bytes = bytes, .src = src});
}

int lm_tier_read(lm_tier *t, int64_t offset, void *dst, int64_t bytes) {
    return begin(t, (lm_tier_job){.offset = offset, .bytes = bytes, .dst = dst});
}

int lm_tier_wait(lm_tier *t, double number) {
    pthread_mutex_lock(&t->lock);
    while ((double)t->done < number && t->done < t->last)
        pthread_cond_wait(&t->changed, &t->lock);
    int st = failure(t);
    pthread_mutex_unlock(&t->lock);
    return st;
}

double lm_tier_begun(const lm_tier *t) { return (double)t->begun; }
double lm_tier_reserved(const lm_tier *t) { return (double)t->reserved; }
double lm_tier_bytes_written(const lm_tier *t) { return (double)t->written; }
double lm_tier_bytes_read(const lm_tier *t) { return (double)t->read; }

void lm_tier_retain(lm_tier *t) { t->refs++; }

void lm_tier_release(lm_tier *t) {
    if (!t || --t->refs > 0) return;
    pthread_mutex_lock(&t->lock);
    t->closing = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->worker, NULL);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    t->kind->free(t);
}
