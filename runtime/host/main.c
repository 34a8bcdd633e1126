/* main.c - the program: LuaJIT with Lumoe's modules on its path, lua's own
 * command line, and errors that end every rank.
 *
 * It takes what `lua` takes, so that busted, luacheck and other Lua tools run on
 * it. Everything else it does is for scripts over several ranks: an error prints
 * its rank, message and traceback in one write, and then ends the job, because
 * the other ranks are waiting in a collective. It starts without MPI, OpenMP and
 * readline: a script pays for what it requires. */
#include "runtime/host/interrupt.h"
#include "runtime/host/launcher.h"
#include "runtime/host/where.h"

#include <lauxlib.h>
#include <libgen.h>
#include <limits.h>
#include <lua.h>
#include <luajit.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: lumoe [options] [script [args]]\n"
    "  -e stat   run the string `stat`\n"
    "  -l name   require the module `name`\n"
    "  -j cmd    control the JIT compiler: -joff, -jv, ...\n"
    "  -i        open the prompt after running the script\n"
    "  -v        show the version\n"
    "  -h        show this\n"
    "  --        end of options\n"
    "  -         run standard input\n"
    "Without a script it opens the prompt. In the source tree, `./lumoe` also takes\n"
    "`test` and `-np N`; see `./lumoe --help`.\n";

static char prefix[PATH_MAX]; /* bin/, lib/ and share/ are under it */

enum { INTERRUPTED = 130 }; /* as shells say for SIGINT */

/* ---- Errors ---- */

static void report(const char *message) {
    int rank = lm_launcher_rank();
    char *text = malloc(strlen(message) + 32);
    if (!text) return;
    int n = rank >= 0 ? sprintf(text, "[rank %d] %s\n", rank, message)
                      : sprintf(text, "lumoe: %s\n", message);
    fflush(stdout);
    fwrite(text, 1, (size_t)n, stderr); /* stderr is unbuffered: one write */
    free(text);
}

/* Whether the message at 1 is the last of `lumoe.status`.refuse: a sentence for whoever runs
 * the program, which no traceback explains. */
static int is_refusal(lua_State *L) {
    lua_getfield(L, LUA_REGISTRYINDEX, "_LOADED");
    lua_getfield(L, -1, "lumoe.host");
    int found = 0;
    if (lua_istable(L, -1)) {
        lua_getfield(L, -1, "refusal");
        found = !lua_isnil(L, -1) && lua_rawequal(L, 1, -1);
        lua_pop(L, 1);
    }
    lua_pop(L, 2);
    return found;
}

static int traceback(lua_State *L) {
    const char *message = lua_tostring(L, 1);
    if (!message) {
        if (luaL_callmeta(L, 1, "__tostring") && lua_isstring(L, -1))
            message = lua_tostring(L, -1);
        else if (lua_isnil(L, 1) && lm_launcher_rank() < 0)
            return 1; /* error(nil): ends the script without a word, but not a job */
        else message = lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
    }
    if (!is_refusal(L)) luaL_traceback(L, L, message, 1);
    else {
        lua_settop(L, 1);
        if (lm_launcher_rank() > 0)
            usleep(400000); /* rank 0 refuses the same, and ends us all */
    }
    return 1;
}

