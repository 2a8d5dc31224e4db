/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "conninfo.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct conninfo_params conninfo_params(const char *conninfo)
{
    return (struct conninfo_params){
        .keywords = {"connect_timeout", "dbname", "client_encoding", "fallback_application_name",
            NULL},
        .values = {"10", conninfo, "UTF8", "merchant-sessions", NULL},
    };
}

/* libpq leaves the message NULL where there is no memory even for one, and else says so in it. */
static bool conninfo_lacks_memory(const char *message)
{
    static const char text[] = "out of memory";

    return !message || strncmp(message, text, strlen(text)) == 0;
}

enum conninfo_verdict conninfo_judge(const char *conninfo)
{
    char *message = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &message);
    enum conninfo_verdict verdict = CONNINFO_SOUND;

    if (!options)
        verdict = conninfo_lacks_memory(message) ? CONNINFO_NO_MEMORY : CONNINFO_MALFORMED;
    PQfreemem(message);
    PQconninfoFree(options);
    return verdict;
}
