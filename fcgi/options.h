/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <sys/types.h>

/* What the operator has chosen, on the command line or in the environment. */
struct options {
    const char *database;        /* conninfo; NULL: libpq's own environment variables */
    const char *instance_schema; /* pattern with {id} or {serial}; NULL: found from the names */
    int workers;                 /* processes; 0: serve in this process */
    const char *listen;          /* a path, HOST:PORT or :PORT; NULL: see listener_inherit() */
    mode_t socket_mode;          /* of a path */
    int poll_interval_ms;
    int max_wait_ms;
    int max_waiting; /* parked requests in each worker */
    int db_timeout_ms;
    bool allow_root; /* serve as root, too */
    bool no_sandbox; /* do not enter the sandbox: see sandbox.h */
    bool check;      /* check the set-up, serve nobody */
    bool verbose;
};

/*
 * Reads the command line and the environment; the command line takes precedence. The strings in the
 * result are those of argv and the environment. A conninfo in argv that holds a password is moved
 * to the environment, and overwritten in argv. Exits for --help and --version (0), and after one
 * line on standard error for a wrong option or value, which it names (EX_USAGE, 64), and for lack
 * of memory (EXIT_FAILURE).
 */
struct options options_read(int argc, char *argv[]);

#endif
