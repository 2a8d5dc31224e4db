/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "lookup.h"

#include <errno.h>
#include <libpq-fe.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include "batch.h"
#include "conninfo.h"
#include "instances.h"
#include "layout.h"
#include "log.h"
#include "pipeline.h"
#include "settings.h"
#include "sql.h"
#include "sqlstate.h"
#include "state.h"

/* Pause between attempts to connect: doubles from PAUSE_MIN to PAUSE_MAX. The maximum is short
 * because requests are to be served within a second of the database's return. */
#define PAUSE_MIN (100 * USEC_PER_MS)
#define PAUSE_MAX (500 * USEC_PER_MS)
/* A connection that lasted this long has worked: its end is logged as a new event. */
#define PROVEN_AGE (10 * USEC_PER_SEC)
/* Rereading of the list of instances, where each instance has a schema: a new instance is
 * served, and a deleted one unknown, within ten seconds. The pause between two readings is
 * INSTANCES_TIMES_TOOK times the duration of the last one, from INSTANCES_PAUSE to
 * INSTANCES_PAUSE_MAX. */
#define INSTANCES_PAUSE      (2 * USEC_PER_SEC)
#define INSTANCES_PAUSE_MAX  (8 * USEC_PER_SEC)
#define INSTANCES_TIMES_TOOK 50
/* Divisor of --db-timeout: the time limit for rereading the list. */
#define INSTANCES_SHARE 2
/* Limit of the schemas that are logged by name when the list has been read and they cannot be
 * asked. */
#define FAULTS_LOGGED 10

enum lookup_state {
    LOOKUP_STATE_PAUSED,     /* no connection; the next attempt is due */
    LOOKUP_STATE_CONNECTING, /* PQconnectPoll() */
    LOOKUP_STATE_LAYOUT,     /* sql/layout.sql is under way */
    LOOKUP_STATE_SESSION,    /* sql/session.sql is under way */
    LOOKUP_STATE_INSTANCES,  /* sql/instances.sql is under way for the first time */
    LOOKUP_STATE_PREPARING,  /* the statement number `prepared` is being prepared */
    LOOKUP_STATE_READY,      /* nothing is under way */
    LOOKUP_STATE_REREADING,  /* sql/instances.sql is under way again; a batch or a check follows */
    LOOKUP_STATE_ASKING,     /* a batch is under way */
    LOOKUP_STATE_CHECKING,   /* a check for changes is under way */
};

static const unsigned lookup_sources[] = {
    /* any other state: lookup_give_up() */
    [LOOKUP_STATE_PAUSED] = ~STATE_SET(LOOKUP_STATE_PAUSED),
    [LOOKUP_STATE_CONNECTING] = STATE_SET(LOOKUP_STATE_PAUSED),
    [LOOKUP_STATE_LAYOUT] = STATE_SET(LOOKUP_STATE_CONNECTING),
    /* not through a pooler */
    [LOOKUP_STATE_SESSION] = STATE_SET(LOOKUP_STATE_LAYOUT),
    /* where each instance has a schema */
    [LOOKUP_STATE_INSTANCES] = STATE_SET(LOOKUP_STATE_LAYOUT) | STATE_SET(LOOKUP_STATE_SESSION),
    /* not through a pooler; for each statement */
    [LOOKUP_STATE_PREPARING] = STATE_SET(LOOKUP_STATE_SESSION) | STATE_SET(LOOKUP_STATE_INSTANCES) |
                               STATE_SET(LOOKUP_STATE_PREPARING),
    /* connected (from LAYOUT and INSTANCES through a pooler), or a batch or check is done */
    [LOOKUP_STATE_READY] = STATE_SET(LOOKUP_STATE_LAYOUT) | STATE_SET(LOOKUP_STATE_INSTANCES) |
                           STATE_SET(LOOKUP_STATE_PREPARING) | STATE_SET(LOOKUP_STATE_ASKING) |
                           STATE_SET(LOOKUP_STATE_CHECKING),
    /* where each instance has a schema */
    [LOOKUP_STATE_REREADING] = STATE_SET(LOOKUP_STATE_READY),
    [LOOKUP_STATE_ASKING] = STATE_SET(LOOKUP_STATE_READY) | STATE_SET(LOOKUP_STATE_REREADING),
    [LOOKUP_STATE_CHECKING] = STATE_SET(LOOKUP_STATE_READY) | STATE_SET(LOOKUP_STATE_REREADING),
};

/* The statements, prepared unless a pooler is in between: one for each question, and the check for
 * changes. */
enum { STATEMENT_CHANGES = QUESTION_PAYMENT + 1, STATEMENTS };

