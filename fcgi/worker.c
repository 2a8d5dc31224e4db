/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clock.h"
#include "connection.h"
#include "log.h"
#include "lookup.h"
#include "query.h"
#include "reply.h"
#include "waiting.h"

#define EVENTS_AT_ONCE 256
#define ACCEPT_AT_ONCE 64
/* A request that waits on a busy database is looked after so often. */
#define RECHECK (100 * USEC_PER_MS)
/* How long open requests have to end after SIGTERM. */
#define STOP_GRACE (1500 * USEC_PER_MS)

/* A request that needs the database. */
struct request {
    struct waiter waiter; /* first: a waiter is a request */
    struct connection *connection;
    bool head; /* HEAD: no body, no waiting */
};

struct worker {
    const struct options *options;
    int epoll_fd;
    struct acceptor *acceptor;
    struct lookup *lookup;
    struct waiting *waiting;
    struct watch *batch[LOOKUP_BATCH_MAX]; /* the one under way */
    size_t batch_count;
    bool batch_fresh; /* it asks for everything, not only for payment */
    usec_t batch_sent;
    usec_t stop_due; /* when to be gone; USEC_NEVER: not stopping */
    char space[QUERY_SPACE];
};

/* Set by the signal handler, which runs only while the loop sleeps. */
static volatile sig_atomic_t stop_asked;

static void on_stop(int signal)
{
    (void)signal;
    stop_asked = 1;
}

static bool is_stopping(const struct worker *worker)
{
    return worker->stop_due != USEC_NEVER;
}

static void reply(
    struct connection *connection, enum reply_kind kind, const char *text, bool head, usec_t now)
{
    size_t length;
    char *bytes = reply_make(kind, text, head, &length);

    if (bytes)
        connection_reply(connection, bytes, length, now);
    else
        connection_close(connection, "out of memory");
    free(bytes);
}

/* Ends a request that waits: it leaves its place and its connection is free to be answered. */
static struct connection *end_request(struct worker *worker, struct request *request)
{
    struct connection *connection = request->connection;

    waiting_remove(worker->waiting, &request->waiter);
    connection_set_owner(connection, NULL);
    free(request);
    return connection;
}

static void answer(struct worker *worker, struct waiter *waiter, enum reply_kind kind,
    const char *text, usec_t now)
{
    struct request *request = (struct request *)waiter;
    bool head = request->head;

    reply(end_request(worker, request), kind, text, head, now);
}

static enum reply_kind kind_of(enum session_status status)
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
    }
    return REPLY_DATABASE_FAILED;
}

/* Answers with what the last lookup of everything has found. */
static void answer_known(struct worker *worker, struct waiter *waiter, usec_t now)
{
    const struct watch *watch = waiter->watch;
    char *order_id = watch->order_id ? strdup(watch->order_id) : NULL;

    answer(worker, waiter, kind_of(watch->known), order_id, now);
    free(order_id);
}

/* How long a request wants to wait, within what is granted. */
static usec_t granted_wait(const struct worker *worker, const struct query *query, bool head)
{
    int64_t wait = query->timeout_ms;

    if (head || is_stopping(worker))
        return 0;
    if (wait > worker->options->max_wait_ms)
        wait = worker->options->max_wait_ms;
    return wait * USEC_PER_MS;
}

static void add_request(struct worker *worker, struct connection *connection,
    const struct query *query, bool head, usec_t now)
{
    struct request *request = calloc(1, sizeof *request);
    usec_t patience = worker->options->db_timeout_ms * USEC_PER_MS;

    if (!request || !waiting_add(worker->waiting, &request->waiter, &query->key,
                        now + granted_wait(worker, query, head), now + patience)) {
        free(request);
        reply(connection, REPLY_DATABASE_FAILED, NULL, head, now);
        return;
    }
    request->connection = connection;
    request->head = head;
    connection_set_owner(connection, request);
    /* Nobody knows how long this takes. */
    if (lookup_away(worker->lookup))
        connection_park(connection);
    else
        connection_wait(connection);
}

