/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>

#include "clock.h"

/* The connections of web servers to this worker: accepts them, reads requests, answers, closes.
 * Nothing here blocks. record.h checks all records before libfcgi decodes a request: libfcgi is
 * the project's interface to the protocol, but it blocks, and it trusts lengths and types. */

/* The listening socket and all connections that were accepted on it; one for a process. */
struct connections;

/* One connection, with at most one request at a time. */
struct connection;

/* The time in which a request has to arrive: since the peer connected, or since the first byte of a
 * later request. It is shorter (SHORT_ARRIVAL in connection.c) while there is no descriptor for one
 * more connection. */
#define CONNECTION_ARRIVAL (5 * USEC_PER_SEC)

/* The result of connection_read(). */
enum connection_event {
    CONNECTION_EVENT_NOTHING, /* nothing to do; the connection may have been freed */
    CONNECTION_EVENT_REQUEST, /* a request is open: answer it by connection_reply(), at once or
                                 later */
    CONNECTION_EVENT_REFUSE,  /* a request is open, but it cannot be decoded: answer it by
                                 connection_reply() with a server error, before anything else */
    CONNECTION_EVENT_GONE,    /* the open request cannot be answered any more, for the reason in
                                 connection_trouble(): close it by connection_close() */
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

/* Accepts one connection. The caller reads it at once, since its request may have arrived with
 * it. Returns NULL if none waits, or if it cannot be accepted, which is logged. May close and
 * free idle connections: call it after the events of a turn have been handled, one of which may
 * be about such a connection. */
struct connection *connections_accept(struct connections *connections, usec_t now)
    __attribute__((warn_unused_result));

/* When connections_expire() has to be called; USEC_NEVER if not at all. */
usec_t connections_due(const struct connections *connections);

/* Call it once in each turn of the loop, after connections_accept(). Closes connections whose
 * request has not arrived in time, accepts again when there may be descriptors again, and leaves
 * the next connections to the other workers if this one has accepted some. */
void connections_expire(struct connections *connections, usec_t now);

/* Stops watching the listening socket, and closes the connections that are between two requests.
 * The others close when their request is answered. Connections that wait in the backlog can
 * still be accepted by connections_accept(). */
void connections_stop(struct connections *connections);

/* The number of open connections. */
size_t connections_count(const struct connections *connections);

/* The limit of parked requests now. An eighth of the descriptors, and at least a handful, is
 * reserved for requests that are answered at once. The limit falls below the number of parked
 * requests when the limit on descriptors is lowered. */
size_t connections_park_limit(const struct connections *connections);

/* For --check. The same for a worker with this limit on descriptors. */
size_t connections_parkable(rlim_t descriptors);

/* Closes all connections and frees everything. The caller has no request open any more. */
void connections_close(struct connections *connections);

/* Reads what has arrived on a connection that was accepted or that epoll has announced. A peer
 * on a Unix socket that has shut down its sending side while a request is open still gets its
 * answer; then the connection is closed. On TCP a FIN may mean that, or that the peer has
 * closed. There it counts as closing: web servers close when their client has left, and the
 * place of a parked request must be free at once. */
enum connection_event connection_read(struct connection *connection, usec_t now);

/* The reason of CONNECTION_EVENT_GONE. A constant string. */
const char *connection_trouble(const struct connection *connection);

/* A meta-variable of the open request, one of those that record_request() keeps. NULL if the
 * request does not have it. Valid until connection_wait(), connection_shed() or
 * connection_reply(). */
const char *connection_param(const struct connection *connection, const char *name);

/* Tells that the parameters have been read, and that the answer comes soon. Frees libfcgi's
 * memory of the request if it is much, or if many requests wait; else it stays for the answer. */
void connection_wait(struct connection *connection);

/* Tells that the open request will wait long. Frees libfcgi's memory of it, and has epoll
 * announce that the peer leaves. It can still be answered. False if epoll fails. */
bool connection_shed(struct connection *connection);

/* Answers the open request with these bytes, a CGI response (RFC 3875, section 6), and ends it.
 * Then the connection is freed, unless the peer keeps it. Without
 * memory for libfcgi the answer is sent in records of our own. The connection is closed without
 * an answer if the peer does not read. */
void connection_reply(struct connection *connection, const char *bytes, size_t length, usec_t now);

/* Closes the connection without an answer, and frees it. The reason goes to the debug log. */
void connection_close(struct connection *connection, const char *reason);

/* A pointer of the caller's, for as long as a request is open; NULL at first. */
void connection_set_owner(struct connection *connection, void *owner);
void *connection_owner(const struct connection *connection);

#endif
