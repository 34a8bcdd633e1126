/* nodes.c - each rank at one node of its host's memory.
 *
 * Memory lies at the node whose core first writes to it, and is slower from the others. A rank
 * whose threads all run on the cores of one node so has its tensors there, and nothing else in
 * the program needs to know. Ranks that follow one another share a node, since they exchange
 * the most. LUMOE_NODES stands for the system's directory of nodes, in tests. */
#define _GNU_SOURCE
#include "runtime/host/nodes.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_NODES = 64 };

/* "0-3,8-11" as a set; returns how many. */
static int read_list(const char *text, cpu_set_t *set) {
    CPU_ZERO(set);
    while (*text >= '0' && *text <= '9') {
        char *end;
        long first = strtol(text, &end, 10), last = first;
        if (*end == '-') last = strtol(end + 1, &end, 10);
        for (long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
            CPU_SET((size_t)cpu, set);
        text = *end == ',' ? end + 1 : end;
    }
    return CPU_COUNT(set);
}

/* The cores of each node that has some; returns how many nodes. Their numbers may have gaps. */
static int read_nodes(cpu_set_t nodes[MAX_NODES]) {
    const char *dir = getenv("LUMOE_NODES");
    if (!dir) dir = "/sys/devices/system/node";
    int count = 0;
    for (int i = 0; i < MAX_NODES; i++) {
        char path[PATH_MAX], text[4096] = "";
        snprintf(path, sizeof path, "%s/node%d/cpulist", dir, i);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        if (fgets(text, sizeof text, f) && read_list(text, &nodes[count]) > 0) count++;
        fclose(f);
    }
    return count;
}

void lm_nodes_stay_at_one(int local, int ranks) {
    cpu_set_t nodes[MAX_NODES], all, ours, allowed;
    int count = read_nodes(nodes);
    if (count < 2 || local < 0 || local >= ranks || ranks % count != 0) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    CPU_ZERO(&all);
    for (int i = 0; i < count; i++) CPU_OR(&all, &all, &nodes[i]);
    CPU_AND(&all, &all, &allowed);
    if (!CPU_EQUAL(&all, &allowed)) return; /* cores of no node: not what we think it is */
    for (int i = 0; i < count; i++) {       /* a launcher that bound us left some node out */
        CPU_AND(&ours, &nodes[i], &allowed);
        if (CPU_COUNT(&ours) == 0) return;
    }
    CPU_AND(&ours, &nodes[local / (ranks / count)], &allowed);
    const char *threads = getenv("OMP_NUM_THREADS");
    if (threads && atoi(threads) > CPU_COUNT(&ours)) return; /* they were meant to roam */
    sched_setaffinity(0, sizeof ours, &ours);
}