static void begin_request(struct worker *worker, struct connection *connection, usec_t now)
{
    struct query_source source = {
        .method = connection_param(connection, "REQUEST_METHOD"),
        .request_uri = connection_param(connection, "REQUEST_URI"),
        .script_name = connection_param(connection, "SCRIPT_NAME"),
        .path_info = connection_param(connection, "PATH_INFO"),
        .query_string = connection_param(connection, "QUERY_STRING"),
    };
    bool head = source.method && strcmp(source.method, "HEAD") == 0;
    struct query query;

    switch (query_read(&source, worker->space, &query)) {
    case QUERY_LOOKUP:
        add_request(worker, connection, &query, head, now);
        break;
    case QUERY_OPTIONS:
        reply(connection, REPLY_OPTIONS, NULL, head, now);
        break;
    case QUERY_ENDPOINT_UNKNOWN:
        reply(connection, REPLY_ENDPOINT_UNKNOWN, NULL, head, now);
        break;
    case QUERY_METHOD_INVALID:
        reply(connection, REPLY_METHOD_INVALID, NULL, head, now);
        break;
    case QUERY_PARAMETER_MISSING:
        reply(connection, REPLY_PARAMETER_MISSING, query.parameter, head, now);
        break;
    case QUERY_PARAMETER_MALFORMED:
        reply(connection, REPLY_PARAMETER_MALFORMED, query.parameter, head, now);
        break;
    }
}

static void handle_connection(struct worker *worker, struct connection *connection, usec_t now)
{
    switch (connection_read(connection, now)) {
    case CONNECTION_NOTHING:
        break;
    case CONNECTION_REQUEST:
        begin_request(worker, connection, now);
        break;
    case CONNECTION_REFUSE:
        reply(connection, REPLY_DATABASE_FAILED, NULL, false, now);
        break;
    case CONNECTION_GONE:
        end_request(worker, connection_owner(connection));
        connection_close(connection, connection_trouble(connection));
        break;
    }
}

/* Accepts what waits, up to a bound: epoll announces the rest again. */
static void accept_connections(struct worker *worker, usec_t now)
{
    for (int i = 0; i < ACCEPT_AT_ONCE; i++) {
        struct connection *connection = acceptor_accept(worker->acceptor, now);

        if (!connection)
            return;
        handle_connection(worker, connection, now);
    }
}

static void answer_all(
    struct worker *worker, struct waiter_list *list, const struct lookup_answer *found, usec_t now)
{
    while (!TAILQ_EMPTY(list))
        answer(worker, TAILQ_FIRST(list), kind_of(found->status), found->order_id, now);
}

/* Polling has found that it is paid. Which order it is takes another lookup. */
static void ask_all_parked(struct worker *worker, struct watch *watch)
{
    while (!TAILQ_EMPTY(&watch->parked)) {
        struct waiter *waiter = TAILQ_FIRST(&watch->parked);

        waiting_ask(worker->waiting, waiter, waiter->deadline);
    }
}

/* Those that were asked about and are not paid: parked while they have time, else answered. */
static void answer_or_park(
    struct worker *worker, struct watch *watch, const struct lookup_answer *found, usec_t now)
{
    struct waiter *waiter, *next;

    for (waiter = TAILQ_FIRST(&watch->asking); waiter; waiter = next) {
        size_t parked = waiting_parked(worker->waiting);
        bool room = parked < (size_t)worker->options->max_waiting &&
                    parked < acceptor_park_limit(worker->acceptor);

        next = TAILQ_NEXT(waiter, link);
        if (waiter->state != WAITER_ASKED)
            continue;
        if (!room || waiter->deadline <= now || is_stopping(worker) ||
            found->status == SESSION_NO_INSTANCE ||
            !connection_park(((struct request *)waiter)->connection))
            answer(worker, waiter, kind_of(found->status), found->order_id, now);
        else
            waiting_park(worker->waiting, waiter);
    }
}

