/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "connection.h"

#include <errno.h>
#include <fastcgi.h>
#include <fcgiapp.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"
#include "record.h"
#include "state.h"

/* Pause after a failed accept(), and the age at which the known limit on descriptors is read
 * again. */
#define ACCEPT_PAUSE USEC_PER_SEC
/* How workers share connections that the peers keep. A worker that has accepted leaves the
 * listening socket to the others for SHARE_PAUSE. In a burst it accepts one connection more at
 * once after each SHARE_GROWTH pauses, up to SHARE_MOST, so that a thousand connections do not
 * take a thousand pauses. The bound keeps the worker that has accepted most from accepting ever
 * more. */
#define SHARE_PAUSE  USEC_PER_MS
#define SHARE_GROWTH 16
#define SHARE_MOST   4
/* Minimum interval of log lines about a shortage of descriptors or memory. */
#define COMPLAINT_INTERVAL (10 * USEC_PER_SEC)
/* Descriptors that are not for connections: the log, epoll, the database (two while a connection
 * is replaced), the resolver. */
#define RESERVED_DESCRIPTORS 24
/* The time in which a request has to arrive while others want its descriptor. */
#define SHORT_ARRIVAL (250 * USEC_PER_MS)
/* Connections that are reserved for requests that do not wait: a part of all, and at least this
 * number. */
#define UNPARKED_PART  8
#define UNPARKED_LEAST 8
/* Limits for keeping libfcgi's buffers while a request waits for a batch: the length of the
 * request's records, and the number of such requests. A batch holds no more requests than that. */
#define WARM_LENGTH   4096
#define WARM_REQUESTS 256
/* Memory that libfcgi allocates for a request: buffers of 8192, 8192 and 512 bytes for its
 * streams, and a table of 30 pointers; 13 blocks in all, and one more for each parameter.
 * Rounded up for malloc's own overhead. */
#define LIBFCGI_REQUEST   ((size_t)20 * 1024)
#define LIBFCGI_PARAMETER ((size_t)64)

/* A request is open in DECODED and SHED. Any state ends by connection_close(). */
enum connection_state {
    CONNECTION_STATE_READING, /* a request, or its rest, is expected; closed after
                                 CONNECTION_ARRIVAL */
    CONNECTION_STATE_IDLE,    /* between two requests; closed when descriptors run short */
    CONNECTION_STATE_DECODED, /* a request is to be answered, and libfcgi's buffers are there */
    CONNECTION_STATE_SHED,    /* a request is to be answered, and libfcgi's buffers are not there */
};

#define CONNECTION_STATE_COUNT (CONNECTION_STATE_SHED + 1)

#define CONNECTION_NO_REQUEST \
    (STATE_SET(CONNECTION_STATE_READING) | STATE_SET(CONNECTION_STATE_IDLE))
#define CONNECTION_REQUEST (STATE_SET(CONNECTION_STATE_DECODED) | STATE_SET(CONNECTION_STATE_SHED))

static const unsigned connection_sources[CONNECTION_STATE_COUNT] = {
    /* accepted; records have arrived, or the request was answered and the next one has begun */
    [CONNECTION_STATE_READING] = CONNECTION_NO_REQUEST | CONNECTION_REQUEST,
    /* answered, or a management record was */
    [CONNECTION_STATE_IDLE] = CONNECTION_NO_REQUEST | CONNECTION_REQUEST,
    /* the request is complete */
    [CONNECTION_STATE_DECODED] = CONNECTION_NO_REQUEST,
    /* the answer comes later; or there is no memory to decode the request, which is refused */
    [CONNECTION_STATE_SHED] = STATE_SET(CONNECTION_STATE_DECODED) | CONNECTION_NO_REQUEST,
};

enum connection_watch {
    CONNECTION_WATCH_OFF,         /* epoll does not have the descriptor */
    CONNECTION_WATCH_ON,          /* epoll announces what comes, and that the peer leaves */
    CONNECTION_WATCH_HALF_CLOSED, /* nothing more can come; epoll announces that the peer leaves */
};

