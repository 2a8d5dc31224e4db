/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNINFO_H
#define CONNINFO_H

#include <libpq-fe.h>
#include <stdbool.h>

/* The hosts that an attempt to connect tries, in turn: three lists as libpq has them, separated by
 * commas. All NULL: those that the operator has listed. */
struct conninfo_hosts {
    char *host, *hostaddr, *port;
};

/* The parameters of a connection as libpq wants them: keywords and values, NULL at the end of both.
 */
struct conninfo_params {
    const char *keywords[7], *values[7];
};

/* What the operator gave as conninfo (NULL: nothing), with our application_name and UTF-8, and with
 * these hosts. The strings belong to the arguments. */
struct conninfo_params conninfo_params(const char *conninfo, const struct conninfo_hosts *hosts);

/*
 * The hosts of this connection, or of this attempt to connect, without the one that it is at now,
 * beginning with the one after it. All NULL if there are no others, or if out of memory. To be
 * freed by conninfo_free_hosts(). libpq passes over a host that refuses, but waits for one that is
 * silent, and target_session_attrs=prefer-standby comes back to it, so it has to be left out.
 */
struct conninfo_hosts conninfo_other_hosts(PGconn *connection);

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

/* Whether a sound connection string or URI holds a password, of the database or of a key file. True
 * if out of memory. */
bool conninfo_has_password(const char *conninfo);

#endif
