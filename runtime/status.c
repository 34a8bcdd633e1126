/* status.c - the thread-local sentence behind every negative status. */
#include "runtime/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[1024] = "no error";

const char *lm_last_error(void) { return message; }

int lm_fail(int code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    return code;
}
