/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "check.h"

#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clock.h"
#include "layout.h"
#include "log.h"
#include "lookup.h"
#include "sql.h"

/* How long to connect, in multiples of --db-timeout: a silent host of a list costs one. */
#define CONNECT_TIMEOUTS 3

struct check {
    int epoll_fd;
    usec_t timeout;
    struct lookup *lookup;
};

static void check_say_options(const struct options *options)
{
    printf("configuration: %d workers, poll interval %d ms, max. wait %d ms, max. waiting %d, "
           "database timeout %d ms\n",
        options->workers, options->poll_interval_ms, options->max_wait_ms, options->max_waiting,
        options->db_timeout_ms);
}

static void check_say_server(const PGconn *connection)
{
    const char *host = PQhost(connection), *port = PQport(connection);

    printf("database: %s at %s, port %s, as %s; PostgreSQL %s, encoding %s\n", PQdb(connection),
        host ? host : "?", port ? port : "?", PQuser(connection),
        PQparameterStatus(connection, "server_version"),
        PQparameterStatus(connection, "server_encoding"));
}

static void check_say_layout(const struct layout *layout)
{
    printf("layout: schema %s, all columns there and readable\n", layout->schema);
    printf("claimed orders: %s\n",
        layout->contracts_indexed
            ? "found by an index"
            : "merchant_contract_terms has no index for the lookup, which reads it as a whole");
    if (!layout->has_order_session)
        puts("unclaimed orders: not found by session (merchant_orders is laid out as in 2022)");
    else
        printf("unclaimed orders: %s\n",
            layout->orders_indexed
                ? "found by an index"
                : "merchant_orders has no index for the lookup; see sql/orders-index.sql");
    printf("changes: %s\n", layout->tracked ? "detected"
                                            : "cannot be detected in views and foreign tables; "
                                              "waiting requests are looked up by time");
}

/* Waits for the lookup and continues it. */
static enum lookup_event check_turn(struct check *check)
{
    usec_t left = usec_max(lookup_due(check->lookup) - clock_now(), 0);
    struct epoll_event event;
    int count =
        epoll_wait(check->epoll_fd, &event, 1, (int)((left + USEC_PER_MS - 1) / USEC_PER_MS));

    return lookup_step(check->lookup, count > 0, clock_now());
}

/* A host that does not answer is given up after --db-timeout, and another one may follow; anything
 * else that goes wrong before would only be repeated. */
static bool check_connect(struct check *check)
{
    usec_t begun = clock_now();

    while (lookup_away(check->lookup)) {
        usec_t spent;

        check_turn(check);
        spent = clock_now() - begun;
        if (*lookup_trouble(check->lookup) &&
            (spent < check->timeout || spent >= CONNECT_TIMEOUTS * check->timeout))
            return false;
    }
    return true;
}

/* Runs a batch with one key, which no shop has. */
static bool check_ask(struct check *check, enum session_question question)
{
    const struct session_key key = {"merchant-sessions-check", "https://example.com/", ""};
    const struct session_key *keys[] = {&key};
    enum lookup_event event = lookup_send(check->lookup, question, keys, 1, clock_now());

    while (event == LOOKUP_NOTHING)
        event = check_turn(check);
    return event == LOOKUP_ANSWERED;
}

static bool check_changes(struct check *check)
{
    enum lookup_event event = lookup_check_changes(check->lookup, clock_now());

    while (event == LOOKUP_NOTHING)
        event = check_turn(check);
    return event == LOOKUP_CHECKED;
}

/* Does what a worker does: each prepared statement once. */
static bool check_statements(struct check *check)
{
    bool has_instance;

    if (!check_ask(check, QUESTION_EVERYTHING))
        return false;
    has_instance = lookup_answers(check->lookup)[0].status != SESSION_NO_INSTANCE;
    if (!check_ask(check, QUESTION_PAYMENT) || !check_changes(check))
        return false;
    printf("lookup: works%s\n", has_instance ? ""
                                             : "; no instance admin or default, so only "
                                               "/instances/ID/sessions/ is served");
    return true;
}

/* The result of a statement; NULL if there is none by the deadline. */
static PGresult *check_query(PGconn *connection, const char *sql, usec_t deadline)
{
    struct pollfd socket = {.fd = PQsocket(connection), .events = POLLIN};

    if (!PQsendQuery(connection, sql))
        return NULL;
    while (PQisBusy(connection)) {
        usec_t left = deadline - clock_now();

        if (left <= 0 || poll(&socket, 1, (int)(left / USEC_PER_MS) + 1) < 0 ||
            !PQconsumeInput(connection))
            return NULL;
    }
    return PQgetResult(connection);
}

/* The newest patch that the backend has applied, where this role may read it. */
static void check_say_patches(struct check *check)
{
    PGresult *rows =
        check_query(lookup_connection(check->lookup), sql_patches, clock_now() + check->timeout);

    if (PQresultStatus(rows) == PGRES_TUPLES_OK && PQntuples(rows) == 1 && !PQgetisnull(rows, 0, 0))
        printf("patches: up to %s\n", PQgetvalue(rows, 0, 0));
    else
        puts("patches: not known (no right to read _v.patches, or there is none)");
    PQclear(rows);
}

static bool check_database(struct check *check)
{
    const struct layout *layout = lookup_layout(check->lookup);

    if (!check_connect(check)) {
        printf("failed: %s\n", lookup_trouble(check->lookup));
        return false;
    }
    check_say_server(lookup_connection(check->lookup));
    check_say_layout(layout);
    if (!check_statements(check)) {
        printf("failed: looking up a session: %s\n", lookup_trouble(check->lookup));
        return false;
    }
    check_say_patches(check);
    return layout->contracts_indexed;
}

int check_run(const struct options *options)
{
    struct check check = {
        .epoll_fd = epoll_create1(EPOLL_CLOEXEC),
        .timeout = options->db_timeout_ms * USEC_PER_MS,
    };
    bool ok = false;

    log_mute();
    check_say_options(options);
    check.lookup = lookup_new(check.epoll_fd, options->database, check.timeout);
    if (check.epoll_fd < 0 || !check.lookup)
        puts("failed: out of memory or descriptors");
    else
        ok = check_database(&check);
    if (check.lookup)
        lookup_free(check.lookup);
    if (check.epoll_fd >= 0)
        close(check.epoll_fd);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
