/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef POOL_H
#define POOL_H

#include "options.h"

/*
 * Runs options->workers (at least 1) worker processes on the listening socket, until it is stopped
 * by a signal. Returns the exit status of the program: EXIT_FAILURE if there was no memory to
 * start, or if a worker had to be killed when it should stop.
 *
 * SIGTERM, SIGINT, SIGQUIT, SIGUSR1: all workers answer what is open and end. One that has not
 * ended after 1.8 seconds is killed; this returns within two seconds.
 *
 * SIGHUP: each worker that was started before the signal is replaced, one at a time, the new one
 * started before the old one is asked to stop. So there is at most one process too many. An old one
 * that has not ended after 1.8 seconds is killed. The next one follows when the new one has
 * survived its first second, so a worker that cannot start never replaces all that serve.
 *
 * A worker that dies is replaced at once. If it failed at its start, that is within its first
 * second and by an exit status or a crash, its replacement waits for 100 ms, and twice as long each
 * time that it fails again, up to ten seconds. But where no worker is left at all, one is started
 * within 0.9 seconds.
 */
int pool_run(const struct options *options, int listen_fd);

#endif
