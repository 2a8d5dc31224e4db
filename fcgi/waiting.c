/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "waiting.h"

#include <search.h>
#include <stdlib.h>
#include <string.h>

/* While new requests come in, so few are polled at once: each of them may have to wait for it. */
#define POLL_BATCH_BUSY 32
/* They come in when there was one in this time. */
#define BUSY_TIME (100 * USEC_PER_MS)
/* After polling, so many times as long without it, */
#define POLL_REST 9
/* but no more than so many intervals: one slow batch must not stop it for long. */
#define POLL_REST_MAX 10
/* What is due within this part of the interval is polled together: a batch costs less than its keys
 * one by one. */
#define POLL_GRAINS 16

struct waiting {
    void *watches; /* a tree by key, of tsearch(3): no choice of keys makes it slow */
    size_t parked_count;
    struct watch_list newcomers, finals, polls; /* finals: asked about once more */
    struct heap alarms;
    usec_t poll_interval;
    usec_t rest_until; /* no polling before */
    bool fresh_last;   /* the last batch was not of polls */
    usec_t fresh_at;   /* when the last such batch was made up */
};

static int compare_keys(const void *left, const void *right)
{
    const struct session_key *a = left, *b = right;
    int order = strcmp(a->session, b->session);

    if (order == 0)
        order = strcmp(a->url, b->url);
    if (order == 0)
        order = strcmp(a->instance, b->instance);
    return order;
}

struct waiting *waiting_new(usec_t poll_interval)
{
    struct waiting *waiting = calloc(1, sizeof *waiting);

    if (!waiting)
        return NULL;
    waiting->poll_interval = poll_interval;
    TAILQ_INIT(&waiting->newcomers);
    TAILQ_INIT(&waiting->finals);
    TAILQ_INIT(&waiting->polls);
    return waiting;
}

void waiting_free(struct waiting *waiting)
{
    heap_free(&waiting->alarms);
    free(waiting);
}

static struct watch *new_watch(const struct session_key *key)
{
    size_t session = strlen(key->session) + 1;
    size_t url = strlen(key->url) + 1;
    size_t instance = strlen(key->instance) + 1;
    struct watch *watch = calloc(1, sizeof *watch + session + url + instance);
    char *text = (char *)(watch + 1);

    if (!watch)
        return NULL;
    watch->key.session = memcpy(text, key->session, session);
    watch->key.url = memcpy(text + session, key->url, url);
    watch->key.instance = memcpy(text + session + url, key->instance, instance);
    TAILQ_INIT(&watch->asking);
    TAILQ_INIT(&watch->parked);
    return watch;
}

/* The watch of a key, a new one if need be; NULL if out of memory. */
static struct watch *find_watch(struct waiting *waiting, const struct session_key *key)
{
    struct session_key **found = tfind(key, &waiting->watches, compare_keys);
    struct watch *watch;

    if (found)
        return (struct watch *)*found;
    watch = new_watch(key);
    if (!watch)
        return NULL;
    if (!tsearch(watch, &waiting->watches, compare_keys)) {
        free(watch);
        return NULL;
    }
    return watch;
}

static void unqueue(struct watch *watch)
{
    if (watch->queued)
        TAILQ_REMOVE(watch->queued, watch, queue);
    watch->queued = NULL;
}

static void enqueue(struct watch *watch, struct watch_list *list)
{
    if (watch->queued == list)
        return;
    unqueue(watch);
    TAILQ_INSERT_TAIL(list, watch, queue);
    watch->queued = list;
}

static void unpoll(struct waiting *waiting, struct watch *watch)
{
    if (watch->polled)
        TAILQ_REMOVE(&waiting->polls, watch, poll);
    watch->polled = false;
}

/* Lets go of a watch that nobody waits for. */
static void tidy(struct waiting *waiting, struct watch *watch)
{
    if (TAILQ_EMPTY(&watch->asking))
        unqueue(watch);
    if (TAILQ_EMPTY(&watch->parked))
        unpoll(waiting, watch);
    if (watch->in_batch || !TAILQ_EMPTY(&watch->asking) || !TAILQ_EMPTY(&watch->parked))
        return;
    tdelete(watch, &waiting->watches, compare_keys);
    free(watch->order_id);
    free(watch);
}

static void enter(struct waiting *waiting, struct waiter *waiter, enum waiter_state state)
{
    waiter->state = state;
    if (state == WAITER_PARKED) {
        TAILQ_INSERT_TAIL(&waiter->watch->parked, waiter, link);
        waiting->parked_count++;
    } else {
        TAILQ_INSERT_TAIL(&waiter->watch->asking, waiter, link);
    }
}

static void leave(struct waiting *waiting, struct waiter *waiter)
{
    if (waiter->state == WAITER_PARKED) {
        TAILQ_REMOVE(&waiter->watch->parked, waiter, link);
        waiting->parked_count--;
    } else {
        TAILQ_REMOVE(&waiter->watch->asking, waiter, link);
    }
}

bool waiting_add(struct waiting *waiting, struct waiter *waiter, const struct session_key *key,
    usec_t deadline, usec_t alarm)
{
    waiter->watch = find_watch(waiting, key);
    if (!waiter->watch)
        return false;
    if (!heap_add(&waiting->alarms, &waiter->alarm, alarm)) {
        tidy(waiting, waiter->watch);
        return false;
    }
    waiter->deadline = deadline;
    enter(waiting, waiter, WAITER_ASKING);
    enqueue(waiter->watch, &waiting->newcomers);
    return true;
}

void waiting_remove(struct waiting *waiting, struct waiter *waiter)
{
    heap_remove(&waiting->alarms, &waiter->alarm);
    leave(waiting, waiter);
    tidy(waiting, waiter->watch);
}

