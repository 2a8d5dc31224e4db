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
#include <sys/random.h>

#include "conninfo.h"
#include "layout.h"
#include "log.h"
#include "sql.h"
#include "textarray.h"

/* Pauses between attempts to connect double from the first to the last. The last is short: requests
 * are to be served within a second of the database's return. */
#define PAUSE_MIN (100 * USEC_PER_MS)
#define PAUSE_MAX (500 * USEC_PER_MS)
/* A connection that lasted this long worked: its end is a new event. */
#define PROVEN_AGE (10 * USEC_PER_SEC)
/* Parameters of a batch: instances, URLs, sessions. */
#define PARAMS 3

enum lookup_state {
    LOOKUP_PAUSED,     /* no connection; the next attempt is due */
    LOOKUP_CONNECTING, /* PQconnectPoll() */
    LOOKUP_LAYOUT,     /* sql/layout.sql is under way */
    LOOKUP_SESSION,    /* sql/session.sql is under way */
    LOOKUP_PREPARING,  /* the statement number `prepared` is being prepared */
    LOOKUP_READY,      /* nothing is under way */
    LOOKUP_ASKING,     /* a batch is under way */
    LOOKUP_CHECKING,   /* a check for changes is under way */
};

/* The prepared statements: one for each question, and the check for changes. */
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
    usec_t due;   /* of the state: the end of the pause, the timeout, or never */
    usec_t pause; /* before the next attempt */
    PGconn *connection;
    uint32_t watched;    /* what epoll announces of its descriptor; 0: unknown */
    usec_t connected_at; /* when it was ready for the first time; USEC_NEVER: not yet */
    bool served;         /* it has answered a batch */
    PGresult *result;    /* of the statement under way, or of the last batch */
    struct layout layout;
    int prepared;        /* statements prepared */
    char trouble[300];   /* the last one that was logged: repetitions are not logged */
    bool told_connected; /* likewise */
    struct text_array params[PARAMS];
    enum session_question question; /* of the batch */
    size_t count;                   /* keys in it */
    struct session_answer answers[SESSION_BATCH_MAX];
    uint64_t version;
    usec_t version_at;    /* when it was counted up */
    PGresult *version_as; /* the text that the last check returned; NULL: unknown */
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
    for (int i = 0; i < PARAMS; i++)
        text_array_free(&lookup->params[i]);
    conninfo_free_hosts(&lookup->hosts);
    free(lookup);
}

static void lookup_enter(struct lookup *lookup, enum lookup_state state, usec_t due)
{
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

/* Whether the connection has worked. One that answers no batch must not be replaced in quick
 * succession, nor each of its failures be logged. */
static bool lookup_is_proven(const struct lookup *lookup, usec_t now)
{
    return lookup->served ||
           (lookup->connected_at != USEC_NEVER && now - lookup->connected_at >= PROVEN_AGE);
}

/* The pause before the next attempt, at random from its upper half: the workers that a database has
 * lost together must not come back together. */
static usec_t lookup_next_pause(struct lookup *lookup)
{
    usec_t half = lookup->pause / 2;
    uint32_t random = 0;

    if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0)
        random = (uint32_t)half;
    lookup->pause = usec_min(lookup->pause * 2, PAUSE_MAX);
    return half + random % half;
}

/* The one place where a connection ends: it is closed, and a new one is tried after a pause. */
static enum lookup_event __attribute__((format(printf, 3, 4)))
lookup_give_up(struct lookup *lookup, usec_t now, const char *format, ...)
{
    bool waiting = lookup->state == LOOKUP_ASKING || lookup->state == LOOKUP_CHECKING;
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
    lookup_enter(lookup, LOOKUP_PAUSED, now + lookup_next_pause(lookup));
    return waiting ? LOOKUP_FAILED : LOOKUP_NOTHING;
}

/* What libpq says of the connection: its first line. */
static enum lookup_event lookup_give_up_connection(struct lookup *lookup, usec_t now)
{
    const char *message = PQerrorMessage(lookup->connection);
    int length = (int)strcspn(message, "\n");

    if (length == 0)
        return lookup_give_up(lookup, now, "the connection was lost");
    return lookup_give_up(lookup, now, "%.*s", length, message);
}

/* Messages of these classes are about objects and the server, not about the values in a statement,
 * which must not get into the log (PostgreSQL manual, appendix A). */
static bool lookup_may_be_told(const char *sqlstate)
{
    static const char classes[][3] = {"08", "28", "3D", "3F", "42", "53", "57", "58", "XX"};

    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
        if (strncmp(sqlstate, classes[i], 2) == 0)
            return true;
    return false;
}

