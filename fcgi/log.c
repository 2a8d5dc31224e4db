/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1000

static bool log_verbose, log_muted;

void log_set_verbose(bool verbose)
{
    log_verbose = verbose;
}

void log_mute(void)
{
    log_muted = true;
}

static size_t log_clip(int wanted, size_t room)
{
    if (wanted < 0)
        return 0;
    return (size_t)wanted < room ? (size_t)wanted : room - 1;
}

void log_write(enum log_level level, const char *format, ...)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    char line[LINE_MAX_BYTES];
    va_list args;
    size_t length;

    if (log_muted || (level == LOG_DEBUG && !log_verbose))
        return;
    length = log_clip(
        snprintf(line, sizeof line - 1, "merchant-sessions[%d] %s: ", (int)getpid(), names[level]),
        sizeof line - 1);
    va_start(args, format);
    length += log_clip(
        vsnprintf(line + length, sizeof line - 1 - length, format, args), sizeof line - 1 - length);
    va_end(args);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[length++] = '\n';
    /* One write, so that the lines of several processes do not mix. */
    if (write(STDERR_FILENO, line, length) < 0)
        return;
}
