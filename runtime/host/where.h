/* where.h - the line of the script that runs, for C that is called from it. */
#ifndef LM_HOST_WHERE_H
#define LM_HOST_WHERE_H

#include <lua.h>

void lm_where_install(lua_State *L);

/* Lua's function of lumoe.host: the address of a function (char *text, int room) that
 * writes file:line. Only where nothing is compiled: a trace does not keep the stack. */
int lm_where_l_address(lua_State *L);

#endif
