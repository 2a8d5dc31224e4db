/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef WORKER_H
#define WORKER_H

#include "options.h"

/*
 * Serves the listening socket until SIGTERM (or SIGINT or SIGHUP, where they are not ignored) and
 * then ends within two seconds, with all requests answered. The caller keeps the socket. Returns
 * the exit status of the process: EXIT_SUCCESS, or EXIT_FAILURE with a line in the log.
 */
int worker_run(const struct options *options, int listen_fd);

#endif
