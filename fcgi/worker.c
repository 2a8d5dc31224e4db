/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "connection.h"
#include "listener.h"
#include "log.h"
#include "lookup.h"
#include "metrics.h"
#include "query.h"
#include "reply.h"
#include "sandbox.h"
#include "waiting.h"

#define EVENTS_AT_ONCE 256
/* Limit of the connections that are accepted in a turn. */
#define ACCEPT_AT_ONCE 64
/* The same for a worker that stops and whose listening socket refuses new connections: what waits
 * there is lost if it is not accepted. It is no more than the backlog of listener_open(). */
#define ACCEPT_LAST SOMAXCONN
/* Limit of the last lookups after a signal to stop. */
#define STOP_ASK USEC_PER_SEC
/* Time after a signal to stop at which all connections are closed. */
#define STOP_GRACE (1500 * USEC_PER_MS)

/* A request that needs the database. */
struct request {
    struct waiter waiter; /* the first member: a waiter is cast to its request */
    struct connection *connection;
    usec_t arrived;
    bool head;       /* HEAD: no body, no waiting */
    bool was_parked; /* for the metrics */
};

/* The batch under way, for the metrics. */
struct worker_batch {
    enum session_question question;
    size_t keys;
    usec_t sent;
};

struct worker {
    const struct options *options;
    int epoll_fd, listen_fd;
    struct connections *connections;
    struct lookup *lookup;
    struct waiting *waiting;
    struct metrics *metrics;
    struct worker_batch batch;
    char *failure; /* an answer with status 500, for lack of memory to make an answer */
    size_t failure_length;
    usec_t stop_due; /* when to end at the latest; USEC_NEVER: not stopping */
    char space[QUERY_SPACE];
};

/* Set by the signal handler, which runs only in worker_turn(), around its wait for events. */
static volatile sig_atomic_t worker_stop_asked;

static void worker_on_stop(int signal)
{
    (void)signal;
    worker_stop_asked = 1;
}

static bool worker_is_stopping(const struct worker *worker)
{
    return worker->stop_due != USEC_NEVER;
}

/* Sends an answer, and frees it. NULL: there was no memory to make it; `failure` is sent. */
static void worker_send(
    struct worker *worker, struct connection *connection, char *bytes, size_t length, usec_t now)
{
    if (bytes)
        connection_reply(connection, bytes, length, now);
    else
        connection_reply(connection, worker->failure, worker->failure_length, now);
    free(bytes);
}

/* Counts an answer that is about to be sent: see worker_send(). */
static void worker_count_answer(struct worker *worker, enum reply_kind kind, bool made)
{
    metrics_count_answer(worker->metrics, made ? kind : REPLY_DATABASE_FAILED);
}

static void worker_reply(struct worker *worker, struct connection *connection, enum reply_kind kind,
    const char *text, bool head, usec_t now)
{
    size_t length;
    char *bytes = reply_make(kind, text, head, &length);

    worker_count_answer(worker, kind, bytes);
    worker_send(worker, connection, bytes, length, now);
}

static void worker_reply_metrics(
    struct worker *worker, struct connection *connection, bool head, usec_t now)
{
    char *text = metrics_print(worker->metrics), *bytes = NULL;
    size_t length = 0;

    if (text)
        bytes = reply_make_metrics(text, head, &length);
    free(text);
    worker_send(worker, connection, bytes, length, now);
}

/* Ends a waiting request. Returns its connection, which can be answered or closed. */
static struct connection *worker_end_request(struct worker *worker, struct request *request)
{
    struct connection *connection = request->connection;

    waiting_remove(worker->waiting, &request->waiter);
    connection_set_owner(connection, NULL);
    free(request);
    return connection;
}

static enum reply_kind worker_reply_kind(enum session_status status)
{
    switch (status) {
    case SESSION_NO_INSTANCE:
        return REPLY_INSTANCE_UNKNOWN;
    case SESSION_UNKNOWN:
        return REPLY_SESSION_UNKNOWN;
    case SESSION_UNPAID:
        return REPLY_UNPAID;
    case SESSION_PAID:
        return REPLY_PAID;
    case SESSION_FAILED:
    case SESSION_NOT_ASKED:
        break;
    }
    return REPLY_DATABASE_FAILED;
}

