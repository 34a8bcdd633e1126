/* dist.c - the world: who started us, and the transport to the other ranks. */
#define _GNU_SOURCE /* dladdr */
#include "runtime/dist/dist_impl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const lm__transport *transport; /* NULL in a world of one */
static lm_group *world;
static int local_rank, local_size = 1;
static bool finalized;
static volatile int interrupted;
static double bytes_sent;

/* ---- launchers ---- */

static int env_int(const char *name, int fallback) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : fallback;
}

/* How many ranks a launcher announced: 1 when alone, 0 when only the transport can tell. */
static int announced_size(void) {
    int size = env_int("OMPI_COMM_WORLD_SIZE", 0); /* mpirun of Open MPI */
    if (!size) size = env_int("PMI_SIZE", 0);      /* MPICH, srun --mpi=pmi2 */
    if (size) return size;
    return getenv("PMIX_RANK") || getenv("PMI_RANK") ? 0 : 1; /* srun --mpi=pmix */
}

int lm_dist_launched(void) { return announced_size() != 1; }

/* srun without PMI starts N programs that would each take itself for the whole job. */
static int check_srun(void) {
    int tasks = env_int("SLURM_STEP_NUM_TASKS", 1);
    if (announced_size() != 1 || tasks <= 1 || !getenv("SLURM_PROCID") ||
        getenv("OMPI_COMM_WORLD_SIZE"))
        return LM_OK;
    return lm_fail(LM_ECOMM,
                   "srun started %d tasks without PMI, so they cannot find each other; use "
                   "srun --mpi=pmix",
                   tasks);
}

/* ---- the transport ---- */

/* A script that ends waits for the other ranks; one that fails has gone through lm_dist_abort.
 */
static void leave(void) { lm_dist_finalize(); }

/* The plugin lies beside this library. */
static int open_transport(void) {
    char path[4096];
    Dl_info self;
    if (!dladdr((void *)(uintptr_t)&lm_dist_init, &self) || !self.dli_fname)
        return lm_fail(LM_EINTERNAL, "dist: cannot tell where liblumoe.so is");
    const char *slash = strrchr(self.dli_fname, '/');
    int dir = slash ? (int)(slash - self.dli_fname) + 1 : 0;
    snprintf(path, sizeof path, "%.*sliblumoe_mpi.so", dir, self.dli_fname);

    void *plugin =
        dlopen(path, RTLD_NOW | RTLD_GLOBAL); /* global: MPI opens plugins of its own */
    if (!plugin)
        return lm_fail(LM_ECOMM, "a launcher started this process, but MPI is not there: %s",
                       dlerror());
    lm__transport_entry entry;
    *(void **)&entry = dlsym(plugin, "lm__transport_mpi");
    if (!entry) return lm_fail(LM_ECOMM, "%s is not a transport", path);
    transport = entry();
    return LM_OK;
}

int lm_dist_init(void) {
    if (finalized) return lm_fail(LM_ECOMM, "dist: this rank has already left the job");
    if (world) return LM_OK;
    int rank = 0, size = 1;
    char error[256] = "";
    int st = check_srun();
    if (st == LM_OK && lm_dist_launched()) {
        st = open_transport();
        if (st == LM_OK && transport->start(&rank, &size, &local_rank, &local_size, error) != 0)
            st = lm_fail(LM_ECOMM, "%s", error), transport = NULL;
        if (st == LM_OK) atexit(leave); /* runs when liblumoe is closed, before its code goes */
    }
    return st == LM_OK ? lm__world_new(size, rank, &world) : st;
}

int lm_dist_running(void) { return transport != NULL && !finalized; }

int lm_dist_finalize(void) {
    char error[256] = "";
    if (!lm_dist_running()) return LM_OK;
    finalized = true;
    if (transport->stop(error) != 0) return lm_fail(LM_ECOMM, "%s", error);
    return LM_OK;
}

void lm_dist_abort(int code) {
    if (lm_dist_running()) transport->abort(code);
}

void lm_dist_interrupt(void) { interrupted = 1; }

/* ---- facts ---- */

int lm_dist_rank(void) {
    int st = lm_dist_init();
    return st == LM_OK ? world->rank : st;
}

int lm_dist_world_size(void) {
    int st = lm_dist_init();
    return st == LM_OK ? world->size : st;
}

int lm_dist_local_rank(void) {
    int st = lm_dist_init();
    return st == LM_OK ? local_rank : st;
}

int lm_dist_local_size(void) {
    int st = lm_dist_init();
    return st == LM_OK ? local_size : st;
}

double lm_dist_bytes_sent(void) { return bytes_sent; }

/* ---- messages ---- */

lm_group *lm__group(const lm_group *g) {
    if (g) return (lm_group *)(uintptr_t)g;
    return lm_dist_init() == LM_OK ? world : NULL;
}

int lm__exchange_world(lm_group *g, const char *op, int sends, const lm__message *send,
                       int receives, const lm__message *receive) {
    char error[256] = "";
    if (g->broken)
        return lm_fail(LM_ECOMM,
                       "%s: an earlier collective of this group failed or was interrupted", op);
    if (!lm_dist_running())
        return lm_fail(LM_ECOMM, "%s: this rank has already left the job", op);
    for (int i = 0; i < sends; i++) bytes_sent += (double)send[i].bytes;
    if (transport->exchange(g->tag, sends, send, receives, receive, &interrupted, error) == 0)
        return LM_OK;
    g->broken = true;
    interrupted = 0;
    return lm_fail(LM_ECOMM, "%s over %d ranks: %s", op, g->size, error);
}

int lm__exchange(lm_group *g, const char *op, int sends, lm__message *send, int receives,
                 lm__message *receive) {
    for (int i = 0; i < sends; i++) send[i].peer = g->world_rank[send[i].peer];
    for (int i = 0; i < receives; i++) receive[i].peer = g->world_rank[receive[i].peer];
    return lm__exchange_world(g, op, sends, send, receives, receive);
}
