/* dist.c - the world: who started us, the transport to the other ranks, their hosts. */
#define _GNU_SOURCE /* dladdr, CPU_COUNT */
#include "runtime/dist/dist_impl.h"
#include "runtime/dist/watch.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const lm__transport *transport; /* NULL in a world of one */
static lm_group *world;
static int *host; /* [world size]: of each rank, counted from 0; NULL in a world of one */
static bool finalized;

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

/* ---- hosts ---- */

/* LUMOE_HOSTS=2,2 pretends that the first two ranks share a host and the next two another. */
static int pretend_hosts(const char *text, int size) {
    int rank = 0;
    for (int h = 0; *text; h++) {
        char *end;
        long ranks = strtol(text, &end, 10);
        if (end == text || ranks < 1 || ranks > size - rank) break;
        for (; ranks > 0; ranks--) host[rank++] = h;
        text = end + (*end == ',');
    }
    if (rank == size && !*text) return LM_OK;
    return lm_fail(LM_EARG,
                   "LUMOE_HOSTS: it gives each host's ranks, as in 2,2, and they add "
                   "up to the %d of the job",
                   size);
}

static int find_hosts(int size) {
    char error[256] = "";
    const char *pretended = getenv("LUMOE_HOSTS");
    host = calloc((size_t)size, sizeof *host);
    if (!host) return lm_fail(LM_EOOM, "dist: no memory for %d ranks", size);
    if (pretended && *pretended) return pretend_hosts(pretended, size);
    if (transport->hosts(host, error) != 0) return lm_fail(LM_ECOMM, "%s", error);
    int hosts = 0; /* each rank names the first rank on its host: number those */
    for (int r = 0; r < size; r++) host[r] = host[r] == r ? hosts++ : host[host[r]];
    return LM_OK;
}

/* ---- the world ---- */

static int join(int *rank, int *size) {
    char error[256] = "";
    int st = open_transport();
    if (st == LM_OK && transport->start(rank, size, error) != 0)
        st = lm_fail(LM_ECOMM, "%s", error), transport = NULL;
    if (st == LM_OK) atexit(leave); /* runs when liblumoe is closed, before its code goes */
    if (st == LM_OK) st = find_hosts(*size);
    if (st == LM_OK) st = lm__watch_open(transport, *size, *rank);
    return st;
}

int lm_dist_init(void) {
    if (finalized) return lm_fail(LM_ECOMM, "dist: this rank has already left the job");
    if (world) return LM_OK;
    int rank = 0, size = 1, st = check_srun();
    if (st == LM_OK && lm_dist_launched()) st = join(&rank, &size);
    return st == LM_OK ? lm__world_new(size, rank, &world) : st;
}

int lm_dist_running(void) { return transport != NULL && !finalized; }

int lm_dist_finalize(void) {
    char error[256] = "";
    if (!lm_dist_running()) return LM_OK;
    lm__async_give_up("this rank leaves the job");
    finalized = true;
    if (transport->stop(error) != 0) return lm_fail(LM_ECOMM, "%s", error);
    return LM_OK;
}

void lm_dist_abort(int code) {
    if (lm_dist_running()) transport->abort(code);
}

/* ---- facts ---- */

const lm__transport *lm__transport_of_job(void) { return finalized ? NULL : transport; }

lm_group *lm__group(const lm_group *g) {
    if (g) return (lm_group *)(uintptr_t)g;
    return lm_dist_init() == LM_OK ? world : NULL;
}

int lm_dist_rank(void) {
    int st = lm_dist_init();
    return st == LM_OK ? world->rank : st;
}

int lm_dist_world_size(void) {
    int st = lm_dist_init();
    return st == LM_OK ? world->size : st;
}

int lm_dist_host(int rank) {
    int st = lm_dist_init();
    if (st != LM_OK) return st;
    if (rank < 0 || rank >= world->size)
        return lm_fail(LM_EARG, "dist: rank %d of a world of %d", rank, world->size);
    return host ? host[rank] : 0;
}

/* Ranks below `end` on this rank's host. */
static int neighbours(int end) {
    int count = 0;
    for (int r = 0; r < end; r++) count += lm_dist_host(r) == lm_dist_host(world->rank);
    return count;
}

int lm_dist_local_rank(void) {
    int st = lm_dist_init();
    return st == LM_OK ? neighbours(world->rank) : st;
}

int lm_dist_local_size(void) {
    int st = lm_dist_init();
    return st == LM_OK ? neighbours(world->size) : st;
}

bool lm__dist_crowded(void) {
    static int crowded = -1;
    cpu_set_t cores;
    if (crowded >= 0 || !world) return crowded != 0;
    int ranks = getenv("LUMOE_HOSTS") ? world->size : neighbours(world->size);
    crowded = sched_getaffinity(0, sizeof cores, &cores) != 0 || CPU_COUNT(&cores) < ranks;
    return crowded;
}