/* Observes the times of a request that needed the database and is about to be answered. */
static void worker_observe_answer(
    struct worker *worker, const struct request *request, enum reply_kind kind, usec_t now)
{
    metrics_observe_answer(worker->metrics, request->was_parked, now - request->arrived);
    if (request->was_parked && kind == REPLY_PAID)
        metrics_observe_payment(worker->metrics, request->waiter.watch->version_before, now);
}

/* Ends a request with this answer; text as in reply_make(). */
static void worker_finish(struct worker *worker, struct request *request, enum reply_kind kind,
    const char *text, usec_t now)
{
    size_t length;
    char *bytes = reply_make(kind, text, request->head, &length);

    worker_count_answer(worker, kind, bytes);
    if (bytes)
        worker_observe_answer(worker, request, kind, now);
    worker_send(worker, worker_end_request(worker, request), bytes, length, now);
}

/* Answers that the database did not answer in time. */
static void worker_fail(struct worker *worker, struct request *request, usec_t now)
{
    worker_finish(worker, request, REPLY_DATABASE_FAILED, NULL, now);
}

/* Answers with what the database has said. */
static void worker_answer(struct worker *worker, struct request *request, usec_t now)
{
    const struct watch *watch = request->waiter.watch;

    worker_finish(worker, request, worker_reply_kind(watch->status), watch->order_id, now);
}

/* False if that can't be done. */
static bool worker_park(struct worker *worker, struct request *request)
{
    if (!connection_shed(request->connection))
        return false;
    request->was_parked = true;
    waiting_park(worker->waiting, &request->waiter);
    return true;
}

/* Deals with all requests whose outcome is known. */
static void worker_take_outcomes(struct worker *worker, usec_t now)
{
    struct waiter *waiter;

    while ((waiter = waiting_outcome(worker->waiting))) {
        struct request *request = (struct request *)waiter;

        if (waiter->state == WAITER_FAILED)
            worker_fail(worker, request, now);
        else if (waiter->state != WAITER_PARKABLE || !worker_park(worker, request))
            worker_answer(worker, request, now);
    }
}

/* When a request wants its answer: after the time that it asks for, within what is granted. The
 * turn's time may be older than the request, and no answer is to come early. */
static usec_t worker_deadline(
    const struct worker *worker, const struct query *query, bool head, usec_t now)
{
    int64_t wait = query->timeout_ms;

    if (wait > worker->options->max_wait_ms)
        wait = worker->options->max_wait_ms;
    if (head || worker_is_stopping(worker) || wait == 0)
        return now;
    return clock_now() + wait * USEC_PER_MS;
}

static void worker_add_request(struct worker *worker, struct connection *connection,
    const struct query *query, bool head, usec_t now)
{
    struct request *request = calloc(1, sizeof *request);

    if (!request || !waiting_add(worker->waiting, &request->waiter, &query->key,
                        worker_deadline(worker, query, head, now), now)) {
        free(request);
        worker_reply(worker, connection, REPLY_DATABASE_FAILED, NULL, head, now);
        return;
    }
    request->connection = connection;
    request->arrived = now;
    request->head = head;
    connection_set_owner(connection, request);
    /* The database may be away for long: free libfcgi's buffers meanwhile. */
    if (lookup_away(worker->lookup))
        connection_shed(connection);
    else
        connection_wait(connection);
}