/* Reports and removes the error object on top, if there is one; returns st. */
static int checked(lua_State *L, int st) {
    if (st) {
        if (!lua_isnil(L, -1)) report(lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    return st;
}

/* Calls the function below `narg` arguments; drops its results, reports its error. */
static int call(lua_State *L, int narg) {
    int base = lua_gettop(L) - narg;
    lua_pushcfunction(L, traceback);
    lua_insert(L, base);
    int st = lua_pcall(L, narg, 0, base);
    lua_remove(L, base);
    return checked(L, st);
}

/* Under a launcher a failure is everybody's: nothing of this process may wait for
 * the others, so no finalizer runs. */
static void end_job_if_failed(int code) {
    if (code == 0 || lm_launcher_rank() < 0) return;
    fflush(NULL);
    usleep(
        100000); /* what was said goes through the launcher: before the launcher's own words */
    lm_launcher_abort(prefix, code);
    _exit(code);
}

static int os_exit(lua_State *L) { /* os.exit, with the rule above; upvalue: Lua's own */
    int code = lua_isboolean(L, 1) ? !lua_toboolean(L, 1) : luaL_optint(L, 1, 0);
    end_job_if_failed(code & 0xff);
    lua_settop(L, 2);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, 2, 0);
    return 0;
}

/* ---- What scripts find ---- */

/* Debian's Lua modules are found whichever LuaJIT this is. */
static const char paths[] =
    "local prefix, arch = ...\n"
    "local function add(path, entry)\n"
    "  return path:find(entry, 1, true) and path or path .. ';' .. entry\n"
    "end\n"
    "local share = prefix .. '/share/lumoe'\n"
    "local path = table.concat({ share .. '/lua/?.lua', share .. '/lua/?/init.lua',\n"
    "  share .. '/?.lua', share .. '/?/init.lua', package.path }, ';')\n"
    "path = add(path, '/usr/share/lua/5.1/?.lua')\n"
    "package.path = add(path, '/usr/share/lua/5.1/?/init.lua')\n"
    "package.cpath = add(prefix .. '/lib/?.so;' .. package.cpath,\n"
    "  '/usr/lib/' .. arch .. '/lua/5.1/?.so')\n"
    "assert(require('ffi').abi('gc64'), 'this LuaJIT was built without GC64')\n";

/* require 'lumoe.host': the program's own module.
 *   version                      as printed by -v
 *   prefix                       bin/, lib/ and share/ are under it
 *   rank                         under a launcher, else nil
 *   interrupts(raise_at, kill_at) Ctrl-C raises from the raise_at-th on, the
 *                                kill_at-th ends the process; the count restarts.
 *                                At start (1, 3).
 *   interrupted()                the count
 *   interrupt_wakes(address)     a C function to call at an interrupt that raises
 *   refusal                      set by lumoe.status: an error message to show alone
 *   where()                      the address of a C function (char *text, int room) that
 *                                writes the line of the script; not from compiled code
 *   run(f, handler)              xpcall for the prompt: the first Ctrl-C raises in
 *                                f, none ends the process; returns the count,
 *                                then what xpcall returns */
static int open_host(lua_State *L) {
    static const luaL_Reg functions[] = {{"interrupts", lm_interrupt_l_policy},
                                         {"interrupted", lm_interrupt_l_count},
                                         {"interrupt_wakes", lm_interrupt_l_wakes},
                                         {"run", lm_interrupt_l_run},
                                         {"where", lm_where_l_address},
                                         {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushliteral(L, LUMOE_VERSION);
    lua_setfield(L, -2, "version");
    lua_pushstring(L, prefix);
    lua_setfield(L, -2, "prefix");
    if (lm_launcher_rank() >= 0) {
        lua_pushinteger(L, lm_launcher_rank());
        lua_setfield(L, -2, "rank");
    }
    return 1;
}

static int find_prefix(void) {
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n < 0) return -1;
    exe[n] = '\0';
    snprintf(prefix, sizeof prefix, "%s", dirname(dirname(exe)));
    return 0;
}

static int open_state(lua_State *L) {
    luaL_openlibs(L);

    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, open_host);
    lua_setfield(L, -2, "lumoe.host");

    lua_getglobal(L, "os");
    lua_getfield(L, -1, "exit");
    lua_pushcclosure(L, os_exit, 1);
    lua_setfield(L, -2, "exit");
    lua_settop(L, 0);

    int st = checked(L, luaL_loadbuffer(L, paths, sizeof paths - 1, "=lumoe"));
    if (!st) {
        lua_pushstring(L, prefix);
        lua_pushliteral(L, LUMOE_ARCH);
        st = call(L, 2);
    }
    return st;
}

/* ---- The command line ---- */

/* `arg`: the script at 0, its arguments from 1, the program and options below. */
static void set_arg(lua_State *L, int argc, char **argv, int script) {
    lua_createtable(L, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - script);
    }
    lua_setglobal(L, "arg");
}

static int do_string(lua_State *L, const char *text, const char *name) {
    int st = checked(L, luaL_loadbuffer(L, text, strlen(text), name));
    return st ? st : call(L, 0);
}

static int do_file(lua_State *L, const char *name) {
    int st = checked(L, luaL_loadfile(L, name));
    return st ? st : call(L, 0);
}

static int do_require(lua_State *L, const char *name) {
    lua_getglobal(L, "require");
    lua_pushstring(L, name);
    return call(L, 1);
}

static int do_jit(lua_State *L, const char *command) {
    static const char chunk[] =
        "local name, value = (...):match '^([^=]*)=?(.*)$'\n"
        "if name == 'on' or name == 'off' or name == 'flush' then return jit[name]() end\n"
        "require('jit.' .. name).start(value ~= '' and value or nil)\n";
    int st = checked(L, luaL_loadbuffer(L, chunk, sizeof chunk - 1, "=-j"));
    if (st) return st;
    lua_pushstring(L, command);
    return call(L, 1);
}

static int do_init(lua_State *L) {
    const char *init = getenv("LUA_INIT");
    if (!init) return 0;
    return *init == '@' ? do_file(L, init + 1) : do_string(L, init, "=LUA_INIT");
}

