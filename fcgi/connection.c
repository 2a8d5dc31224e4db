/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "connection.h"

#include <errno.h>
#include <fastcgi.h>
#include <fcgiapp.h>
#include <fcntl.h>
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

#define ACCEPT_PAUSE USEC_PER_SEC
/* Descriptors that connections leave to the rest: the log, the database (twice, while it is being
 * replaced, and what the resolver opens), epoll. */
#define RESERVED_DESCRIPTORS 24

enum connection_state {
    CONNECTION_READING, /* the peer owes us (the rest of) a request, and soon */
    CONNECTION_IDLE,    /* between two requests; may take as long as it likes */
    CONNECTION_OPEN,    /* we owe the peer an answer */
};

struct connection {
    struct acceptor *acceptor;
    TAILQ_ENTRY(connection) link; /* in one of the acceptor's lists, by state */
    enum connection_state state;
    int fd;
    bool watched; /* epoll has the descriptor */
    usec_t heard; /* when the peer last sent something */
    struct record_reader reader;
    FCGX_Request
        request; /* libfcgi's; its streams are there from decoding until shed or answered */
    void *owner;
};

TAILQ_HEAD(connection_list, connection);

struct acceptor {
    int epoll_fd, listen_fd;
    /* Checked requests are handed to libfcgi in this file: it reads them without ever blocking, and
     * whatever else the peer sends stays where it is. */
    int request_file;
    size_t count, limit;
    bool stopping;
    usec_t paused_until; /* 0: accepting */
    struct connection_list lists[CONNECTION_OPEN + 1];
    unsigned char buffer[64 * 1024];
};

static void set_state(struct connection *connection, enum connection_state state)
{
    TAILQ_REMOVE(&connection->acceptor->lists[connection->state], connection, link);
    connection->state = state;
    TAILQ_INSERT_TAIL(&connection->acceptor->lists[state], connection, link);
}

static bool watch_listener(struct acceptor *acceptor)
{
    /* Exclusive: one connection need not wake up every worker. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = NULL};

    return epoll_ctl(acceptor->epoll_fd, EPOLL_CTL_ADD, acceptor->listen_fd, &event) == 0;
}

static void unwatch_listener(struct acceptor *acceptor)
{
    epoll_ctl(acceptor->epoll_fd, EPOLL_CTL_DEL, acceptor->listen_fd, NULL);
}

static size_t connection_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur <= 2 * RESERVED_DESCRIPTORS)
        return RESERVED_DESCRIPTORS;
    return (size_t)limit.rlim_cur - RESERVED_DESCRIPTORS;
}

static bool open_request_file(struct acceptor *acceptor)
{
    acceptor->request_file = memfd_create("request", MFD_CLOEXEC);
    return acceptor->request_file >= 0;
}

static bool set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

struct acceptor *acceptor_open(int epoll_fd, int listen_fd)
{
    struct acceptor *acceptor = calloc(1, sizeof *acceptor);

    if (!acceptor) {
        log_error("out of memory");
        return NULL;
    }
    acceptor->epoll_fd = epoll_fd;
    acceptor->listen_fd = listen_fd;
    acceptor->request_file = -1;
    acceptor->limit = connection_limit();
    for (size_t i = 0; i < sizeof acceptor->lists / sizeof acceptor->lists[0]; i++)
        TAILQ_INIT(&acceptor->lists[i]);
    if (FCGX_Init() == 0 && open_request_file(acceptor) && set_nonblocking(listen_fd) &&
        watch_listener(acceptor))
        return acceptor;
    log_error("cannot serve the listening socket: %s", strerror(errno));
    acceptor_close(acceptor);
    return NULL;
}

static void pause_accepting(struct acceptor *acceptor, usec_t now)
{
    log_warning(
        "%zu connections, and no descriptor for one more (%s): accepting pauses for a second",
        acceptor->count,
        acceptor->count < acceptor->limit ? strerror(errno) : "limit on open files");
    unwatch_listener(acceptor);
    acceptor->paused_until = now + ACCEPT_PAUSE;
}

static struct connection *add_connection(struct acceptor *acceptor, int fd, usec_t now)
{
    struct connection *connection = calloc(1, sizeof *connection);

    if (!connection) {
        close(fd);
        return NULL;
    }
    connection->acceptor = acceptor;
    connection->fd = fd;
    connection->heard = now;
    connection->state = CONNECTION_READING;
    TAILQ_INSERT_TAIL(&acceptor->lists[CONNECTION_READING], connection, link);
    acceptor->count++;
    return connection;
}

struct connection *acceptor_accept(struct acceptor *acceptor, usec_t now)
{
    bool room = acceptor->count < acceptor->limit;
    int fd = -1;

    if (acceptor->paused_until)
        return NULL;
    if (room)
        fd = accept4(acceptor->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0)
        return add_connection(acceptor, fd, now);
    /* ECONNABORTED: the peer has left already; epoll will announce the next one. */
    if (!room || (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED))
        pause_accepting(acceptor, now);
    return NULL;
}

