/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Candidate "textbook": the classic responder, with a connection of its own for each process and a
 * statement for each request. */
#include "classic.h"

#include <err.h>
#include <stdio.h>

#include <libpq-fe.h>

static PGconn *connection; /* of this process */

static void textbook_read_file(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");

    if (!file)
        err(66, "%s", path);
    text[fread(text, 1, size - 1, file)] = '\0';
    fclose(file);
}

void lookup_open(const char *database, const char *statement_file)
{
    char statement[4096];
    PGresult *result;

    textbook_read_file(statement_file, statement, sizeof statement);
    connection = PQconnectdb(database);
    result = PQprepare(connection, "lookup", statement, 3, NULL);
    if (PQresultStatus(result) != PGRES_COMMAND_OK)
        errx(69, "%s", PQerrorMessage(connection));
    PQclear(result);
}

bool lookup_order(const struct session_query *query, struct order *order)
{
    const char *values[] = {query->instance, query->url, query->session};
    PGresult *result = PQexecPrepared(connection, "lookup", 3, values, NULL, NULL, 0);
    bool found;

    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        errx(69, "%s", PQerrorMessage(connection));
    found = PQntuples(result) == 1;
    if (found) {
        order->paid = PQgetvalue(result, 0, 0)[0] == 't';
        snprintf(order->id, sizeof order->id, "%s", PQgetvalue(result, 0, 1));
    }
    PQclear(result);
    return found;
}
