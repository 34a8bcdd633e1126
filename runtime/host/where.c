/* where.c - the line of the script that runs: the first one outside the package lumoe. */
#include "runtime/host/where.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

static lua_State *state;

void lm_where_install(lua_State *L) { state = L; }

static int where(char *text, int room) {
    lua_Debug frame;
    *text = '\0';
    for (int level = 0; lua_getstack(state, level, &frame); level++) {
        lua_getinfo(state, "Sl", &frame);
        if (frame.currentline <= 0) continue;
        snprintf(text, (size_t)room, "%s:%d", frame.short_src, frame.currentline);
        if (!strstr(frame.source, "/lua/lumoe/")) break;
    }
    return *text != '\0';
}

int lm_where_l_address(lua_State *L) {
    lua_pushnumber(L, (lua_Number)(uintptr_t)where);
    return 1;
}