enum accept_state {
    ACCEPT_LISTENING, /* epoll has the listening socket */
    ACCEPT_SHARING,   /* removed from epoll: the next connections are for the other workers */
    ACCEPT_FULL,      /* removed from epoll: there is no descriptor for one more connection */
    ACCEPT_STOPPED,   /* removed from epoll for good */
};

static const unsigned accept_sources[] = {
    /* the pause is over, or there is a descriptor again */
    [ACCEPT_LISTENING] = STATE_SET(ACCEPT_SHARING) | STATE_SET(ACCEPT_FULL),
    /* connections were accepted in this turn */
    [ACCEPT_SHARING] = STATE_SET(ACCEPT_LISTENING),
    /* accept() failed, or the last descriptor was taken */
    [ACCEPT_FULL] = STATE_SET(ACCEPT_LISTENING) | STATE_SET(ACCEPT_SHARING),
    [ACCEPT_STOPPED] =
        STATE_SET(ACCEPT_LISTENING) | STATE_SET(ACCEPT_SHARING) | STATE_SET(ACCEPT_FULL),
};

struct connection {
    struct connections *connections;
    TAILQ_ENTRY(connection) link; /* in the list of its state */
    enum connection_state state;
    enum connection_watch watch;
    int fd;
    usec_t since;        /* in CONNECTION_STATE_READING: when its time began */
    bool spared;         /* in CONNECTION_STATE_READING: its time has begun again once */
    bool served;         /* at least one request has been answered */
    const char *trouble; /* why the open request cannot be answered; NULL: it can */
    struct record_reader reader;
    size_t decoded; /* the length of the records that libfcgi has decoded */
    FCGX_Request
        request; /* libfcgi's request; its output stream exists in CONNECTION_STATE_DECODED */
    void *owner;
};

TAILQ_HEAD(connection_list, connection);

struct connections {
    int epoll_fd, listen_fd;
    bool local; /* the listening socket is a Unix socket */
    /* libfcgi reads checked requests from this file: it can never block there, and later bytes
     * of the peer stay in the socket. -1: it has to be opened again. */
    int request_file;
    usec_t now; /* the caller's time in the last call */
    enum accept_state state;
    usec_t retry;     /* when ACCEPT_SHARING or ACCEPT_FULL ends, or is looked at again */
    size_t accepted;  /* connections accepted since connections_expire() */
    size_t burst;     /* number of recent turns in which connections were accepted */
    bool peers_keep;  /* the last request came with FCGI_KEEP_CONN */
    size_t limit;     /* limit of open connections, as last known */
    usec_t limit_due; /* when to read the limit again */
    size_t count;     /* in all lists */
    size_t counts[CONNECTION_STATE_COUNT];
    struct connection_list lists[CONNECTION_STATE_COUNT]; /* by state; the connection that is in it
                                                             for longest is first */
    usec_t complaint_due; /* earliest time of the next log line about a shortage */
    unsigned char buffer[64 * 1024];
};

/* Limits the log to one line an interval, however many requests meet the same shortage. */
static bool connections_may_complain(struct connections *connections)
{
    if (connections->now < connections->complaint_due)
        return false;
    connections->complaint_due = connections->now + COMPLAINT_INTERVAL;
    return true;
}

/* The limit of connections that follows from a limit on descriptors. */
static size_t connections_limit(rlim_t descriptors)
{
    return descriptors <= 2 * RESERVED_DESCRIPTORS ? RESERVED_DESCRIPTORS
                                                   : (size_t)descriptors - RESERVED_DESCRIPTORS;
}

static size_t connections_read_limit(void)
{
    struct rlimit limit;

    return connections_limit(getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0);
}

