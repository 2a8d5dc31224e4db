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
#include "instances.h"
#include "layout.h"
#include "log.h"
#include "lookup.h"
#include "sql.h"

/* How long to connect, in multiples of --db-timeout: a silent host of a list costs one. */
#define CONNECT_TIMEOUTS 3
/* How many instances a line names. */
#define INSTANCES_NAMED 8

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

static void check_say_pooler(bool pooled)
{
    if (pooled)
        puts("pooler: through a pooler: settings and statements are sent with each lookup, which "
             "is slower; connect directly for speed");
}

static void check_say_changes(bool tracked)
{
    printf("changes: %s\n", tracked ? "detected"
                                    : "cannot be detected in views and foreign tables; "
                                      "waiting requests are looked up by time");
}

/* The layout where all instances share the tables. False if lookups are very slow. */
static bool check_say_tables(const struct layout *layout)
{
    const struct layout_tables *tables = &layout->tables;

    printf("layout: schema %s, all columns there and readable\n", layout->schema);
    printf("claimed orders: %s\n",
        tables->contracts_indexed
            ? "found by an index"
            : "merchant_contract_terms has no index for the lookup, which reads it as a whole");
    if (!tables->has_order_session)
        puts("unclaimed orders: not found by session (merchant_orders is laid out as in 2022)");
    else
        printf("unclaimed orders: %s\n",
            tables->orders_indexed
                ? "found by an index"
                : "merchant_orders has no index for the lookup; see sql/orders-index.sql");
    check_say_changes(tables->tracked);
    return tables->contracts_indexed;
}

/* What there is to say of an instance: a bit for its schema's fault, and these. */
enum {
    NOTE_CONTRACTS_UNINDEXED = 1 << SCHEMA_FAULTS,
    NOTE_ORDERS_UNINDEXED = 2 << SCHEMA_FAULTS,
    NOTE_ORDERS_WITHOUT_SESSION = 4 << SCHEMA_FAULTS,
};

static int check_notes(const struct instance_schema *schema)
{
    const struct layout_tables *tables = &schema->tables;
    int notes = 1 << schema->fault;

    if (schema->fault != SCHEMA_FINE)
        return notes;
    if (!tables->contracts_indexed)
        notes |= NOTE_CONTRACTS_UNINDEXED;
    if (!tables->has_order_session)
        notes |= NOTE_ORDERS_WITHOUT_SESSION;
    else if (!tables->orders_indexed)
        notes |= NOTE_ORDERS_UNINDEXED;
    return notes;
}

/* A line about the instances that have this note, if there are any: the first few by name. Returns
 * their number. */
static size_t check_say_instances(const struct instances *instances, int note, const char *what)
{
    const struct instance *instance = NULL;
    size_t count = 0;

    while ((instance = instances_next(instances, instance))) {
        if (!(check_notes(instance->schema) & note))
            continue;
        if (count == 0)
            printf("%s:", what);
        if (++count <= INSTANCES_NAMED)
            printf(" %s", instance->name.id);
    }
    if (count > INSTANCES_NAMED)
        printf(" and %zu more", count - INSTANCES_NAMED);
    if (count > 0)
        putchar('\n');
    return count;
}

/* The layout where each instance has a schema of its own. False if one is not served, or lookups
 * are very slow. */
static bool check_say_schemas(const struct layout *layout, const struct instances *instances)
{
    size_t unserved = 0, slow;

    printf("layout: schema %s, a schema for each instance, %s\n", layout->schema,
        instances_rule(instances));
    printf("instances: %zu\n", instances_summary(instances).instances);
    for (int fault = SCHEMA_FINE + 1; fault < SCHEMA_FAULTS; fault++) {
        char what[120];

        snprintf(what, sizeof what, "failed: a schema that %s",
            schema_fault_text((enum schema_fault)fault));
        unserved += check_say_instances(instances, 1 << fault, what);
    }
    slow = check_say_instances(instances, NOTE_CONTRACTS_UNINDEXED,
        "claimed orders: merchant_contract_terms has no index for the lookup");
    if (slow == 0)
        puts("claimed orders: found by an index");
    check_say_instances(
        instances, NOTE_ORDERS_WITHOUT_SESSION, "unclaimed orders: not found by session");
    if (check_say_instances(instances, NOTE_ORDERS_UNINDEXED,
            "unclaimed orders: merchant_orders has no index for the lookup; see "
            "sql/orders-index.sql") == 0)
        puts("unclaimed orders: found by an index");
    check_say_changes(instances_tracked(instances));
    return unserved == 0 && slow == 0;
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
static bool check_ask(struct check *check, enum session_question question, const char *instance)
{
    const struct session_key key = {"merchant-sessions-check", "https://example.com/", instance};
    const struct session_key *keys[] = {&key};
    enum lookup_event event = lookup_send(check->lookup, question, keys, 1, clock_now());

    while (event == LOOKUP_NOTHING)
        event = check_turn(check);
    return event == LOOKUP_ANSWERED;
}

/* Where each instance has a schema of its own: one that can be asked; else the instance of the
 * un-prefixed path. */
static const char *check_choose_instance(const struct check *check)
{
    const struct instances *instances = lookup_instances(check->lookup);
    const struct instance *instance = NULL;

    while (instances && (instance = instances_next(instances, instance)))
        if (instance->schema->fault == SCHEMA_FINE)
            return instance->name.id;
    return "";
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
    const char *instance = check_choose_instance(check);
    bool has_default;

    if (!check_ask(check, QUESTION_EVERYTHING, ""))
        return false;
    has_default = lookup_answers(check->lookup)[0].status != SESSION_NO_INSTANCE;
    if (!check_ask(check, QUESTION_EVERYTHING, instance) ||
        lookup_answers(check->lookup)[0].status == SESSION_FAILED ||
        !check_ask(check, QUESTION_PAYMENT, instance) || !check_changes(check))
        return false;
    printf("lookup: works%s\n", has_default ? ""
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
    bool fine;

    if (!check_connect(check)) {
        printf("failed: %s\n", lookup_trouble(check->lookup));
        return false;
    }
    check_say_server(lookup_connection(check->lookup));
    check_say_pooler(lookup_pooled(check->lookup));
    fine = layout->per_instance ? check_say_schemas(layout, lookup_instances(check->lookup))
                                : check_say_tables(layout);
    if (!check_statements(check)) {
        printf("failed: looking up a session: %s\n", lookup_trouble(check->lookup));
        return false;
    }
    check_say_patches(check);
    return fine;
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
    check.lookup =
        lookup_new(check.epoll_fd, options->database, options->instance_schema, check.timeout);
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
