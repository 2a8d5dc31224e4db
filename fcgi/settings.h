/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef SETTINGS_H
#define SETTINGS_H

#include <libpq-fe.h>
#include <stdbool.h>

/* The settings that the lookups need: sql/session.sql. */
struct settings {
    const char *schema; /* that has the merchant's tables: the search_path */
    int statement_ms;   /* statement_timeout, in milliseconds; 0: none */
    int lock_ms;        /* lock_timeout, likewise */
};

/* How long the settings last. */
enum settings_scope {
    SETTINGS_OF_SESSION,
    SETTINGS_OF_TRANSACTION, /* the next client of the same connection finds its own */
};

/* Queues the statement that makes the settings. It returns one row, which says nothing new. False
 * if it could not be queued: libpq says why. */
bool settings_send(PGconn *connection, const struct settings *settings, enum settings_scope scope);

#endif
