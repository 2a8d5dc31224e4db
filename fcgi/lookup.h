/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LOOKUP_H
#define LOOKUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "session.h"

/*
 * The database connection of a worker. It connects, reads the layout of the tables, prepares its
 * statements, runs one of them at a time, and connects again when something goes wrong. Nothing
 * here blocks, except that libpq itself resolves host names (hostaddr= avoids that).
 */
struct lookup;
struct instances;
struct layout;
struct settings;

/* Interval at which lookup_version() counts on where changes cannot be detected. */
#define LOOKUP_UNTRACKED_INTERVAL (250 * USEC_PER_MS)

/* The result of a step. */
enum lookup_event {
    LOOKUP_EVENT_NOTHING,
    LOOKUP_EVENT_ANSWERED, /* the batch has its answers: lookup_answers() */
    LOOKUP_EVENT_CHECKED,  /* the check for changes has its result: lookup_version() */
    LOOKUP_EVENT_FAILED,   /* the batch or check under way has no answer; the connection is replaced
                            */
};

/*
 * Creates a lookup, which connects at the first lookup_step(). conninfo is libpq's connection
 * string or URI, NULL for its environment variables. instance_schema is the pattern of the names of
 * instances' schemas, NULL if they explain themselves. Neither is copied. timeout bounds each step
 * of connecting, each batch and each check. The connection's descriptor is put into the epoll
 * instance with data.ptr = the lookup. NULL if out of memory.
 */
struct lookup *lookup_new(
    int epoll_fd, const char *conninfo, const char *instance_schema, usec_t timeout);

/* Closes the connection and frees everything. */
void lookup_free(struct lookup *lookup);

/* Continues as far as possible without blocking. Call it when epoll has announced the
 * descriptor, and at lookup_due(). */
enum lookup_event lookup_step(struct lookup *lookup, bool announced, usec_t now);

/* When lookup_step() has to be called even if nothing has arrived. */
usec_t lookup_due(const struct lookup *lookup);

/* Whether a batch or a check can be sent now. */
bool lookup_ready(const struct lookup *lookup);

/* Whether there is no working connection. */
bool lookup_away(const struct lookup *lookup);

/* Sends a batch of 1 to SESSION_BATCH_MAX keys, which live until the batch has its answers or has
 * failed; lookup_ready() was true. LOOKUP_EVENT_NOTHING, LOOKUP_EVENT_FAILED, or
 * LOOKUP_EVENT_ANSWERED if the database does not have to be asked. */
enum lookup_event lookup_send(struct lookup *lookup, enum session_question question,
    const struct session_key *const keys[], size_t count, usec_t now);

/* The answers to the batch, after LOOKUP_EVENT_ANSWERED, in the order of its keys. Their texts
 * live until the next lookup_step(), lookup_send() or lookup_check_changes(). */
const struct session_answer *lookup_answers(const struct lookup *lookup);

/* Sends the check whether anything was committed since the last check; lookup_ready() was true.
 * LOOKUP_EVENT_NOTHING, or LOOKUP_EVENT_FAILED. LOOKUP_EVENT_CHECKED follows. */
enum lookup_event lookup_check_changes(struct lookup *lookup, usec_t now);

/*
 * The number of the database's state as the last check found it, counted from 1; 0 before the first
 * check. If two checks find the same number, every batch between them saw the same rows. (On a
 * standby a batch may see a commit a moment before a check counts it; a later check does.) The
 * first check after a reconnect finds a new number. Where this cannot be known, because a view or a
 * foreign table is read, the number changes every LOOKUP_UNTRACKED_INTERVAL.
 */
uint64_t lookup_version(const struct lookup *lookup);

/* For --check. The reason why the last connection or attempt failed, as in the log; "" if none
 * has. It belongs to the lookup, as do the following. */
const char *lookup_trouble(const struct lookup *lookup);

/* For --check. The settings that the lookups need. */
const struct settings *lookup_settings(const struct lookup *lookup);

/* For --check. Whether the connection leads through a pooler. */
bool lookup_pooled(const struct lookup *lookup);

/* For --check. The layout that was found; valid if not lookup_away(). */
const struct layout *lookup_layout(const struct lookup *lookup);

/* For --check. The instances and their schemas, where each has one of its own. */
const struct instances *lookup_instances(const struct lookup *lookup);

/* For --check. libpq's connection; NULL if there is none. */
struct pg_conn *lookup_connection(const struct lookup *lookup);

#endif
