/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "lookup.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libpq-fe.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "conninfo.h"
#include "layout.h"
#include "log.h"
#include "sql.h"
#include "textarray.h"

#define PAUSE_MIN (100 * USEC_PER_MS)
#define PAUSE_MAX (5 * USEC_PER_SEC)
/* How long a plan is kept: the tables grow. */
#define PLAN_AGE (10 * USEC_PER_SEC)
/* Of a batch: instances, URLs, sessions. */
#define PARAMS 3

enum lookup_state {
    LOOKUP_PAUSED,         /* no connection; the next attempt is due */
    LOOKUP_CONNECTING,     /* PQconnectPoll */
    LOOKUP_LAYOUT,         /* sql/layout.sql is under way */
    LOOKUP_SESSION,        /* sql/session.sql */
    LOOKUP_PREPARING,      /* the statement for LOOKUP_EVERYTHING is being prepared, */
    LOOKUP_PREPARING_POLL, /* and the one for LOOKUP_PAYMENT */
    LOOKUP_READY,          /* nothing under way; the plan is to be made anew when due */
    LOOKUP_REPLANNING,     /* sql/replan.sql is */
    LOOKUP_BUSY,           /* a batch is */
};

/* The names of the prepared statements. */
static const char *const statements[] = {
    [LOOKUP_EVERYTHING] = "merchant_sessions_lookup",
    [LOOKUP_PAYMENT] = "merchant_sessions_poll",
};

struct lookup {
    int epoll_fd;
    const char *conninfo;
    usec_t timeout;
    enum lookup_state state;
    usec_t due; /* of the state: the end of the pause, of our patience, or of the plan */
    usec_t plan_due;
    usec_t pause;
    PGconn *connection;
    PGresult *result; /* of the statement under way, or of the last batch */
    struct layout layout;
    char trouble[300];   /* the last one that was logged, to say each only once */
    bool told_connected; /* likewise */
    struct text_array params[PARAMS];
    enum lookup_kind kind; /* of the batch */
    size_t count;          /* keys in it */
    struct lookup_answer answers[LOOKUP_BATCH_MAX];
};

struct lookup *lookup_new(int epoll_fd, const char *conninfo, usec_t timeout)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);

    if (!lookup)
        return NULL;
    lookup->epoll_fd = epoll_fd;
    lookup->conninfo = conninfo;
    lookup->timeout = timeout;
    lookup->pause = PAUSE_MIN;
    return lookup;
}

static void forget_result(struct lookup *lookup)
{
    PQclear(lookup->result);
    lookup->result = NULL;
}

static void disconnect(struct lookup *lookup)
{
    forget_result(lookup);
    PQfinish(lookup->connection);
    lookup->connection = NULL;
}

void lookup_free(struct lookup *lookup)
{
    disconnect(lookup);
    for (int i = 0; i < PARAMS; i++)
        text_array_free(&lookup->params[i]);
    free(lookup);
}

static void enter(struct lookup *lookup, enum lookup_state state, usec_t due)
{
    lookup->state = state;
    lookup->due = due;
}

static void log_trouble(struct lookup *lookup, const char *trouble)
{
    bool again = strcmp(trouble, lookup->trouble) == 0;

    log_write(again ? LOG_DEBUG : LOG_WARNING, "database: %s; trying again", trouble);
    if (again)
        return;
    snprintf(lookup->trouble, sizeof lookup->trouble, "%s", trouble);
    lookup->told_connected = false;
}

/* The one place where a connection ends: it is closed, and tried again after a pause. */
static enum lookup_event __attribute__((format(printf, 3, 4)))
give_up(struct lookup *lookup, usec_t now, const char *format, ...)
{
    enum lookup_event event = lookup->state == LOOKUP_BUSY ? LOOKUP_FAILED : LOOKUP_NOTHING;
    char trouble[sizeof lookup->trouble];
    va_list args;

    va_start(args, format);
    vsnprintf(trouble, sizeof trouble, format, args);
    va_end(args);
    disconnect(lookup);
    log_trouble(lookup, trouble);
    enter(lookup, LOOKUP_PAUSED, now + lookup->pause);
    lookup->pause = usec_min(lookup->pause * 2, PAUSE_MAX);
    return event;
}

/* What libpq says of the connection: its first line. */
static enum lookup_event give_up_connection(struct lookup *lookup, usec_t now)
{
    const char *message = PQerrorMessage(lookup->connection);
    int length = (int)strcspn(message, "\n");