/* The batch is over for this watch. When stopping, those who were parked meanwhile go with it. */
static void give_back(struct worker *worker, struct watch *watch, usec_t now)
{
    while (is_stopping(worker) && !TAILQ_EMPTY(&watch->parked))
        answer_known(worker, TAILQ_FIRST(&watch->parked), now);
    waiting_settle(worker->waiting, watch, now);
}

static void settle_watch(
    struct worker *worker, struct watch *watch, const struct lookup_answer *found, usec_t now)
{
    bool paid = found->status == SESSION_PAID;

    if (!worker->batch_fresh) {
        if (paid)
            ask_all_parked(worker, watch);
    } else if (paid) {
        answer_all(worker, &watch->asking, found, now);
        answer_all(worker, &watch->parked, found, now);
    } else {
        waiting_learn(watch, found->status, found->order_id);
        answer_or_park(worker, watch, found, now);
    }
    give_back(worker, watch, now);
}

static void settle_batch(struct worker *worker, usec_t now)
{
    if (!worker->batch_fresh)
        waiting_charge(worker->waiting, now - worker->batch_sent, now);
    for (size_t i = 0; i < worker->batch_count; i++) {
        struct lookup_answer found = lookup_answer(worker->lookup, i);

        settle_watch(worker, worker->batch[i], &found, now);
    }
    worker->batch_count = 0;
}

static void return_batch(struct worker *worker, usec_t now)
{
    for (size_t i = 0; i < worker->batch_count; i++)
        give_back(worker, worker->batch[i], now);
    worker->batch_count = 0;
}

static void handle_lookup(struct worker *worker, enum lookup_event event, usec_t now)
{
    switch (event) {
    case LOOKUP_NOTHING:
        break;
    case LOOKUP_ANSWERED:
        settle_batch(worker, now);
        break;
    case LOOKUP_FAILED:
        return_batch(worker, now);
        break;
    }
}

static void send_batch(struct worker *worker, usec_t now)
{
    const struct session_key *keys[LOOKUP_BATCH_MAX];
    enum lookup_kind kind;

    if (!lookup_ready(worker->lookup, now))
        return;
    worker->batch_count =
        waiting_take(worker->waiting, worker->batch, LOOKUP_BATCH_MAX, &worker->batch_fresh, now);
    if (worker->batch_count == 0)
        return;
    for (size_t i = 0; i < worker->batch_count; i++)
        keys[i] = &worker->batch[i]->key;
    kind = worker->batch_fresh ? LOOKUP_EVERYTHING : LOOKUP_PAYMENT;
    worker->batch_sent = now;
    handle_lookup(worker, lookup_send(worker->lookup, kind, keys, worker->batch_count, now), now);
}

/* Looks after the requests whose alarm is due: a parked one's deadline, or the end of the patience
 * with a database that is away. */
static void handle_alarms(struct worker *worker, usec_t now)
{
    bool away = lookup_away(worker->lookup);
    struct waiter *waiter;

    while ((waiter = waiting_alarm(worker->waiting, now))) {
        if (away)
            answer(worker, waiter, REPLY_DATABASE_FAILED, NULL, now);
        else if (waiter->state == WAITER_PARKED)
            waiting_ask(worker->waiting, waiter, now + RECHECK);
        else
            waiting_set_alarm(worker->waiting, waiter, now + RECHECK);
    }
}

static void begin_stopping(struct worker *worker, usec_t now)
{
    struct waiter *waiter;

    if (is_stopping(worker))
        return;
    log_debug("stopping with %zu connections open", acceptor_count(worker->acceptor));
    worker->stop_due = now + STOP_GRACE;
    acceptor_stop(worker->acceptor);
    accept_connections(worker, now);
    while ((waiter = waiting_any_parked(worker->waiting)))
        answer_known(worker, waiter, now);
}

static usec_t next_due(const struct worker *worker, usec_t now)
{
    usec_t due = usec_min(worker->stop_due, acceptor_due(worker->acceptor));

    due = usec_min(due, lookup_due(worker->lookup));
    due = usec_min(due, waiting_alarm_due(worker->waiting));
    if (lookup_ready(worker->lookup, now))
        due = usec_min(due, waiting_take_due(worker->waiting));
    return due;
}