static const char *const lookup_names[STATEMENTS] = {
    [QUESTION_EVERYTHING] = "merchant_sessions_lookup",
    [QUESTION_PAYMENT] = "merchant_sessions_poll",
    [STATEMENT_CHANGES] = "merchant_sessions_changes",
};

struct lookup {
    int epoll_fd;
    const char *conninfo;
    struct conninfo_hosts hosts; /* of the next attempt */
    usec_t timeout;
    enum lookup_state state;
    usec_t due;   /* when the state ends: the end of the pause, the time-out, or USEC_NEVER */
    usec_t pause; /* before the next attempt */
    PGconn *connection;
    uint32_t watched;    /* events that epoll announces for its descriptor; 0: unknown */
    usec_t connected_at; /* when it was ready for the first time; USEC_NEVER: not yet */
    bool served;         /* it has answered a batch */
    PGresult *result;    /* of the statement under way, or of the last batch */
    struct layout layout;
    struct settings settings; /* that the lookups need */
    bool pooled;         /* it leads to a pooler, which may give each transaction another session */
    int prepared;        /* statements prepared */
    char trouble[300];   /* the last reason that was logged; repetitions are not */
    bool told_connected; /* that the connection works was logged */
    struct batch_params params;
    enum session_question question; /* of the batch */
    size_t count;                   /* keys in it */
    struct session_answer answers[SESSION_BATCH_MAX];
    uint64_t version;
    usec_t version_at;    /* when it was counted up */
    usec_t checked_at;    /* when the last check was done */
    PGresult *version_as; /* the text that it returned; NULL: unknown */

    /* Where each instance has a schema of its own: */
    struct instances *instances;
    usec_t instances_due;    /* when they may be read again */
    usec_t instances_begun;  /* when reading them began */
    bool instances_doubtful; /* the database has changed since they were read */
    bool instances_told;     /* that they cannot be read again was logged */
    enum lookup_state
        follows; /* after LOOKUP_STATE_REREADING: LOOKUP_STATE_ASKING or LOOKUP_STATE_CHECKING */
    struct pipeline *pipeline;                         /* runs the batch */
    const struct session_key *keys[SESSION_BATCH_MAX]; /* of the batch */
};

struct lookup *lookup_new(
    int epoll_fd, const char *conninfo, const char *instance_schema, usec_t timeout)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);

    if (!lookup)
        return NULL;
    lookup->instances = instances_new(instance_schema);
    lookup->pipeline = pipeline_new(lookup->instances);
    if (!lookup->instances || !lookup->pipeline) {
        pipeline_free(lookup->pipeline);
        instances_free(lookup->instances);
        free(lookup);
        return NULL;
    }
    lookup->epoll_fd = epoll_fd;
    lookup->conninfo = conninfo;
    lookup->timeout = timeout;
    lookup->pause = PAUSE_MIN;
    lookup->connected_at = USEC_NEVER;
    return lookup;
}

static void lookup_forget_result(struct lookup *lookup)
{
    PQclear(lookup->result);
    lookup->result = NULL;
}

static void lookup_disconnect(struct lookup *lookup)
{
    lookup_forget_result(lookup);
    pipeline_forget(lookup->pipeline);
    instances_disconnected(lookup->instances);
    PQclear(lookup->version_as);
    lookup->version_as = NULL;
    PQfinish(lookup->connection);
    lookup->connection = NULL;
    lookup->watched = 0;
    lookup->connected_at = USEC_NEVER;
    lookup->served = false;
}

void lookup_free(struct lookup *lookup)
{
    lookup_disconnect(lookup);
    batch_params_free(&lookup->params);
    conninfo_free_hosts(&lookup->hosts);
    pipeline_free(lookup->pipeline);
    instances_free(lookup->instances);
    free(lookup);
}

/* All transitions of lookup_state. */
static void lookup_set_state(struct lookup *lookup, enum lookup_state state, usec_t due)
{
    state_check(lookup_sources, lookup->state, state);
    lookup->state = state;
    lookup->due = due;
}

static void lookup_log_trouble(struct lookup *lookup, const char *trouble)
{
    bool again = strcmp(trouble, lookup->trouble) == 0;

    log_write(again ? LOG_DEBUG : LOG_WARNING, "database: %s; trying again", trouble);
    if (again)
        return;
    snprintf(lookup->trouble, sizeof lookup->trouble, "%s", trouble);
    lookup->told_connected = false;
}

/* Whether the connection has worked. One that has answered no batch must not be replaced without
 * a pause, and its failures must not be logged one by one. */
static bool lookup_is_proven(const struct lookup *lookup, usec_t now)
{
    return lookup->served ||
           (lookup->connected_at != USEC_NEVER && now - lookup->connected_at >= PROVEN_AGE);
}

