/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "conninfo.h"

#include <libpq-fe.h>
#include <stddef.h>

struct conninfo_params conninfo_params(const char *conninfo)
{
    return (struct conninfo_params){
        .keywords = {"connect_timeout", "dbname", "client_encoding", "fallback_application_name",
            NULL},
        .values = {"10", conninfo, "UTF8", "merchant-sessions", NULL},
    };
}

bool conninfo_is_sound(const char *conninfo)
{
    char *message = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &message);

    PQfreemem(message);
    if (!options)
        return false;
    PQconninfoFree(options);
    return true;
}