static int sleep_until(usec_t due, usec_t now)
{
    if (due == USEC_NEVER)
        return -1;
    if (due <= now)
        return 0;
    /* Rounded up: to wake up too early would be to turn in circles. */
    return (int)usec_min((due - now + USEC_PER_MS - 1) / USEC_PER_MS, 1000 * 1000);
}

/* One turn of the loop; false if it can't go on. */
static bool turn(struct worker *worker, const sigset_t *unblocked)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    usec_t now = clock_now();
    int timeout = sleep_until(next_due(worker, now), now);
    int count = epoll_pwait(worker->epoll_fd, events, EVENTS_AT_ONCE, timeout, unblocked);
    bool incoming = false, announced = false;

    now = clock_now();
    if (count < 0 && errno != EINTR) {
        log_error("epoll_pwait: %s", strerror(errno));
        return false;
    }
    for (int i = 0; i < count; i++) {
        if (!events[i].data.ptr)
            incoming = true;
        else if (events[i].data.ptr == worker->lookup)
            announced = true;
        else
            handle_connection(worker, events[i].data.ptr, now);
    }
    if (incoming && !is_stopping(worker))
        accept_connections(worker, now);
    acceptor_expire(worker->acceptor, now);
    handle_lookup(worker, lookup_step(worker->lookup, announced, now), now);
    handle_alarms(worker, now);
    if (stop_asked)
        begin_stopping(worker, now);
    send_batch(worker, now);
    return true;
}

static bool is_done(const struct worker *worker)
{
    return is_stopping(worker) &&
           (acceptor_count(worker->acceptor) == 0 || clock_now() >= worker->stop_due);
}

/* What is still open when the time is up has no answer from the database. */
static void abandon(struct worker *worker)
{
    struct waiter *waiter;
    usec_t now = clock_now();

    while ((waiter = waiting_alarm(worker->waiting, USEC_NEVER)))
        answer(worker, waiter, REPLY_DATABASE_FAILED, NULL, now);
    return_batch(worker, now);
}

static bool open_worker(struct worker *worker, int listen_fd)
{
    const struct options *options = worker->options;

    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->waiting = waiting_new(options->poll_interval_ms * USEC_PER_MS);
    worker->lookup =
        lookup_new(worker->epoll_fd, options->database, options->db_timeout_ms * USEC_PER_MS);
    if (worker->epoll_fd < 0 || !worker->waiting || !worker->lookup) {
        log_error("cannot start: %s", strerror(errno));
        return false;
    }
    worker->acceptor = acceptor_open(worker->epoll_fd, listen_fd);
    return worker->acceptor;
}

static void close_worker(struct worker *worker)
{
    if (worker->acceptor) {
        abandon(worker);
        acceptor_close(worker->acceptor);
    }
    if (worker->waiting)
        waiting_free(worker->waiting);
    if (worker->lookup)
        lookup_free(worker->lookup);
    if (worker->epoll_fd >= 0)
        close(worker->epoll_fd);
    free(worker);
}

/* Stop signals come through only while the loop sleeps. Returns the mask for that time. */
static sigset_t catch_signals(void)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction action = {.sa_handler = on_stop}, old;
    sigset_t blocked, unblocked;

    sigemptyset(&action.sa_mask);
    sigemptyset(&blocked);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        sigaddset(&blocked, signals[i]);
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    }
    sigprocmask(SIG_BLOCK, &blocked, &unblocked);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        sigdelset(&unblocked, signals[i]);
    return unblocked;
}

int worker_run(const struct options *options, int listen_fd)
{
    struct worker *worker = calloc(1, sizeof *worker);
    bool ok;

    if (!worker) {
        log_error("out of memory");
        return EXIT_FAILURE;
    }
    worker->options = options;
    worker->stop_due = USEC_NEVER;
    ok = open_worker(worker, listen_fd);
    if (ok) {
        /* After libfcgi, which has installed handlers of its own. */
        sigset_t unblocked = catch_signals();

        while (ok && !is_done(worker))
            ok = turn(worker, &unblocked);
    }
    close_worker(worker);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