/* The pause before the next attempt: a random time from the upper half of the current pause, so
 * that workers that lost the database together do not return together. */
static usec_t lookup_next_pause(struct lookup *lookup)
{
    usec_t half = lookup->pause / 2;
    uint32_t random = 0;

    if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0)
        random = (uint32_t)half;
    lookup->pause = usec_min(lookup->pause * 2, PAUSE_MAX);
    return half + random % half;
}

/* Ends a connection; nothing else does. A new one is tried after a pause. */
static enum lookup_event __attribute__((format(printf, 3, 4)))
lookup_give_up(struct lookup *lookup, usec_t now, const char *format, ...)
{
    bool waiting = lookup->state > LOOKUP_STATE_READY;
    char trouble[sizeof lookup->trouble];
    va_list args;

    va_start(args, format);
    vsnprintf(trouble, sizeof trouble, format, args);
    va_end(args);
    if (lookup_is_proven(lookup, now)) {
        lookup->pause = PAUSE_MIN;
        lookup->trouble[0] = '\0';
    }
    lookup_disconnect(lookup);
    conninfo_free_hosts(&lookup->hosts);
    lookup_log_trouble(lookup, trouble);
    lookup_set_state(lookup, LOOKUP_STATE_PAUSED, now + lookup_next_pause(lookup));
    return waiting ? LOOKUP_EVENT_FAILED : LOOKUP_EVENT_NOTHING;
}

/* Gives up with the first line of libpq's message about the connection. */
static enum lookup_event lookup_give_up_connection(struct lookup *lookup, usec_t now)
{
    const char *message = PQerrorMessage(lookup->connection);
    int length = (int)strcspn(message, "\n");

    if (length == 0)
        return lookup_give_up(lookup, now, "the connection was lost");
    return lookup_give_up(lookup, now, "%.*s", length, message);
}

static enum lookup_event lookup_give_up_statement(struct lookup *lookup, usec_t now)
{
    char trouble[sizeof lookup->trouble];

    if (!sqlstate_describe(lookup->result, trouble, sizeof trouble))
        return lookup_give_up_connection(lookup, now);
    return lookup_give_up(lookup, now, "%s", trouble);
}

/* Gives up a server that does not answer. The next attempt leaves this host out if there are
 * others. */
static enum lookup_event lookup_give_up_silent(struct lookup *lookup, usec_t now)
{
    struct conninfo_hosts others = conninfo_other_hosts(lookup->connection);
    enum lookup_event event;

    if (lookup->state == LOOKUP_STATE_ASKING && lookup->layout.per_instance)
        pipeline_blame(lookup->pipeline, now);
    event =
        lookup_give_up(lookup, now, "no answer within %d ms", (int)(lookup->timeout / USEC_PER_MS));
    lookup->hosts = others;
    return event;
}

