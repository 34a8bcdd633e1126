/* launcher.h - what mpirun or srun told this process, read without MPI. */
#ifndef LM_HOST_LAUNCHER_H
#define LM_HOST_LAUNCHER_H

/* This process's rank under a launcher, or -1. */
int lm_launcher_rank(void);

/* Divides the host's cores among its ranks, unless OMP_NUM_THREADS was given, each at one node
 * of its memory where it has several (nodes.h), and makes threads share them with other
 * processes (GOMP_SPINCOUNT, unless OMP_WAIT_POLICY or it was given). To be called before
 * anything loads OpenMP. */
void lm_launcher_share_cores(void);

/* Ends every rank of the job with `code`, if the runtime has joined one; returns
 * otherwise. `prefix` is where the program is installed. */
void lm_launcher_abort(const char *prefix, int code);

#endif