static void worker_begin_request(struct worker *worker, struct connection *connection, usec_t now)
{
    struct query_source source = {
        .method = connection_param(connection, "REQUEST_METHOD"),
        .request_uri = connection_param(connection, "REQUEST_URI"),
        .script_name = connection_param(connection, "SCRIPT_NAME"),
        .path_info = connection_param(connection, "PATH_INFO"),
        .query_string = connection_param(connection, "QUERY_STRING"),
        .metrics = connection_param(connection, "MERCHANT_SESSIONS_METRICS"),
    };
    bool head = source.method && strcmp(source.method, "HEAD") == 0;
    struct query query;

    switch (query_read(&source, worker->space, &query)) {
    case QUERY_LOOKUP:
        worker_add_request(worker, connection, &query, head, now);
        break;
    case QUERY_METRICS:
        worker_reply_metrics(worker, connection, head, now);
        break;
    case QUERY_OPTIONS:
        worker_reply(worker, connection, REPLY_OPTIONS, NULL, head, now);
        break;
    case QUERY_ENDPOINT_UNKNOWN:
        worker_reply(worker, connection, REPLY_ENDPOINT_UNKNOWN, NULL, head, now);
        break;
    case QUERY_METHOD_INVALID:
        worker_reply(worker, connection, REPLY_METHOD_INVALID, NULL, head, now);
        break;
    case QUERY_PARAMETER_MISSING:
        worker_reply(worker, connection, REPLY_PARAMETER_MISSING, query.parameter, head, now);
        break;
    case QUERY_PARAMETER_MALFORMED:
        worker_reply(worker, connection, REPLY_PARAMETER_MALFORMED, query.parameter, head, now);
        break;
    }
}

static void worker_handle_connection(
    struct worker *worker, struct connection *connection, usec_t now)
{
    switch (connection_read(connection, now)) {
    case CONNECTION_EVENT_NOTHING:
        break;
    case CONNECTION_EVENT_REQUEST:
        worker_begin_request(worker, connection, now);
        break;
    case CONNECTION_EVENT_REFUSE:
        worker_reply(worker, connection, REPLY_DATABASE_FAILED, NULL, false, now);
        break;
    case CONNECTION_EVENT_GONE:
        metrics_count_unanswered(worker->metrics);
        worker_end_request(worker, connection_owner(connection));
        connection_close(connection, connection_trouble(connection));
        break;
    }
}

/* Accepts what waits, up to a bound. */
static void worker_accept(struct worker *worker, int most, usec_t now)
{
    for (int i = 0; i < most; i++) {
        struct connection *connection = connections_accept(worker->connections, now);

        if (!connection)
            return;
        worker_handle_connection(worker, connection, now);
    }
}

/* How many requests may be parked: what the operator allows, and the descriptors do. */
static size_t worker_park_limit(const struct worker *worker)
{
    size_t allowed = (size_t)worker->options->max_waiting;
    size_t possible = connections_park_limit(worker->connections);

    return allowed < possible ? allowed : possible;
}

static void worker_handle_lookup(struct worker *worker, enum lookup_event event, usec_t now)
{
    switch (event) {
    case LOOKUP_EVENT_NOTHING:
        return;
    case LOOKUP_EVENT_CHECKED:
        metrics_note_version(worker->metrics, lookup_version(worker->lookup), now);
        waiting_checked(worker->waiting, lookup_version(worker->lookup), now);
        break;
    case LOOKUP_EVENT_ANSWERED:
        metrics_observe_batch(
            worker->metrics, worker->batch.question, worker->batch.keys, now - worker->batch.sent);
        waiting_answered(
            worker->waiting, lookup_answers(worker->lookup), worker_park_limit(worker), now);
        break;
    case LOOKUP_EVENT_FAILED:
        waiting_failed(worker->waiting);
        break;
    }
    worker_take_outcomes(worker, now);
}

/* Asks the database what there is to ask, if it is free. */
static void worker_ask_database(struct worker *worker, usec_t now)
{
    struct waiting_batch batch;
    enum lookup_event event = LOOKUP_EVENT_NOTHING;

    if (!lookup_ready(worker->lookup))
        return;
    switch (waiting_next(worker->waiting, &batch, now)) {
    case WAITING_STEP_NOTHING:
        break;
    case WAITING_STEP_CHECK:
        event = lookup_check_changes(worker->lookup, now);
        break;
    case WAITING_STEP_BATCH:
        worker->batch = (struct worker_batch){batch.question, batch.count, now};
        event = lookup_send(worker->lookup, batch.question, batch.keys, batch.count, now);
        break;
    }
    worker_handle_lookup(worker, event, now);
}