    if (length == 0)
        return give_up(lookup, now, "the connection was lost");
    return give_up(lookup, now, "%.*s", length, message);
}

/* Messages of these classes are about objects and the server, not about the values in a statement,
 * which must not get into the log (PostgreSQL manual, appendix A). */
static bool may_be_told(const char *sqlstate)
{
    static const char classes[][3] = {"08", "28", "3D", "3F", "42", "53", "57", "58", "XX"};

    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
        if (strncmp(sqlstate, classes[i], 2) == 0)
            return true;
    return false;
}

static enum lookup_event give_up_statement(struct lookup *lookup, usec_t now)
{
    const char *sqlstate = PQresultErrorField(lookup->result, PG_DIAG_SQLSTATE);
    const char *message = PQresultErrorField(lookup->result, PG_DIAG_MESSAGE_PRIMARY);

    if (!sqlstate || !message)
        return give_up_connection(lookup, now);
    return give_up(lookup, now, "%s (SQLSTATE %s)",
        may_be_told(sqlstate) ? message : "a statement failed", sqlstate);
}

static bool watch(struct lookup *lookup, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = lookup};
    int fd = PQsocket(lookup->connection);

    /* While it connects libpq may replace its descriptor at any time. */
    return epoll_ctl(lookup->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0 ||
           (errno == ENOENT && epoll_ctl(lookup->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* Sends what is still to be sent. */
static bool flush(struct lookup *lookup)
{
    int left = PQflush(lookup->connection);

    return left >= 0 && watch(lookup, left > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Reads what has arrived. False if the connection is lost; *complete if the statement is done. */
static bool receive(struct lookup *lookup, bool *complete)
{
    *complete = false;
    if (!PQconsumeInput(lookup->connection) || !flush(lookup))
        return false;
    while (!PQisBusy(lookup->connection)) {
        PGresult *result = PQgetResult(lookup->connection);

        if (!result) {
            *complete = true;
            break;
        }
        forget_result(lookup);
        lookup->result = result;
    }
    return true;
}

static bool succeeded(const struct lookup *lookup)
{
    ExecStatusType status = PQresultStatus(lookup->result);

    return status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
}

/* A statement has been queued: into the state that waits for its result. */
static enum lookup_event begin(
    struct lookup *lookup, enum lookup_state state, int queued, usec_t now)
{
    forget_result(lookup);
    enter(lookup, state, now + lookup->timeout);
    if (!queued || !flush(lookup))
        return give_up_connection(lookup, now);
    return LOOKUP_NOTHING;
}

static void ignore_notice(void *context, const PGresult *result)
{
    (void)context;
    (void)result;
}

static enum lookup_event begin_connecting(struct lookup *lookup, usec_t now)
{
    struct conninfo_params params = conninfo_params(lookup->conninfo);

    lookup->connection = PQconnectStartParams(params.keywords, params.values, 1);
    enter(lookup, LOOKUP_CONNECTING, now + lookup->timeout);
    if (!lookup->connection)
        return give_up(lookup, now, "out of memory");
    PQsetNoticeReceiver(lookup->connection, ignore_notice, NULL);
    if (PQstatus(lookup->connection) == CONNECTION_BAD || !watch(lookup, EPOLLOUT))
        return give_up_connection(lookup, now);
    return LOOKUP_NOTHING;
}

static enum lookup_event connected(struct lookup *lookup, usec_t now)
{
    const char *encoding = PQparameterStatus(lookup->connection, "server_encoding");

    /* In any other, some session ids could not even be asked about. */
    if (!encoding || strcmp(encoding, "UTF8") != 0)
        return give_up(
            lookup, now, "its encoding is %s, not UTF8", encoding ? encoding : "unknown");
    if (PQsetnonblocking(lookup->connection, 1) != 0)
        return give_up_connection(lookup, now);
    return begin(lookup, LOOKUP_LAYOUT, PQsendQuery(lookup->connection, sql_layout), now);
}

static enum lookup_event go_on_connecting(struct lookup *lookup, usec_t now)
{
    switch (PQconnectPoll(lookup->connection)) {
    case PGRES_POLLING_OK:
        return connected(lookup, now);
    case PGRES_POLLING_READING:
        return watch(lookup, EPOLLIN) ? LOOKUP_NOTHING : give_up_connection(lookup, now);
    case PGRES_POLLING_WRITING:
        return watch(lookup, EPOLLOUT) ? LOOKUP_NOTHING : give_up_connection(lookup, now);
    case PGRES_POLLING_FAILED:
    case PGRES_POLLING_ACTIVE:
        break;
    }
    return give_up_connection(lookup, now);
}

static enum lookup_event layout_known(struct lookup *lookup, usec_t now)
{
    struct layout *layout = &lookup->layout;
    char timeout[24];
    const char *values[] = {layout->schema, timeout};

    if (!layout_read(lookup->result, layout))
        return give_up(lookup, now, "%s", layout->problem);
    snprintf(timeout, sizeof timeout, "%d", (int)(lookup->timeout / USEC_PER_MS));
    return begin(lookup, LOOKUP_SESSION,
        PQsendQueryParams(lookup->connection, sql_session, 2, NULL, values, NULL, NULL, 0), now);
}

static void log_connected(struct lookup *lookup)
{
    const struct layout *layout = &lookup->layout;

    if (lookup->told_connected)
        return;
    lookup->told_connected = true;
    log_info("database: connected, schema %s, unclaimed orders %s", layout->schema,
        layout->has_order_session ? "can be found" : "can't be found by session (layout of 2022)");
    if (!layout->contracts_indexed)
        log_warning("database: merchant_contract_terms has no index for the lookup, which is slow");
    if (layout->has_order_session && !layout->orders_indexed)
        log_warning("database: merchant_orders has no index for the lookup, which is slow; see "
                    "sql/orders-index.sql");
}

/* The lookup has a new plan, or none before its first execution. */
static enum lookup_event planned(struct lookup *lookup, usec_t now)
{
    forget_result(lookup);
    lookup->plan_due = now + PLAN_AGE;
    enter(lookup, LOOKUP_READY, lookup->plan_due);
    return LOOKUP_NOTHING;
}

static int64_t get_int8(const char *at)
{
    uint32_t high, low;

    memcpy(&high, at, 4);
    memcpy(&low, at + 4, 4);
    return (int64_t)((uint64_t)ntohl(high) << 32 | ntohl(low));
}

/* The columns of the statements' rows; those of sql/poll.sql have only the first. */
enum column { N, PAID, ORDER_ID, COLUMNS };

/* The answer that a row is about, NULL if it is not about any. */
static struct lookup_answer *find_answer(struct lookup *lookup, int row)
{
    const PGresult *rows = lookup->result;
    int64_t n = PQgetlength(rows, row, N) == 8 ? get_int8(PQgetvalue(rows, row, N)) : 0;

    return n >= 1 && (size_t)n <= lookup->count ? &lookup->answers[n - 1] : NULL;
}

static bool read_row(struct lookup *lookup, int row)
{
    const PGresult *rows = lookup->result;
    struct lookup_answer *answer = find_answer(lookup, row);

    if (!answer)
        return false;
    answer->status = SESSION_PAID;
    if (lookup->kind == LOOKUP_PAYMENT)
        return true;
    if (PQgetlength(rows, row, PAID) != 1)
        return false;
    if (*PQgetvalue(rows, row, PAID) == 0)
        answer->status = PQgetisnull(rows, row, ORDER_ID) ? SESSION_UNKNOWN : SESSION_UNPAID;
    if (answer->status != SESSION_UNKNOWN)
        answer->order_id = PQgetvalue(rows, row, ORDER_ID);
    return true;
}

static enum lookup_event batch_done(struct lookup *lookup, usec_t now)
{
    if (PQnfields(lookup->result) != (lookup->kind == LOOKUP_PAYMENT ? 1 : COLUMNS))
        return give_up(lookup, now, "the lookup returned rows of another shape");
    for (size_t i = 0; i < lookup->count; i++)
        lookup->answers[i] = (struct lookup_answer){.status = SESSION_NO_INSTANCE};
    for (int row = 0; row < PQntuples(lookup->result); row++)
        if (!read_row(lookup, row))
            return give_up(lookup, now, "the lookup returned a row that was not asked for");
    /* Only now all is well: a connection that can't do this must not be tried in quick succession.
     */
    lookup->trouble[0] = '\0';
    lookup->pause = PAUSE_MIN;
    enter(lookup, LOOKUP_READY, lookup->plan_due);
    return LOOKUP_ANSWERED;
}

static enum lookup_event prepare(
    struct lookup *lookup, enum lookup_state state, enum lookup_kind kind, usec_t now)
{
    const char *text = kind == LOOKUP_EVERYTHING ? layout_lookup(&lookup->layout) : sql_poll;

    return begin(
        lookup, state, PQsendPrepare(lookup->connection, statements[kind], text, 0, NULL), now);
}

/* The statement under way has succeeded. */
static enum lookup_event next(struct lookup *lookup, usec_t now)
{
    switch (lookup->state) {
    case LOOKUP_LAYOUT:
        return layout_known(lookup, now);
    case LOOKUP_SESSION:
        return prepare(lookup, LOOKUP_PREPARING, LOOKUP_EVERYTHING, now);
    case LOOKUP_PREPARING:
        return prepare(lookup, LOOKUP_PREPARING_POLL, LOOKUP_PAYMENT, now);
    case LOOKUP_PREPARING_POLL:
        log_connected(lookup);
        return planned(lookup, now);
    case LOOKUP_REPLANNING:
        return planned(lookup, now);
    case LOOKUP_BUSY:
        return batch_done(lookup, now);
    case LOOKUP_PAUSED:
    case LOOKUP_CONNECTING:
    case LOOKUP_READY:
        break;
    }
    return LOOKUP_NOTHING;
}

static enum lookup_event go_on_talking(struct lookup *lookup, usec_t now)
{
    bool complete;

    if (!receive(lookup, &complete) || PQstatus(lookup->connection) == CONNECTION_BAD)
        return give_up_statement(lookup, now);
    if (!complete || lookup->state == LOOKUP_READY)
        return LOOKUP_NOTHING;
    if (!succeeded(lookup))
        return give_up_statement(lookup, now);
    return next(lookup, now);
}

enum lookup_event lookup_step(struct lookup *lookup, bool announced, usec_t now)
{
    enum lookup_event event = LOOKUP_NOTHING;

    if (lookup->state == LOOKUP_PAUSED)
        return now >= lookup->due ? begin_connecting(lookup, now) : LOOKUP_NOTHING;
    if (announced)
        event = lookup->state == LOOKUP_CONNECTING ? go_on_connecting(lookup, now)
                                                   : go_on_talking(lookup, now);
    if (event != LOOKUP_NOTHING || lookup->state == LOOKUP_PAUSED || now < lookup->due)
        return event;
    if (lookup->state == LOOKUP_READY)
        return begin(lookup, LOOKUP_REPLANNING, PQsendQuery(lookup->connection, sql_replan), now);
    return give_up(lookup, now, "no answer within %d ms", (int)(lookup->timeout / USEC_PER_MS));
}

usec_t lookup_due(const struct lookup *lookup)
{
    return lookup->due;
}

bool lookup_ready(const struct lookup *lookup, usec_t now)
{
    return lookup->state == LOOKUP_READY && now < lookup->due;
}

bool lookup_away(const struct lookup *lookup)
{
    return lookup->state < LOOKUP_READY;
}

static bool put_keys(struct lookup *lookup, const struct session_key *const keys[], size_t count)
{
    struct text_array *params = lookup->params;

    for (int i = 0; i < PARAMS; i++)
        text_array_start(&params[i], count);
    for (size_t i = 0; i < count; i++) {
        text_array_add(&params[0], keys[i]->instance);
        text_array_add(&params[1], keys[i]->url);
        text_array_add(&params[2], keys[i]->session);
    }
    return !params[0].failed && !params[1].failed && !params[2].failed;
}

enum lookup_event lookup_send(struct lookup *lookup, enum lookup_kind kind,
    const struct session_key *const keys[], size_t count, usec_t now)
{
    static const int formats[PARAMS] = {1, 1, 1};
    const char *values[PARAMS];
    int lengths[PARAMS];

    lookup->kind = kind;
    lookup->count = count;
    enter(lookup, LOOKUP_BUSY, now + lookup->timeout);
    if (!put_keys(lookup, keys, count))
        return give_up(lookup, now, "out of memory");
    for (int i = 0; i < PARAMS; i++) {
        values[i] = lookup->params[i].at;
        lengths[i] = (int)lookup->params[i].length;
    }
    return begin(lookup, LOOKUP_BUSY,
        PQsendQueryPrepared(
            lookup->connection, statements[kind], PARAMS, values, lengths, formats, 1),
        now);
}

struct lookup_answer lookup_answer(const struct lookup *lookup, size_t n)
{
    return lookup->answers[n];
}