usec_t acceptor_due(const struct acceptor *acceptor)
{
    const struct connection *first = TAILQ_FIRST(&acceptor->lists[CONNECTION_READING]);
    usec_t due = first ? first->heard + CONNECTION_SILENCE : USEC_NEVER;

    return acceptor->paused_until ? usec_min(due, acceptor->paused_until) : due;
}

void acceptor_expire(struct acceptor *acceptor, usec_t now)
{
    struct connection *first;

    while ((first = TAILQ_FIRST(&acceptor->lists[CONNECTION_READING])) &&
           first->heard + CONNECTION_SILENCE <= now)
        connection_close(first, "silent in mid-request");
    if (acceptor->paused_until == 0 || now < acceptor->paused_until)
        return;
    acceptor->paused_until = 0;
    if (!acceptor->stopping && !watch_listener(acceptor))
        log_error("cannot watch the listening socket: %s", strerror(errno));
}

void acceptor_stop(struct acceptor *acceptor)
{
    struct connection *connection, *next;
    char byte;

    acceptor->stopping = true;
    unwatch_listener(acceptor);
    for (connection = TAILQ_FIRST(&acceptor->lists[CONNECTION_IDLE]); connection;
         connection = next) {
        next = TAILQ_NEXT(connection, link);
        /* What has come in meanwhile is still answered. */
        if (recv(connection->fd, &byte, 1, MSG_PEEK) <= 0)
            connection_close(connection, "stopping");
    }
}

size_t acceptor_count(const struct acceptor *acceptor)
{
    return acceptor->count;
}

void acceptor_close(struct acceptor *acceptor)
{
    for (size_t i = 0; i < sizeof acceptor->lists / sizeof acceptor->lists[0]; i++)
        while (!TAILQ_EMPTY(&acceptor->lists[i]))
            connection_close(TAILQ_FIRST(&acceptor->lists[i]), "stopping");
    if (acceptor->request_file >= 0)
        close(acceptor->request_file);
    free(acceptor);
}

/* Lets libfcgi decode a request that has been checked. */
static bool decode(struct connection *connection, const unsigned char *bytes, size_t length)
{
    struct acceptor *acceptor = connection->acceptor;
    FCGX_Request *request = &connection->request;

    if (pwrite(acceptor->request_file, bytes, length, 0) != (ssize_t)length ||
        lseek(acceptor->request_file, 0, SEEK_SET) != 0)
        return false;
    FCGX_InitRequest(request, -1, 0);
    request->ipcFd = acceptor->request_file;
    request->keepConnection = 1; /* or libfcgi would close the file before it reads it */
    if (FCGX_Accept_r(request) != 0) {
        /* Not to be expected; it has closed the file, then. */
        return open_request_file(acceptor) && false;
    }
    request->ipcFd = connection->fd;
    /* Only what answering takes is kept, so that the next request finds this memory warm. */
    FCGX_FreeStream(&request->in);
    FCGX_FClose(request->err);
    FCGX_FreeStream(&request->err);
    return true;
}

/* Sends a record of our own, which is small: a peer that has no room for it isn't reading at all.
 */
static bool send_bytes(
    const struct connection *connection, const unsigned char *bytes, size_t length)
{
    return send(connection->fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static bool send_end_request(const struct connection *connection, uint8_t protocol_status)
{
    unsigned char record[16];

    record_end_request(connection->reader.event_id, protocol_status, record);
    return send_bytes(connection, record, sizeof record);
}

/* Acts upon one event of the reader. NULL if the connection can go on, else why it can't. */
static const char *handle(struct connection *connection, enum record_event event)
{
    unsigned char reply[RECORD_REPLY_MAX];
    size_t length;
    const unsigned char *request;

    switch (event) {
    case RECORD_MORE:
        return NULL;
    case RECORD_REQUEST:
        request = record_request(&connection->reader, &length);
        if (!decode(connection, request, length))
            return "request could not be decoded";
        record_forget(&connection->reader);
        return NULL;
    case RECORD_MANAGEMENT:
        length = record_management_reply(&connection->reader, reply);
        return send_bytes(connection, reply, length) ? NULL : "peer does not read";
    case RECORD_SECOND:
        return send_end_request(connection, FCGI_CANT_MPX_CONN) ? NULL : "peer does not read";
    case RECORD_UNKNOWN_ROLE:
        send_end_request(connection, FCGI_UNKNOWN_ROLE);
        return "unknown role";
    case RECORD_ABORT:
        return "aborted by the peer";
    case RECORD_BROKEN:
        break;
    }
    return "not a FastCGI request within the bounds";
}

/* Reads all records in these bytes. NULL if the connection can go on, else why it can't. */
static const char *read_records(struct connection *connection, size_t length)
{
    const unsigned char *at = connection->acceptor->buffer;
    const char *trouble = NULL;

    while (length > 0 && !trouble) {
        size_t used;

        trouble = handle(connection, record_read(&connection->reader, at, length, &used));
        at += used;
        length -= used;
    }
    return trouble;
}

/* Has epoll announce what comes, and that the peer leaves. A connection that is answered and closed
 * at once never needs it. */
static bool watch(struct connection *connection)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = connection};

    if (!connection->watched)
        connection->watched =
            epoll_ctl(connection->acceptor->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) == 0;
    return connection->watched;
}

