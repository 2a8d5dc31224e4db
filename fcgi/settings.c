/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "settings.h"

#include <stdio.h>

#include "sql.h"

bool settings_send(PGconn *connection, const struct settings *settings, enum settings_scope scope)
{
    char statement_timeout[16], lock_timeout[16];
    const char *values[] = {settings->schema, statement_timeout, lock_timeout,
        scope == SETTINGS_OF_TRANSACTION ? "true" : "false"};

    snprintf(statement_timeout, sizeof statement_timeout, "%d", settings->statement_ms);
    snprintf(lock_timeout, sizeof lock_timeout, "%d", settings->lock_ms);
    return PQsendQueryParams(connection, sql_session, 4, NULL, values, NULL, NULL, 0);
}
