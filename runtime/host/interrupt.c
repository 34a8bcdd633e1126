/* interrupt.c - Ctrl-C becomes a Lua error, in compiled code too.
 *
 * LuaJIT's traces do not look at hooks, so a hook alone never stops a compiled
 * loop. They do look at the profiler's flag once the profiler runs in line mode
 * (each trace then carries a guard). So it is started once with an interval of a
 * day, which samples nothing, and the signal's handler sets a hook and raises
 * SIGPROF: the guard leaves the trace, the hook raises the error. The hook must
 * be set inside the handler, as the profiler restores the hooks it found.
 * jit.p, started and stopped by a script, takes the guard away until the end;
 * at the prompt, until the next chunk.
 *
 * What an interrupt does is a matter of counting: from the raise_at-th on it
 * raises, the kill_at-th ends the process as if nobody had caught the signal.
 * A script that wants to finish its step first asks for raise_at = 2 and looks
 * at the count; it is then asked by SIGTERM too, as schedulers do before they
 * kill, more than once, which counts as once. The prompt runs each chunk in lm_interrupt_l_run,
 * where the first one raises and none ends the process. */
#include "runtime/host/interrupt.h"

#include <errno.h>
#include <lauxlib.h>
#include <limits.h>
#include <luajit.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static lua_State *state;
static pthread_t lua_thread;
static void (*volatile wake)(void); /* makes collectives that wait return */
static volatile sig_atomic_t count, raise_at = 1, kill_at = 3, raised;
static volatile sig_atomic_t at_prompt; /* a chunk runs in lm_interrupt_l_run */
static struct sigaction profiler;       /* what our profiler made of SIGPROF */

static void raise_in_lua(lua_State *L, lua_Debug *where) {
    /* At the prompt the second one stays: `while true do pcall(f) end` swallows the first. */
    if (!at_prompt || count < 2) lua_sethook(L, NULL, 0, 0);
    raised = 1;
    lua_getinfo(L, "Sl", where);
    if (where->currentline > 0)
        lua_pushfstring(L, "%s:%d: interrupted", where->short_src, where->currentline);
    else lua_pushliteral(L, "interrupted");
    lua_error(L);
}

static int profiler_runs(void) {
    struct sigaction now;
    sigaction(SIGPROF, NULL, &now);
    return now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN &&
           now.sa_handler == profiler.sa_handler;
}

static void on_signal(int signal_number) {
    static const char patience[] =
        "\n(a call into C must return first; Ctrl-\\ ends the program)\n";
    if (!pthread_equal(pthread_self(), lua_thread)) { /* a worker of OpenMP or MPI got it */
        pthread_kill(lua_thread, signal_number);
        return;
    }
    if (signal_number == SIGTERM && count > 0) return; /* srun and slurmd each send it */
    int saved_errno = errno;
    count = count + 1;
    if (count >= kill_at) {
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    } else if (count >= raise_at) {
        if (wake) wake();
        lua_sethook(state, raise_in_lua, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
        if (profiler_runs()) raise(SIGPROF); /* else it would end the process */
        if (at_prompt && count == 3) (void)!write(STDERR_FILENO, patience, sizeof patience - 1);
    }
    errno = saved_errno;
}

static void no_sample(void *data, lua_State *L, int samples, int vmstate) {
    (void)data, (void)L, (void)samples, (void)vmstate;
}

/* Starting flushes all traces, so not without need. */
static void start_profiler(lua_State *L) {
    if (profiler_runs()) return;
    luaJIT_profile_stop(L); /* a start over a running one forgets the mode */
    luaJIT_profile_start(L, "li86400000", no_sample, NULL);
    sigaction(SIGPROF, NULL, &profiler);
}

void lm_interrupt_install(lua_State *L, int under_launcher) {
    state = L;
    lua_thread = pthread_self();
    start_profiler(L);

    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, NULL, &old);
    if (old.sa_handler != SIG_IGN) sigaction(SIGINT, &action, NULL); /* nohup, `&` in sh */
    if (under_launcher) sigaction(SIGUSR1, &action, NULL);
}

int lm_interrupt_raised(void) { return raised; }

int lm_interrupt_l_policy(lua_State *L) {
    int at = luaL_checkint(L, 1), kill = luaL_checkint(L, 2);
    luaL_argcheck(L, at >= 1, 1, "raise_at is at least 1");
    luaL_argcheck(L, kill > at, 2, "kill_at is above raise_at");
    count = 0;
    raised = 0;
    raise_at = at;
    kill_at = kill;
    struct sigaction action = {.sa_handler = at > 1 ? on_signal : SIG_DFL,
                               .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    return 0;
}

int lm_interrupt_l_count(lua_State *L) {
    lua_pushinteger(L, count);
    return 1;
}

/* A function's address as a number: the runtime is not linked to the program. */
int lm_interrupt_l_wakes(lua_State *L) {
    wake = (void (*)(void))(uintptr_t)luaL_checknumber(L, 1);
    return 0;
}

/* Everything around f is C, so the hook can raise nowhere but in f. */
int lm_interrupt_l_run(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 2);
    lua_insert(L, 1); /* handler, f */

    int raise_before = raise_at, kill_before = kill_at;
    struct sigaction action = {.sa_handler = on_signal}, before; /* a blocking read returns */
    start_profiler(L);
    count = 0;
    raise_at = 1;
    kill_at = INT_MAX;
    at_prompt = 1;
    sigaction(SIGINT, &action, &before);
    int failed = lua_pcall(L, 0, LUA_MULTRET, 1);
    sigaction(SIGINT, &before, NULL);
    at_prompt = 0;
    raise_at = raise_before;
    kill_at = kill_before;
    if (lua_gethook(L) == raise_in_lua) lua_sethook(L, NULL, 0, 0);

    lua_pushinteger(L, count);
    lua_replace(L, 1);
    lua_pushboolean(L, !failed);
    lua_insert(L, 2);
    count = 0;
    raised = 0;
    return lua_gettop(L);
}
