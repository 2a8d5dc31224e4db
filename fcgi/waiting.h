/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef WAITING_H
#define WAITING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "clock.h"
#include "heap.h"
#include "session.h"

/*
 * Who waits for an answer from the database, what the database is asked next, and who is answered:
 * the whole policy, without any I/O.
 *
 * A waiter is one request. Waiters with the same key share a watch, and with it each lookup. The
 * caller asks waiting_next() what to send, reports what came of it, and then takes the outcomes
 * from waiting_outcome() until there is none. A request is only ever answered by a batch that was
 * sent after the request had asked.
 *
 * The rules:
 *  - New requests go first. Those that ask a last time have a quarter of a batch, and checks and
 *    polls every other turn, which they share, however many new requests there are.
 *  - New requests are asked about in turn by instance: however many there are for one instance, one
 *    for another, whose new requests are few, is in the next batch.
 *  - Under load the next batch of them is put off for a moment, so that it becomes larger.
 *  - Parked requests are polled only after the database has changed, which a small check finds out
 *    every check interval. Sessions with a claimed order go first: they are about to be paid.
 *  - Polling may take a tenth of the database connection's time for sessions with a claimed order,
 *    and a tenth for the others, on average: see the budgets in waiting.c.
 *  - A request waits for the database at most for its patience: from its arrival, or, once it has
 *    been parked, from its deadline, or from when that is noticed: a process that was stopped for a
 *    while has not asked meanwhile.
 */
struct waiting;

/* The states of a request. waiting_set_state() in waiting.c makes every transition:
 *
 *     NEW ──looked up──► PARKABLE ──waiting_park()──► PARKED ──deadline, stop──► LAST
 *      │                    │                          │                         │
 *      ├──paid, no time──► KNOWN ◄────────────paid─────┴────────looked up────────┤
 *      └──no answer──► FAILED ◄──────────────────────────────────no answer───────┘
 */
enum waiter_state {
    WAITER_NEW,      /* asks for its first lookup; in the watch's list of this state */
    WAITER_PARKED,   /* looked up, not paid, has time until its deadline; likewise */
    WAITER_LAST,     /* was parked, asks for a last lookup; likewise */
    WAITER_PARKABLE, /* looked up, not paid, has time: an outcome, to be parked or answered */
    WAITER_KNOWN,    /* an outcome: to be answered with what its watch knows */
    WAITER_FAILED,   /* an outcome: the database gave no answer in time */
};

/* The states in which a waiter is in a list of its watch. */
#define WAITER_LISTS (WAITER_LAST + 1)

/* One request; embed it. Callers only read. */
struct waiter {
    TAILQ_ENTRY(waiter) link; /* in the list of its state */
    struct watch *watch;
    enum waiter_state state;
    uint64_t batch;         /* number of the first batch that can answer it */
    usec_t deadline;        /* when the client wants its answer */
    struct heap_node alarm; /* when this state has to end; not for KNOWN and FAILED */
};

TAILQ_HEAD(waiter_list, waiter);

/* The place of a watch. Each place has its list: see waiting_watch_list() in waiting.c. */
enum watch_place {
    WATCH_NEWCOMERS, /* has a NEW waiter */
    WATCH_LASTS,     /* has a LAST waiter, and no NEW one */
    WATCH_CLAIMED,   /* has only PARKED waiters; a wallet has claimed an order */
    WATCH_UNCLAIMED, /* has only PARKED waiters; no claimed order is known */
    WATCH_HELD,      /* its instance could not be asked: not asked about before held_until */
    WATCH_IN_BATCH,  /* the batch under way asks about it */
    WATCH_AWAY,      /* has no waiter in its lists: freed with its last outcome */
};

