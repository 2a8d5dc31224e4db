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

/* How long after a failed accept() it is tried again, and how old the limit on descriptors that we
 * know may be. */
#define ACCEPT_PAUSE USEC_PER_SEC
/* Where peers keep their connections, a worker that has accepted leaves the listening socket to the
 * other workers for SHARE_PAUSE. In a burst the number that it accepts at once grows by one after
 * each SHARE_GROWTH pauses, up to SHARE_MOST, so that a burst of a thousand connections does not
 * wait for long. Without that bound whoever has accepted most would accept ever more. */
#define SHARE_PAUSE  USEC_PER_MS
#define SHARE_GROWTH 16
#define SHARE_MOST   4
/* How often the log says that connections or memory run short. */
#define COMPLAINT_INTERVAL (10 * USEC_PER_SEC)
/* Descriptors that connections leave to the rest: the log, the database (twice, while it is being
 * replaced, and what the resolver opens), epoll. */
#define RESERVED_DESCRIPTORS 24
/* How long a peer may be silent in the middle of a request while others want its descriptor. */
#define SHORT_SILENCE (250 * USEC_PER_MS)
/* The part of the connections, and their least number, that is reserved for requests that do not
 * wait. */
#define UNPARKED_PART  8
#define UNPARKED_LEAST 8
/* Limits for keeping libfcgi's buffers while a request waits for a batch: the length of its
 * records, and the number of such requests. The next batch holds no more. */
#define WARM_LENGTH   4096
#define WARM_REQUESTS 256
/*
 * What libfcgi allocates for a request, in 13 blocks, without parameters: the buffers of its
 * streams (8192, 8192 and 512 bytes), their descriptions and a table of 30 pointers. A parameter is
 * a block more. All of it is rounded up, for what malloc adds to each.
 */
#define LIBFCGI_REQUEST   ((size_t)20 * 1024)
#define LIBFCGI_PARAMETER ((size_t)64)
/* Kept to be given up when memory is short: for an answer of 500 to a request that is refused. */
#define RESERVE_MEMORY ((size_t)32 * 1024)

enum connection_state {
    CONNECTION_READING, /* the peer owes us (the rest of) a request; is closed when it is silent */
    CONNECTION_IDLE,    /* between two requests; is closed when descriptors run short */
    CONNECTION_OPEN,    /* we owe the peer an answer, and libfcgi's buffers are there */
    CONNECTION_PARKED,  /* we owe the peer an answer, and libfcgi's buffers have been freed */
};

#define CONNECTION_STATES (CONNECTION_PARKED + 1)

enum connection_watch {
    CONNECTION_UNWATCHED,   /* epoll does not have the descriptor */
    CONNECTION_WATCHED,     /* epoll announces what comes, and that the peer leaves */
    CONNECTION_HALF_CLOSED, /* nothing more can come; epoll announces that the peer leaves */
};

enum acceptor_state {
    ACCEPTOR_LISTENING, /* epoll has the listening socket */
    ACCEPTOR_SHARING,   /* it does not: the next connections are for the other workers */
    ACCEPTOR_FULL,      /* it does not: there is no descriptor for one more connection */
    ACCEPTOR_STOPPED,   /* it does not, for good */
};

struct connection {
    struct acceptor *acceptor;
    TAILQ_ENTRY(connection) link; /* in one of the acceptor's lists, by state */
    enum connection_state state;
    enum connection_watch watch;
    int fd;
    usec_t heard;        /* when the peer last sent something, or was last answered */
    bool served;         /* it has had an answer */
    const char *trouble; /* why the open request cannot be answered; NULL: it can */
    struct record_reader reader;
    size_t decoded;       /* the length of the records that libfcgi has decoded */
    FCGX_Request request; /* libfcgi's; its output is there in CONNECTION_OPEN */
    void *owner;
};

TAILQ_HEAD(connection_list, connection);

