/* readline.c - one edited line from the terminal, with history and completion.
 *
 * A Lua module of its own, loaded when a prompt opens: readline is GPL-3, and
 * scripts start without it. libedit's <editline/readline.h> can take its place.
 *
 * The library is driven by its callbacks and our own ppoll, so that a signal
 * is seen between two keys and never inside the library. */
#define _GNU_SOURCE
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#ifdef LUMOE_LIBEDIT
#include <editline/readline.h>
#else
#include <readline/history.h>
#include <readline/readline.h>
#endif

__attribute__((visibility("default"))) int luaopen_lumoe_readline(lua_State *L);

/* ---- Completion: Lua says where the word starts and what may stand there ---- */

static const char completer_key = 'c'; /* its address is the key in the registry */
static lua_State *reader;              /* the state that waits in read() */
static char **candidates;              /* malloc'ed strings, NULL at the end */

static void forget_candidates(void) {
    for (char **c = candidates; c && *c; c++) free(*c);
    free(candidates);
    candidates = NULL;
}

/* Calls completer(line up to the cursor) -> list, start, append. Keeps the list; returns start.
 */
static int ask_completer(void) {
    lua_State *L = reader;
    int top = lua_gettop(L), start = rl_point;
    forget_candidates();
    rl_completion_append_character = 0;
    lua_pushlightuserdata(L, (void *)&completer_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    lua_pushlstring(L, rl_line_buffer, (size_t)rl_point);
    if (lua_pcall(L, 1, 3, 0) == 0 && lua_istable(L, top + 1)) {
        size_t n = lua_objlen(L, top + 1);
        candidates = calloc(n + 1, sizeof *candidates);
        for (size_t i = 0; candidates && i < n; i++) {
            lua_rawgeti(L, top + 1, (int)i + 1);
            candidates[i] = strdup(luaL_optstring(L, -1, ""));
            lua_pop(L, 1);
        }
        start = (int)lua_tointeger(L, top + 2);
        const char *append = lua_tostring(L, top + 3);
        if (append) rl_completion_append_character = append[0];
    }
    lua_settop(L, top);
    return start < 0 || start > rl_point ? rl_point : start;
}

/* The library finds the word's start itself, from the characters that may not be in a word:
 * name the one character that stands before the start Lua has found. */
static char *word_breaks(void) {
    static char breaks[2];
    int start = ask_completer();
    breaks[0] = start > 0 ? rl_line_buffer[start - 1] : '\1';
    return breaks;
}

static char *next_candidate(const char *text, int again) {
    static size_t i;
    (void)text;
    if (!again) i = 0;
    return candidates && candidates[i] ? strdup(candidates[i++]) : NULL;
}

static char **complete(const char *text, int start, int end) {
    (void)start, (void)end;
    rl_attempted_completion_over = 1; /* no file names by default */
    return rl_completion_matches(text, next_candidate);
}

/* ---- Signals while a line is edited ---- */

static volatile sig_atomic_t seen[_NSIG];
static const int watched[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH};
enum { WATCHED = sizeof watched / sizeof *watched };

static void on_signal(int signal_number) { seen[signal_number] = 1; }

static void repaint(void) {
    rl_prep_terminal(1);
    rl_on_new_line();
    rl_forced_update_display();
}

/* Gives the terminal back, lets the signal do what it does by default, and takes it again. */
static void take_default(int signal_number) {
    struct sigaction standard = {.sa_handler = SIG_DFL}, ours;
    sigset_t just_this, before;
    rl_deprep_terminal();
    sigaction(signal_number, &standard, &ours);
    sigemptyset(&just_this);
    sigaddset(&just_this, signal_number);
    raise(signal_number);
    sigprocmask(SIG_UNBLOCK, &just_this, &before); /* ends or stops here */
    sigprocmask(SIG_SETMASK, &before, NULL);
    sigaction(signal_number, &ours, NULL);
    repaint();
}

/* Returns 1 if the line is to be dropped. */
static int answer_signals(void) {
    static const int standard[] = {SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
    for (size_t i = 0; i < sizeof standard / sizeof *standard; i++)
        if (seen[standard[i]]) {
            seen[standard[i]] = 0;
            take_default(standard[i]);
        }
    if (seen[SIGWINCH]) {
        seen[SIGWINCH] = 0;
        rl_resize_terminal();
    }
    int dropped = seen[SIGINT];
    seen[SIGINT] = 0;
    return dropped;
}

/* ---- read ---- */

static char *line; /* what on_line received; NULL at end of input */
static int finished;

static void on_line(char *text) {
    line = text;
    finished = 1;
    rl_callback_handler_remove();
}

static void drop_line(void) {
#if RL_READLINE_VERSION >= 0x0700
    rl_callback_sigcleanup(); /* out of an incremental search */
#endif
    rl_point = rl_end;
    rl_redisplay();
    fputs("^C\n", rl_outstream);
    rl_callback_handler_remove();
}

/* read(prompt) -> line, or nil at end of input, or nil, "interrupted" */
static int l_read(lua_State *L) {
    const char *prompt = luaL_checkstring(L, 1);
    struct sigaction ours = {.sa_handler = on_signal}, before[WATCHED];
    sigset_t blocked, mask;
    int dropped = 0;

    fflush(stdout);
    reader = L;
    line = NULL;
    finished = 0;
    sigemptyset(&blocked);
    for (int i = 0; i < WATCHED; i++) sigaddset(&blocked, watched[i]);
    sigprocmask(SIG_BLOCK, &blocked, &mask); /* delivered only inside ppoll */
    for (int i = 0; i < WATCHED; i++) {
        seen[watched[i]] = 0;
        sigaction(watched[i], &ours, &before[i]);
    }

    rl_callback_handler_install(prompt, on_line);
    while (!finished && !dropped) {
        struct pollfd input = {.fd = fileno(rl_instream), .events = POLLIN};
        int ready = ppoll(&input, 1, NULL, &mask);
        if (ready > 0) rl_callback_read_char();
        if (ready < 0 && errno == EINTR && !finished) dropped = answer_signals();
        if (ready < 0 && errno != EINTR) break;
    }
    if (dropped) drop_line();
    else if (!finished) rl_callback_handler_remove();

    for (int i = 0; i < WATCHED; i++) sigaction(watched[i], &before[i], NULL);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    forget_candidates();

    if (line) lua_pushstring(L, line);
    else lua_pushnil(L);
    free(line);
    line = NULL;
    if (!dropped) return 1;
    lua_pushliteral(L, "interrupted");
    return 2;
}

/* remember(entry): the newest entry of the history that the arrow keys walk */
static int l_remember(lua_State *L) {
    add_history(luaL_checkstring(L, 1));
    return 0;
}

/* complete_with(function(line up to the cursor) -> list, start counted from 0, append) */
static int l_complete_with(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_pushlightuserdata(L, (void *)&completer_key);
    lua_pushvalue(L, 1);
    lua_rawset(L, LUA_REGISTRYINDEX);
    rl_completion_word_break_hook = word_breaks;
    rl_attempted_completion_function = complete;
    return 0;
}

/* columns() -> the terminal's width, or nil */
static int l_columns(lua_State *L) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 0;
    lua_pushinteger(L, size.ws_col);
    return 1;
}

int luaopen_lumoe_readline(lua_State *L) {
    static const luaL_Reg functions[] = {{"read", l_read},
                                         {"remember", l_remember},
                                         {"complete_with", l_complete_with},
                                         {"columns", l_columns},
                                         {NULL, NULL}};
    rl_readline_name = "lumoe";     /* for `$if lumoe` in ~/.inputrc */
    rl_basic_quote_characters = ""; /* strings are the completer's business */
    rl_catch_signals = 0;
    rl_catch_sigwinch = 0;
    rl_instream = stdin;
    rl_outstream = isatty(STDOUT_FILENO) ? stdout : stderr;
    using_history();
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
