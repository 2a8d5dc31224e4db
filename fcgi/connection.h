/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <stdbool.h>
#include <stddef.h>

#include "clock.h"

/*
 * The connections of a web server to this worker: accepting them, reading requests, answering,
 * closing. Nothing here blocks. Records are checked by record.h before libfcgi decodes the request.
 */

/* The listening socket and all connections that were accepted on it; one for a process. */
struct acceptor;

/* One connection, with at most one request at a time. */
struct connection;

/* How long a peer may be silent in the middle of a request. */
#define CONNECTION_SILENCE (5 * USEC_PER_SEC)

/* What has come of reading. */
enum connection_event {
    CONNECTION_NOTHING, /* nothing for the caller to do */
    CONNECTION_REQUEST, /* a request has arrived: answer it by connection_reply(), now or later */
    CONNECTION_GONE, /* the peer left while a request was open; the connection is freed after this
                      * event by connection_close() */
};

/*
 * Makes libfcgi ready and adds the listening socket to the epoll instance, with data.ptr = NULL;
 * connections that are waited for are added with data.ptr = the connection. Both descriptors stay
 * the caller's, the listening socket is set non-blocking. NULL, with a line in the log, if that
 * can't be done.
 */
struct acceptor *acceptor_open(int epoll_fd, int listen_fd);

/* Accepts one connection, which is then to be read: its request may have arrived with it. NULL if
 * none waits. When descriptors run out, accepting pauses for a second, and the log says so. */
struct connection *acceptor_accept(struct acceptor *acceptor, usec_t now)
    __attribute__((warn_unused_result));

/* When acceptor_expire() has something to do next, USEC_NEVER if not at all. */
usec_t acceptor_due(const struct acceptor *acceptor);

/* Closes connections that were silent in mid-request for too long, and ends a pause in accepting.
 */
void acceptor_expire(struct acceptor *acceptor, usec_t now);

/* Accepts no more, and closes the connections that are between two requests.
 * The others close when their request is answered. */
void acceptor_stop(struct acceptor *acceptor);

/* How many connections are open. */
size_t acceptor_count(const struct acceptor *acceptor);

/* Closes all connections and frees everything. The caller has no request open any more. */
void acceptor_close(struct acceptor *acceptor);

/* Reads what has arrived on a connection that was accepted or that epoll has announced. */
enum connection_event connection_read(struct connection *connection, usec_t now);

/* A meta-variable of the open request, NULL if it has none of this name. Valid until the request is
 * parked or answered. */
const char *connection_param(const struct connection *connection, const char *name);

/* The open request will wait: frees what libfcgi holds of it, nine tenths of its memory, and has
 * epoll announce when the peer leaves. It can still be answered. False if that can't be done. */
bool connection_park(struct connection *connection);

/* Answers the open request with these bytes, which make up a CGI response (RFC 3875, section 6),
 * and ends it. The connection is closed then, unless the peer wants to keep it. */
void connection_reply(struct connection *connection, const char *bytes, size_t length, usec_t now);

/* Closes the connection without an answer, and frees it. */
void connection_close(struct connection *connection, const char *reason);

/* What the caller attaches to a connection while a request is open; NULL to begin with. */
void connection_set_owner(struct connection *connection, void *owner);
void *connection_owner(const struct connection *connection);

#endif