static bool lookup_watch_socket(struct lookup *lookup, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = lookup};
    int fd = PQsocket(lookup->connection);

    /* libpq may replace the descriptor at any time while it connects. */
    if (lookup->state != LOOKUP_STATE_CONNECTING && lookup->watched == events)
        return true;
    lookup->watched = events;
    return epoll_ctl(lookup->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0 ||
           (errno == ENOENT && epoll_ctl(lookup->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* Sends what libpq has queued. */
static bool lookup_flush(struct lookup *lookup)
{
    int left = PQflush(lookup->connection);

    return left >= 0 && lookup_watch_socket(lookup, left > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static bool lookup_succeeded(const struct lookup *lookup)
{
    ExecStatusType status = PQresultStatus(lookup->result);

    return status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
}

/* Keeps a result in place of the one before, which may be that of the settings. The first error
 * stays, since it says what is wrong. False if the connection cannot be used any more. */
static bool lookup_keep_result(struct lookup *lookup, PGresult *result)
{
    bool usable = !sqlstate_is_copy(result);

    if (lookup->result && !lookup_succeeded(lookup)) {
        PQclear(result);
        return usable;
    }
    lookup_forget_result(lookup);
    lookup->result = result;
    return usable;
}

static bool lookup_receive_statement(struct lookup *lookup, bool *complete)
{
    while (!*complete && !PQisBusy(lookup->connection)) {
        PGresult *result = PQgetResult(lookup->connection);

        *complete = !result;
        if (result && !lookup_keep_result(lookup, result))
            return false;
    }
    return true;
}

/* Receives the results of lookup_queue_transaction(). NULL ends each statement,
 * PGRES_PIPELINE_SYNC the transaction. */
static bool lookup_receive_transaction(struct lookup *lookup, bool *complete)
{
    bool between = false; /* the last result was the NULL between two statements */

    while (!*complete && !PQisBusy(lookup->connection)) {
        PGresult *result = PQgetResult(lookup->connection);

        if (!result && (between || PQstatus(lookup->connection) == CONNECTION_BAD))
            return false;
        between = !result;
        *complete = PQresultStatus(result) == PGRES_PIPELINE_SYNC;
        if (*complete)
            PQclear(result);
        else if (result && !lookup_keep_result(lookup, result))
            return false;
    }
    return !*complete || PQexitPipelineMode(lookup->connection);
}

/* Reads what has arrived. False if the connection is lost; *complete: the statement is done. */
static bool lookup_receive(struct lookup *lookup, bool *complete)
{
    *complete = false;
    if (!PQconsumeInput(lookup->connection) || !lookup_flush(lookup))
        return false;
    if (PQpipelineStatus(lookup->connection) != PQ_PIPELINE_OFF)
        return lookup_receive_transaction(lookup, complete);
    return lookup_receive_statement(lookup, complete);
}

/* Enters the state that waits for the statement that was queued. */
static enum lookup_event lookup_begin_statement(
    struct lookup *lookup, enum lookup_state state, int queued, usec_t now)
{
    lookup_forget_result(lookup);
    lookup_set_state(lookup, state, now + lookup->timeout);
    if (!queued || !lookup_flush(lookup))
        return lookup_give_up_connection(lookup, now);
    return LOOKUP_EVENT_NOTHING;
}

static void lookup_ignore_notice(void *context, const PGresult *result)
{
    (void)context;
    (void)result;
}

static enum lookup_event lookup_begin_connecting(struct lookup *lookup, usec_t now)
{
    struct conninfo_params params = conninfo_params(lookup->conninfo, &lookup->hosts);

    lookup->connection = PQconnectStartParams(params.keywords, params.values, 1);
    lookup_set_state(lookup, LOOKUP_STATE_CONNECTING, now + lookup->timeout);
    if (!lookup->connection)
        return lookup_give_up(lookup, now, "out of memory");
    PQsetNoticeReceiver(lookup->connection, lookup_ignore_notice, NULL);
    if (PQstatus(lookup->connection) == CONNECTION_BAD || !lookup_watch_socket(lookup, EPOLLOUT))
        return lookup_give_up_connection(lookup, now);
    return LOOKUP_EVENT_NOTHING;
}

static enum lookup_event lookup_use_connection(struct lookup *lookup, usec_t now)
{
    const char *encoding = PQparameterStatus(lookup->connection, "server_encoding");

    /* In another encoding, some session ids could not be asked about. */
    if (!encoding || strcmp(encoding, "UTF8") != 0)
        return lookup_give_up(
            lookup, now, "its encoding is %s, not UTF8", encoding ? encoding : "unknown");
    if (PQsetnonblocking(lookup->connection, 1) != 0)
        return lookup_give_up_connection(lookup, now);
    return lookup_begin_statement(
        lookup, LOOKUP_STATE_LAYOUT, PQsendQuery(lookup->connection, sql_layout), now);
}

static enum lookup_event lookup_continue_connecting(struct lookup *lookup, usec_t now)
{
    switch (PQconnectPoll(lookup->connection)) {
    case PGRES_POLLING_OK:
        return lookup_use_connection(lookup, now);
    case PGRES_POLLING_READING:
        return lookup_watch_socket(lookup, EPOLLIN) ? LOOKUP_EVENT_NOTHING
                                                    : lookup_give_up_connection(lookup, now);
    case PGRES_POLLING_WRITING:
        return lookup_watch_socket(lookup, EPOLLOUT) ? LOOKUP_EVENT_NOTHING
                                                     : lookup_give_up_connection(lookup, now);
    case PGRES_POLLING_FAILED:
    case PGRES_POLLING_ACTIVE:
        break;
    }
    return lookup_give_up_connection(lookup, now);
}

/* Logs which schemas cannot be asked, once each. */
static void lookup_log_faults(struct lookup *lookup)
{
    struct instance_schema *schema = NULL;
    size_t logged = 0;

    while ((schema = instances_next_schema(lookup->instances, schema))) {
        bool news = schema->used && schema->fault != schema->told_fault;

        if (!news)
            continue;
        schema->told_fault = schema->fault;
        if (schema->fault == SCHEMA_FINE || ++logged <= FAULTS_LOGGED)
            log_write(schema->fault == SCHEMA_FINE ? LOG_INFO : LOG_WARNING,
                "database: an instance has a schema that %s: \"%s\"",
                schema_fault_text(schema->fault), schema_printed_name(schema));
    }
    if (logged > FAULTS_LOGGED)
        log_warning(
            "database: %zu more schemas cannot be asked; see --check", logged - FAULTS_LOGGED);
}

static void lookup_log_instances(const struct lookup *lookup)
{
    struct instances_summary found = instances_summary(lookup->instances);

    log_info("database: connected, a schema for each instance (%s), %zu instances",
        instances_rule(lookup->instances), found.instances);
    if (found.claimed_unindexed > 0)
        log_warning("database: merchant_contract_terms has no index for the lookup in %zu schemas, "
                    "which is slow",
            found.claimed_unindexed);
    if (found.unclaimed_unindexed > 0)
        log_info("database: merchant_orders has no index for the lookup in %zu schemas, which is "
                 "slow; see sql/orders-index.sql",
            found.unclaimed_unindexed);
}

static void lookup_log_tables(const struct lookup *lookup)
{
    const struct layout_tables *tables = &lookup->layout.tables;

    log_info("database: connected, schema %s, unclaimed orders %s", lookup->layout.schema,
        tables->finds_unclaimed ? "can be found" : "can't be found by session (layout of 2022)");
    if (!tables->claimed_indexed)
        log_warning("database: merchant_contract_terms has no index for the lookup, which is slow");
    if (tables->finds_unclaimed && !tables->unclaimed_indexed)
        log_info("database: merchant_orders has no index for the lookup, which is slow; see "
                 "sql/orders-index.sql");
}

static void lookup_log_connected(struct lookup *lookup)
{
    if (lookup->told_connected)
        return;
    lookup->told_connected = true;
    if (lookup->layout.per_instance)
        lookup_log_instances(lookup);
    else
        lookup_log_tables(lookup);
    if (lookup->pooled)
        log_info("database: through a pooler: settings and statements are sent with each lookup, "
                 "which is slower; connect directly for speed");
}

static enum lookup_event lookup_end_batch(struct lookup *lookup)
{
    lookup_set_state(lookup, LOOKUP_STATE_READY, USEC_NEVER);
    return LOOKUP_EVENT_ANSWERED;
}

static enum lookup_event lookup_read_batch(struct lookup *lookup, usec_t now)
{
    bool everything = lookup->question == QUESTION_EVERYTHING;
    enum batch_result result = batch_read(lookup->result, lookup->answers, NULL, lookup->count,
        everything ? SESSION_NO_INSTANCE : SESSION_UNKNOWN);

    if (result != BATCH_RESULT_READ)
        return lookup_give_up(lookup, now, "%s", batch_trouble(result));
    lookup->served = true;
    return lookup_end_batch(lookup);
}

/* Whether the database may have changed since the last check. */
static bool lookup_has_changed(const struct lookup *lookup, usec_t now)
{
    if (!lookup->version_as)
        return true;
    /* A pooler may have several servers, one of which may be behind the one that was checked. */
    if (lookup->pooled || !lookup->layout.tables.tracked ||
        (lookup->layout.per_instance && !instances_tracked(lookup->instances)))
        return now - lookup->version_at >= LOOKUP_UNTRACKED_INTERVAL;
    return strcmp(PQgetvalue(lookup->result, 0, 0), PQgetvalue(lookup->version_as, 0, 0)) != 0;
}

static enum lookup_event lookup_read_check(struct lookup *lookup, usec_t now)
{
    if (PQntuples(lookup->result) != 1 || PQnfields(lookup->result) != 1)
        return lookup_give_up(lookup, now, "the check for changes returned no text");
    if (lookup_has_changed(lookup, now)) {
        lookup->version++;
        lookup->version_at = now;
        lookup->instances_doubtful = true;
    }
    lookup->checked_at = now;
    PQclear(lookup->version_as);
    lookup->version_as = lookup->result;
    lookup->result = NULL;
    lookup_set_state(lookup, LOOKUP_STATE_READY, USEC_NEVER);
    return LOOKUP_EVENT_CHECKED;
}

static const char *lookup_text(const struct lookup *lookup, int statement)
{
    switch (statement) {
    case QUESTION_EVERYTHING:
        return layout_lookup(&lookup->layout.tables);
    case QUESTION_PAYMENT:
        return sql_poll;
    default:
        return PQserverVersion(lookup->connection) >= 130000 ? sql_changes : sql_changes_before_13;
    }
}

static enum lookup_event lookup_become_ready(struct lookup *lookup, usec_t now)
{
    lookup->connected_at = now;
    lookup_log_connected(lookup);
    lookup_set_state(lookup, LOOKUP_STATE_READY, USEC_NEVER);
    return LOOKUP_EVENT_NOTHING;
}

/* Prepares the next statement. Through a pooler there is nothing to prepare: the next transaction
 * may run in another session. */
static enum lookup_event lookup_prepare_next(struct lookup *lookup, usec_t now)
{
    int statement = lookup->prepared;

    if (lookup->pooled || statement == STATEMENTS)
        return lookup_become_ready(lookup, now);
    return lookup_begin_statement(lookup, LOOKUP_STATE_PREPARING,
        PQsendPrepare(
            lookup->connection, lookup_names[statement], lookup_text(lookup, statement), 0, NULL),
        now);
}

/* Queues settings and statement as one transaction. It is an implicit one, which ends at the
 * synchronization, since poolers in statement mode refuse BEGIN. params NULL: the statement has
 * none, and returns text. */
static bool lookup_queue_transaction(struct lookup *lookup, const struct settings *settings,
    const char *text, const struct batch_params *params)
{
    PGconn *connection = lookup->connection;
    int queued;

    if (!PQenterPipelineMode(connection) ||
        !settings_send(connection, settings, SETTINGS_OF_TRANSACTION))
        return false;
    queued = params ? PQsendQueryParams(connection, text, BATCH_PARAMS, NULL, params->values,
                          params->lengths, params->formats, 1)
                    : PQsendQueryParams(connection, text, 0, NULL, NULL, NULL, NULL, 0);
    return queued && PQpipelineSync(connection);
}

/* Queues one of the statements. */
static bool lookup_queue_statement(
    struct lookup *lookup, int statement, const struct batch_params *params)
{
    PGconn *connection = lookup->connection;

    if (lookup->pooled)
        return lookup_queue_transaction(
            lookup, &lookup->settings, lookup_text(lookup, statement), params);
    if (params)
        return PQsendQueryPrepared(connection, lookup_names[statement], BATCH_PARAMS,
            params->values, params->lengths, params->formats, 1);
    return PQsendQueryPrepared(connection, lookup_names[statement], 0, NULL, NULL, NULL, 0);
}

/* ---- Where each instance has a schema of its own ---- */

/* Reads the list of instances, in a transaction that may take longer than a schema may. */
static enum lookup_event lookup_read_instances(
    struct lookup *lookup, enum lookup_state state, usec_t now)
{
    int ms = (int)(lookup->timeout / USEC_PER_MS);
    struct settings settings = lookup->settings;

    settings.statement_ms = state == LOOKUP_STATE_REREADING ? ms / INSTANCES_SHARE : ms;
    lookup->instances_begun = now;
    lookup->instances_doubtful = false;
    return lookup_begin_statement(
        lookup, state, lookup_queue_transaction(lookup, &settings, sql_instances, NULL), now);
}

/* Sets when the list is due again, after an attempt to read it. */
static void lookup_pause_instances(struct lookup *lookup, usec_t now)
{
    usec_t pause = (now - lookup->instances_begun) * INSTANCES_TIMES_TOOK;

    lookup->instances_due = now + usec_min(usec_max(pause, INSTANCES_PAUSE), INSTANCES_PAUSE_MAX);
}

/* Takes over the list that has been read. False if no instance can be served. */
static bool lookup_use_instances(struct lookup *lookup, usec_t now)
{
    PGresult *rows = lookup->result;
    bool gone;

    lookup->result = NULL;
    lookup_pause_instances(lookup, now);
    if (!instances_read(lookup->instances, rows, &gone))
        return false;
    /* Requests that wait for an instance that is gone have to be looked up again. */
    if (gone)
        lookup->version++;
    lookup->instances_told = false;
    lookup_log_faults(lookup);
    return true;
}

static enum lookup_event lookup_use_first_instances(struct lookup *lookup, usec_t now)
{
    if (!lookup_use_instances(lookup, now))
        return lookup_give_up(lookup, now, "%s", instances_problem(lookup->instances));
    /* The other statements are prepared for each schema when it is first asked. */
    lookup->prepared = STATEMENT_CHANGES;
    return lookup_prepare_next(lookup, now);
}

/* Whether the list has to be read before a batch or a check: the database has changed since, or
 * was not checked lately. */
static bool lookup_rereads_instances(const struct lookup *lookup, usec_t now)
{
    return lookup->layout.per_instance && now >= lookup->instances_due &&
           (lookup->instances_doubtful || now - lookup->checked_at >= INSTANCES_PAUSE);
}

/* Handles the result of the pipeline. */
static enum lookup_event lookup_use_pipeline(
    struct lookup *lookup, enum pipeline_result result, usec_t now)
{
    switch (result) {
    case PIPELINE_BUSY:
        return LOOKUP_EVENT_NOTHING;
    case PIPELINE_DONE:
        return lookup_end_batch(lookup);
    case PIPELINE_NO_MEMORY:
        return lookup_give_up(lookup, now, "out of memory");
    case PIPELINE_BROKEN:
        break;
    }
    return lookup_give_up_connection(lookup, now);
}

static enum lookup_event lookup_send_pipeline(struct lookup *lookup, usec_t now)
{
    enum pipeline_result result;

    lookup_set_state(lookup, LOOKUP_STATE_ASKING, now + lookup->timeout);
    result = pipeline_send(lookup->pipeline, lookup->connection,
        lookup->pooled ? &lookup->settings : NULL, lookup->question, lookup->keys, lookup->count,
        lookup->answers, now);
    if (result == PIPELINE_BUSY && !lookup_flush(lookup))
        result = PIPELINE_BROKEN;
    return lookup_use_pipeline(lookup, result, now);
}

static enum lookup_event lookup_continue_pipeline(struct lookup *lookup, usec_t now)
{
    enum pipeline_result result = PIPELINE_BROKEN;

    if (PQconsumeInput(lookup->connection) && lookup_flush(lookup))
        result = pipeline_receive(lookup->pipeline, now);
    lookup->served |= result == PIPELINE_DONE;
    return lookup_use_pipeline(lookup, result, now);
}

static enum lookup_event lookup_send_check(struct lookup *lookup, usec_t now)
{
    return lookup_begin_statement(lookup, LOOKUP_STATE_CHECKING,
        lookup_queue_statement(lookup, STATEMENT_CHANGES, NULL), now);
}

/* Sends the batch or check for which the list was read. */
static enum lookup_event lookup_send_following(struct lookup *lookup, usec_t now)
{
    return lookup->follows == LOOKUP_STATE_CHECKING ? lookup_send_check(lookup, now)
                                                    : lookup_send_pipeline(lookup, now);
}

/* Sends a batch or a check; rereads the list of instances first if that is due. */
static enum lookup_event lookup_send_with_list(
    struct lookup *lookup, enum lookup_state follows, usec_t now)
{
    lookup->follows = follows;
    return lookup_rereads_instances(lookup, now)
               ? lookup_read_instances(lookup, LOOKUP_STATE_REREADING, now)
               : lookup_send_following(lookup, now);
}

static enum lookup_event lookup_use_new_instances(struct lookup *lookup, usec_t now)
{
    if (!lookup_use_instances(lookup, now))
        return lookup_give_up(lookup, now, "%s", instances_problem(lookup->instances));
    return lookup_send_following(lookup, now);
}

/* Keeps the old list after rereading it has failed. */
static enum lookup_event lookup_keep_instances(struct lookup *lookup, usec_t now)
{
    char why[sizeof lookup->trouble];

    if (!sqlstate_describe(lookup->result, why, sizeof why) ||
        sqlstate_of(lookup->result) == SQLSTATE_SHUTDOWN)
        return lookup_give_up_statement(lookup, now);
    log_write(lookup->instances_told ? LOG_DEBUG : LOG_WARNING,
        "database: the list of instances cannot be read again: %s; trying again", why);
    lookup->instances_told = true;
    lookup->instances_doubtful = true;
    lookup_pause_instances(lookup, now);
    return lookup_send_following(lookup, now);
}

/* Goes on after the settings were made, or where each transaction makes its own. */
static enum lookup_event lookup_use_settings(struct lookup *lookup, usec_t now)
{
    lookup->prepared = 0;
    if (!lookup->layout.per_instance)
        return lookup_prepare_next(lookup, now);
    return lookup_read_instances(lookup, LOOKUP_STATE_INSTANCES, now);
}

static enum lookup_event lookup_use_layout(struct lookup *lookup, usec_t now)
{
    struct layout *layout = &lookup->layout;
    int ms = (int)(lookup->timeout / USEC_PER_MS);

    if (!layout_read(lookup->result, layout))
        return lookup_give_up(lookup, now, "%s", layout->problem);
    /* A schema must not delay the others for long. */
    lookup->settings = (struct settings){
        .schema = layout->schema,
        .statement_ms = layout->per_instance ? ms / PIPELINE_STATEMENT_SHARE : ms,
        .lock_ms = layout->per_instance ? ms / PIPELINE_LOCK_SHARE + 1 : 0,
    };
    /* The process id that a pooler tells its clients is made up. */
    lookup->pooled = layout->backend != PQbackendPID(lookup->connection);
    if (lookup->pooled)
        return lookup_use_settings(lookup, now);
    return lookup_begin_statement(lookup, LOOKUP_STATE_SESSION,
        settings_send(lookup->connection, &lookup->settings, SETTINGS_OF_SESSION), now);
}

/* ---- Steps ---- */

/* Handles the success of the statement under way. */
static enum lookup_event lookup_use_result(struct lookup *lookup, usec_t now)
{
    switch (lookup->state) {
    case LOOKUP_STATE_LAYOUT:
        return lookup_use_layout(lookup, now);
    case LOOKUP_STATE_SESSION:
        return lookup_use_settings(lookup, now);
    case LOOKUP_STATE_INSTANCES:
        return lookup_use_first_instances(lookup, now);
    case LOOKUP_STATE_REREADING:
        return lookup_use_new_instances(lookup, now);
    case LOOKUP_STATE_PREPARING:
        lookup->prepared++;
        return lookup_prepare_next(lookup, now);
    case LOOKUP_STATE_ASKING:
        return lookup_read_batch(lookup, now);
    case LOOKUP_STATE_CHECKING:
        return lookup_read_check(lookup, now);
    case LOOKUP_STATE_PAUSED:
    case LOOKUP_STATE_CONNECTING:
    case LOOKUP_STATE_READY:
        break;
    }
    return LOOKUP_EVENT_NOTHING;
}

static enum lookup_event lookup_continue_statement(struct lookup *lookup, usec_t now)
{
    bool complete;

    if (lookup->state == LOOKUP_STATE_ASKING && lookup->layout.per_instance)
        return lookup_continue_pipeline(lookup, now);
    if (!lookup_receive(lookup, &complete) || PQstatus(lookup->connection) == CONNECTION_BAD)
        return lookup_give_up_statement(lookup, now);
    if (!complete || lookup->state == LOOKUP_STATE_READY)
        return LOOKUP_EVENT_NOTHING;
    if (!lookup_succeeded(lookup))
        return lookup->state == LOOKUP_STATE_REREADING ? lookup_keep_instances(lookup, now)
                                                       : lookup_give_up_statement(lookup, now);
    return lookup_use_result(lookup, now);
}

enum lookup_event lookup_step(struct lookup *lookup, bool announced, usec_t now)
{
    enum lookup_event event = LOOKUP_EVENT_NOTHING;

    if (lookup->state == LOOKUP_STATE_PAUSED)
        return now >= lookup->due ? lookup_begin_connecting(lookup, now) : LOOKUP_EVENT_NOTHING;
    if (announced)
        event = lookup->state == LOOKUP_STATE_CONNECTING ? lookup_continue_connecting(lookup, now)
                                                         : lookup_continue_statement(lookup, now);
    if (event != LOOKUP_EVENT_NOTHING || lookup->state == LOOKUP_STATE_PAUSED || now < lookup->due)
        return event;
    return lookup_give_up_silent(lookup, now);
}

usec_t lookup_due(const struct lookup *lookup)
{
    return lookup->due;
}

bool lookup_ready(const struct lookup *lookup)
{
    return lookup->state == LOOKUP_STATE_READY;
}

bool lookup_away(const struct lookup *lookup)
{
    return lookup->state < LOOKUP_STATE_READY;
}

/* Sends a batch where all instances share the tables. */
static enum lookup_event lookup_send_statement(
    struct lookup *lookup, const struct session_key *const keys[], usec_t now)
{
    batch_params_start(&lookup->params, lookup->count);
    for (size_t i = 0; i < lookup->count; i++)
        batch_params_add(&lookup->params, keys[i]);
    if (!batch_params_finish(&lookup->params)) {
        lookup_set_state(lookup, LOOKUP_STATE_ASKING, now); /* so that it is the batch that fails */
        return lookup_give_up(lookup, now, "out of memory");
    }
    return lookup_begin_statement(lookup, LOOKUP_STATE_ASKING,
        lookup_queue_statement(lookup, (int)lookup->question, &lookup->params), now);
}

enum lookup_event lookup_send(struct lookup *lookup, enum session_question question,
    const struct session_key *const keys[], size_t count, usec_t now)
{
    lookup->question = question;
    lookup->count = count;
    if (!lookup->layout.per_instance)
        return lookup_send_statement(lookup, keys, now);
    memcpy(lookup->keys, keys, count * sizeof *keys);
    return lookup_send_with_list(lookup, LOOKUP_STATE_ASKING, now);
}

const struct session_answer *lookup_answers(const struct lookup *lookup)
{
    return lookup->answers;
}

enum lookup_event lookup_check_changes(struct lookup *lookup, usec_t now)
{
    return lookup_send_with_list(lookup, LOOKUP_STATE_CHECKING, now);
}

uint64_t lookup_version(const struct lookup *lookup)
{
    return lookup->version;
}

const char *lookup_trouble(const struct lookup *lookup)
{
    return lookup->trouble;
}

const struct settings *lookup_settings(const struct lookup *lookup)
{
    return &lookup->settings;
}

bool lookup_pooled(const struct lookup *lookup)
{
    return lookup->pooled;
}

const struct instances *lookup_instances(const struct lookup *lookup)
{
    return lookup->instances;
}

const struct layout *lookup_layout(const struct lookup *lookup)
{
    return &lookup->layout;
}

PGconn *lookup_connection(const struct lookup *lookup)
{
    return lookup->connection;
}
