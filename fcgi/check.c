/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "check.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conninfo.h"
#include "layout.h"
#include "sql.h"

static bool is_ok(const PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);

    return status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
}

static void say_failure(const char *what, PGconn *connection)
{
    const char *message = PQerrorMessage(connection);

    printf("failed: %s: %.*s\n", what, (int)strcspn(message, "\n"), message);
}

static void say_server(PGconn *connection)
{
    const char *host = PQhost(connection), *port = PQport(connection);

    printf("database: %s at %s, port %s, as %s; PostgreSQL %s, encoding %s\n", PQdb(connection),
        host ? host : "?", port ? port : "?", PQuser(connection),
        PQparameterStatus(connection, "server_version"),
        PQparameterStatus(connection, "server_encoding"));
}

/* The newest patch that the backend has applied, where this role may know. */
static void say_patches(PGconn *connection)
{
    PGresult *rows = PQexec(connection, sql_patches);

    if (is_ok(rows) && PQntuples(rows) == 1 && !PQgetisnull(rows, 0, 0))
        printf("patches: up to %s\n", PQgetvalue(rows, 0, 0));
    else
        puts("patches: not known (no right to read _v.patches, or there is none)");
    PQclear(rows);
}

static bool check_layout(PGconn *connection, struct layout *layout)
{
    PGresult *rows = PQexec(connection, sql_layout);
    bool ok = is_ok(rows);

    if (!ok)
        say_failure("reading the catalogue", connection);
    else if (!(ok = layout_read(rows, layout)))
        printf("failed: %s\n", layout->problem);
    PQclear(rows);
    return ok;
}

static void say_layout(const struct layout *layout)
{
    printf("layout: schema %s, all columns there and readable\n", layout->schema);
    printf("claimed orders: %s\n",
        layout->contracts_indexed ? "found by an index" : "no index for the lookup, which is slow");
    if (!layout->has_order_session)
        puts("unclaimed orders: not found by session (merchant_orders is laid out as in 2022)");
    else
        printf("unclaimed orders: %s\n", layout->orders_indexed
                                             ? "found by an index"
                                             : "no index for the lookup; see sql/orders-index.sql");
}

static bool check_lookup(PGconn *connection, const struct layout *layout)
{
    const char *settings[] = {layout->schema, "0"};
    const char *key[] = {"{\"\"}", "{https://example.com/}", "{merchant-sessions-check}"};
    PGresult *set = PQexecParams(connection, sql_session, 2, NULL, settings, NULL, NULL, 0);
    PGresult *rows = PQexecParams(connection, layout_lookup(layout), 3, NULL, key, NULL, NULL, 0);
    bool ok = is_ok(set) && is_ok(rows);

    if (!ok)
        say_failure("looking up a session", connection);
    else if (PQntuples(rows) == 0)
        puts("lookup: works; no instance admin or default, so only /instances/ID/sessions/ is "
             "served");
    else
        puts("lookup: works");
    PQclear(set);
    PQclear(rows);
    return ok;
}

static bool check_encoding(PGconn *connection)
{
    const char *encoding = PQparameterStatus(connection, "server_encoding");

    if (encoding && strcmp(encoding, "UTF8") == 0)
        return true;
    puts("failed: the encoding of the database is not UTF8");
    return false;
}

static void say_options(const struct options *options)
{
    printf("configuration: %d workers, poll interval %d ms, max. wait %d ms, max. waiting %d, "
           "database timeout %d ms\n",
        options->workers, options->poll_interval_ms, options->max_wait_ms, options->max_waiting,
        options->db_timeout_ms);
}

int check_run(const struct options *options)
{
    struct conninfo_params params = conninfo_params(options->database);
    PGconn *connection = PQconnectdbParams(params.keywords, params.values, 1);
    struct layout layout;
    bool ok = connection && PQstatus(connection) == CONNECTION_OK;

    say_options(options);
    if (!ok) {
        say_failure("connecting", connection);
    } else {
        say_server(connection);
        say_patches(connection);
        ok = check_encoding(connection) && check_layout(connection, &layout);
        if (ok)
            say_layout(&layout);
        ok = ok && check_lookup(connection, &layout);
    }
    PQfinish(connection);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