static int do_script(lua_State *L, int narg, char **argv) {
    const char *name = argv[0];
    if (strcmp(name, "test") == 0 && access(name, R_OK) != 0) {
        report("the tests are run in the source tree, by `./lumoe test`");
        return 1;
    }
    int from_stdin = strcmp(name, "-") == 0 && strcmp(argv[-1], "--") != 0;
    int st = checked(L, luaL_loadfile(L, from_stdin ? NULL : name));
    if (st) return st;
    luaL_checkstack(L, narg, "too many arguments to script");
    for (int i = 1; i <= narg; i++) lua_pushstring(L, argv[i]);
    return call(L, narg);
}

static int do_prompt(lua_State *L) { return do_string(L, "require('repl').run()", "=lumoe"); }

static void print_version(void) { puts("Lumoe " LUMOE_VERSION " (" LUAJIT_VERSION ")"); }

typedef struct {
    int script; /* where it is in argv; argc when there is none */
    int prompt, version, help, run_string;
} command_line;

/* Returns 0, or -1 after saying what is wrong. */
static int parse(int argc, char **argv, command_line *out) {
    int i = 1;
    for (; i < argc && argv[i][0] == '-' && argv[i][1] != '\0'; i++) {
        const char *option = argv[i];
        if (strcmp(option, "--") == 0) {
            i++;
            break;
        }
        if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0) out->help = 1;
        else if (strcmp(option, "--version") == 0 || strcmp(option, "-v") == 0)
            out->version = 1;
        else if (strcmp(option, "-i") == 0) out->prompt = 1;
        else if (strcmp(option, "-np") == 0 || strcmp(option, "-n") == 0) {
            fputs("lumoe: -np N is taken by ./lumoe in the source tree; elsewhere use\n"
                  "  mpirun -np N lumoe script.lua\n",
                  stderr);
            return -1;
        } else if (strchr("elj", option[1])) {
            if (option[1] == 'e') out->run_string = 1;
            if (option[2] == '\0' && ++i >= argc) {
                fprintf(stderr, "lumoe: '%s' needs an argument\n", option);
                return -1;
            }
        } else {
            fprintf(stderr, "lumoe: unrecognized option '%s'\n%s", option, usage);
            return -1;
        }
    }
    out->script = i;
    return 0;
}

/* -e, -l and -j, in order. */
static int run_options(lua_State *L, int last, char **argv) {
    int st = 0;
    for (int i = 1; i < last && !st; i++) {
        const char *option = argv[i];
        if (option[0] != '-' || !strchr("elj", option[1]) || option[1] == '\0') continue;
        const char *value = option[2] ? option + 2 : argv[++i];
        if (option[1] == 'e') st = do_string(L, value, "=(command line)");
        else if (option[1] == 'l') st = do_require(L, value);
        else st = do_jit(L, value);
    }
    return st;
}

static int run(lua_State *L, int argc, char **argv, const command_line *cmd) {
    set_arg(L, argc, argv, cmd->script < argc ? cmd->script : 0);
    int has_script = cmd->script < argc;
    int st = do_init(L);
    if (!st) st = run_options(L, cmd->script, argv);
    if (!st && has_script) st = do_script(L, argc - cmd->script - 1, argv + cmd->script);
    if (cmd->prompt) return do_prompt(L); /* -i: whatever the script did */
    if (st || has_script || cmd->run_string || cmd->version) return st;
    return isatty(STDIN_FILENO) ? do_prompt(L) : do_file(L, NULL);
}

int main(int argc, char **argv) {
    command_line cmd = {0};
    if (parse(argc, argv, &cmd) != 0) return 1;
    if (cmd.help) return fputs(usage, stdout) < 0;
    if (cmd.version) print_version();
    if (find_prefix() != 0) {
        perror("lumoe: /proc/self/exe");
        return 1;
    }

    int under_launcher = lm_launcher_rank() >= 0;
    if (under_launcher) setvbuf(stdout, NULL, _IOLBF, 0); /* the ranks' lines stay whole */
    lm_launcher_share_cores();
    signal(SIGXFSZ, SIG_IGN); /* a file over its size limit is an error to report, not an end */

    lua_State *L = luaL_newstate();
    if (!L) {
        fputs("lumoe: no memory for a Lua state\n", stderr);
        return 1;
    }
    int st = open_state(L);
    if (!st) {
        lm_interrupt_install(L, under_launcher);
        lm_where_install(L);
        st = run(L, argc, argv, &cmd);
    }
    int code = st == 0 ? 0 : lm_interrupt_raised() ? INTERRUPTED : 1;
    end_job_if_failed(code);
    lua_close(L);
    return code;
}
