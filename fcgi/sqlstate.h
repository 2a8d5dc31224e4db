/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef SQLSTATE_H
#define SQLSTATE_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>

/* PostgreSQL's error codes, SQLSTATE (PostgreSQL manual, appendix A). */

/* The kinds of errors that are handled differently. */
enum sqlstate_kind {
    SQLSTATE_LOCKED,   /* a lock was not to be had within lock_timeout */
    SQLSTATE_SLOW,     /* the statement was cancelled: statement_timeout */
    SQLSTATE_SHUTDOWN, /* the server ends the connection */
    SQLSTATE_OTHER,
};

/* The kind of the error in a result. */
enum sqlstate_kind sqlstate_of(const PGresult *result);

/* Writes the description of an error that may be logged: its code, and its message if that is
 * about tables or the server, but not if it may quote values, which are secret. False if the
 * result has neither: then libpq made it, and PQerrorMessage() of the connection has the reason. */
bool sqlstate_describe(const PGresult *result, char *text, size_t size);

/*
 * Whether a result announces a transfer by COPY, which no statement here begins. libpq returns such
 * a result again and again: a connection that has one has to be closed.
 */
bool sqlstate_is_copy(const PGresult *result);

#endif