struct acceptor {
    int epoll_fd, listen_fd;
    bool local; /* the listening socket is a Unix socket */
    /* Checked requests are handed to libfcgi in this file: it reads them without ever blocking, and
     * whatever else the peer sends stays where it is. -1: it has to be opened again. */
    int request_file;
    usec_t now; /* as we were told last */
    enum acceptor_state state;
    usec_t retry;     /* ACCEPTOR_SHARING and ACCEPTOR_FULL: when to look again */
    size_t accepted;  /* connections, since acceptor_expire() */
    size_t burst;     /* how often it has accepted some of late, and left the next ones */
    bool peers_keep;  /* the last request came with FCGI_KEEP_CONN */
    size_t limit;     /* connections that there may be, as far as we know */
    usec_t limit_due; /* when to read the limit again */
    size_t count;     /* in all lists */
    size_t counts[CONNECTION_STATES];
    struct connection_list lists[CONNECTION_STATES]; /* by state, the longest in it first */
    void *reserve;                                   /* RESERVE_MEMORY; NULL: it is in use */
    usec_t complaint_due;                            /* when the log may complain again */
    unsigned char buffer[64 * 1024];
};

/* The log must not grow with each request that meets the same shortage. */
static bool acceptor_may_complain(struct acceptor *acceptor)
{
    if (acceptor->now < acceptor->complaint_due)
        return false;
    acceptor->complaint_due = acceptor->now + COMPLAINT_INTERVAL;
    return true;
}

/* How many connections there may be with so many descriptors. */
static size_t acceptor_limit(rlim_t descriptors)
{
    return descriptors <= 2 * RESERVED_DESCRIPTORS ? RESERVED_DESCRIPTORS
                                                   : (size_t)descriptors - RESERVED_DESCRIPTORS;
}

static size_t acceptor_read_limit(void)
{
    struct rlimit limit;

    return acceptor_limit(getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0);
}

