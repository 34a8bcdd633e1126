/* main.c - the program: LuaJIT with Lumoe's modules on its path and lua's own
 * command line. (First form: runs a script.) */
#include <lauxlib.h>
#include <libgen.h>
#include <limits.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <unistd.h>

static const char paths[] =
    "local prefix = ...\n"
    "local share = prefix .. '/share/lumoe'\n"
    "package.path = table.concat({ share .. '/lua/?.lua', share .. '/lua/?/init.lua',"
    " share .. '/?.lua', share .. '/?/init.lua', package.path }, ';')\n"
    "package.cpath = prefix .. '/lib/?.so;' .. package.cpath\n";

static int traceback(lua_State *L) {
    luaL_traceback(L, L, lua_tostring(L, 1), 1);
    return 1;
}

int main(int argc, char **argv) {
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n < 0) return 1;
    exe[n] = '\0';
    lua_State *L = luaL_newstate();
    luaL_openlibs(L);
    if (luaL_loadbuffer(L, paths, sizeof paths - 1, "=paths")) return 1;
    lua_pushstring(L, dirname(dirname(exe)));
    lua_call(L, 1, 0);
    lua_createtable(L, argc, 1);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - 1);
    }
    lua_setglobal(L, "arg");
    lua_pushcfunction(L, traceback);
    int failed = luaL_loadfile(L, argc > 1 ? argv[1] : NULL);
    for (int i = 2; !failed && i < argc; i++) lua_pushstring(L, argv[i]);
    if (!failed) failed = lua_pcall(L, argc > 2 ? argc - 2 : 0, 0, 1);
    if (failed) fprintf(stderr, "lumoe: %s\n", lua_tostring(L, -1));
    lua_close(L);
    return failed ? 1 : 0;
}