static void worker_begin_stopping(struct worker *worker, usec_t now)
{
    if (worker_is_stopping(worker))
        return;
    log_debug("stopping with %zu connections open", connections_count(worker->connections));
    worker->stop_due = now + STOP_GRACE;
    /* A pool does it itself: it also stops workers that it replaces. */
    if (worker->options->workers == 0 && worker->options->listen)
        listener_refuse(worker->listen_fd);
    connections_stop(worker->connections);
    worker_accept(worker, listener_refuses(worker->listen_fd) ? ACCEPT_LAST : ACCEPT_AT_ONCE, now);
    waiting_stop(worker->waiting, now + STOP_ASK);
}

/* Reports the current numbers to the metrics. */
static void worker_set_gauges(struct worker *worker)
{
    const struct metrics_gauges gauges = {
        .waiting = waiting_parked(worker->waiting),
        .waiting_limit = worker_park_limit(worker),
        .connections = connections_count(worker->connections),
        .database_up = !lookup_away(worker->lookup),
    };

    metrics_set_gauges(worker->metrics, &gauges);
}

static usec_t worker_next_due(const struct worker *worker, usec_t now)
{
    usec_t due = usec_min(worker->stop_due, connections_due(worker->connections));

    due = usec_min(due, lookup_due(worker->lookup));
    due = usec_min(due, waiting_expire_due(worker->waiting));
    if (lookup_ready(worker->lookup))
        due = usec_min(due, waiting_due(worker->waiting, now));
    return due;
}

static int worker_sleep_time(usec_t due, usec_t now)
{
    if (due == USEC_NEVER)
        return -1;
    if (due <= now)
        return 0;
    /* Rounded up: waking up too early would be a turn for nothing. */
    return (int)usec_min((due - now + USEC_PER_MS - 1) / USEC_PER_MS, 1000 * 1000);
}

/* Lets signals in that epoll_pwait() has not: while something is always ready it never sleeps, and
 * a worker under such a load would not notice that it is to stop. */
static void worker_admit_signals(const sigset_t *unblocked)
{
    sigset_t blocked;

    sigprocmask(SIG_SETMASK, unblocked, &blocked);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
}

/* One turn of the loop; false if it cannot go on. The order matters. Clients come first, so that
 * new requests are in the next batch and clients that left are not. Then the database's answers,
 * so that an answer that came together with a deadline counts. Then deadlines. Last the next
 * question, which is about everything known by then. */
static bool worker_turn(struct worker *worker, const sigset_t *unblocked)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    usec_t now = clock_now();
    int timeout = worker_sleep_time(worker_next_due(worker, now), now);
    int count = epoll_pwait(worker->epoll_fd, events, EVENTS_AT_ONCE, timeout, unblocked);
    bool incoming = false, announced = false;

    now = clock_now();
    /* A signal came, perhaps that which lets a stopped process go on: events come before time. */
    if (count < 0 && errno == EINTR)
        count = epoll_wait(worker->epoll_fd, events, EVENTS_AT_ONCE, 0);
    if (count < 0 && errno != EINTR) {
        log_error("epoll_pwait: %s", strerror(errno));
        return false;
    }
    if (count > 0)
        worker_admit_signals(unblocked);
    for (int i = 0; i < count; i++) {
        if (!events[i].data.ptr)
            incoming = true;
        else if (events[i].data.ptr == worker->lookup)
            announced = true;
        else
            worker_handle_connection(worker, events[i].data.ptr, now);
    }
    if (incoming && !worker_is_stopping(worker))
        worker_accept(worker, ACCEPT_AT_ONCE, now); /* epoll announces the rest again */
    connections_expire(worker->connections, now);
    worker_handle_lookup(worker, lookup_step(worker->lookup, announced, now), now);
    waiting_expire(worker->waiting, now);
    worker_take_outcomes(worker, now);
    if (worker_stop_asked)
        worker_begin_stopping(worker, now);
    worker_ask_database(worker, now);
    worker_set_gauges(worker);
    return true;
}

