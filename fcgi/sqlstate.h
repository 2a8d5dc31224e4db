/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef SQLSTATE_H
#define SQLSTATE_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>

/* PostgreSQL's error codes, SQLSTATE (PostgreSQL manual, appendix A). */

/* What matters of an error. */
enum sqlstate_kind {
    SQLSTATE_LOCKED,   /* a lock was not to be had within lock_timeout */
    SQLSTATE_SLOW,     /* the statement was cancelled: statement_timeout */
    SQLSTATE_SHUTDOWN, /* the server ends the connection */
    SQLSTATE_OTHER,
};

/* The kind of the error in a result. */
enum sqlstate_kind sqlstate_of(const PGresult *result);

/*
 * Writes what the log may say of an error: its message, if it is about the tables or the server,
 * and not about the values in a statement, which are secret, and its code. False if the result has
 * neither: libpq has made it up, and PQerrorMessage() of the connection says why.
 */
bool sqlstate_describe(const PGresult *result, char *text, size_t size);

/*
 * Whether a result announces a transfer by COPY, which no statement here begins. libpq returns such
 * a result again and again: a connection that has one has to be closed.
 */
bool sqlstate_is_copy(const PGresult *result);

#endif
