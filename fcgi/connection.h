/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>

#include "clock.h"

/*
 * The connections of a web server to this worker: accepting them, reading requests, answering,
 * closing. Nothing here blocks. Records are checked by record.h before libfcgi decodes the request.
 */

/* The listening socket and all connections that were accepted on it; one for a process. */
struct connections;

/* One connection, with at most one request at a time. */
struct connection;

/* How long a peer may be silent in the middle of a request, or before its first one. Less where
 * there is no descriptor for one more connection. */
#define CONNECTION_SILENCE (5 * USEC_PER_SEC)

/* What has come of reading. */
enum connection_event {
    CONNECTION_EVENT_NOTHING, /* nothing for the caller to do; the connection may have been freed */
    CONNECTION_EVENT_REQUEST, /* a request is open: answer it by connection_reply(), now or later */
    CONNECTION_EVENT_REFUSE, /* a request is open, but there is no memory for its parameters: answer
                              * it by connection_reply() with a server error, before anything else
                              */
    CONNECTION_EVENT_GONE,   /* the open request cannot be answered any more, for the reason that
                              * connection_trouble() gives: close it by connection_close() */
};

/*
 * Makes libfcgi ready and adds the listening socket to the epoll instance, with data.ptr = NULL;
 * connections that are waited for are added with data.ptr = the connection. Both descriptors stay
 * the caller's; the listening socket is set non-blocking. NULL, with a line in the log, if that
 * cannot be done.
 *
 * How many connections there may be follows from RLIMIT_NOFILE, which is read again each second. At
 * that number idle connections are closed for new ones, the oldest first. Where none is idle the
 * listening socket is not watched until a connection closes or becomes idle: with EPOLLEXCLUSIVE a
 * worker that watches it and cannot accept takes the wake-up from one that can.
 */
struct connections *connections_open(int epoll_fd, int listen_fd);

/*
 * Accepts one connection, which is then to be read: its request may have arrived with it. NULL if
 * none waits, or none can be had; the log says why. May close and free idle connections: call it
 * after the events of a turn have been handled, as one of them may be about such a connection.
 */
struct connection *connections_accept(struct connections *connections, usec_t now)
    __attribute__((warn_unused_result));

/* When connections_expire() has something to do next, USEC_NEVER if not at all. */
usec_t connections_due(const struct connections *connections);

/*
 * To be called once in each turn of the loop, after connections_accept(). Closes connections that
 * were silent for too long, accepts again when there may be descriptors again, and leaves the next
 * connections to the other workers when this one has accepted some.
 */
void connections_expire(struct connections *connections, usec_t now);

/* Watches the listening socket no more, and closes the connections that are between two requests.
 * The others close when their request is answered. What waits to be accepted still can be, by
 * connections_accept(). */
void connections_stop(struct connections *connections);

/* How many connections are open. */
size_t connections_count(const struct connections *connections);

/*
 * How many requests may be parked now at most. An eighth of the descriptors, and at least a
 * handful, is reserved for requests that are answered at once. The number can fall below what is
 * parked already, when the limit on descriptors is lowered.
 */
size_t connections_park_limit(const struct connections *connections);

/* For --check. The same, of a worker whose limit is so many descriptors. */
size_t connections_parkable(rlim_t descriptors);

/* Closes all connections and frees everything. The caller has no request open any more. */
void connections_close(struct connections *connections);

/*
 * Reads what has arrived on a connection that was accepted or that epoll has announced.
 *
 * A peer on a Unix socket that has shut down its sending side, but not closed, while a request is
 * open, still gets its answer; the connection is closed after it. On TCP this cannot be told from
 * closing, since a FIN is all that is seen of both. There a FIN counts as leaving: web servers
 * close when their client has left, and the place of a parked request must be free at once.
 */
enum connection_event connection_read(struct connection *connection, usec_t now);

/* Why the open request cannot be answered any more; after CONNECTION_EVENT_GONE. A constant string.
 */
const char *connection_trouble(const struct connection *connection);

/* A meta-variable of the open request, of those that record_request() keeps. NULL if the request
 * has none of this name. Valid until connection_wait(), connection_park() or connection_reply(). */
const char *connection_param(const struct connection *connection, const char *name);

/*
 * The parameters have been read, and the answer comes later, but probably soon. Frees what libfcgi
 * holds of the request if that is much, or if many requests wait so; else it stays warm for the
 * answer.
 */
void connection_wait(struct connection *connection);

/* The open request will wait long: frees what libfcgi holds of it, and has epoll announce when the
 * peer leaves. It can still be answered. False if that can't be done. */
bool connection_park(struct connection *connection);

/*
 * Answers the open request with these bytes, which make up a CGI response (RFC 3875, section 6),
 * and ends it. The connection is freed then, unless the peer wants to keep it. What libfcgi needs
 * of memory for the answer is held in reserve; the connection is closed without an answer if even
 * that does not suffice, or if the peer does not read.
 */
void connection_reply(struct connection *connection, const char *bytes, size_t length, usec_t now);

/* Closes the connection without an answer, and frees it. The reason goes to the debug log. */
void connection_close(struct connection *connection, const char *reason);

/* What the caller attaches to a connection while a request is open; NULL to begin with. */
void connection_set_owner(struct connection *connection, void *owner);
void *connection_owner(const struct connection *connection);

#endif