static enum connection_event drop(struct connection *connection, const char *reason)
{
    if (connection->owner)
        return CONNECTION_GONE;
    connection_close(connection, reason);
    return CONNECTION_NOTHING;
}

/* Where the connection stands after all that has arrived was read. */
static enum connection_event advance(struct connection *connection)
{
    bool was_open = connection->state == CONNECTION_OPEN;

    if (connection->reader.phase == RECORD_PHASE_WHOLE) {
        set_state(connection, CONNECTION_OPEN);
        return was_open ? CONNECTION_NOTHING : CONNECTION_REQUEST;
    }
    set_state(
        connection, record_is_between(&connection->reader) ? CONNECTION_IDLE : CONNECTION_READING);
    return watch(connection) ? CONNECTION_NOTHING : drop(connection, "cannot be watched");
}

enum connection_event connection_read(struct connection *connection, usec_t now)
{
    struct acceptor *acceptor = connection->acceptor;
    ssize_t length = recv(connection->fd, acceptor->buffer, sizeof acceptor->buffer, 0);
    const char *trouble;

    if (length < 0 && (errno == EAGAIN || errno == EINTR))
        return watch(connection) ? CONNECTION_NOTHING : drop(connection, "cannot be watched");
    if (length <= 0)
        return drop(connection, "closed by the peer");
    connection->heard = now;
    trouble = read_records(connection, (size_t)length);
    return trouble ? drop(connection, trouble) : advance(connection);
}

const char *connection_param(const struct connection *connection, const char *name)
{
    return FCGX_GetParam(name, connection->request.envp);
}

static void shed(struct connection *connection)
{
    FCGX_Free(&connection->request, 0);
    connection->request.envp = NULL;
}

bool connection_park(struct connection *connection)
{
    shed(connection);
    return watch(connection);
}

/* What has been shed comes back, but for the parameters. */
static bool reopen(struct connection *connection)
{
    unsigned char bare[RECORD_BARE_REQUEST];

    if (connection->request.out)
        return true;
    record_bare_request(&connection->reader, bare);
    return decode(connection, bare, sizeof bare);
}

static bool send_reply(struct connection *connection, const char *bytes, size_t length)
{
    FCGX_Request *request = &connection->request;

    /* Closing the last stream sends FCGI_END_REQUEST. */
    return FCGX_PutStr(bytes, (int)length, request->out) >= 0 && FCGX_FClose(request->out) == 0;
}

void connection_reply(struct connection *connection, const char *bytes, size_t length, usec_t now)
{
    bool sent = reopen(connection) && send_reply(connection, bytes, length);

    shed(connection);
    record_next(&connection->reader);
    connection->owner = NULL;
    connection->heard = now;
    if (!sent)
        connection_close(connection, "peer does not read");
    else if (!connection->reader.keep || connection->acceptor->stopping)
        connection_close(connection, "answered");
    else if (watch(connection))
        set_state(connection, CONNECTION_IDLE);
    else
        connection_close(connection, "cannot be watched");
}

void connection_close(struct connection *connection, const char *reason)
{
    struct acceptor *acceptor = connection->acceptor;

    log_debug("connection %d: %s", connection->fd, reason);
    shed(connection);
    record_forget(&connection->reader);
    TAILQ_REMOVE(&acceptor->lists[connection->state], connection, link);
    close(connection->fd);
    free(connection);
    acceptor->count--;
}

void connection_set_owner(struct connection *connection, void *owner)
{
    connection->owner = owner;
}

void *connection_owner(const struct connection *connection)
{
    return connection->owner;
}
