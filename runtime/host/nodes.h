/* nodes.h - ranks of a host whose memory is in several places (NUMA). */
#ifndef LM_HOST_NODES_H
#define LM_HOST_NODES_H

/* Keeps this process at one node of its host's memory: its share of them, as rank `local` of
 * `ranks` on this host. Does nothing where there is one node, where the ranks do not divide
 * among the nodes, and where the launcher has chosen cores for us. */
void lm_nodes_stay_at_one(int local, int ranks);

#endif
