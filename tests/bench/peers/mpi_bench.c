/* mpi_bench.c - Open MPI's own collectives, as a bare program has them; rank 0 prints the times as a line of JSON. The
 * arguments and what is measured are those of ../programs/exchange.lua.
 *
 *   mpicc -O2 mpi_bench.c -o mpi_bench && mpirun -np 2 ./mpi_bench 0.3 'all_reduce f32 1048576' */
#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 200, RANKS = 64 };

typedef struct collective {
    char name[32];
    int bytes; /* that a rank puts in */
    int sends[RANKS], receives[RANKS], to[RANKS], from[RANKS];
    char *in, *out;
} collective;

static int rank, ranks;

/* Bytes from every rank to each: even, or to rank r as 1 / (r + 1). */
static void share(collective *c, int zipf) {
    double sum = 0;
    for (int r = 1; r <= ranks; r++) sum += zipf ? 1.0 / r : 1;
    int to = 0;
    for (int r = 0; r < ranks; r++) {
        c->sends[r] = (int)(c->bytes * (zipf ? 1.0 / (r + 1) : 1) / sum / 4096) * 4096;
        c->to[r] = to;
        to += c->sends[r];
    }
    for (int r = 0; r < ranks; r++) c->receives[r] = c->sends[rank], c->from[r] = r * c->sends[rank];
}

static void run(collective *c) {
    int n = c->bytes / (int)sizeof(float);
    if (strncmp(c->name, "all_to_all", 10) == 0)
        MPI_Alltoallv(c->in, c->sends, c->to, MPI_BYTE, c->out, c->receives, c->from, MPI_BYTE, MPI_COMM_WORLD);
    else if (strcmp(c->name, "all_reduce") == 0)
        MPI_Allreduce(MPI_IN_PLACE, c->in, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    else if (strcmp(c->name, "reduce_scatter") == 0)
        MPI_Reduce_scatter_block(c->in, c->out, n / ranks, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    else MPI_Allgather(c->in, c->bytes / ranks, MPI_BYTE, c->out, c->bytes / ranks, MPI_BYTE, MPI_COMM_WORLD);
}

/* Milliseconds of the slowest rank, from a barrier on. */
static double timed(collective *c) {
    MPI_Barrier(MPI_COMM_WORLD);
    double begun = MPI_Wtime();
    run(c);
    double ms = (MPI_Wtime() - begun) * 1e3;
    MPI_Allreduce(MPI_IN_PLACE, &ms, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return ms;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(collective *c, double seconds) {
    double ms[MOST], first = timed(c), second = timed(c);
    double wanted = seconds * 1e3 / (first > second ? first : second);
    int n = wanted < 5 ? 5 : wanted > MOST ? MOST : (int)wanted;
    for (int i = 0; i < n; i++) ms[i] = timed(c);
    qsort(ms, (size_t)n, sizeof *ms, by_size);
    return n % 2 ? ms[n / 2] : (ms[n / 2 - 1] + ms[n / 2]) / 2;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks > RANKS) MPI_Abort(MPI_COMM_WORLD, 1);
    for (int i = 2; i < argc; i++) {
        collective c;
        if (sscanf(argv[i], "%31s f32 %d", c.name, &c.bytes) != 2) MPI_Abort(MPI_COMM_WORLD, 1);
        c.in = calloc((size_t)c.bytes, 1);
        c.out = calloc((size_t)c.bytes * (size_t)ranks, 1);
        if (!c.in || !c.out) MPI_Abort(MPI_COMM_WORLD, 1);
        memset(c.in, 1, (size_t)c.bytes); /* pages that were never written are all one page, in the cache */
        share(&c, strstr(c.name, "zipf") != NULL);
        double ms = median(&c, atof(argv[1]));
        if (rank == 0) printf("%s%.6f%s", i == 2 ? "[" : ",", ms, i == argc - 1 ? "]\n" : "");
        free(c.in);
        free(c.out);
    }
    MPI_Finalize();
    return 0;
}
