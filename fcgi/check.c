/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "check.h"

#include <libpq-fe.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "batch.h"
#include "clock.h"
#include "connection.h"
#include "instances.h"
#include "layout.h"
#include "log.h"
#include "lookup.h"
#include "plan.h"
#include "sandbox.h"
#include "settings.h"
#include "sql.h"
#include "sqlstate.h"

/* How long to connect, in multiples of --db-timeout: a silent host of a list costs one. */
#define CONNECT_TIMEOUTS 3
/* The first server that knows the version of the collation: PostgreSQL 15. */
#define COLLATION_SERVER 150000
/* Limit of the names of instances, or of rights, in a line. */
#define INSTANCES_NAMED 8
#define RIGHTS_NAMED    5
/* Limit of the length of a line. */
#define LINE_SIZE 1200

struct check {
    const struct options *options;
    struct sandbox sandbox;
    int epoll_fd;
    usec_t timeout;
    struct lookup *lookup;
    bool failed; /* a line is `not ok` */
};

/* What a line says. */
enum check_verdict {
    CHECK_OK,
    CHECK_NOTE,   /* the operator may want to know */
    CHECK_NOT_OK, /* shoppers get errors, or lookups read whole tables */
};

/* Prints a line. Names come from the database, so control characters are replaced: they could
 * steer a terminal. */
