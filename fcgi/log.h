/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LOG_H
#define LOG_H

#include <stdbool.h>

/*
 * The log: one line an event on standard error, "merchant-sessions[PID] LEVEL: text".
 *
 * No line may hold a session id, a fulfillment URL, an order id or a password. Control characters
 * in the text are written as '?', and a line longer than 1,000 bytes is cut, so that a text that
 * comes from elsewhere (the database's messages) can't make up lines of its own.
 */
enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* Prepares standard error. Call it before the first line. If standard error is a pipe, socket or
 * terminal that nobody reads, lines are lost instead of blocking the process. */
void log_open(void);

/* Sets the least important level that is written. Without this it is LOG_INFO. */
void log_set_level(enum log_level level);

/* Stops the log, for --check, which reports on standard output. */
void log_mute(void);

/* Writes a line. If it cannot be written it is lost, and counted; the number is logged before
 * the next line that can be written. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_write(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_DEBUG, __VA_ARGS__)

#endif
