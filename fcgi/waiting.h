/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef WAITING_H
#define WAITING_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>

#include "clock.h"
#include "heap.h"
#include "session.h"

/*
 * Who waits for an answer from the database: new requests, which are asked about in the next batch,
 * and parked ones, which are asked about every poll interval. Those with the same key share a
 * watch, and one lookup.
 */
struct waiting;

enum waiter_state {
    WAITER_ASKING, /* to be looked up in the next batch */
    WAITER_ASKED,  /* in the batch that is under way */
    WAITER_PARKED, /* has time until its deadline */
};

/* One request; embed it. */
struct waiter {
    TAILQ_ENTRY(waiter) link; /* in one of the watch's lists, by state */
    struct watch *watch;
    enum waiter_state state;
    usec_t deadline;        /* when a parked one wants its answer */
    struct heap_node alarm; /* when somebody has to look after it, whatever its state */
};

TAILQ_HEAD(waiter_list, waiter);

TAILQ_HEAD(watch_list, watch);

/* One key and all who wait for it. Callers only read. */
struct watch {
    struct session_key key;    /* first: watches are sorted by it */
    struct waiter_list asking; /* WAITER_ASKING and WAITER_ASKED */
    struct waiter_list parked; /* WAITER_PARKED */
    bool in_batch;             /* the batch under way asks about it */
    bool polled;               /* it is among those to be polled */
    struct watch_list *queued; /* the list of those to be asked about that it is in; NULL: none */
    TAILQ_ENTRY(watch) queue;  /* those with WAITER_ASKING */
    TAILQ_ENTRY(watch) poll;   /* those with WAITER_PARKED, in the order of looked_up */
    usec_t looked_up;          /* when it was last in a batch */
    enum session_status known; /* what the last lookup of everything found, */
    char *order_id;            /* NULL if no order */
};

/* poll_interval: the shortest time between two lookups of a parked request. NULL if out of memory.
 */
struct waiting *waiting_new(usec_t poll_interval);

/* Frees it; nobody waits any more. */
void waiting_free(struct waiting *waiting);

/* A new request, WAITER_ASKING. The key is copied. False if out of memory. */
bool waiting_add(struct waiting *waiting, struct waiter *waiter, const struct session_key *key,
    usec_t deadline, usec_t alarm);

/* The request waits no more. Its watch goes with the last one, unless it is in the batch. */
void waiting_remove(struct waiting *waiting, struct waiter *waiter);

/* A parked request is to be looked up once more. New requests go before it. */
void waiting_ask(struct waiting *waiting, struct waiter *waiter, usec_t alarm);

/* A request that has been looked up is parked until its deadline. */
void waiting_park(struct waiting *waiting, struct waiter *waiter);

/* The first request whose alarm is due, NULL if there is none; it stays so until it is moved. */
struct waiter *waiting_alarm(struct waiting *waiting, usec_t now);
void waiting_set_alarm(struct waiting *waiting, struct waiter *waiter, usec_t alarm);
usec_t waiting_alarm_due(const struct waiting *waiting);

/* A parked request whose watch is not in the batch, NULL if there is none. */
struct waiter *waiting_any_parked(struct waiting *waiting);

/* How many are parked. */
size_t waiting_parked(const struct waiting *waiting);

/*
 * Makes up the next batch, of at most max watches: *fresh says whether of those with requests that
 * ask for a lookup of everything, new requests first, or of those due for polling. The former go
 * first, but if there are always some, the latter have every other batch, a small one. Returns how
 * many. Each has to be given back by waiting_settle() before the next batch.
 */
size_t waiting_take(
    struct waiting *waiting, struct watch **batch, size_t max, bool *fresh, usec_t now);

/* When waiting_take() has something to take; 0 if it has at once, USEC_NEVER if there is nothing.
 */
usec_t waiting_take_due(const struct waiting *waiting);

/* Remembers what a lookup of everything found. order_id is copied; NULL if there is none. */
void waiting_learn(struct watch *watch, enum session_status status, const char *order_id);

/* The batch is over for this watch. Requests that were not answered and not parked are asked about
 * again in the next one. The watch is gone after this if nobody waits for it. */
void waiting_settle(struct waiting *waiting, struct watch *watch, usec_t now);

/* A batch of polls is over, and took the database so long. The next one has to wait nine times as
 * long, but no more than ten poll intervals: polling takes at most a tenth of the time. What
 * becomes due meanwhile makes the next batch larger, so where there is much to poll the interval
 * stretches. */
void waiting_charge(struct waiting *waiting, usec_t took, usec_t now);

#endif
