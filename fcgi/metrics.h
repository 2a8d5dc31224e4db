/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef METRICS_H
#define METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "reply.h"
#include "session.h"

/*
 * What the workers of a pool count, and the text of it for Prometheus (its text format, version
 * 0.0.4).
 *
 * The numbers are in memory that the processes of the pool share. Each slot of the pool has a block
 * in it, which only the process in that slot writes: so counting takes no lock and no locked
 * instruction, and every process can sum up all blocks at any time. A process goes on with the
 * counters that it finds in its block. So no counter falls while the pool lives, whatever happens
 * to its workers, and the old and the new worker of a replacement never write the same block. What
 * a worker has now (gauges) the pool sets to zero when the worker has ended.
 *
 * A worker that is killed while it counts can leave one event half counted: in a bucket of a
 * histogram, but not in its sum.
 *
 * Only numbers are kept: no session id, URL or order id gets in here.
 *
 * Times are those of the event loop, which reads the clock once a turn.
 */
struct metrics;

/* Makes the metrics of a pool with this number of slots, at least 1, all zero. To be called before
 * the processes are forked that share them. The caller owns the result; so does each process that
 * is forked. NULL if out of memory. */
struct metrics *metrics_new(size_t slots);

/* Frees what this process holds of them. */
void metrics_free(struct metrics *metrics);

/* This process is the worker in a slot, counted from 0. To be called before it counts anything. */
void metrics_enter(struct metrics *metrics, size_t slot);

/* Why a worker ended. */
enum metrics_end {
    METRICS_END_DIED,     /* nobody had asked it to; another is started for it */
    METRICS_END_REPLACED, /* the pool had started another for it */
    METRICS_END_STOPPED,  /* the pool stops */
};

/* For the pool: the worker in a slot has ended, and was reaped. */
void metrics_leave(struct metrics *metrics, size_t slot, enum metrics_end end);

/* A request was answered; not one for these metrics. */
void metrics_count_answer(struct metrics *metrics, enum reply_kind kind);

/* A request has ended without an answer: its client left. */
void metrics_count_unanswered(struct metrics *metrics);

/* A request that needed the database was answered, this time after it came. waited: it was parked.
 */
void metrics_observe_answer(struct metrics *metrics, bool waited, usec_t took);

/* The database has answered a batch of keys, this time after it was asked. */
void metrics_observe_batch(
    struct metrics *metrics, enum session_question question, size_t keys, usec_t took);

/* A check has found this version of the database: see lookup_version(). */
void metrics_note_version(struct metrics *metrics, uint64_t version, usec_t now);

/*
 * A request that was parked was answered as paid. unpaid_version: the version that was known before
 * the last lookup that did not find the payment. The time is counted from the first check that
 * found a later version: it is never shorter than from the check that found the payment, but longer
 * where other changes were found meanwhile. If there were more than 256 of those, it is counted
 * from the oldest of the last 256. If no check has found one, nothing is counted.
 */
void metrics_observe_payment(struct metrics *metrics, uint64_t unpaid_version, usec_t now);

/* What a worker has now. */
struct metrics_gauges {
    size_t waiting;       /* parked requests */
    size_t waiting_limit; /* how many there may be */
    size_t connections;   /* of web servers */
    bool database_up;     /* it has a working connection to the database */
};

/* To be called once a turn. Connections to the database that replace a lost one are counted here.
 */
void metrics_set_gauges(struct metrics *metrics, const struct metrics_gauges *gauges);

/* The text of all metrics of the pool. The caller frees it; NULL if out of memory. */
char *metrics_print(const struct metrics *metrics);

#endif