/* One key and all who wait for it. Callers only read. */
struct watch {
    struct session_key key; /* first: watches are sorted by it */
    struct waiter_list waiters[WAITER_LISTS];
    size_t outcomes; /* waiters whose outcome has not been taken */
    enum watch_place place;
    unsigned flow;           /* of its instance: see waiting.c */
    TAILQ_ENTRY(watch) link; /* in its list */
    usec_t held_until;       /* of WATCH_HELD; else 0 */
    uint64_t version;        /* the database's, as known before the last lookup of this key */
    uint64_t version_before; /* likewise, before the lookup before it; 0: there was none */
    bool claimed;            /* what the last lookup said, */
    /* and what is known, mostly from the last one that asked everything: */
    enum session_status status;
    char *order_id; /* NULL if no order */
};

/* What the caller is to send to the database. */
enum waiting_step {
    WAITING_STEP_NOTHING, /* nothing to ask yet: see waiting_due() */
    WAITING_STEP_CHECK,   /* whether the database has changed: report by waiting_checked() */
    WAITING_STEP_BATCH,   /* the batch: report by waiting_answered() */
};

/* The keys of a batch, which live until its end is reported. */
struct waiting_batch {
    enum session_question question;
    size_t count;
    const struct session_key *keys[SESSION_BATCH_MAX];
};

/* check_interval: time between two checks for changes; patience: how long a request waits for the
 * database. Microseconds, both over 0. NULL if out of memory. */
struct waiting *waiting_new(usec_t check_interval, usec_t patience);

/* Frees it. All waiters have been removed. */
void waiting_free(struct waiting *waiting);

/* A new request, which becomes NEW. It may wait until its deadline: now, or earlier, means that it
 * is answered as soon as the database has been asked. The key is copied. False if out of memory. */
bool waiting_add(struct waiting *waiting, struct waiter *waiter, const struct session_key *key,
    usec_t deadline, usec_t now);

/* Removes a request, whatever its state: it was answered, or its client has left. */
void waiting_remove(struct waiting *waiting, struct waiter *waiter);

/* A waiter that is PARKABLE becomes PARKED. The other way to deal with it is to answer it with what
 * its watch knows. */
void waiting_park(struct waiting *waiting, struct waiter *waiter);

/* How many waiters are PARKED. */
size_t waiting_parked(const struct waiting *waiting);

/* What to ask now that the database connection is free. Each check or batch has to be reported
 * before the next call. */
enum waiting_step waiting_next(struct waiting *waiting, struct waiting_batch *batch, usec_t now);

/* When waiting_next() has something to ask; USEC_NEVER if nobody waits. */
usec_t waiting_due(const struct waiting *waiting, usec_t now);

/* The check came back: version is the number of the database's state. The same number as before
 * means that no lookup would find anything new. */
void waiting_checked(struct waiting *waiting, uint64_t version, usec_t now);

/* The batch came back, with an answer for each of its keys, in their order. A key that is
 * SESSION_NOT_ASKED is asked about again, and one that is SESSION_FAILED too, but only after a
 * pause. No more than park_limit waiters will be parked; those beyond it are answered with what is
 * known. */
void waiting_answered(
    struct waiting *waiting, const struct session_answer *answers, size_t park_limit, usec_t now);

/* The check or batch under way, if there is one, has no answer: its keys are asked about again. */
void waiting_failed(struct waiting *waiting);

/* Handles every waiter whose state has to end by now: by its deadline or the end of its
 * patience. A PARKABLE waiter becomes KNOWN. */
void waiting_expire(struct waiting *waiting, usec_t now);

/* When waiting_expire() has something to do; USEC_NEVER if nobody waits. */
usec_t waiting_expire_due(const struct waiting *waiting);

/* From now on no request is parked. All parked waiters ask a last time. A waiter that has no
 * answer at the limit (a point in time) is answered with what the last lookup knew, or FAILED if
 * there was none. Outcomes have been taken before. */
void waiting_stop(struct waiting *waiting, usec_t limit);

/* The next waiter whose state is PARKABLE, KNOWN or FAILED, NULL if there is none. The caller
 * answers and removes it, or parks it, before it calls this again. */
struct waiter *waiting_outcome(struct waiting *waiting);

#endif