static void __attribute__((format(printf, 3, 4)))
check_say(struct check *check, enum check_verdict verdict, const char *format, ...)
{
    static const char *const words[] = {
        [CHECK_OK] = "ok", [CHECK_NOTE] = "note", [CHECK_NOT_OK] = "not ok"};
    char line[LINE_SIZE];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    for (char *at = line; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    printf("%-6s  %s\n", words[verdict], line);
    check->failed |= verdict == CHECK_NOT_OK;
}

/* A list in a line: the first few of its items. */
struct check_list {
    char text[LINE_SIZE / 2];
    size_t length, count, named;
};

static void check_list_add(struct check_list *list, const char *separator, const char *item)
{
    int written;

    if (++list->count > list->named || list->length >= sizeof list->text)
        return;
    written = snprintf(list->text + list->length, sizeof list->text - list->length, "%s%s",
        list->count > 1 ? separator : "", item);
    list->length += written > 0 ? (size_t)written : 0;
}

static void check_list_end(struct check_list *list)
{
    if (list->count > list->named && list->length < sizeof list->text)
        snprintf(list->text + list->length, sizeof list->text - list->length, " and %zu more",
            list->count - list->named);
}

/* ---- Statements ---- */

/* Waits for the next result. NULL if there is none, or none by the deadline. */
static PGresult *check_receive(PGconn *connection, usec_t deadline)
{
    struct pollfd socket = {.fd = PQsocket(connection)};

    for (;;) {
        int unsent = PQflush(connection);
        usec_t left = deadline - clock_now();

        if (unsent < 0 || left <= 0)
            return NULL;
        if (unsent == 0 && !PQisBusy(connection))
            return PQgetResult(connection);
        socket.events = unsent > 0 ? POLLIN | POLLOUT : POLLIN;
        if (poll(&socket, 1, (int)(left / USEC_PER_MS) + 1) < 0 || !PQconsumeInput(connection))
            return NULL;
    }
}

/* Returns the rows of a statement, which the caller frees; NULL if there are none by the
 * deadline, with the reason in `why`. */
static PGresult *check_query(struct check *check, const char *sql, char *why, size_t size)
{
    PGconn *connection = lookup_connection(check->lookup);
    usec_t deadline = clock_now() + check->timeout;
    PGresult *rows = PQsendQuery(connection, sql) ? check_receive(connection, deadline) : NULL;

    if (rows)
        PQclear(check_receive(connection, deadline)); /* the NULL that ends the statement */
    if (PQresultStatus(rows) == PGRES_TUPLES_OK)
        return rows;
    if (!rows || !sqlstate_describe(rows, why, size))
        snprintf(why, size, "no answer");
    PQclear(rows);
    return NULL;
}

/* Queues EXPLAIN of a lookup, with the settings that lookups have, as one transaction. */
static bool check_send_explain(struct check *check, const char *text)
{
    const struct session_key key = {"merchant-sessions-check", "https://example.com/", ""};
    PGconn *connection = lookup_connection(check->lookup);
    struct batch_params params = {0};
    char *explain = NULL;
    bool sent = false;

    batch_params_start(&params, 1);
    batch_params_add(&params, &key);
    if (batch_params_finish(&params) && asprintf(&explain, "EXPLAIN (FORMAT JSON) %s", text) >= 0) {
        sent = PQenterPipelineMode(connection) &&
               settings_send(connection, lookup_settings(check->lookup), SETTINGS_OF_TRANSACTION) &&
               PQsendQueryParams(connection, explain, BATCH_PARAMS, NULL, params.values,
                   params.lengths, params.formats, 0) &&
               PQpipelineSync(connection);
        free(explain);
    }
    batch_params_free(&params);
    return sent;
}

/* How the server would run a lookup with this text. */
static enum plan_verdict check_explain(struct check *check, const char *text)
{
    PGconn *connection = lookup_connection(check->lookup);
    usec_t deadline = clock_now() + check->timeout;
    enum plan_verdict verdict = PLAN_UNKNOWN;
    bool done = !text || !check_send_explain(check, text);

    while (!done && clock_now() < deadline && PQstatus(connection) != CONNECTION_BAD) {
        PGresult *result = check_receive(connection, deadline);

        done = PQresultStatus(result) == PGRES_PIPELINE_SYNC;
        if (PQresultStatus(result) == PGRES_TUPLES_OK && PQnfields(result) == 1)
            verdict = plan_judge(PQgetvalue(result, 0, 0));
        PQclear(result);
    }
    PQexitPipelineMode(connection);
    return verdict;
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

/* ---- This host ---- */

static void check_options(struct check *check)
{
    const struct options *options = check->options;

    check_say(check, CHECK_OK,
        "configuration: %d workers, poll interval %d ms, max. wait %d ms, max. waiting %d, "
        "database timeout %d ms",
        options->workers, options->poll_interval_ms, options->max_wait_ms, options->max_waiting,
        options->db_timeout_ms);
}

static void check_sandbox(struct check *check)
{
    const struct sandbox *sandbox = &check->sandbox;
    bool all = sandbox->no_new_privileges && sandbox->undumpable && sandbox->files;
    char text[SANDBOX_TEXT_SIZE];

    sandbox_print(sandbox, text);
    if (check->options->no_sandbox)
        check_say(check, CHECK_NOTE, "sandbox: off, by --no-sandbox");
    else
        check_say(check, all ? CHECK_OK : CHECK_NOTE, "%s", text);
}

/* A worker raises its limit to the hard one. */
static void check_descriptors(struct check *check)
{
    size_t wanted = (size_t)check->options->max_waiting;
    struct rlimit limit = {0};
    size_t possible;

    getrlimit(RLIMIT_NOFILE, &limit);
    possible = connections_parkable(limit.rlim_max);
    if (possible >= wanted)
        check_say(check, CHECK_OK, "descriptors: enough for %zu waiting requests a worker", wanted);
    else
        check_say(check, CHECK_NOTE,
            "descriptors: enough for %zu waiting requests a worker, not for --max-waiting %zu; "
            "raise the hard limit on open files (ulimit -Hn), which is %ju",
            possible, wanted, (uintmax_t)limit.rlim_max);
}

/* ---- The server and the role ---- */

static void check_server(struct check *check)
{
    const PGconn *connection = lookup_connection(check->lookup);
    const char *host = PQhost(connection), *port = PQport(connection);
    char why[200];
    PGresult *rows = check_query(check, sql_standby, why, sizeof why);
    const char *kind = !rows                            ? "unknown whether primary or standby"
                       : *PQgetvalue(rows, 0, 0) == 't' ? "standby"
                                                        : "primary";

    check_say(check, CHECK_OK, "server: PostgreSQL %s, %s, at %s port %s, database %s, encoding %s",
        PQparameterStatus(connection, "server_version"), kind, host ? host : "?", port ? port : "?",
        PQdb(connection), PQparameterStatus(connection, "server_encoding"));
    PQclear(rows);
}

/* After an upgrade of the operating system text may be sorted in another way than in the indexes,
 * which then do not find all that is there: a paid session could be told to be unknown. */
static void check_collation(struct check *check)
{
    const char *database = PQdb(lookup_connection(check->lookup));
    char why[200];
    PGresult *rows;

    if (PQserverVersion(lookup_connection(check->lookup)) < COLLATION_SERVER)
        return;
    rows = check_query(check, sql_collation, why, sizeof why);
    if (PQntuples(rows) > 0)
        check_say(check, CHECK_NOT_OK,
            "collation: indexes were made for version %s of the operating system's collation, "
            "which is %s now, and may not find orders; REINDEX DATABASE \"%s\"; ALTER DATABASE "
            "\"%s\" REFRESH COLLATION VERSION",
            PQgetvalue(rows, 0, 0), PQgetvalue(rows, 0, 1), database, database);
    PQclear(rows);
}

static void check_pooler(struct check *check)
{
    if (lookup_pooled(check->lookup))
        check_say(check, CHECK_NOTE,
            "pooler: through a pooler: settings and statements are sent with each lookup, which is "
            "slower, and changes are looked for by time; connect directly for speed");
    else
        check_say(check, CHECK_OK, "pooler: none");
}

static void check_role(struct check *check)
{
    const char *user = PQuser(lookup_connection(check->lookup));
    struct check_list beyond = {.named = RIGHTS_NAMED};
    char why[200];
    PGresult *rows = check_query(check, sql_rights, why, sizeof why);

    for (int row = 0; row < PQntuples(rows); row++)
        check_list_add(&beyond, ", ", PQgetvalue(rows, row, 0));
    check_list_end(&beyond);
    if (!rows)
        check_say(check, CHECK_NOTE, "role: %s; its rights are not known: %s", user, why);
    else if (beyond.count > 0)
        check_say(
            check, CHECK_NOTE, "role: %s has rights that no lookup needs: %s", user, beyond.text);
    else
        check_say(check, CHECK_OK, "role: %s may read the columns of a lookup, and no more", user);
    PQclear(rows);
}

/* The newest patch that the backend has applied, where this role may read it. */
static void check_patches(struct check *check)
{
    char why[200];
    PGresult *rows = check_query(check, sql_patches, why, sizeof why);

    if (rows && !PQgetisnull(rows, 0, 0))
        check_say(check, CHECK_OK, "patches: up to %s", PQgetvalue(rows, 0, 0));
    else
        check_say(check, CHECK_NOTE,
            "patches: not known (no right to read _v.patches, or there is none)");
    PQclear(rows);
}

/* ---- The tables ---- */

/* If each instance has a schema, returns an instance that can be asked. Returns NULL if none
 * can, or if all share the tables. */
static const struct instance *check_choose_instance(const struct check *check)
{
    const struct instances *instances = lookup_instances(check->lookup);
    const struct instance *instance = NULL;

    while ((instance = instances_next(instances, instance)))
        if (instance->schema->fault == SCHEMA_FINE)
            return instance;
    return NULL;
}

/* The notes on an instance, as bits: one for each fault of its schema, and these. */
enum {
    NOTE_CLAIMED_UNINDEXED = 1 << SCHEMA_FAULTS,
    NOTE_UNCLAIMED_UNINDEXED = 2 << SCHEMA_FAULTS,
    NOTE_ORDERS_WITHOUT_SESSION = 4 << SCHEMA_FAULTS,
};

static int check_notes(const struct instance_schema *schema)
{
    const struct layout_tables *tables = &schema->tables;
    int notes = 1 << schema->fault;

    if (schema->fault != SCHEMA_FINE)
        return notes;
    if (!tables->claimed_indexed)
        notes |= NOTE_CLAIMED_UNINDEXED;
    if (!tables->finds_unclaimed)
        notes |= NOTE_ORDERS_WITHOUT_SESSION;
    else if (!tables->unclaimed_indexed)
        notes |= NOTE_UNCLAIMED_UNINDEXED;
    return notes;
}

/* Prints a line with the names of the first few instances that have this note, if any has.
 * Returns how many have it. */
static size_t check_say_instances(
    struct check *check, enum check_verdict verdict, int note, const char *what)
{
    const struct instance *instance = NULL;
    struct check_list found = {.named = INSTANCES_NAMED};

    while ((instance = instances_next(lookup_instances(check->lookup), instance)))
        if (check_notes(instance->schema) & note)
            check_list_add(&found, " ", instance->name.id);
    check_list_end(&found);
    if (found.count > 0)
        check_say(check, verdict, "%s: %s", what, found.text);
    return found.count;
}

static void check_layout(struct check *check)
{
    const struct layout *layout = lookup_layout(check->lookup);
    const struct instances *instances = lookup_instances(check->lookup);

    if (!layout->per_instance) {
        check_say(
            check, CHECK_OK, "layout: schema %s, all columns there and readable", layout->schema);
        return;
    }
    check_say(check, CHECK_OK, "layout: schema %s, a schema for each instance, %s", layout->schema,
        instances_rule(instances));
    check_say(check, CHECK_OK, "instances: %zu", instances_summary(instances).instances);
    for (int fault = SCHEMA_FINE + 1; fault < SCHEMA_FAULTS; fault++) {
        char what[120];

        snprintf(what, sizeof what, "instances: a schema that %s",
            schema_fault_text((enum schema_fault)fault));
        check_say_instances(check, CHECK_NOT_OK, 1 << fault, what);
    }
}

/* The text of the lookup: for the tables that all instances share, or for those of one instance. */
static enum plan_verdict check_plan(struct check *check, enum session_question question)
{
    const struct layout *layout = lookup_layout(check->lookup);
    const struct instance *instance = check_choose_instance(check);
    enum plan_verdict verdict = PLAN_UNKNOWN;

    if (!layout->per_instance)
        return check_explain(
            check, question == QUESTION_PAYMENT ? sql_poll : layout_lookup(&layout->tables));
    if (instance) {
        const struct instance_schema *schema = instance->schema;
        char *quoted = PQescapeIdentifier(
            lookup_connection(check->lookup), schema->name, strlen(schema->name));
        char *text = quoted
                         ? layout_make_statement(question, &schema->tables, quoted, schema->serial)
                         : NULL;

        verdict = check_explain(check, text);
        free(text);
        PQfreemem(quoted);
    }
    return verdict;
}

/* Prints a line about how orders are found. verdict and text are for the case that the plan
 * reads more than the orders that match. */
static void check_say_plan(struct check *check, const char *orders, enum plan_verdict plan,
    enum check_verdict otherwise, const char *trouble)
{
    switch (plan) {
    case PLAN_INDEXED:
        check_say(check, CHECK_OK, "%s: found by an index", orders);
        break;
    case PLAN_WHOLE:
        check_say(check, otherwise, "%s: %s", orders, trouble);
        break;
    case PLAN_FOREIGN:
        check_say(check, CHECK_NOTE,
            "%s: another server finds them; whether by an index is not seen from here", orders);
        break;
    case PLAN_UNKNOWN:
        check_say(check, CHECK_NOTE, "%s: how they are found is not known", orders);
        break;
    }
}

static void check_claimed(struct check *check)
{
    const struct layout *layout = lookup_layout(check->lookup);
    const struct instance *instance = check_choose_instance(check);
    const char *orders = "claimed orders";
    char trouble[400], what[440];

    snprintf(trouble, sizeof trouble,
        "merchant_contract_terms has no index for the lookup, which reads it as a whole; make one: "
        "CREATE INDEX CONCURRENTLY ON %s.merchant_contract_terms (%sfulfillment_url, session_id)",
        layout->per_instance ? "SCHEMA" : layout->schema,
        instance && !instance->schema->tables.has_serial ? "" : "merchant_serial, ");
    snprintf(what, sizeof what, "%s: %s", orders, trouble);
    if (check_say_instances(check, CHECK_NOT_OK, NOTE_CLAIMED_UNINDEXED, what) == 0)
        check_say_plan(check, orders, check_plan(check, QUESTION_PAYMENT), CHECK_NOT_OK, trouble);
}

/* Not an error: merchant_orders is small at many merchants. See sql/orders-index.sql. */
static void check_unclaimed(struct check *check)
{
    static const char unindexed[] =
        "merchant_orders has no index for the lookup; see sql/orders-index.sql";
    static const char without_session[] =
        "not found by session (merchant_orders is laid out as in 2022)";
    const char *orders = "unclaimed orders";
    const struct layout *layout = lookup_layout(check->lookup);
    const struct layout_tables *tables = &layout->tables;
    char what[120];
    size_t named;

    snprintf(what, sizeof what, "%s: %s", orders, without_session);
    named = check_say_instances(check, CHECK_NOTE, NOTE_ORDERS_WITHOUT_SESSION, what);
    snprintf(what, sizeof what, "%s: %s", orders, unindexed);
    named += check_say_instances(check, CHECK_NOTE, NOTE_UNCLAIMED_UNINDEXED, what);
    if (named > 0)
        return;
    if (!layout->per_instance && !tables->finds_unclaimed)
        check_say(check, CHECK_NOTE, "%s: %s", orders, without_session);
    else if (!layout->per_instance && !tables->unclaimed_indexed)
        check_say(check, CHECK_NOTE, "%s: %s", orders, unindexed);
    else
        check_say_plan(
            check, orders, check_plan(check, QUESTION_EVERYTHING), CHECK_NOTE, unindexed);
}

static void check_changes(struct check *check)
{
    const struct layout *layout = lookup_layout(check->lookup);
    bool tracked = layout->per_instance ? instances_tracked(lookup_instances(check->lookup))
                                        : layout->tables.tracked;

    if (lookup_pooled(check->lookup))
        check_say(check, CHECK_NOTE,
            "changes: cannot be detected through a pooler; waiting requests are looked up by time");
    else if (tracked)
        check_say(check, CHECK_OK, "changes: detected");
    else
        check_say(check, CHECK_NOTE,
            "changes: cannot be detected in views and foreign tables; waiting requests are looked "
            "up by time");
}

/* ---- Lookups ---- */

/* Runs a batch with one key, which matches no order. */
static bool check_ask(struct check *check, enum session_question question, const char *instance)
{
    const struct session_key key = {"merchant-sessions-check", "https://example.com/", instance};
    const struct session_key *keys[] = {&key};
    enum lookup_event event = lookup_send(check->lookup, question, keys, 1, clock_now());

    while (event == LOOKUP_EVENT_NOTHING)
        event = check_turn(check);
    return event == LOOKUP_EVENT_ANSWERED;
}

static bool check_ask_changes(struct check *check)
{
    enum lookup_event event = lookup_check_changes(check->lookup, clock_now());

    while (event == LOOKUP_EVENT_NOTHING)
        event = check_turn(check);
    return event == LOOKUP_EVENT_CHECKED;
}

/* Runs each statement once, as a worker does. */
static bool check_ask_all(struct check *check, const char *instance, bool *has_default)
{
    if (!check_ask(check, QUESTION_EVERYTHING, ""))
        return false;
    *has_default = lookup_answers(check->lookup)[0].status != SESSION_NO_INSTANCE;
    return check_ask(check, QUESTION_EVERYTHING, instance) &&
           lookup_answers(check->lookup)[0].status != SESSION_FAILED &&
           check_ask(check, QUESTION_PAYMENT, instance) && check_ask_changes(check);
}

static void check_lookups(struct check *check)
{
    const struct instance *instance = check_choose_instance(check);
    bool has_default;

    if (!check_ask_all(check, instance ? instance->name.id : "", &has_default))
        check_say(check, CHECK_NOT_OK, "lookup: fails: %s",
            *lookup_trouble(check->lookup) ? lookup_trouble(check->lookup)
                                           : "the instance cannot be asked");
    else
        check_say(check, CHECK_OK, "lookup: works%s",
            has_default ? ""
                        : "; no instance admin or default, so only /instances/ID/sessions/ is "
                          "served");
}

/* ---- All of them ---- */

/* Retries only after a time-out, since the next attempt leaves the silent host out. Any other
 * failure would only be repeated. */
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

/* What needs no database. */
static void (*const checks_of_host[])(struct check *) = {
    check_options,
    check_sandbox,
    check_descriptors,
};

/* The checks in the order of their lines, the most important first. They end where the
 * connection does. */
static void (*const checks_of_database[])(struct check *) = {
    check_server,
    check_collation,
    check_pooler,
    check_layout,
    check_lookups,
    check_claimed,
    check_unclaimed,
    check_changes,
    check_role,
    check_patches,
};

static void check_all(struct check *check)
{
    for (size_t i = 0; i < sizeof checks_of_host / sizeof *checks_of_host; i++)
        checks_of_host[i](check);
    if (check->epoll_fd < 0 || !check->lookup) {
        check_say(check, CHECK_NOT_OK, "database: out of memory or descriptors");
        return;
    }
    if (!check_connect(check)) {
        check_say(check, CHECK_NOT_OK, "database: %s", lookup_trouble(check->lookup));
        return;
    }
    for (size_t i = 0; i < sizeof checks_of_database / sizeof *checks_of_database; i++)
        if (!lookup_away(check->lookup))
            checks_of_database[i](check);
}

int check_run(const struct options *options)
{
    struct check check = {
        .options = options,
        .epoll_fd = epoll_create1(EPOLL_CLOEXEC),
        .timeout = options->db_timeout_ms * USEC_PER_MS,
    };

    log_mute();
    check.lookup =
        lookup_new(check.epoll_fd, options->database, options->instance_schema, check.timeout);
    /* As in a worker, so that the checks meet the same restrictions. */
    if (!options->no_sandbox)
        check.sandbox = sandbox_enter(options);
    check_all(&check);
    if (check.lookup)
        lookup_free(check.lookup);
    if (check.epoll_fd >= 0)
        close(check.epoll_fd);
    return check.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
