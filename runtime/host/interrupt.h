/* interrupt.h - Ctrl-C becomes a Lua error, in compiled code too. */
#ifndef LM_HOST_INTERRUPT_H
#define LM_HOST_INTERRUPT_H

#include <lua.h>

/* Takes SIGINT and, under a launcher, SIGUSR1 (which mpirun passes on). */
void lm_interrupt_install(lua_State *L, int under_launcher);

/* Whether the script ended because it was interrupted. */
int lm_interrupt_raised(void);

/* Lua's functions of the module lumoe.host that belong to interrupts. */
int lm_interrupt_l_policy(lua_State *L);
int lm_interrupt_l_count(lua_State *L);
int lm_interrupt_l_wakes(lua_State *L);
int lm_interrupt_l_run(lua_State *L);

#endif
