/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNINFO_H
#define CONNINFO_H

#include <libpq-fe.h>
#include <stdbool.h>

/* The hosts of a connection in the order in which the next attempt tries them: three lists as libpq
 * has them, separated by commas. All NULL: as the operator has ordered them. */
struct conninfo_hosts {
    char *host, *hostaddr, *port;
};

/* The parameters of a connection as libpq wants them: keywords and values, NULL at the end of both.
 */
struct conninfo_params {
    const char *keywords[7], *values[7];
};

/* What the operator gave as conninfo (NULL: nothing), with our application_name and UTF-8, and with
 * the hosts in this order. The strings belong to the arguments. */
struct conninfo_params conninfo_params(const char *conninfo, const struct conninfo_hosts *hosts);

/*
 * The host of this connection, or of this attempt to connect, did not answer in time: the next
 * attempt begins with the one after it, and comes to it last. Does nothing where there is only one
 * host, or no memory. libpq passes over a host that refuses, but waits for one that is silent.
 */
void conninfo_skip_host(struct conninfo_hosts *hosts, PGconn *connection);

/* Frees the lists. */
void conninfo_free_hosts(struct conninfo_hosts *hosts);

enum conninfo_verdict {
    CONNINFO_SOUND,     /* libpq can read it */
    CONNINFO_MALFORMED, /* it is no connection string and no URI */
    CONNINFO_NO_MEMORY, /* it could not be read for want of memory */
};

/* Whether libpq can read this connection string or URI. libpq's message is not returned: it may
 * hold the password. */
enum conninfo_verdict conninfo_judge(const char *conninfo);

#endif
