/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <sys/types.h>

/* What the operator has chosen, on the command line or in the environment. */
struct options {
    const char *database; /* conninfo; NULL: libpq's own environment variables */
    int workers;          /* processes; 0: serve in this one */
    const char *listen;   /* a path or HOST:PORT; NULL: descriptor 0 */
    mode_t socket_mode;   /* of a path */
    int poll_interval_ms;
    int max_wait_ms;
    int max_waiting; /* parked requests in each worker */
    int db_timeout_ms;
    bool check; /* only look whether all is well */
    bool verbose;
};

/*
 * Reads the command line and the environment; the command line wins. Exits for --help and --version
 * (0), and for a wrong option or value, after one line that names it (EX_USAGE, 64).
 */
struct options options_read(int argc, char *argv[]);

#endif