static bool acceptor_watch(struct acceptor *acceptor)
{
    /* Exclusive: one connection need not wake up every worker. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = NULL};

    return epoll_ctl(acceptor->epoll_fd, EPOLL_CTL_ADD, acceptor->listen_fd, &event) == 0;
}

static void acceptor_unwatch(struct acceptor *acceptor)
{
    epoll_ctl(acceptor->epoll_fd, EPOLL_CTL_DEL, acceptor->listen_fd, NULL);
}

/* The one place where accepting begins and ends. */
static void acceptor_set_state(struct acceptor *acceptor, enum acceptor_state state)
{
    if (acceptor->state == state || acceptor->state == ACCEPTOR_STOPPED)
        return;
    if (acceptor->state == ACCEPTOR_LISTENING)
        acceptor_unwatch(acceptor);
    acceptor->state = state;
    switch (state) {
    case ACCEPTOR_LISTENING:
        if (acceptor_watch(acceptor))
            break;
        log_error("cannot watch the listening socket: %s; trying again in 1 s", strerror(errno));
        acceptor->state = ACCEPTOR_FULL;
        acceptor->retry = acceptor->now + ACCEPT_PAUSE;
        break;
    case ACCEPTOR_SHARING:
        acceptor->retry = acceptor->now + SHARE_PAUSE;
        break;
    case ACCEPTOR_FULL:
        acceptor->retry = acceptor->now + ACCEPT_PAUSE;
        break;
    case ACCEPTOR_STOPPED:
        break;
    }
}

/* Accepts while a connection more can be had, if need be for one that is idle. */
static void acceptor_check_room(struct acceptor *acceptor)
{
    bool room = acceptor->count < acceptor->limit || acceptor->counts[CONNECTION_IDLE] > 0;

    if (!room && acceptor->state == ACCEPTOR_LISTENING && acceptor_may_complain(acceptor))
        log_warning("no descriptors for more connections (%zu connections open): accepting again "
                    "when one closes",
            acceptor->count);
    if (!room)
        acceptor_set_state(acceptor, ACCEPTOR_FULL);
    else if (acceptor->state == ACCEPTOR_FULL)
        acceptor_set_state(acceptor, ACCEPTOR_LISTENING);
}

static void connection_enter(struct connection *connection, enum connection_state state)
{
    struct acceptor *acceptor = connection->acceptor;

    connection->state = state;
    TAILQ_INSERT_TAIL(&acceptor->lists[state], connection, link);
    acceptor->counts[state]++;
    acceptor->count++;
}

static void connection_leave(struct connection *connection)
{
    struct acceptor *acceptor = connection->acceptor;

    TAILQ_REMOVE(&acceptor->lists[connection->state], connection, link);
    acceptor->counts[connection->state]--;
    acceptor->count--;
}

/* The one place where a connection changes its state. */
static void connection_set_state(struct connection *connection, enum connection_state state)
{
    connection_leave(connection);
    connection_enter(connection, state);
    acceptor_check_room(connection->acceptor);
}

static bool acceptor_open_file(struct acceptor *acceptor)
{
    if (acceptor->request_file < 0)
        acceptor->request_file = memfd_create("request", MFD_CLOEXEC);
    return acceptor->request_file >= 0;
}

/* False if the reserve is in use, and cannot be had again. */
static bool acceptor_fill_reserve(struct acceptor *acceptor)
{
    if (!acceptor->reserve)
        acceptor->reserve = malloc(RESERVE_MEMORY);
    return acceptor->reserve;
}

static void acceptor_give_reserve(struct acceptor *acceptor)
{
    free(acceptor->reserve);
    acceptor->reserve = NULL;
}

static bool acceptor_prepare_listener(struct acceptor *acceptor)
{
    int flags = fcntl(acceptor->listen_fd, F_GETFL), domain;
    socklen_t length = sizeof domain;

    if (getsockopt(acceptor->listen_fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0)
        return false;
    acceptor->local = domain == AF_UNIX;
    return flags >= 0 && fcntl(acceptor->listen_fd, F_SETFL, flags | O_NONBLOCK) == 0;
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
    acceptor->state = ACCEPTOR_LISTENING;
    acceptor->limit = acceptor_read_limit();
    acceptor->peers_keep = true; /* as nginx is configured in conf/, until we know better */
    for (size_t i = 0; i < CONNECTION_STATES; i++)
        TAILQ_INIT(&acceptor->lists[i]);
    if (acceptor_fill_reserve(acceptor) && FCGX_Init() == 0 && acceptor_open_file(acceptor) &&
        acceptor_prepare_listener(acceptor) && acceptor_watch(acceptor))
        return acceptor;
    log_error("cannot serve the listening socket: %s", strerror(errno));
    acceptor_close(acceptor);
    return NULL;
}

static struct connection *acceptor_add(struct acceptor *acceptor, int fd, usec_t now)
{
    struct connection *connection = calloc(1, sizeof *connection);

    if (!connection) {
        close(fd);
        if (acceptor_may_complain(acceptor))
            log_warning(
                "out of memory: a connection is refused (%zu connections open)", acceptor->count);
        return NULL;
    }
    connection->acceptor = acceptor;
    connection->fd = fd;
    connection->heard = now;
    acceptor->accepted++;
    connection_enter(connection, CONNECTION_READING);
    acceptor_check_room(acceptor);
    return connection;
}

/* Whether something has come in that has not been read. */
static bool connection_has_input(const struct connection *connection)
{
    char byte;

    return recv(connection->fd, &byte, 1, MSG_PEEK) > 0;
}

/* Closes the connections that are idle, at most max of them, the longest idle first; but not those
 * on which something has come in meanwhile. Returns how many. */
static size_t acceptor_close_idle(struct acceptor *acceptor, size_t max, const char *reason)
{
    struct connection *connection, *next;
    size_t closed = 0;

    for (connection = TAILQ_FIRST(&acceptor->lists[CONNECTION_IDLE]); connection && closed < max;
         connection = next) {
        next = TAILQ_NEXT(connection, link);
        if (connection_has_input(connection))
            continue;
        connection_close(connection, reason);
        closed++;
    }
    return closed;
}

static int acceptor_accept_fd(struct acceptor *acceptor)
{
    int fd = accept4(acceptor->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;

    /* A peer whose machine has gone must not hold its descriptor for ever. */
    if (fd >= 0 && !acceptor->local)
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    return fd;
}

static bool acceptor_lacks_descriptors(int error)
{
    return error == EMFILE || error == ENFILE;
}

/* accept() has failed. What it says of descriptors is truer than the limit. */
static void acceptor_fail(struct acceptor *acceptor, int error)
{
    /* EINVAL: after listener_refuse(), when nothing waits any more. */
    if (error == EAGAIN || error == EINTR || error == ECONNABORTED || error == EINVAL)
        return;
    if (acceptor_lacks_descriptors(error)) {
        acceptor->limit = acceptor->count;
        acceptor->limit_due = acceptor->now + ACCEPT_PAUSE;
    }
    if (acceptor_may_complain(acceptor))
        log_warning("cannot accept: %s (%zu connections open); trying again in 1 s",
            strerror(error), acceptor->count);
    acceptor_set_state(acceptor, ACCEPTOR_FULL);
}

/* How many connections this worker may accept before it leaves the next ones to the others. */
static size_t acceptor_share_of_burst(const struct acceptor *acceptor)
{
    size_t share = 1 + acceptor->burst / SHARE_GROWTH;

    return share < SHARE_MOST ? share : SHARE_MOST;
}

/* Whether this worker may accept one more connection in this turn. */
static bool acceptor_may_accept(const struct acceptor *acceptor)
{
    switch (acceptor->state) {
    case ACCEPTOR_LISTENING:
        return !acceptor->peers_keep || acceptor->accepted < acceptor_share_of_burst(acceptor);
    case ACCEPTOR_STOPPED:
        return true;
    case ACCEPTOR_SHARING:
    case ACCEPTOR_FULL:
        break;
    }
    return false;
}

struct connection *acceptor_accept(struct acceptor *acceptor, usec_t now)
{
    static const char reason[] = "idle, and its descriptor is needed";
    int fd;

    acceptor->now = now;
    if (!acceptor_may_accept(acceptor))
        return NULL;
    if (acceptor->count >= acceptor->limit && acceptor_close_idle(acceptor, 1, reason) == 0)
        return NULL;
    fd = acceptor_accept_fd(acceptor);
    if (fd < 0 && acceptor_lacks_descriptors(errno) && acceptor_close_idle(acceptor, 1, reason))
        fd = acceptor_accept_fd(acceptor);
    if (fd >= 0)
        return acceptor_add(acceptor, fd, now);
    acceptor_fail(acceptor, errno);
    return NULL;
}

/* When the peer that has been silent in mid-request for longest has been silent for too long. */
static usec_t acceptor_silence_due(const struct acceptor *acceptor)
{
    const struct connection *first = TAILQ_FIRST(&acceptor->lists[CONNECTION_READING]);
    usec_t silence = acceptor->state == ACCEPTOR_FULL ? SHORT_SILENCE : CONNECTION_SILENCE;

    return first ? first->heard + silence : USEC_NEVER;
}

usec_t acceptor_due(const struct acceptor *acceptor)
{
    usec_t due = acceptor_silence_due(acceptor);

    if (acceptor->state == ACCEPTOR_SHARING || acceptor->state == ACCEPTOR_FULL)
        due = usec_min(due, acceptor->retry);
    return due;
}

/* The limit may have been changed, or assumed too low after a failed accept(). */
static void acceptor_refresh_limit(struct acceptor *acceptor)
{
    bool retry = acceptor->state == ACCEPTOR_FULL && acceptor->now >= acceptor->retry;

    if (acceptor->now < acceptor->limit_due && !retry)
        return;
    acceptor->limit = acceptor_read_limit();
    acceptor->limit_due = acceptor->now + ACCEPT_PAUSE;
    if (acceptor->state == ACCEPTOR_FULL)
        acceptor->retry = acceptor->limit_due;
    acceptor_check_room(acceptor);
}

/*
 * Lets the other workers have the next connections. EPOLLEXCLUSIVE wakes the first sleeper in the
 * queue of the listening socket, which would be the same worker each time; whoever is added to the
 * queue goes to its end. That suffices while connections come one by one, or are not kept. Where
 * they are kept, the share in a burst matters for long, and a worker that is awake already would
 * take most of it.
 */
static void acceptor_share(struct acceptor *acceptor)
{
    if (acceptor->state == ACCEPTOR_SHARING && acceptor->now >= acceptor->retry) {
        acceptor_set_state(acceptor, ACCEPTOR_LISTENING);
    } else if (acceptor->state == ACCEPTOR_LISTENING) {
        acceptor->burst = acceptor->accepted > 0 ? acceptor->burst + 1 : acceptor->burst / 2;
        if (acceptor->accepted > 0)
            acceptor_set_state(acceptor, ACCEPTOR_SHARING);
        if (!acceptor->peers_keep)
            acceptor_set_state(acceptor, ACCEPTOR_LISTENING);
    }
    acceptor->accepted = 0;
}

/* A peer has been silent in mid-request for too long, as far as is known: if this process did not
 * run for a while, what the peer has sent is still to be read. */
static void connection_expire(struct connection *connection, usec_t now)
{
    if (!connection_has_input(connection)) {
        connection_close(connection, "silent in mid-request");
        return;
    }
    connection->heard = now;
    connection_set_state(connection, CONNECTION_READING);
}

void acceptor_expire(struct acceptor *acceptor, usec_t now)
{
    acceptor->now = now;
    while (acceptor_silence_due(acceptor) <= now)
        connection_expire(TAILQ_FIRST(&acceptor->lists[CONNECTION_READING]), now);
    acceptor_refresh_limit(acceptor);
    acceptor_share(acceptor);
}

void acceptor_stop(struct acceptor *acceptor)
{
    acceptor_set_state(acceptor, ACCEPTOR_STOPPED);
    acceptor_close_idle(acceptor, SIZE_MAX, "stopping");
}

size_t acceptor_count(const struct acceptor *acceptor)
{
    return acceptor->count;
}

/* How many of so many connections may be parked. */
static size_t acceptor_parkable_of(size_t connections)
{
    size_t unparked = connections / UNPARKED_PART;

    if (unparked < UNPARKED_LEAST)
        unparked = UNPARKED_LEAST;
    return connections > unparked ? connections - unparked : 0;
}

size_t acceptor_park_limit(const struct acceptor *acceptor)
{
    return acceptor_parkable_of(acceptor->limit);
}

size_t acceptor_parkable(rlim_t descriptors)
{
    return acceptor_parkable_of(acceptor_limit(descriptors));
}

void acceptor_close(struct acceptor *acceptor)
{
    acceptor_set_state(acceptor, ACCEPTOR_STOPPED);
    for (size_t i = 0; i < CONNECTION_STATES; i++)
        while (!TAILQ_EMPTY(&acceptor->lists[i]))
            connection_close(TAILQ_FIRST(&acceptor->lists[i]), "stopping");
    if (acceptor->request_file >= 0)
        close(acceptor->request_file);
    free(acceptor->reserve);
    free(acceptor);
}

/* Whether libfcgi can have the memory that it takes to decode and answer a request of this length.
 * It would abort the process if it could not. */
static bool acceptor_has_memory(struct acceptor *acceptor, size_t length)
{
    /* volatile: a compiler may leave out an allocation that is not used. */
    void *volatile block = malloc(LIBFCGI_REQUEST + RECORD_WANTED_MAX * LIBFCGI_PARAMETER + length);
    bool has = block;

    free(block);
    if (!has && acceptor_may_complain(acceptor))
        log_warning("out of memory: requests are refused (%zu connections open)", acceptor->count);
    return has;
}

/* Writes the request where libfcgi reads it. */
static bool acceptor_write_request(struct acceptor *acceptor, const struct record_request *request)
{
    const int parts = sizeof request->parts / sizeof request->parts[0];

    return acceptor_open_file(acceptor) &&
           pwritev(acceptor->request_file, request->parts, parts, 0) == (ssize_t)request->length &&
           lseek(acceptor->request_file, 0, SEEK_SET) == 0;
}

/* Lets libfcgi decode the request that is complete. False if there is no memory for it. */
static bool connection_decode(struct connection *connection)
{
    struct acceptor *acceptor = connection->acceptor;
    FCGX_Request *request = &connection->request;
    struct record_request bytes;

    record_request(&connection->reader, &bytes);
    if (!acceptor_has_memory(acceptor, bytes.length) || !acceptor_write_request(acceptor, &bytes))
        return false;
    FCGX_InitRequest(request, -1, 0);
    request->ipcFd = acceptor->request_file;
    request->keepConnection = 1; /* or libfcgi would close the file before it reads it */
    if (FCGX_Accept_r(request) != 0) {
        /* Not to be expected; it has closed the file, then. */
        acceptor->request_file = -1;
        return false;
    }
    connection->decoded = bytes.length;
    request->ipcFd = connection->fd;
    /* Only what answering takes is kept, so that the next request finds this memory warm. */
    FCGX_FreeStream(&request->in);
    FCGX_FClose(request->err);
    FCGX_FreeStream(&request->err);
    return true;
}

/* The same, without the parameters, and if need be with the memory that is held in reserve: all
 * that it takes to answer it. */
static bool connection_decode_bare(struct connection *connection)
{
    record_forget(&connection->reader);
    if (connection_decode(connection))
        return true;
    acceptor_give_reserve(connection->acceptor);
    return connection_decode(connection);
}

/* Frees what libfcgi holds of the request. */
static void connection_shed(struct connection *connection)
{
    FCGX_Free(&connection->request, 0);
    connection->request.envp = NULL;
    acceptor_fill_reserve(connection->acceptor);
}

/* Sends a record of our own, which is small: a peer that has no room for it isn't reading at all.
 */
static bool connection_send(
    const struct connection *connection, const unsigned char *bytes, size_t length)
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

/* Acts upon one event of the reader. NULL if the connection can go on, else why it can't. */
static const char *connection_act(struct connection *connection, enum record_event event)
{
    switch (event) {
    case RECORD_MORE:
    case RECORD_REQUEST:
        return NULL;
    case RECORD_MANAGEMENT:
        return connection_send_management(connection) ? NULL : "peer does not read";
    case RECORD_SECOND:
        return connection_send_end(connection, FCGI_CANT_MPX_CONN) ? NULL : "peer does not read";
    case RECORD_UNKNOWN_ROLE:
        connection_send_end(connection, FCGI_UNKNOWN_ROLE);
        return "unknown role";
    case RECORD_ABORT:
        connection_send_end(connection, FCGI_REQUEST_COMPLETE);
        return "aborted by the peer";
    case RECORD_NO_MEMORY:
        return "out of memory";
    case RECORD_BROKEN:
        break;
    }
    return "not a FastCGI request within the bounds";
}

/* Reads all records in these bytes. NULL if the connection can go on, else why it can't. */
static const char *connection_read_records(struct connection *connection, size_t length)
{
    const unsigned char *at = connection->acceptor->buffer;
    const char *trouble = NULL;

    while (length > 0 && !trouble) {
        size_t used;

        trouble = connection_act(connection, record_read(&connection->reader, at, length, &used));
        at += used;
        length -= used;
    }
    return trouble;
}

/* The one place where epoll is told what to announce. A connection that is answered and closed at
 * once never needs it. */
static bool connection_set_watch(struct connection *connection, enum connection_watch watch)
{
    struct epoll_event event = {.data.ptr = connection};
    int operation = connection->watch == CONNECTION_UNWATCHED ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

    if (connection->watch == watch || connection->watch == CONNECTION_HALF_CLOSED)
        return true;
    /* EPOLLHUP and EPOLLERR are announced in any case. */
    event.events = watch == CONNECTION_WATCHED ? EPOLLIN | EPOLLRDHUP : 0;
    if (epoll_ctl(connection->acceptor->epoll_fd, operation, connection->fd, &event) != 0)
        return false;
    connection->watch = watch;
    return true;
}

static bool connection_has_request(const struct connection *connection)
{
    return connection->state == CONNECTION_OPEN || connection->state == CONNECTION_PARKED;
}

/* The connection cannot go on. Who has been told of its request must be told of this first. */
static enum connection_event connection_drop(struct connection *connection, const char *reason)
{
    if (connection_has_request(connection)) {
        connection->trouble = reason;
        return CONNECTION_GONE;
    }
    connection_close(connection, reason);
    return CONNECTION_NOTHING;
}

/* A request has arrived as a whole. */
static enum connection_event connection_open(struct connection *connection)
{
    enum connection_event event = CONNECTION_REQUEST;

    if (!connection_decode(connection)) {
        event = CONNECTION_REFUSE;
        if (!connection_decode_bare(connection))
            return connection_drop(connection, "out of memory");
    }
    record_forget(&connection->reader);
    connection->acceptor->peers_keep = connection->reader.keep;
    connection_set_state(connection, CONNECTION_OPEN);
    return event;
}

/* No request is open: the peer is awaited. Before its first answer it is not idle but owes us a
 * request, as it does in the middle of a record. */
static bool connection_await(struct connection *connection, usec_t now)
{
    bool idle = connection->served && record_is_between(&connection->reader);

    connection->heard = now;
    connection_set_state(connection, idle ? CONNECTION_IDLE : CONNECTION_READING);
    return connection_set_watch(connection, CONNECTION_WATCHED);
}

/* The peer will send nothing more, but may still read. Unix sockets tell this from leaving. */
static bool connection_is_half_closed(const struct connection *connection)
{
    struct pollfd peer = {.fd = connection->fd};

    return connection->acceptor->local && connection_has_request(connection) &&
           poll(&peer, 1, 0) == 0;
}

/* recv() has returned nothing. */
static enum connection_event connection_read_end(struct connection *connection)
{
    if (connection_is_half_closed(connection) &&
        connection_set_watch(connection, CONNECTION_HALF_CLOSED))
        return CONNECTION_NOTHING;
    return connection_drop(connection, "closed by the peer");
}

/* recv() has failed. */
static enum connection_event connection_read_error(struct connection *connection, int error)
{
    if (error != EAGAIN && error != EINTR)
        return connection_drop(connection, strerrordesc_np(error));
    if (connection_set_watch(connection, CONNECTION_WATCHED))
        return CONNECTION_NOTHING;
    return connection_drop(connection, "cannot be watched");
}

enum connection_event connection_read(struct connection *connection, usec_t now)
{
    struct acceptor *acceptor = connection->acceptor;
    ssize_t length = recv(connection->fd, acceptor->buffer, sizeof acceptor->buffer, 0);
    const char *trouble;

    acceptor->now = now;
    if (length < 0)
        return connection_read_error(connection, errno);
    if (length == 0)
        return connection_read_end(connection);
    trouble = connection_read_records(connection, (size_t)length);
    if (trouble)
        return connection_drop(connection, trouble);
    if (connection_has_request(connection))
        return CONNECTION_NOTHING;
    if (connection->reader.phase == RECORD_PHASE_WHOLE)
        return connection_open(connection);
    if (connection_await(connection, now))
        return CONNECTION_NOTHING;
    return connection_drop(connection, "cannot be watched");
}

const char *connection_trouble(const struct connection *connection)
{
    return connection->trouble;
}

const char *connection_param(const struct connection *connection, const char *name)
{
    size_t length = strlen(name);

    /* As FCGX_GetParam() does it, but the first letter saves most of the comparisons. */
    for (char **param = connection->request.envp; param && *param; param++)
        if ((*param)[0] == name[0] && strncmp(*param, name, length) == 0 && (*param)[length] == '=')
            return *param + length + 1;
    return NULL;
}

void connection_wait(struct connection *connection)
{
    if (connection->acceptor->counts[CONNECTION_OPEN] > WARM_REQUESTS ||
        connection->decoded > WARM_LENGTH)
        connection_park(connection);
}

bool connection_park(struct connection *connection)
{
    if (connection->state == CONNECTION_OPEN) {
        connection_shed(connection);
        connection_set_state(connection, CONNECTION_PARKED);
    }
    return connection_set_watch(connection, CONNECTION_WATCHED);
}

static bool connection_send_reply(struct connection *connection, const char *bytes, size_t length)
{
    FCGX_Request *request = &connection->request;

    /* Closing the last stream sends FCGI_END_REQUEST. */
    return FCGX_PutStr(bytes, (int)length, request->out) >= 0 && FCGX_FClose(request->out) == 0;
}

/* Whether another request may come after the one that has been answered. */
static bool connection_may_go_on(const struct connection *connection)
{
    return connection->reader.keep && connection->watch != CONNECTION_HALF_CLOSED &&
           connection->acceptor->state != ACCEPTOR_STOPPED;
}

void connection_reply(struct connection *connection, const char *bytes, size_t length, usec_t now)
{
    const char *reason = NULL;

    if (connection->state == CONNECTION_PARKED && !connection_decode_bare(connection))
        reason = "out of memory";
    else if (!connection_send_reply(connection, bytes, length))
        reason = "peer does not read";
    connection_shed(connection);
    record_next(&connection->reader);
    connection->owner = NULL;
    connection->served = true;
    if (!reason && !connection_may_go_on(connection))
        reason = "answered";
    if (!reason && !connection_await(connection, now))
        reason = "cannot be watched";
    if (reason)
        connection_close(connection, reason);
}

void connection_close(struct connection *connection, const char *reason)
{
    struct acceptor *acceptor = connection->acceptor;

    log_debug("connection %d: %s%s", connection->fd, reason,
        connection_has_request(connection) ? ", while a request was open" : "");
    connection_shed(connection);
    record_close(&connection->reader);
    connection_leave(connection);
    close(connection->fd);
    free(connection);
    acceptor_check_room(acceptor);
}

void connection_set_owner(struct connection *connection, void *owner)
{
    connection->owner = owner;
}

void *connection_owner(const struct connection *connection)
{
    return connection->owner;
}
