/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNINFO_H
#define CONNINFO_H

#include <stdbool.h>

/* The parameters of a connection as libpq wants them: keywords and values, NULL at the end of both.
 */
struct conninfo_params {
    const char *keywords[5], *values[5];
};

/* What the operator gave as conninfo (NULL: nothing), with our application_name and UTF-8, and
 * a bound on connecting that it can override. */
struct conninfo_params conninfo_params(const char *conninfo);

/* Whether libpq can read this connection string or URI. Why not is not told: libpq's message may
 * hold the password. */
bool conninfo_is_sound(const char *conninfo);

#endif
