/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef WORKER_H
#define WORKER_H

#include "metrics.h"
#include "options.h"

/*
 * Serves the listening socket until SIGTERM, SIGINT, SIGQUIT or SIGUSR1, where they are not
 * ignored, and then ends within two seconds, with all requests answered. SIGHUP is ignored. The
 * caller keeps the socket. Returns the exit status of the process: EXIT_SUCCESS, or EXIT_FAILURE
 * with a line in the log. The metrics are the caller's; metrics_enter() has been called.
 */
int worker_run(const struct options *options, int listen_fd, struct metrics *metrics);

/* Blocks SIGHUP and the stop signals until pool_run() or worker_run() handles them. Call it
 * before there is a socket: a signal that comes early must not kill the program. */
void worker_block_signals(void);

#endif