static bool connections_watch(struct connections *connections)
{
    /* Exclusive: a new connection wakes up one worker, not all. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = NULL};

    return epoll_ctl(connections->epoll_fd, EPOLL_CTL_ADD, connections->listen_fd, &event) == 0;
}

static void connections_unwatch(struct connections *connections)
{
    epoll_ctl(connections->epoll_fd, EPOLL_CTL_DEL, connections->listen_fd, NULL);
}

/* All transitions of accept_state. Adds the listening socket to epoll and removes it. */
static void connections_set_accept_state(struct connections *connections, enum accept_state state)
{
    if (connections->state == state || connections->state == ACCEPT_STOPPED)
        return;
    state_check(accept_sources, connections->state, state);
    if (connections->state == ACCEPT_LISTENING)
        connections_unwatch(connections);
    connections->state = state;
    switch (state) {
    case ACCEPT_LISTENING:
        if (connections_watch(connections))
            break;
        log_error("cannot watch the listening socket: %s; trying again in 1 s", strerror(errno));
        connections->state = ACCEPT_FULL;
        connections->retry = connections->now + ACCEPT_PAUSE;
        break;
    case ACCEPT_SHARING:
        connections->retry = connections->now + SHARE_PAUSE;
        break;
    case ACCEPT_FULL:
        connections->retry = connections->now + ACCEPT_PAUSE;
        break;
    case ACCEPT_STOPPED:
        break;
    }
}

/* Begins or stops accepting: there is room below the limit, or where an idle connection can be
 * closed. */
static void connections_check_room(struct connections *connections)
{
    bool room =
        connections->count < connections->limit || connections->counts[CONNECTION_STATE_IDLE] > 0;

    if (!room && connections->state == ACCEPT_LISTENING && connections_may_complain(connections))
        log_warning("no descriptors for more connections (%zu connections open): accepting again "
                    "when one closes",
            connections->count);
    if (!room)
        connections_set_accept_state(connections, ACCEPT_FULL);
    else if (connections->state == ACCEPT_FULL)
        connections_set_accept_state(connections, ACCEPT_LISTENING);
}

static void connection_enter(struct connection *connection, enum connection_state state)
{
    struct connections *connections = connection->connections;

    connection->state = state;
    TAILQ_INSERT_TAIL(&connections->lists[state], connection, link);
    connections->counts[state]++;
    connections->count++;
}

static void connection_leave(struct connection *connection)
{
    struct connections *connections = connection->connections;

    TAILQ_REMOVE(&connections->lists[connection->state], connection, link);
    connections->counts[connection->state]--;
    connections->count--;
}

/* All transitions of connection_state. */
static void connection_set_state(struct connection *connection, enum connection_state state)
{
    state_check(connection_sources, connection->state, state);
    connection_leave(connection);
    connection_enter(connection, state);
    connections_check_room(connection->connections);
}

static bool connections_open_file(struct connections *connections)
{
    if (connections->request_file < 0)
        connections->request_file = memfd_create("request", MFD_CLOEXEC);
    return connections->request_file >= 0;
}

static bool connections_prepare_listener(struct connections *connections)
{
    int flags = fcntl(connections->listen_fd, F_GETFL), domain;
    socklen_t length = sizeof domain;

    if (getsockopt(connections->listen_fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0)
        return false;
    connections->local = domain == AF_UNIX;
    return flags >= 0 && fcntl(connections->listen_fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

struct connections *connections_open(int epoll_fd, int listen_fd)
{
    struct connections *connections = calloc(1, sizeof *connections);

    if (!connections) {
        log_error("out of memory");
        return NULL;
    }
    connections->epoll_fd = epoll_fd;
    connections->listen_fd = listen_fd;
    connections->request_file = -1;
    connections->state = ACCEPT_LISTENING;
    connections->limit = connections_read_limit();
    connections->peers_keep =
        true; /* until the first request: nginx keeps connections with the files in conf/ */
    for (size_t i = 0; i < CONNECTION_STATE_COUNT; i++)
        TAILQ_INIT(&connections->lists[i]);
    if (FCGX_Init() == 0 && connections_open_file(connections) &&
        connections_prepare_listener(connections) && connections_watch(connections))
        return connections;
    log_error("cannot serve the listening socket: %s", strerror(errno));
    connections_close(connections);
    return NULL;
}

static struct connection *connections_add(struct connections *connections, int fd, usec_t now)
{
    struct connection *connection = calloc(1, sizeof *connection);

    if (!connection) {
        close(fd);
        if (connections_may_complain(connections))
            log_warning("out of memory: a connection is refused (%zu connections open)",
                connections->count);
        return NULL;
    }
    connection->connections = connections;
    connection->fd = fd;
    connection->since = now;
    connections->accepted++;
    connection_enter(connection, CONNECTION_STATE_READING);
    connections_check_room(connections);
    return connection;
}

/* Whether something has arrived that has not been read. */
static bool connection_has_input(const struct connection *connection)
{
    char byte;

    return recv(connection->fd, &byte, 1, MSG_PEEK) > 0;
}

/* Closes up to max idle connections, the longest idle first, except those on which something has
 * arrived. Returns how many were closed. */
static size_t connections_close_idle(
    struct connections *connections, size_t max, const char *reason)
{
    struct connection *connection, *next;
    size_t closed = 0;

    for (connection = TAILQ_FIRST(&connections->lists[CONNECTION_STATE_IDLE]);
         connection && closed < max; connection = next) {
        next = TAILQ_NEXT(connection, link);
        if (connection_has_input(connection))
            continue;
        connection_close(connection, reason);
        closed++;
    }
    return closed;
}

static int connections_accept_fd(struct connections *connections)
{
    int fd = accept4(connections->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;

    /* Detects that the peer's machine is gone, so that its descriptor is freed. */
    if (fd >= 0 && !connections->local)
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    return fd;
}

static bool connections_lacks_descriptors(int error)
{
    return error == EMFILE || error == ENFILE;
}

/* Handles a failed accept(). EMFILE and ENFILE overrule the limit that was read. */
static void connections_handle_accept_error(struct connections *connections, int error)
{
    /* EINVAL: after listener_refuse(), when nothing waits any more. */
    if (error == EAGAIN || error == EINTR || error == ECONNABORTED || error == EINVAL)
        return;
    if (connections_lacks_descriptors(error)) {
        connections->limit = connections->count;
        connections->limit_due = connections->now + ACCEPT_PAUSE;
    }
    if (connections_may_complain(connections))
        log_warning("cannot accept: %s (%zu connections open); trying again in 1 s",
            strerror(error), connections->count);
    connections_set_accept_state(connections, ACCEPT_FULL);
}

/* Limit of the connections that this worker accepts before it leaves the next ones to the
 * others. */
static size_t connections_share_of_burst(const struct connections *connections)
{
    size_t share = 1 + connections->burst / SHARE_GROWTH;

    return share < SHARE_MOST ? share : SHARE_MOST;
}

/* Whether this worker may accept one more connection in this turn. */
static bool connections_may_accept(const struct connections *connections)
{
    switch (connections->state) {
    case ACCEPT_LISTENING:
        return !connections->peers_keep ||
               connections->accepted < connections_share_of_burst(connections);
    case ACCEPT_STOPPED:
        return true;
    case ACCEPT_SHARING:
    case ACCEPT_FULL:
        break;
    }
    return false;
}

struct connection *connections_accept(struct connections *connections, usec_t now)
{
    static const char reason[] = "idle, and its descriptor is needed";
    int fd;

    connections->now = now;
    if (!connections_may_accept(connections))
        return NULL;
    if (connections->count >= connections->limit &&
        connections_close_idle(connections, 1, reason) == 0)
        return NULL;
    fd = connections_accept_fd(connections);
    if (fd < 0 && connections_lacks_descriptors(errno) &&
        connections_close_idle(connections, 1, reason))
        fd = connections_accept_fd(connections);
    if (fd >= 0)
        return connections_add(connections, fd, now);
    connections_handle_accept_error(connections, errno);
    return NULL;
}

/* When the time of the first connection in CONNECTION_STATE_READING ends. */
static usec_t connections_arrival_due(const struct connections *connections)
{
    const struct connection *first = TAILQ_FIRST(&connections->lists[CONNECTION_STATE_READING]);
    usec_t time = connections->state == ACCEPT_FULL ? SHORT_ARRIVAL : CONNECTION_ARRIVAL;

    return first ? first->since + time : USEC_NEVER;
}

usec_t connections_due(const struct connections *connections)
{
    usec_t due = connections_arrival_due(connections);

    if (connections->state == ACCEPT_SHARING || connections->state == ACCEPT_FULL)
        due = usec_min(due, connections->retry);
    return due;
}

/* Reads the limit again: the operator may have changed it, or a failed accept() has lowered
 * ours. */
static void connections_refresh_limit(struct connections *connections)
{
    bool retry = connections->state == ACCEPT_FULL && connections->now >= connections->retry;

    if (connections->now < connections->limit_due && !retry)
        return;
    connections->limit = connections_read_limit();
    connections->limit_due = connections->now + ACCEPT_PAUSE;
    if (connections->state == ACCEPT_FULL)
        connections->retry = connections->limit_due;
    connections_check_room(connections);
}

/* Leaves the next connections to the other workers. EPOLLEXCLUSIVE wakes the first worker in the
 * queue of the listening socket, which would always be the same one; a worker that adds the
 * socket again goes to the end of the queue. That suffices while connections come one by one, or
 * are not kept. Where they are kept, an unequal share lasts, and in a burst a worker that is
 * awake already would take most of them. */
static void connections_share(struct connections *connections)
{
    if (connections->state == ACCEPT_SHARING && connections->now >= connections->retry) {
        connections_set_accept_state(connections, ACCEPT_LISTENING);
    } else if (connections->state == ACCEPT_LISTENING) {
        connections->burst =
            connections->accepted > 0 ? connections->burst + 1 : connections->burst / 2;
        if (connections->accepted > 0)
            connections_set_accept_state(connections, ACCEPT_SHARING);
        if (!connections->peers_keep)
            connections_set_accept_state(connections, ACCEPT_LISTENING);
    }
    connections->accepted = 0;
}

/* Closes a connection whose request has not arrived in time. If this process did not run for a
 * while, what the peer has sent is still to be read: its time begins again, but only once, as some
 * peers never end. */
static void connection_expire(struct connection *connection, usec_t now)
{
    if (connection->spared || !connection_has_input(connection)) {
        connection_close(connection, "its request has not arrived in time");
        return;
    }
    connection_set_state(connection, CONNECTION_STATE_READING);
    connection->since = now;
    connection->spared = true;
}

void connections_expire(struct connections *connections, usec_t now)
{
    connections->now = now;
    while (connections_arrival_due(connections) <= now)
        connection_expire(TAILQ_FIRST(&connections->lists[CONNECTION_STATE_READING]), now);
    connections_refresh_limit(connections);
    connections_share(connections);
}

void connections_stop(struct connections *connections)
{
    connections_set_accept_state(connections, ACCEPT_STOPPED);
    connections_close_idle(connections, SIZE_MAX, "stopping");
}

size_t connections_count(const struct connections *connections)
{
    return connections->count;
}

/* How many of this number of connections may be parked. */
static size_t connections_parkable_of(size_t count)
{
    size_t unparked = count / UNPARKED_PART;

    if (unparked < UNPARKED_LEAST)
        unparked = UNPARKED_LEAST;
    return count > unparked ? count - unparked : 0;
}

size_t connections_park_limit(const struct connections *connections)
{
    return connections_parkable_of(connections->limit);
}

size_t connections_parkable(rlim_t descriptors)
{
    return connections_parkable_of(connections_limit(descriptors));
}

void connections_close(struct connections *connections)
{
    connections_set_accept_state(connections, ACCEPT_STOPPED);
    for (size_t i = 0; i < CONNECTION_STATE_COUNT; i++)
        while (!TAILQ_EMPTY(&connections->lists[i]))
            connection_close(TAILQ_FIRST(&connections->lists[i]), "stopping");
    if (connections->request_file >= 0)
        close(connections->request_file);
    free(connections);
}

static void connections_complain_of_memory(struct connections *connections)
{
    if (connections_may_complain(connections))
        log_warning(
            "out of memory: requests are refused (%zu connections open)", connections->count);
}

/* Whether there is memory for libfcgi to decode and answer a request of this length. libfcgi
 * aborts the process if there is not. */
static bool connections_has_memory(struct connections *connections, size_t length)
{
    /* volatile: the compiler may remove an allocation whose result is not used. */
    void *volatile block = malloc(LIBFCGI_REQUEST + RECORD_WANTED_MAX * LIBFCGI_PARAMETER + length);
    bool has = block;

    free(block);
    if (!has)
        connections_complain_of_memory(connections);
    return has;
}

/* Writes the request to the file that libfcgi reads. */
static bool connections_write_request(
    struct connections *connections, const struct record_request *request)
{
    const int parts = sizeof request->parts / sizeof request->parts[0];

    errno = EFBIG; /* the reason of a short write */
    if (connections_open_file(connections) &&
        pwritev(connections->request_file, request->parts, parts, 0) == (ssize_t)request->length &&
        lseek(connections->request_file, 0, SEEK_SET) == 0)
        return true;
    if (connections_may_complain(connections))
        log_warning(
            "requests are refused: %s (%zu connections open)", strerror(errno), connections->count);
    return false;
}

/* Lets libfcgi decode the complete request. False, with a line in the log now and then, if there is
 * no memory for it, or no room in the file. */
static bool connection_decode(struct connection *connection)
{
    struct connections *connections = connection->connections;
    FCGX_Request *request = &connection->request;
    struct record_request bytes;

    if (record_has_lost_params(&connection->reader)) {
        connections_complain_of_memory(connections);
        return false;
    }
    record_request(&connection->reader, &bytes);
    if (!connections_has_memory(connections, bytes.length) ||
        !connections_write_request(connections, &bytes))
        return false;
    FCGX_InitRequest(request, -1, 0);
    request->ipcFd = connections->request_file;
    request->keepConnection = 1; /* else libfcgi closes the file before it reads it */
    if (FCGX_Accept_r(request) != 0) {
        /* Not expected. libfcgi has closed the file. */
        connections->request_file = -1;
        return false;
    }
    connection->decoded = bytes.length;
    request->ipcFd = connection->fd;
    /* Keep only what the answer needs; the next request reuses the memory while it is in the
     * cache. */
    FCGX_FreeStream(&request->in);
    FCGX_FClose(request->err);
    FCGX_FreeStream(&request->err);
    return true;
}

/* Frees what libfcgi holds of the request. */
static void connection_free_request(struct connection *connection)
{
    FCGX_Free(&connection->request, 0);
    connection->request.envp = NULL;
}

/* Sends a small record of our own. A socket without room for it belongs to a peer that does not
 * read. */
static bool connection_send(const struct connection *connection, const void *bytes, size_t length)
{
    return send(connection->fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static bool connection_send_end(const struct connection *connection, uint8_t protocol_status)
{
    unsigned char record[16];

    record_end_request(connection->reader.event_id, protocol_status, record);
    return connection_send(connection, record, sizeof record);
}

static bool connection_send_management(struct connection *connection)
{
    unsigned char reply[RECORD_REPLY_MAX];
    size_t length = record_management_reply(&connection->reader, reply);

    return connection_send(connection, reply, length);
}

/* Handles one event of the record reader. Returns NULL if the connection can go on, else the
 * reason why not. */
static const char *connection_handle_record(struct connection *connection, enum record_event event)
{
    switch (event) {
    case RECORD_EVENT_MORE:
    case RECORD_EVENT_REQUEST:
        return NULL;
    case RECORD_EVENT_MANAGEMENT:
        return connection_send_management(connection) ? NULL : "peer does not read";
    case RECORD_EVENT_SECOND:
        return connection_send_end(connection, FCGI_CANT_MPX_CONN) ? NULL : "peer does not read";
    case RECORD_EVENT_UNKNOWN_ROLE:
        connection_send_end(connection, FCGI_UNKNOWN_ROLE);
        return "unknown role";
    case RECORD_EVENT_ABORT:
        connection_send_end(connection, FCGI_REQUEST_COMPLETE);
        return "aborted by the peer";
    case RECORD_EVENT_NO_MEMORY:
        return "out of memory";
    case RECORD_EVENT_BROKEN:
        break;
    }
    return "not a FastCGI request within the bounds";
}

/* Reads all records in the buffer. Returns NULL if the connection can go on, else the reason why
 * not. */
static const char *connection_read_records(struct connection *connection, size_t length)
{
    const unsigned char *at = connection->connections->buffer;
    const char *trouble = NULL;

    while (length > 0 && !trouble) {
        size_t used;

        trouble = connection_handle_record(
            connection, record_read(&connection->reader, at, length, &used));
        at += used;
        length -= used;
    }
    return trouble;
}

/* All transitions of connection_watch. A connection that is answered and closed at once never
 * needs epoll. */
static bool connection_set_watch(struct connection *connection, enum connection_watch watch)
{
    struct epoll_event event = {.data.ptr = connection};
    int operation = connection->watch == CONNECTION_WATCH_OFF ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

    if (connection->watch == watch || connection->watch == CONNECTION_WATCH_HALF_CLOSED)
        return true;
    /* epoll announces EPOLLHUP and EPOLLERR in any case. */
    event.events = watch == CONNECTION_WATCH_ON ? EPOLLIN | EPOLLRDHUP : 0;
    if (epoll_ctl(connection->connections->epoll_fd, operation, connection->fd, &event) != 0)
        return false;
    connection->watch = watch;
    return true;
}

static bool connection_has_request(const struct connection *connection)
{
    return connection->state == CONNECTION_STATE_DECODED ||
           connection->state == CONNECTION_STATE_SHED;
}

/* Ends a connection that cannot go on. If the caller knows of an open request, it has to end
 * that first. */
static enum connection_event connection_drop(struct connection *connection, const char *reason)
{
    if (connection_has_request(connection)) {
        connection->trouble = reason;
        return CONNECTION_EVENT_GONE;
    }
    connection_close(connection, reason);
    return CONNECTION_EVENT_NOTHING;
}

/* Decodes a complete request, and opens it. */
static enum connection_event connection_begin_request(struct connection *connection)
{
    bool decoded = connection_decode(connection);

    record_forget(&connection->reader);
    connection->connections->peers_keep = connection->reader.keep;
    connection_set_state(connection, decoded ? CONNECTION_STATE_DECODED : CONNECTION_STATE_SHED);
    return decoded ? CONNECTION_EVENT_REQUEST : CONNECTION_EVENT_REFUSE;
}

/* Waits for the peer's next bytes while no request is open. Before its first answer a connection
 * is not idle: it owes a request, as in the middle of a record. Its time does not begin again with
 * each byte: a peer that drips must not hold a descriptor for long. */
static bool connection_await(struct connection *connection, usec_t now)
{
    bool idle = connection->served && record_is_between(&connection->reader);

    if (idle || connection->state != CONNECTION_STATE_READING) {
        connection_set_state(connection, idle ? CONNECTION_STATE_IDLE : CONNECTION_STATE_READING);
        connection->since = now;
        connection->spared = false;
    }
    return connection_set_watch(connection, CONNECTION_WATCH_ON);
}

/* Whether the peer has closed only its sending side. Only Unix sockets tell this from closing
 * both. */
static bool connection_is_half_closed(const struct connection *connection)
{
    struct pollfd peer = {.fd = connection->fd};

    return connection->connections->local && connection_has_request(connection) &&
           poll(&peer, 1, 0) == 0;
}

/* recv() has returned nothing. */
static enum connection_event connection_read_end(struct connection *connection)
{
    if (connection_is_half_closed(connection) &&
        connection_set_watch(connection, CONNECTION_WATCH_HALF_CLOSED))
        return CONNECTION_EVENT_NOTHING;
    return connection_drop(connection, "closed by the peer");
}

/* recv() has failed. */
static enum connection_event connection_read_error(struct connection *connection, int error)
{
    if (error != EAGAIN && error != EINTR)
        return connection_drop(connection, strerrordesc_np(error));
    if (connection_set_watch(connection, CONNECTION_WATCH_ON))
        return CONNECTION_EVENT_NOTHING;
    return connection_drop(connection, "cannot be watched");
}

enum connection_event connection_read(struct connection *connection, usec_t now)
{
    struct connections *connections = connection->connections;
    ssize_t length = recv(connection->fd, connections->buffer, sizeof connections->buffer, 0);
    const char *trouble;

    connections->now = now;
    if (length < 0)
        return connection_read_error(connection, errno);
    if (length == 0)
        return connection_read_end(connection);
    trouble = connection_read_records(connection, (size_t)length);
    if (trouble)
        return connection_drop(connection, trouble);
    if (connection_has_request(connection))
        return CONNECTION_EVENT_NOTHING;
    if (connection->reader.phase == RECORD_PHASE_WHOLE)
        return connection_begin_request(connection);
    if (connection_await(connection, now))
        return CONNECTION_EVENT_NOTHING;
    return connection_drop(connection, "cannot be watched");
}

const char *connection_trouble(const struct connection *connection)
{
    return connection->trouble;
}

const char *connection_param(const struct connection *connection, const char *name)
{
    size_t length = strlen(name);

    /* The same as FCGX_GetParam(); comparing the first letter first saves most calls of
     * strncmp(). */
    for (char **param = connection->request.envp; param && *param; param++)
        if ((*param)[0] == name[0] && strncmp(*param, name, length) == 0 && (*param)[length] == '=')
            return *param + length + 1;
    return NULL;
}

void connection_wait(struct connection *connection)
{
    if (connection->connections->counts[CONNECTION_STATE_DECODED] > WARM_REQUESTS ||
        connection->decoded > WARM_LENGTH)
        connection_shed(connection);
}

bool connection_shed(struct connection *connection)
{
    if (connection->state == CONNECTION_STATE_DECODED) {
        connection_free_request(connection);
        connection_set_state(connection, CONNECTION_STATE_SHED);
    }
    return connection_set_watch(connection, CONNECTION_WATCH_ON);
}

static bool connection_send_reply(struct connection *connection, const char *bytes, size_t length)
{
    FCGX_Request *request = &connection->request;

    /* Closing the last stream sends FCGI_END_REQUEST. */
    return FCGX_PutStr(bytes, (int)length, request->out) >= 0 && FCGX_FClose(request->out) == 0;
}

/* Answers in records of our own: for lack of the memory that libfcgi needs to do it. */
static bool connection_send_bare(
    const struct connection *connection, const char *bytes, size_t length)
{
    unsigned char head[8], tail[24];

    record_answer(&connection->reader, length, head, tail);
    return length <= RECORD_CONTENT_MAX && connection_send(connection, head, sizeof head) &&
           connection_send(connection, bytes, length) &&
           connection_send(connection, tail, sizeof tail);
}

/* Whether another request may come after the one that has been answered. */
static bool connection_may_go_on(const struct connection *connection)
{
    return connection->reader.keep && connection->watch != CONNECTION_WATCH_HALF_CLOSED &&
           connection->connections->state != ACCEPT_STOPPED;
}

/* Frees a connection; nothing else does. */
static void connection_free(struct connection *connection)
{
    struct connections *connections = connection->connections;

    connection_free_request(connection);
    record_close(&connection->reader);
    connection_leave(connection);
    close(connection->fd);
    free(connection);
    connections_check_room(connections);
}

void connection_reply(struct connection *connection, const char *bytes, size_t length, usec_t now)
{
    bool decoded = connection->state == CONNECTION_STATE_DECODED || connection_decode(connection);
    bool sent = decoded ? connection_send_reply(connection, bytes, length)
                        : connection_send_bare(connection, bytes, length);
    const char *reason = sent ? NULL : "peer does not read";

    connection_free_request(connection);
    record_next(&connection->reader);
    connection->owner = NULL;
    connection->served = true;
    if (!reason && !connection_may_go_on(connection))
        reason = "answered";
    if (!reason && !connection_await(connection, now))
        reason = "cannot be watched";
    if (!reason)
        return;
    log_debug("connection %d: %s", connection->fd, reason);
    connection_free(connection);
}

void connection_close(struct connection *connection, const char *reason)
{
    log_debug("connection %d: %s%s", connection->fd, reason,
        connection_has_request(connection) ? ", while a request was open" : "");
    connection_free(connection);
}

void connection_set_owner(struct connection *connection, void *owner)
{
    connection->owner = owner;
}

void *connection_owner(const struct connection *connection)
{
    return connection->owner;
}