static enum lookup_event lookup_give_up_statement(struct lookup *lookup, usec_t now)
{
    const char *sqlstate = PQresultErrorField(lookup->result, PG_DIAG_SQLSTATE);
    const char *message = PQresultErrorField(lookup->result, PG_DIAG_MESSAGE_PRIMARY);

    if (!sqlstate || !message)
        return lookup_give_up_connection(lookup, now);
    return lookup_give_up(lookup, now, "%s (SQLSTATE %s)",
        lookup_may_be_told(sqlstate) ? message : "a statement failed", sqlstate);
}

/* The server does not answer: the next attempt leaves this host out, if there are others. */
static enum lookup_event lookup_give_up_silent(struct lookup *lookup, usec_t now)
{
    struct conninfo_hosts others = conninfo_other_hosts(lookup->connection);
    enum lookup_event event =
        lookup_give_up(lookup, now, "no answer within %d ms", (int)(lookup->timeout / USEC_PER_MS));

    lookup->hosts = others;
    return event;
}

static bool lookup_watch_socket(struct lookup *lookup, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = lookup};
    int fd = PQsocket(lookup->connection);

    /* While it connects libpq may replace its descriptor at any time. */
    if (lookup->state != LOOKUP_CONNECTING && lookup->watched == events)
        return true;
    lookup->watched = events;
    return epoll_ctl(lookup->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0 ||
           (errno == ENOENT && epoll_ctl(lookup->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* Sends what is still to be sent. */
static bool lookup_flush(struct lookup *lookup)
{
    int left = PQflush(lookup->connection);

    return left >= 0 && lookup_watch_socket(lookup, left > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Reads what has arrived. False if the connection is lost; *complete if the statement is done. */
static bool lookup_receive(struct lookup *lookup, bool *complete)
{
    *complete = false;
    if (!PQconsumeInput(lookup->connection) || !lookup_flush(lookup))
        return false;
    while (!PQisBusy(lookup->connection)) {
        PGresult *result = PQgetResult(lookup->connection);

        if (!result) {
            *complete = true;
            break;
        }
        lookup_forget_result(lookup);
        lookup->result = result;
    }
    return true;
}

static bool lookup_succeeded(const struct lookup *lookup)
{
    ExecStatusType status = PQresultStatus(lookup->result);

    return status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
}

/* A statement has been queued: into the state that waits for its result. */
static enum lookup_event lookup_begin(
    struct lookup *lookup, enum lookup_state state, int queued, usec_t now)
{
    lookup_forget_result(lookup);
    lookup_enter(lookup, state, now + lookup->timeout);
    if (!queued || !lookup_flush(lookup))
        return lookup_give_up_connection(lookup, now);
    return LOOKUP_NOTHING;
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
    lookup_enter(lookup, LOOKUP_CONNECTING, now + lookup->timeout);
    if (!lookup->connection)
        return lookup_give_up(lookup, now, "out of memory");
    PQsetNoticeReceiver(lookup->connection, lookup_ignore_notice, NULL);
    if (PQstatus(lookup->connection) == CONNECTION_BAD || !lookup_watch_socket(lookup, EPOLLOUT))
        return lookup_give_up_connection(lookup, now);
    return LOOKUP_NOTHING;
}

static enum lookup_event lookup_use_connection(struct lookup *lookup, usec_t now)
{
    const char *encoding = PQparameterStatus(lookup->connection, "server_encoding");

    /* In any other, some session ids could not even be asked about. */
    if (!encoding || strcmp(encoding, "UTF8") != 0)
        return lookup_give_up(
            lookup, now, "its encoding is %s, not UTF8", encoding ? encoding : "unknown");
    if (PQsetnonblocking(lookup->connection, 1) != 0)
        return lookup_give_up_connection(lookup, now);
    return lookup_begin(lookup, LOOKUP_LAYOUT, PQsendQuery(lookup->connection, sql_layout), now);
}

static enum lookup_event lookup_continue_connecting(struct lookup *lookup, usec_t now)
{
    switch (PQconnectPoll(lookup->connection)) {
    case PGRES_POLLING_OK:
        return lookup_use_connection(lookup, now);
    case PGRES_POLLING_READING:
        return lookup_watch_socket(lookup, EPOLLIN) ? LOOKUP_NOTHING
                                                    : lookup_give_up_connection(lookup, now);
    case PGRES_POLLING_WRITING:
        return lookup_watch_socket(lookup, EPOLLOUT) ? LOOKUP_NOTHING
                                                     : lookup_give_up_connection(lookup, now);
    case PGRES_POLLING_FAILED:
    case PGRES_POLLING_ACTIVE:
        break;
    }
    return lookup_give_up_connection(lookup, now);
}

static enum lookup_event lookup_use_layout(struct lookup *lookup, usec_t now)
{
    struct layout *layout = &lookup->layout;
    char timeout[24];
    const char *values[] = {layout->schema, timeout};

    if (!layout_read(lookup->result, layout))
        return lookup_give_up(lookup, now, "%s", layout->problem);
    snprintf(timeout, sizeof timeout, "%d", (int)(lookup->timeout / USEC_PER_MS));
    return lookup_begin(lookup, LOOKUP_SESSION,
        PQsendQueryParams(lookup->connection, sql_session, 2, NULL, values, NULL, NULL, 0), now);
}

static void lookup_log_connected(struct lookup *lookup)
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
        log_info("database: merchant_orders has no index for the lookup, which is slow; see "
                 "sql/orders-index.sql");
}

static int64_t lookup_int8(const char *at)
{
    uint32_t high, low;

    memcpy(&high, at, 4);
    memcpy(&low, at + 4, 4);
    return (int64_t)((uint64_t)ntohl(high) << 32 | ntohl(low));
}

/* The columns of sql/keys.sql. */
enum column { N, PAID, ORDER_ID, CONTRACT, COLUMNS };

/* The answer that a row is about, NULL if it is not about any. */
static struct session_answer *lookup_find_answer(struct lookup *lookup, int row)
{
    const PGresult *rows = lookup->result;
    int64_t n = PQgetlength(rows, row, N) == 8 ? lookup_int8(PQgetvalue(rows, row, N)) : 0;

    return n >= 1 && (size_t)n <= lookup->count ? &lookup->answers[n - 1] : NULL;
}

static bool lookup_read_row(struct lookup *lookup, int row)
{
    const PGresult *rows = lookup->result;
    struct session_answer *answer = lookup_find_answer(lookup, row);

    if (!answer || PQgetlength(rows, row, PAID) != 1 || PQgetlength(rows, row, CONTRACT) != 1)
        return false;
    *answer = (struct session_answer){.status = SESSION_UNKNOWN};
    if (PQgetisnull(rows, row, ORDER_ID))
        return true;
    answer->order_id = PQgetvalue(rows, row, ORDER_ID);
    answer->status = *PQgetvalue(rows, row, PAID) != 0 ? SESSION_PAID : SESSION_UNPAID;
    answer->claimed = answer->status == SESSION_UNPAID && *PQgetvalue(rows, row, CONTRACT) != 0;
    return true;
}

/* What holds for a key without a row. */
static enum session_status lookup_default(enum session_question question)
{
    return question == QUESTION_EVERYTHING ? SESSION_NO_INSTANCE : SESSION_UNKNOWN;
}

static enum lookup_event lookup_read_batch(struct lookup *lookup, usec_t now)
{
    if (PQnfields(lookup->result) != COLUMNS)
        return lookup_give_up(lookup, now, "the lookup returned rows of another shape");
    for (size_t i = 0; i < lookup->count; i++)
        lookup->answers[i] = (struct session_answer){.status = lookup_default(lookup->question)};
    for (int row = 0; row < PQntuples(lookup->result); row++)
        if (!lookup_read_row(lookup, row))
            return lookup_give_up(lookup, now, "the lookup returned a row that was not asked for");
    lookup->served = true;
    lookup_enter(lookup, LOOKUP_READY, USEC_NEVER);
    return LOOKUP_ANSWERED;
}

/* Whether the database may have changed since the last check. */
static bool lookup_has_changed(const struct lookup *lookup, usec_t now)
{
    if (!lookup->version_as)
        return true;
    if (!lookup->layout.tracked)
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
    }
    PQclear(lookup->version_as);
    lookup->version_as = lookup->result;
    lookup->result = NULL;
    lookup_enter(lookup, LOOKUP_READY, USEC_NEVER);
    return LOOKUP_CHECKED;
}

static const char *lookup_text(const struct lookup *lookup, int statement)
{
    switch (statement) {
    case QUESTION_EVERYTHING:
        return layout_lookup(&lookup->layout);
    case QUESTION_PAYMENT:
        return sql_poll;
    default:
        return PQserverVersion(lookup->connection) >= 130000 ? sql_changes : sql_changes_before_13;
    }
}

static enum lookup_event lookup_prepare(struct lookup *lookup, usec_t now)
{
    int statement = lookup->prepared;

    return lookup_begin(lookup, LOOKUP_PREPARING,
        PQsendPrepare(
            lookup->connection, lookup_names[statement], lookup_text(lookup, statement), 0, NULL),
        now);
}

static enum lookup_event lookup_use_prepared(struct lookup *lookup, usec_t now)
{
    lookup->prepared++;
    if (lookup->prepared < STATEMENTS)
        return lookup_prepare(lookup, now);
    lookup->connected_at = now;
    lookup_log_connected(lookup);
    lookup_enter(lookup, LOOKUP_READY, USEC_NEVER);
    return LOOKUP_NOTHING;
}

/* The statement under way has succeeded. */
static enum lookup_event lookup_advance(struct lookup *lookup, usec_t now)
{
    switch (lookup->state) {
    case LOOKUP_LAYOUT:
        return lookup_use_layout(lookup, now);
    case LOOKUP_SESSION:
        lookup->prepared = 0;
        return lookup_prepare(lookup, now);
    case LOOKUP_PREPARING:
        return lookup_use_prepared(lookup, now);
    case LOOKUP_ASKING:
        return lookup_read_batch(lookup, now);
    case LOOKUP_CHECKING:
        return lookup_read_check(lookup, now);
    case LOOKUP_PAUSED:
    case LOOKUP_CONNECTING:
    case LOOKUP_READY:
        break;
    }
    return LOOKUP_NOTHING;
}

static enum lookup_event lookup_continue_statement(struct lookup *lookup, usec_t now)
{
    bool complete;

    if (!lookup_receive(lookup, &complete) || PQstatus(lookup->connection) == CONNECTION_BAD)
        return lookup_give_up_statement(lookup, now);
    if (!complete || lookup->state == LOOKUP_READY)
        return LOOKUP_NOTHING;
    if (!lookup_succeeded(lookup))
        return lookup_give_up_statement(lookup, now);
    return lookup_advance(lookup, now);
}

enum lookup_event lookup_step(struct lookup *lookup, bool announced, usec_t now)
{
    enum lookup_event event = LOOKUP_NOTHING;

    if (lookup->state == LOOKUP_PAUSED)
        return now >= lookup->due ? lookup_begin_connecting(lookup, now) : LOOKUP_NOTHING;
    if (announced)
        event = lookup->state == LOOKUP_CONNECTING ? lookup_continue_connecting(lookup, now)
                                                   : lookup_continue_statement(lookup, now);
    if (event != LOOKUP_NOTHING || lookup->state == LOOKUP_PAUSED || now < lookup->due)
        return event;
    return lookup_give_up_silent(lookup, now);
}

usec_t lookup_due(const struct lookup *lookup)
{
    return lookup->due;
}

bool lookup_ready(const struct lookup *lookup)
{
    return lookup->state == LOOKUP_READY;
}

bool lookup_away(const struct lookup *lookup)
{
    return lookup->state < LOOKUP_READY;
}

static bool lookup_put_keys(
    struct lookup *lookup, const struct session_key *const keys[], size_t count)
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

enum lookup_event lookup_send(struct lookup *lookup, enum session_question question,
    const struct session_key *const keys[], size_t count, usec_t now)
{
    static const int formats[PARAMS] = {1, 1, 1};
    const char *values[PARAMS];
    int lengths[PARAMS];

    lookup->question = question;
    lookup->count = count;
    lookup_enter(lookup, LOOKUP_ASKING, now + lookup->timeout);
    if (!lookup_put_keys(lookup, keys, count))
        return lookup_give_up(lookup, now, "out of memory");
    for (int i = 0; i < PARAMS; i++) {
        values[i] = lookup->params[i].at;
        lengths[i] = (int)lookup->params[i].length;
    }
    return lookup_begin(lookup, LOOKUP_ASKING,
        PQsendQueryPrepared(
            lookup->connection, lookup_names[question], PARAMS, values, lengths, formats, 1),
        now);
}

const struct session_answer *lookup_answers(const struct lookup *lookup)
{
    return lookup->answers;
}

enum lookup_event lookup_check_changes(struct lookup *lookup, usec_t now)
{
    return lookup_begin(lookup, LOOKUP_CHECKING,
        PQsendQueryPrepared(
            lookup->connection, lookup_names[STATEMENT_CHANGES], 0, NULL, NULL, NULL, 0),
        now);
}

uint64_t lookup_version(const struct lookup *lookup)
{
    return lookup->version;
}

const char *lookup_trouble(const struct lookup *lookup)
{
    return lookup->trouble;
}

const struct layout *lookup_layout(const struct lookup *lookup)
{
    return &lookup->layout;
}

PGconn *lookup_connection(const struct lookup *lookup)
{
    return lookup->connection;
}
