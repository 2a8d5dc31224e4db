/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNINFO_H
#define CONNINFO_H

/* The parameters of a connection as libpq wants them: keywords and values, NULL at the end of both.
 */
struct conninfo_params {
    const char *keywords[5], *values[5];
};

/* What the operator gave as conninfo (NULL: nothing), with our application_name and UTF-8, and
 * a bound on connecting that it can override. */
struct conninfo_params conninfo_params(const char *conninfo);

enum conninfo_verdict {
    CONNINFO_SOUND,     /* libpq can read it */
    CONNINFO_MALFORMED, /* it is no connection string and no URI */
    CONNINFO_NO_MEMORY, /* it could not be read for want of memory */
};

/* Whether libpq can read this connection string or URI. libpq's message is not returned: it may
 * hold the password. */
enum conninfo_verdict conninfo_judge(const char *conninfo);

#endif
