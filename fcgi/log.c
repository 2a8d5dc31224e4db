/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1000

static enum log_level log_threshold = LOG_INFO;
static bool log_muted;
static bool log_is_socket; /* standard error is a socket, as under systemd */
static bool log_is_file;
static unsigned long log_lost; /* number of lines lost since the last one that was written */

void log_set_level(enum log_level level)
{
    log_threshold = level;
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

/* Opens standard error again for this process alone, without blocking: O_NONBLOCK would concern
 * all who share the open file, such as the shell on a terminal. */
static void log_reopen(void)
{
    int fd = open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return;
    dup2(fd, STDERR_FILENO);
    close(fd);
}

void log_open(void)
{
    struct stat status;

    if (fstat(STDERR_FILENO, &status) != 0)
        return;
    log_is_socket = S_ISSOCK(status.st_mode);
    log_is_file = S_ISREG(status.st_mode);
    if (S_ISFIFO(status.st_mode) || isatty(STDERR_FILENO))
        log_reopen();
}

/* A line is one write(), so that lines of several processes do not mix. False if a part is missing.
 */
static bool log_put(const char *line, size_t length)
{
    ssize_t written = log_is_socket ? send(STDERR_FILENO, line, length, MSG_DONTWAIT | MSG_NOSIGNAL)
                                    : write(STDERR_FILENO, line, length);

    return written == (ssize_t)length;
}

/* Formats a line. Returns its length. */
static size_t __attribute__((format(printf, 3, 0)))
log_format(char line[LINE_MAX_BYTES], enum log_level level, const char *format, va_list args)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    const size_t room = LINE_MAX_BYTES - 1;
    size_t length = log_clip(
        snprintf(line, room, "merchant-sessions[%d] %s: ", (int)getpid(), names[level]), room);

    length += log_clip(vsnprintf(line + length, room - length, format, args), room - length);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[length++] = '\n';
    return length;
}

static bool __attribute__((format(printf, 2, 0)))
log_put_line(enum log_level level, const char *format, va_list args)
{
    char bytes[1 + LINE_MAX_BYTES] = "\n", *line = bytes + 1;
    size_t length = log_format(line, level, format, args);

    /* A disk that gets full may have cut the last line of the file, of this process or another. */
    if (log_lost > 0 && log_is_file)
        return log_put(bytes, 1 + length);
    return log_put(line, length);
}

static bool __attribute__((format(printf, 2, 3)))
log_line(enum log_level level, const char *format, ...)
{
    va_list args;
    bool put;

    va_start(args, format);
    put = log_put_line(level, format, args);
    va_end(args);
    return put;
}

/* Logs how many lines were lost. False if that cannot be written either. */
static bool log_tell_lost(void)
{
    if (log_lost == 0)
        return true;
    if (!log_line(
            LOG_WARNING, "lines of the log that could not be written and are lost: %lu", log_lost))
        return false;
    log_lost = 0;
    return true;
}

void log_write(enum log_level level, const char *format, ...)
{
    va_list args;

    if (log_muted || level > log_threshold)
        return;
    va_start(args, format);
    if (!log_tell_lost() || !log_put_line(level, format, args))
        log_lost++;
    va_end(args);
}
