/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "sqlstate.h"

#include <stdio.h>
#include <string.h>

enum sqlstate_kind sqlstate_of(const PGresult *result)
{
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);

    if (!code)
        return SQLSTATE_OTHER;
    if (strcmp(code, "55P03") == 0)
        return SQLSTATE_LOCKED;
    if (strcmp(code, "57014") == 0)
        return SQLSTATE_SLOW;
    return strncmp(code, "57P", 3) == 0 ? SQLSTATE_SHUTDOWN : SQLSTATE_OTHER;
}

/* Messages of these classes are about objects and the server. */
static bool sqlstate_may_be_told(const char *code)
{
    static const char classes[][3] = {"08", "28", "3D", "3F", "42", "53", "57", "58", "XX"};

    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
        if (strncmp(code, classes[i], 2) == 0)
            return true;
    return strcmp(code, "55P03") == 0;
}

bool sqlstate_describe(const PGresult *result, char *text, size_t size)
{
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

    if (!code || !message)
        return false;
    snprintf(text, size, "%s (SQLSTATE %s)",
        sqlstate_may_be_told(code) ? message : "a statement failed", code);
    return true;
}

bool sqlstate_is_copy(const PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);

    return status == PGRES_COPY_OUT || status == PGRES_COPY_IN || status == PGRES_COPY_BOTH;
}
