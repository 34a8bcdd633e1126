/* launcher.c - what mpirun or srun told this process, read without MPI.
 *
 * MPI is slow to start, so the program asks the environment instead. It is
 * not linked to the runtime either: that is loaded by the first script that
 * requires it, and is looked up here only when all ranks must end. */
#define _GNU_SOURCE
#include "runtime/host/launcher.h"
#include "runtime/host/nodes.h"

#include <dlfcn.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The first of these variables that is set, as a number; else `otherwise`. */
static int first_number(const char *const *names, int otherwise) {
    for (; *names; names++) {
        const char *value = getenv(*names);
        if (value && *value) return atoi(value);
    }
    return otherwise;
}

int lm_launcher_rank(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID", NULL};
    return first_number(names, -1);
}

/* A thread that waits for the others spins only this long, then sleeps. Under libgomp's own
 * limit it spins on through its time slice when another process has the core of the thread that
 * is waited for, and every barrier then costs a slice. */
static void spin_briefly(void) {
    if (!getenv("OMP_WAIT_POLICY")) setenv("GOMP_SPINCOUNT", "1000", 0);
}

void lm_launcher_share_cores(void) {
    spin_briefly();
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
                                        "SLURM_TASKS_PER_NODE", NULL};
    static const char *const places[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                         "SLURM_LOCALID", NULL};
    int ranks = first_number(names, 1);
    if (ranks > 1) lm_nodes_stay_at_one(first_number(places, -1), ranks);
    if (ranks <= 1 || getenv("OMP_NUM_THREADS")) return;

    int threads = (int)sysconf(_SC_NPROCESSORS_ONLN) / ranks;
    cpu_set_t bound; /* the launcher, or a node, may have fewer */
    if (sched_getaffinity(0, sizeof bound, &bound) == 0 && CPU_COUNT(&bound) < threads)
        threads = CPU_COUNT(&bound);
    char text[16];
    snprintf(text, sizeof text, "%d", threads > 0 ? threads : 1);
    setenv("OMP_NUM_THREADS", text, 1);
}

void lm_launcher_abort(const char *prefix, int code) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/lib/liblumoe.so", prefix);
    void *runtime = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!runtime) return;
    void (*abort_job)(int) = NULL;
    *(void **)&abort_job = dlsym(runtime, "lm_dist_abort");
    if (abort_job) abort_job(code);
}
