/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNINFO_H
#define CONNINFO_H

#include <libpq-fe.h>
#include <stdbool.h>

/* The hosts that an attempt to connect tries in turn: libpq's three lists, separated by commas.
 * All NULL: the hosts that the operator has listed. */
struct conninfo_hosts {
    char *host, *hostaddr, *port;
};

/* The parameters of a connection as libpq wants them: keywords and values, NULL at the end of both.
 */
struct conninfo_params {
    const char *keywords[7], *values[7];
};

/* The operator's conninfo (NULL: none) with our application_name, with UTF-8, and with these
 * hosts. The strings belong to the arguments. */
struct conninfo_params conninfo_params(const char *conninfo, const struct conninfo_hosts *hosts);

/* The hosts of this connection, or of this attempt to connect, without the current one, from the
 * one after it on. All NULL if there are no others, or if out of memory. The caller frees them
 * by conninfo_free_hosts(). libpq skips a host that refuses but waits for a silent one, and
 * target_session_attrs=prefer-standby comes back to it: so a silent host has to be left out. */
struct conninfo_hosts conninfo_other_hosts(PGconn *connection);

/* Frees the lists. */
void conninfo_free_hosts(struct conninfo_hosts *hosts);

enum conninfo_verdict {
    CONNINFO_SOUND,     /* libpq can read it */
    CONNINFO_MALFORMED, /* it is no connection string and no URI */
    CONNINFO_NO_MEMORY, /* there was no memory to read it */
};

/* Whether libpq can read this connection string or URI. libpq's message is not returned: it may
 * hold the password. */
enum conninfo_verdict conninfo_judge(const char *conninfo);

/* Whether a sound connection string or URI holds a password, of the database or of a key file. True
 * if out of memory. */
bool conninfo_has_password(const char *conninfo);

#endif