static bool worker_is_done(const struct worker *worker)
{
    return worker_is_stopping(worker) &&
           (connections_count(worker->connections) == 0 || clock_now() >= worker->stop_due);
}

/* Answers all requests that are still open after STOP_GRACE: the database has not answered. */
static void worker_abandon(struct worker *worker)
{
    usec_t now = clock_now();

    waiting_failed(worker->waiting);
    waiting_stop(worker->waiting, now);
    waiting_expire(worker->waiting, now);
    worker_take_outcomes(worker, now);
}

static void worker_enter_sandbox(const struct options *options)
{
    struct sandbox sandbox;
    char text[SANDBOX_TEXT_SIZE];

    if (options->no_sandbox)
        return;
    sandbox = sandbox_enter(options);
    sandbox_print(&sandbox, text);
    log_debug("%s", text);
}

static bool worker_open(struct worker *worker)
{
    const struct options *options = worker->options;

    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->waiting =
        waiting_new(options->poll_interval_ms * USEC_PER_MS, options->db_timeout_ms * USEC_PER_MS);
    worker->lookup = lookup_new(worker->epoll_fd, options->database, options->instance_schema,
        options->db_timeout_ms * USEC_PER_MS);
    worker->failure = reply_make(REPLY_DATABASE_FAILED, NULL, false, &worker->failure_length);
    if (worker->epoll_fd < 0 || !worker->waiting || !worker->lookup || !worker->failure) {
        log_error("cannot start: %s", strerror(errno));
        return false;
    }
    worker->connections = connections_open(worker->epoll_fd, worker->listen_fd);
    return worker->connections;
}

static void worker_close(struct worker *worker)
{
    if (worker->connections) {
        worker_abandon(worker);
        connections_close(worker->connections);
    }
    if (worker->waiting)
        waiting_free(worker->waiting);
    if (worker->lookup)
        lookup_free(worker->lookup);
    if (worker->epoll_fd >= 0)
        close(worker->epoll_fd);
    free(worker->failure);
    free(worker);
}

static const int worker_stop_signals[] = {SIGTERM, SIGINT, SIGQUIT, SIGUSR1};
#define STOP_SIGNALS (sizeof worker_stop_signals / sizeof worker_stop_signals[0])

void worker_block_signals(void)
{
    sigset_t blocked;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGHUP);
    for (size_t i = 0; i < STOP_SIGNALS; i++)
        sigaddset(&blocked, worker_stop_signals[i]);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
}

/* Stop signals come through only in worker_turn(). Returns the mask for that time. */
static sigset_t worker_catch_signals(void)
{
    struct sigaction action = {.sa_handler = worker_on_stop}, old;
    sigset_t unblocked;

    worker_block_signals();
    /* A worker has nothing to do at SIGHUP: the pool replaces it. */
    signal(SIGHUP, SIG_IGN);
    sigemptyset(&action.sa_mask);
    sigprocmask(SIG_BLOCK, NULL, &unblocked);
    for (size_t i = 0; i < STOP_SIGNALS; i++) {
        sigdelset(&unblocked, worker_stop_signals[i]);
        if (sigaction(worker_stop_signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(worker_stop_signals[i], &action, NULL);
    }
    return unblocked;
}

int worker_run(const struct options *options, int listen_fd, struct metrics *metrics)
{
    struct worker *worker = calloc(1, sizeof *worker);
    bool ok;

    if (!worker) {
        log_error("out of memory");
        return EXIT_FAILURE;
    }
    worker->options = options;
    worker->metrics = metrics;
    worker->listen_fd = listen_fd;
    worker->stop_due = USEC_NEVER;
    ok = worker_open(worker);
    if (ok) {
        /* After libfcgi, which has installed handlers of its own. */
        sigset_t unblocked = worker_catch_signals();

        worker_enter_sandbox(options);
        while (ok && !worker_is_done(worker))
            ok = worker_turn(worker, &unblocked);
    }
    worker_close(worker);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
