/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LOOKUP_H
#define LOOKUP_H

#include <stdbool.h>
#include <stddef.h>

#include "clock.h"
#include "session.h"

/*
 * The database connection of a worker: it connects, finds out about the layout, prepares the
 * lookup, runs one batch at a time, and begins anew when something goes wrong. Nothing here blocks,
 * but for the resolution of a host name, which libpq does itself (use hostaddr to avoid that).
 */
struct lookup;

/* How many keys one batch may have. */
#define LOOKUP_BATCH_MAX 256

/* What a batch asks. */
enum lookup_kind {
    LOOKUP_EVERYTHING, /* all that is known of the sessions */
    LOOKUP_PAYMENT,    /* only whether they have been paid, which costs half as much */
};

/* What is known of one key. */
struct lookup_answer {
    enum session_status status; /* LOOKUP_PAYMENT: SESSION_PAID, or anything else for not paid */
    const char *order_id; /* NULL if there is none, and for LOOKUP_PAYMENT; valid until the next
                           * lookup_send() */
};

/* What has come of a step. */
enum lookup_event {
    LOOKUP_NOTHING,
    LOOKUP_ANSWERED, /* the batch has its answers, see lookup_answer() */
    LOOKUP_FAILED,   /* the batch has none, and the connection is being replaced */
};

/*
 * Begins to connect at the first lookup_step(). conninfo is libpq's, NULL for its environment
 * variables. timeout bounds each step of connecting and each batch. The connection's descriptor
 * will be in the epoll instance with data.ptr = the lookup. NULL if out of memory.
 */
struct lookup *lookup_new(int epoll_fd, const char *conninfo, usec_t timeout);

/* Closes the connection and frees everything. */
void lookup_free(struct lookup *lookup);

/* Goes on as far as possible. Call it when epoll has announced the descriptor, and when it is due.
 */
enum lookup_event lookup_step(struct lookup *lookup, bool announced, usec_t now);

/* When lookup_step() has to be called even if nothing has arrived. */
usec_t lookup_due(const struct lookup *lookup);

/* Whether a batch can be sent now. */
bool lookup_ready(const struct lookup *lookup, usec_t now);

/* Whether there is no working connection, neither ready nor busy. */
bool lookup_away(const struct lookup *lookup);

/* Sends a batch of 1 to LOOKUP_BATCH_MAX keys; lookup_ready() was true. The keys are copied.
 * LOOKUP_NOTHING, or LOOKUP_FAILED. */
enum lookup_event lookup_send(struct lookup *lookup, enum lookup_kind kind,
    const struct session_key *const keys[], size_t count, usec_t now);

/* The answer to the n-th key, counted from 0, of the batch that LOOKUP_ANSWERED was about. */
struct lookup_answer lookup_answer(const struct lookup *lookup, size_t n);

#endif
