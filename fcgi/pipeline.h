/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef PIPELINE_H
#define PIPELINE_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>

#include "clock.h"
#include "instances.h"
#include "session.h"
#include "settings.h"

/*
 * A batch of keys where each instance has a schema of its own: one statement a schema, all of them
 * in one round trip (libpq's pipeline mode). Each statement is a transaction of its own, so that an
 * error in one schema does not concern the others.
 *
 * What bounds a batch:
 *  - A statement may take a quarter of --db-timeout, and wait for a lock for a 500th of it.
 *  - A schema whose statement has failed rests, for longer each time, and its keys get
 *    SESSION_FAILED. After its rest it is on trial: a batch has one schema on trial at most, and
 *    after a slow one there is a pause without any.
 *  - A batch prepares a few statements at most. Keys that would need more, or another trial, get
 *    SESSION_NOT_ASKED.
 *
 * A statement is prepared when it is first needed. If too many are prepared, those of the schema
 * that was used least recently are deallocated. Through a pooler nothing is prepared: each
 * transaction makes its settings first, and sends its statement's text.
 */
struct pipeline;

/* What a statement may take and how long it may wait for a lock: divisors of --db-timeout. */
#define PIPELINE_STATEMENT_SHARE 4
#define PIPELINE_LOCK_SHARE      500

/* The result of a step. */
enum pipeline_result {
    PIPELINE_BUSY,   /* answers are still to come */
    PIPELINE_DONE,   /* all keys have their answers */
    PIPELINE_BROKEN, /* the connection is lost, or cannot be used any more */
    PIPELINE_NO_MEMORY,
};

/* The instances are not copied. NULL if out of memory. */
struct pipeline *pipeline_new(struct instances *instances);

/* Frees it; NULL is allowed. */
void pipeline_free(struct pipeline *pipeline);

/*
 * Sends a batch of 1 to SESSION_BATCH_MAX keys. Keys and answers are the caller's, and stay until
 * the batch is done or given up. The connection is in nonblocking mode, and nothing is under way on
 * it. settings: those that each transaction makes first, because a pooler is in between; NULL: the
 * session has them. PIPELINE_DONE: the database does not have to be asked.
 */
enum pipeline_result pipeline_send(struct pipeline *pipeline, PGconn *connection,
    const struct settings *settings, enum session_question question,
    const struct session_key *const keys[], size_t count, struct session_answer answers[],
    usec_t now);

/* Reads what has arrived; PQconsumeInput() and PQflush() have been called. */
enum pipeline_result pipeline_receive(struct pipeline *pipeline, usec_t now);

/* The batch under way has taken too long and is given up: the schema whose statement is running has
 * failed, unless the server has answered nothing at all. */
void pipeline_blame(struct pipeline *pipeline, usec_t now);

/* Frees the texts of the answers. */
void pipeline_forget(struct pipeline *pipeline);

#endif