void waiting_ask(struct waiting *waiting, struct waiter *waiter, usec_t alarm)
{
    leave(waiting, waiter);
    enter(waiting, waiter, WAITER_ASKING);
    if (!waiter->watch->queued)
        enqueue(waiter->watch, &waiting->finals);
    heap_move(&waiting->alarms, &waiter->alarm, alarm);
}

void waiting_park(struct waiting *waiting, struct waiter *waiter)
{
    leave(waiting, waiter);
    enter(waiting, waiter, WAITER_PARKED);
    heap_move(&waiting->alarms, &waiter->alarm, waiter->deadline);
}

static struct waiter *waiter_of(struct heap_node *node)
{
    return (struct waiter *)((char *)node - offsetof(struct waiter, alarm));
}

struct waiter *waiting_alarm(struct waiting *waiting, usec_t now)
{
    struct heap_node *first = heap_first(&waiting->alarms);

    return first && first->due <= now ? waiter_of(first) : NULL;
}

void waiting_set_alarm(struct waiting *waiting, struct waiter *waiter, usec_t alarm)
{
    heap_move(&waiting->alarms, &waiter->alarm, alarm);
}

usec_t waiting_alarm_due(const struct waiting *waiting)
{
    const struct heap_node *first = heap_first(&waiting->alarms);

    return first ? first->due : USEC_NEVER;
}

struct waiter *waiting_any_parked(struct waiting *waiting)
{
    struct watch *watch = TAILQ_FIRST(&waiting->polls);

    return watch ? TAILQ_FIRST(&watch->parked) : NULL;
}

size_t waiting_parked(const struct waiting *waiting)
{
    return waiting->parked_count;
}

static void take(struct waiting *waiting, struct watch *watch)
{
    struct waiter *waiter;

    unqueue(watch);
    unpoll(waiting, watch);
    watch->in_batch = true;
    TAILQ_FOREACH(waiter, &watch->asking, link)
    waiter->state = WAITER_ASKED;
}

/* When the watch that was looked up first is to be polled; USEC_NEVER if none is parked. */
static usec_t poll_due(const struct waiting *waiting)
{
    const struct watch *first = TAILQ_FIRST(&waiting->polls);
    usec_t grain = usec_max(waiting->poll_interval / POLL_GRAINS, 1);
    usec_t due;

    if (!first)
        return USEC_NEVER;
    due = (first->looked_up + waiting->poll_interval + grain - 1) / grain * grain;
    return usec_max(due, waiting->rest_until);
}

static size_t take_list(
    struct waiting *waiting, struct watch_list *list, struct watch **batch, size_t max)
{
    size_t count = 0;

    for (; count < max && !TAILQ_EMPTY(list); count++) {
        batch[count] = TAILQ_FIRST(list);
        take(waiting, batch[count]);
    }
    return count;
}

static size_t take_fresh(struct waiting *waiting, struct watch **batch, size_t max, usec_t now)
{
    /* However many newcomers there are, some room is left for the others. */
    size_t reserved = TAILQ_EMPTY(&waiting->finals) ? 0 : max / 4;
    size_t count = take_list(waiting, &waiting->newcomers, batch, max - reserved);

    waiting->fresh_at = now;
    return count + take_list(waiting, &waiting->finals, batch + count, max - count);
}

static size_t take_polls(struct waiting *waiting, struct watch **batch, size_t max, usec_t now)
{
    size_t count = 0;

    if (now - waiting->fresh_at < BUSY_TIME && max > POLL_BATCH_BUSY)
        max = POLL_BATCH_BUSY;
    for (; count < max && poll_due(waiting) <= now; count++) {
        batch[count] = TAILQ_FIRST(&waiting->polls);
        take(waiting, batch[count]);
    }
    return count;
}

static bool anybody_asks(const struct waiting *waiting)
{
    return !TAILQ_EMPTY(&waiting->newcomers) || !TAILQ_EMPTY(&waiting->finals);
}

size_t waiting_take(
    struct waiting *waiting, struct watch **batch, size_t max, bool *fresh, usec_t now)
{
    bool polls = poll_due(waiting) <= now;

    *fresh = anybody_asks(waiting) && !(polls && waiting->fresh_last);
    waiting->fresh_last = *fresh;
    return *fresh ? take_fresh(waiting, batch, max, now) : take_polls(waiting, batch, max, now);
}

usec_t waiting_take_due(const struct waiting *waiting)
{
    return anybody_asks(waiting) ? 0 : poll_due(waiting);
}

void waiting_learn(struct watch *watch, enum session_status status, const char *order_id)
{
    watch->known = status;
    free(watch->order_id);
    watch->order_id = order_id ? strdup(order_id) : NULL;
}

void waiting_settle(struct waiting *waiting, struct watch *watch, usec_t now)
{
    struct waiter *waiter;

    watch->in_batch = false;
    watch->looked_up = now;
    TAILQ_FOREACH(waiter, &watch->asking, link)
    waiter->state = WAITER_ASKING;
    if (!TAILQ_EMPTY(&watch->asking) && !watch->queued)
        enqueue(watch, &waiting->newcomers);
    if (!TAILQ_EMPTY(&watch->parked) && !watch->polled) {
        TAILQ_INSERT_TAIL(&waiting->polls, watch, poll);
        watch->polled = true;
    }
    tidy(waiting, watch);
}

void waiting_charge(struct waiting *waiting, usec_t took, usec_t now)
{
    waiting->rest_until = now + usec_min(took * POLL_REST, waiting->poll_interval * POLL_REST_MAX);
}
