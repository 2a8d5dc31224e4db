/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef SANDBOX_H
#define SANDBOX_H

#include <stdbool.h>

#include "options.h"

/*
 * What a worker gives up for good before its first request, since it never needs it:
 *
 *  - New privileges: no program that it could start has more rights (prctl(2),
 *    PR_SET_NO_NEW_PRIVS).
 *  - Being looked into: no core file, which would hold shoppers' sessions, and no debugger of the
 *    same user (PR_SET_DUMPABLE).
 *  - Files, where the kernel has Landlock (Linux 5.13 and later): no file can be written, made,
 *    removed or started. Only what libpq and the resolver of host names may need can be read:
 * system directories, and the files for connections to PostgreSQL in the home directory and in the
 *    conninfo. Descriptors that are open stay as they are, and Unix sockets can be connected to.
 */
struct sandbox {
    bool no_new_privileges, undumpable, files;
};

/* Enters the sandbox, for good. Returns what could be given up; what the kernel does not know is
 * left out. A process without a pool that listens on a path may still remove what is in the
 * directory of that path, as it does at its end. */
struct sandbox sandbox_enter(const struct options *options);

/* Room for what sandbox_print() prints. */
#define SANDBOX_TEXT_SIZE 120

/* For the log and --check: what is given up. */
void sandbox_print(const struct sandbox *sandbox, char text[SANDBOX_TEXT_SIZE]);

#endif
