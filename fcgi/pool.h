/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef POOL_H
#define POOL_H

#include "options.h"

/*
 * Runs options->workers (at least 1) worker processes on the listening socket, until SIGTERM or
 * SIGINT: then all of them answer what is open and end, within two seconds. A worker that dies is
 * replaced, at once or, if it dies again and again, after pauses that grow to ten seconds. SIGHUP
 * replaces the workers one by one, each new one before the old one. Returns the exit status of the
 * program.
 */
int pool_run(const struct options *options, int listen_fd);

#endif
