/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "waiting.h"

#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

/*
 * The budgets of polling: one for sessions with a claimed order and one for the others, so that
 * neither keeps the other from being polled. Each is credited with a tenth of the connection's
 * time, and each batch of polls is charged with the time that it took. What is not used in quiet
 * seconds is kept, up to a bound that is enough for one quick round over twenty thousand sessions.
 * A batch that was held up (by a lock, a slow disk) is charged with the bound of a charge, so that
 * it does not stop polling for long.
 */
#define BUDGET_SHARE      10
#define BUDGET_CREDIT_MAX (300 * USEC_PER_MS)
#define BUDGET_CHARGE_MAX (100 * USEC_PER_MS)

/* The round trip to the database is the shortest duration of a check among the last
 * ROUND_TRIP_CHECKS and those before, which is a few seconds. So it follows changes of the network,
 * and one slow check does not count. */
#define ROUND_TRIP_CHECKS 64

/* Limit of a batch of polls of claimed orders: those who are about to pay wait for its end. */
#define CLAIMED_BATCH_MAX 64
/* Limit of a batch of polls while new requests arrive: each may have to wait for the whole batch.
 */
#define BUSY_BATCH_MAX 32
/* New requests count as arriving until this time after the last batch of them. */
#define BUSY_TIME (100 * USEC_PER_MS)

/* Under load a batch is gathered: after one with GATHER_LEAST keys or more, the next one is put off
 * by GATHER_TIME at most, until twice as many requests ask, or GATHER_ENOUGH. To start a statement
 * costs the database as much as to look up six keys. */
#define GATHER_LEAST  4
#define GATHER_ENOUGH 16
#define GATHER_TIME   500

/* Pause before a key is asked about again whose instance could not be asked. */
#define HOLD_TIME (250 * USEC_PER_MS)

/* New requests are asked about in turn by instance, so that many for one instance do not delay
 * those for another. Instances are distinguished by a hash: those of the same hash share a flow. A
 * batch has room for some of each flow. */
#define FLOWS 64

/* The diagram in waiting.h, as a table. */
static const unsigned waiter_sources[] = {
    [WAITER_PARKED] = STATE_SET(WAITER_PARKABLE),
    [WAITER_LAST] = STATE_SET(WAITER_PARKED),
    [WAITER_PARKABLE] = STATE_SET(WAITER_NEW),
    [WAITER_KNOWN] = STATE_SET(WAITER_NEW) | STATE_SET(WAITER_PARKED) | STATE_SET(WAITER_LAST) |
                     STATE_SET(WAITER_PARKABLE),
    [WAITER_FAILED] = STATE_SET(WAITER_NEW) | STATE_SET(WAITER_LAST),
};

TAILQ_HEAD(watch_list, watch);

/* The watches at WATCH_NEWCOMERS of some instances. */
struct flow {
    TAILQ_ENTRY(flow) link; /* in `turns`, unless it is empty */
    struct watch_list watches;
};

TAILQ_HEAD(flow_list, flow);

struct budget {
    usec_t credit; /* at the time below; negative: polling has taken too much */
    usec_t at;
};

/* The part of a statement's duration that costs the database nothing, as the checks measure it. */
struct round_trip {
    usec_t shortest; /* of `checks` checks */
    usec_t before;   /* of the ROUND_TRIP_CHECKS before them; USEC_NEVER: there were none */
    unsigned checks;
};

/* What a turn of the database connection is for. */
enum waiting_turn {
    WAITING_TURN_ASKING, /* requests that ask */
    WAITING_TURN_CHECK,
    WAITING_TURN_POLL,
};

struct waiting {
    usec_t check_interval, patience;
    void *watches; /* a tree by key, of tsearch(3): no choice of keys makes it slow */
    struct watch_list places[WATCH_AWAY]; /* watches by place, but for those in the next two */
    struct flow flows[FLOWS];             /* those at WATCH_NEWCOMERS */
    struct watch_list polled[WATCH_AWAY]; /* parked ones that were looked up at this version */
    struct flow_list turns;               /* the flows that have watches, the next one first */
    struct waiter_list outcomes;
    size_t counts[WAITER_FAILED + 1]; /* waiters by state */
    struct heap alarms;
    usec_t stop_limit; /* see waiting_stop(); USEC_NEVER: not stopping */

    uint64_t batch_number; /* of the batch under way, else of the last one */
    enum session_question question;
    enum watch_place last_polled; /* where the watches of the last poll came from */
    size_t batch_count;
    struct watch *batch[SESSION_BATCH_MAX]; /* of the batch under way */
    usec_t sent_at;                         /* when it, or the check under way, was sent */

    uint64_t version; /* of the database, as the last check found it */
    usec_t check_due;
    enum waiting_turn last_turn;
    bool last_was_check;  /* of the last two turns that were not WAITING_TURN_ASKING, the later */
    usec_t asking_at;     /* when requests that ask were last asked about */
    usec_t gather_until;  /* the next batch of those is put off until then, */
    size_t gather_enough; /* unless so many requests ask */
    struct round_trip round_trip;
    struct budget budgets[WATCH_AWAY]; /* by place; of parked watches */
};

static int waiting_compare_keys(const void *left, const void *right)
{
    const struct session_key *a = left, *b = right;
    int order = strcmp(a->session, b->session);

    if (order == 0)
        order = strcmp(a->url, b->url);
    if (order == 0)
        order = strcmp(a->instance, b->instance);
    return order;
}

struct waiting *waiting_new(usec_t check_interval, usec_t patience)
{
    struct waiting *waiting = calloc(1, sizeof *waiting);

    if (!waiting)
        return NULL;
    waiting->check_interval = check_interval;
    waiting->patience = patience;
    waiting->stop_limit = USEC_NEVER;
    waiting->round_trip = (struct round_trip){.shortest = USEC_NEVER, .before = USEC_NEVER};
    for (int place = 0; place < WATCH_AWAY; place++) {
        TAILQ_INIT(&waiting->places[place]);
        TAILQ_INIT(&waiting->polled[place]);
    }
    for (int flow = 0; flow < FLOWS; flow++)
        TAILQ_INIT(&waiting->flows[flow].watches);
    TAILQ_INIT(&waiting->turns);
    TAILQ_INIT(&waiting->outcomes);
    return waiting;
}

void waiting_free(struct waiting *waiting)
{
    heap_free(&waiting->alarms);
    free(waiting);
}

/* FNV-1a. */
static unsigned watch_choose_flow(const char *instance)
{
    uint32_t hash = 2166136261;

    for (; *instance; instance++)
        hash = (hash ^ (unsigned char)*instance) * 16777619;
    return hash % FLOWS;
}

static struct watch *watch_new(const struct session_key *key)
{
    size_t session = strlen(key->session) + 1;
    size_t url = strlen(key->url) + 1;
    size_t instance = strlen(key->instance) + 1;
    struct watch *watch = calloc(1, sizeof *watch + session + url + instance);
    char *text;

    if (!watch)
        return NULL;
    text = (char *)(watch + 1);
    watch->key.session = memcpy(text, key->session, session);
    watch->key.url = memcpy(text + session, key->url, url);
    watch->key.instance = memcpy(text + session + url, key->instance, instance);
    for (int state = 0; state < WAITER_LISTS; state++)
        TAILQ_INIT(&watch->waiters[state]);
    watch->place = WATCH_AWAY;
    watch->flow = watch_choose_flow(key->instance);
    return watch;
}

/* The watch of a key, a new one if there is none; NULL if out of memory. */
static struct watch *waiting_find_watch(struct waiting *waiting, const struct session_key *key)
{
    struct session_key **found = tfind(key, &waiting->watches, waiting_compare_keys);
    struct watch *watch;

    if (found)
        return (struct watch *)*found;
    watch = watch_new(key);
    if (!watch)
        return NULL;
    if (!tsearch(watch, &waiting->watches, waiting_compare_keys)) {
        free(watch);
        return NULL;
    }
    return watch;
}

static void waiting_free_unused(struct waiting *waiting, struct watch *watch)
{
    if (watch->place != WATCH_AWAY || watch->outcomes > 0)
        return;
    tdelete(watch, &waiting->watches, waiting_compare_keys);
    free(watch->order_id);
    free(watch);
}

static bool watch_has(const struct watch *watch, enum waiter_state state)
{
    return !TAILQ_EMPTY(&watch->waiters[state]);
}

static bool watch_has_waiters(const struct watch *watch)
{
    return watch_has(watch, WAITER_NEW) || watch_has(watch, WAITER_LAST) ||
           watch_has(watch, WAITER_PARKED);
}

/* The place that the waiters of a watch call for when it is not in the batch. */
static enum watch_place watch_proper_place(const struct watch *watch)
{
    if (watch->held_until != 0 && watch_has_waiters(watch))
        return WATCH_HELD;
    if (watch_has(watch, WAITER_NEW))
        return WATCH_NEWCOMERS;
    if (watch_has(watch, WAITER_LAST))
        return WATCH_LASTS;
    if (watch_has(watch, WAITER_PARKED))
        return watch->claimed ? WATCH_CLAIMED : WATCH_UNCLAIMED;
    return WATCH_AWAY;
}

/* The list that a watch is in, by its place and its version. */
static struct watch_list *waiting_watch_list(struct waiting *waiting, const struct watch *watch)
{
    bool parked = watch->place == WATCH_CLAIMED || watch->place == WATCH_UNCLAIMED;

    if (parked && watch->version == waiting->version)
        return &waiting->polled[watch->place];
    if (watch->place == WATCH_NEWCOMERS)
        return &waiting->flows[watch->flow].watches;
    return &waiting->places[watch->place];
}

static void waiting_link_watch(struct waiting *waiting, struct watch *watch)
{
    struct flow *flow = &waiting->flows[watch->flow];

    if (watch->place == WATCH_NEWCOMERS && TAILQ_EMPTY(&flow->watches))
        TAILQ_INSERT_TAIL(&waiting->turns, flow, link);
    TAILQ_INSERT_TAIL(waiting_watch_list(waiting, watch), watch, link);
}

static void waiting_unlink_watch(struct waiting *waiting, struct watch *watch)
{
    struct flow *flow = &waiting->flows[watch->flow];

    TAILQ_REMOVE(waiting_watch_list(waiting, watch), watch, link);
    if (watch->place == WATCH_NEWCOMERS && TAILQ_EMPTY(&flow->watches))
        TAILQ_REMOVE(&waiting->turns, flow, link);
}

/* All transitions of watch_place. */
static void waiting_move_watch(struct waiting *waiting, struct watch *watch, enum watch_place place)
{
    if (watch->place == place)
        return;
    if (watch->place != WATCH_AWAY)
        waiting_unlink_watch(waiting, watch);
    watch->place = place;
    if (place != WATCH_AWAY)
        waiting_link_watch(waiting, watch);
    else
        watch->held_until = 0;
}

/* Notes that the database has changed: all parked watches have to be polled. */
static void waiting_set_version(struct waiting *waiting, uint64_t version)
{
    if (version == waiting->version)
        return;
    waiting->version = version;
    TAILQ_CONCAT(&waiting->places[WATCH_CLAIMED], &waiting->polled[WATCH_CLAIMED], link);
    TAILQ_CONCAT(&waiting->places[WATCH_UNCLAIMED], &waiting->polled[WATCH_UNCLAIMED], link);
}

static struct waiter_list *waiting_list_of(struct waiting *waiting, struct waiter *waiter)
{
    return waiter->state < WAITER_LISTS ? &waiter->watch->waiters[waiter->state]
                                        : &waiting->outcomes;
}

static void waiting_enter(struct waiting *waiting, struct waiter *waiter, enum waiter_state state)
{
    waiter->state = state;
    TAILQ_INSERT_TAIL(waiting_list_of(waiting, waiter), waiter, link);
    waiter->watch->outcomes += state >= WAITER_LISTS;
    waiting->counts[state]++;
    /* The batch under way was sent before this request asked: it must not answer it. */
    if (state == WAITER_NEW || state == WAITER_LAST)
        waiter->batch = waiting->batch_number + 1;
    if (state == WAITER_KNOWN || state == WAITER_FAILED)
        heap_remove(&waiting->alarms, &waiter->alarm);
}

static void waiting_leave(struct waiting *waiting, struct waiter *waiter)
{
    TAILQ_REMOVE(waiting_list_of(waiting, waiter), waiter, link);
    waiter->watch->outcomes -= waiter->state >= WAITER_LISTS;
    waiting->counts[waiter->state]--;
}

static void waiting_place_watch(struct waiting *waiting, struct watch *watch)
{
    if (watch->place != WATCH_IN_BATCH)
        waiting_move_watch(waiting, watch, watch_proper_place(watch));
}

/* Moves watches that were held for long enough to their proper place. The list is sorted by
 * time, since all are held for the same time. */
static void waiting_release_held(struct waiting *waiting, usec_t now)
{
    struct watch *watch;

    while ((watch = TAILQ_FIRST(&waiting->places[WATCH_HELD])) && watch->held_until <= now) {
        watch->held_until = 0;
        waiting_place_watch(waiting, watch);
    }
}

static usec_t waiting_held_due(const struct waiting *waiting)
{
    const struct watch *first = TAILQ_FIRST(&waiting->places[WATCH_HELD]);

    return first ? first->held_until : USEC_NEVER;
}

/* All transitions of waiter_state, except into NEW and at the end. */
static void waiting_set_state(
    struct waiting *waiting, struct waiter *waiter, enum waiter_state state)
{
    state_check(waiter_sources, waiter->state, state);
    waiting_leave(waiting, waiter);
    waiting_enter(waiting, waiter, state);
    waiting_place_watch(waiting, waiter->watch);
}

bool waiting_add(struct waiting *waiting, struct waiter *waiter, const struct session_key *key,
    usec_t deadline, usec_t now)
{
    waiter->watch = waiting_find_watch(waiting, key);
    if (!waiter->watch)
        return false;
    if (!heap_add(&waiting->alarms, &waiter->alarm, now + waiting->patience)) {
        waiting_free_unused(waiting, waiter->watch);
        return false;
    }
    waiter->deadline = deadline;
    waiting_enter(waiting, waiter, WAITER_NEW);
    waiting_place_watch(waiting, waiter->watch);
    return true;
}

void waiting_remove(struct waiting *waiting, struct waiter *waiter)
{
    heap_remove(&waiting->alarms, &waiter->alarm);
    waiting_leave(waiting, waiter);
    waiting_place_watch(waiting, waiter->watch);
    waiting_free_unused(waiting, waiter->watch);
}

void waiting_park(struct waiting *waiting, struct waiter *waiter)
{
    heap_move(&waiting->alarms, &waiter->alarm, waiter->deadline);
    waiting_set_state(waiting, waiter, WAITER_PARKED);
}

size_t waiting_parked(const struct waiting *waiting)
{
    return waiting->counts[WAITER_PARKED];
}

static usec_t budget_credit(const struct budget *budget, usec_t now)
{
    return usec_min(budget->credit + (now - budget->at) / BUDGET_SHARE, BUDGET_CREDIT_MAX);
}

static void budget_charge(struct budget *budget, usec_t work, usec_t now)
{
    usec_t left = budget_credit(budget, now) - usec_min(work, BUDGET_CHARGE_MAX);

    budget->credit = usec_max(left, -BUDGET_CHARGE_MAX);
    budget->at = now;
}

/* When there is credit. */
static usec_t budget_due(const struct budget *budget)
{
    return budget->credit > 0 ? 0 : budget->at + (1 - budget->credit) * BUDGET_SHARE;
}

static void round_trip_add(struct round_trip *round_trip, usec_t took)
{
    if (round_trip->checks == ROUND_TRIP_CHECKS)
        *round_trip = (struct round_trip){.shortest = USEC_NEVER, .before = round_trip->shortest};
    round_trip->shortest = usec_min(round_trip->shortest, took);
    round_trip->checks++;
}

/* USEC_NEVER before the first check. */
static usec_t round_trip_time(const struct round_trip *round_trip)
{
    return usec_min(round_trip->shortest, round_trip->before);
}

/* When the watches of a place of parked ones may be polled; USEC_NEVER if none has to be. */
static usec_t waiting_place_due(const struct waiting *waiting, enum watch_place place)
{
    if (TAILQ_EMPTY(&waiting->places[place]))
        return USEC_NEVER;
    return budget_due(&waiting->budgets[place]);
}

static usec_t waiting_poll_due(const struct waiting *waiting)
{
    return usec_min(
        waiting_place_due(waiting, WATCH_CLAIMED), waiting_place_due(waiting, WATCH_UNCLAIMED));
}

static bool waiting_any_asking(const struct waiting *waiting)
{
    return !TAILQ_EMPTY(&waiting->turns) || !TAILQ_EMPTY(&waiting->places[WATCH_LASTS]);
}

static bool waiting_gathers(const struct waiting *waiting, usec_t now)
{
    size_t asking = waiting->counts[WAITER_NEW] + waiting->counts[WAITER_LAST];

    return now < waiting->gather_until && asking < waiting->gather_enough;
}

/* Decides whether the next batch of new requests is gathered. */
static void waiting_note_load(struct waiting *waiting, usec_t now)
{
    size_t twice = 2 * waiting->batch_count;

    waiting->gather_until = waiting->batch_count >= GATHER_LEAST ? now + GATHER_TIME : 0;
    waiting->gather_enough = twice < GATHER_ENOUGH ? twice : GATHER_ENOUGH;
}

static void waiting_start_batch(struct waiting *waiting, enum session_question question, usec_t now)
{
    waiting->batch_number++;
    waiting->batch_count = 0;
    waiting->question = question;
    waiting->sent_at = now;
}

/* The next watch at WATCH_NEWCOMERS; NULL if there is none. The turn passes to another flow. */
static struct watch *waiting_next_newcomer(struct waiting *waiting)
{
    struct flow *flow = TAILQ_FIRST(&waiting->turns);

    if (!flow)
        return NULL;
    TAILQ_REMOVE(&waiting->turns, flow, link);
    TAILQ_INSERT_TAIL(&waiting->turns, flow, link);
    return TAILQ_FIRST(&flow->watches);
}

static struct watch *waiting_next_watch(struct waiting *waiting, enum watch_place place)
{
    return place == WATCH_NEWCOMERS ? waiting_next_newcomer(waiting)
                                    : TAILQ_FIRST(&waiting->places[place]);
}

/* Moves watches from a place into the batch, until it has max. */
static void waiting_fill_batch(struct waiting *waiting, enum watch_place place, size_t max)
{
    struct watch *watch;

    while (waiting->batch_count < max && (watch = waiting_next_watch(waiting, place))) {
        waiting->batch[waiting->batch_count++] = watch;
        waiting_move_watch(waiting, watch, WATCH_IN_BATCH);
    }
}

static void waiting_take_asking(struct waiting *waiting, usec_t now)
{
    bool lasts = !TAILQ_EMPTY(&waiting->places[WATCH_LASTS]);

    waiting_start_batch(waiting, QUESTION_EVERYTHING, now);
    waiting->asking_at = now;
    /* New requests leave a part of each batch to the others, however many they are. */
    waiting_fill_batch(
        waiting, WATCH_NEWCOMERS, lasts ? SESSION_BATCH_MAX * 3 / 4 : SESSION_BATCH_MAX);
    waiting_fill_batch(waiting, WATCH_LASTS, SESSION_BATCH_MAX);
    waiting_fill_batch(waiting, WATCH_NEWCOMERS, SESSION_BATCH_MAX);
}

/* Claimed orders go first; where both kinds are due they take turns. */
static enum watch_place waiting_choose_polls(const struct waiting *waiting, usec_t now)
{
    bool claimed = waiting_place_due(waiting, WATCH_CLAIMED) <= now;
    bool unclaimed = waiting_place_due(waiting, WATCH_UNCLAIMED) <= now;

    if (claimed && unclaimed)
        return waiting->last_polled == WATCH_CLAIMED ? WATCH_UNCLAIMED : WATCH_CLAIMED;
    return claimed ? WATCH_CLAIMED : WATCH_UNCLAIMED;
}

static void waiting_take_polls(struct waiting *waiting, usec_t now)
{
    enum watch_place place = waiting_choose_polls(waiting, now);
    size_t max = place == WATCH_CLAIMED ? CLAIMED_BATCH_MAX : SESSION_BATCH_MAX;

    if (now - waiting->asking_at < BUSY_TIME)
        max = BUSY_BATCH_MAX;
    waiting->last_polled = place;
    waiting_start_batch(waiting, QUESTION_PAYMENT, now);
    waiting_fill_batch(waiting, place, max);
}

static void waiting_copy_batch(const struct waiting *waiting, struct waiting_batch *batch)
{
    batch->question = waiting->question;
    batch->count = waiting->batch_count;
    for (size_t i = 0; i < batch->count; i++)
        batch->keys[i] = &waiting->batch[i]->key;
}

static bool waiting_check_is_due(const struct waiting *waiting, usec_t now)
{
    return waiting_parked(waiting) > 0 && waiting->check_due <= now;
}

/* Chooses the turn. Requests that ask go first, but every other turn is for checks and polls,
 * and every other one of these for polls. False if there is nothing to do. */
static bool waiting_choose_turn(struct waiting *waiting, enum waiting_turn *turn, usec_t now)
{
    bool check = waiting_check_is_due(waiting, now);
    bool poll = waiting_poll_due(waiting) <= now;
    bool asking = waiting_any_asking(waiting) && !waiting_gathers(waiting, now);

    if (asking && !((check || poll) && waiting->last_turn == WAITING_TURN_ASKING))
        *turn = WAITING_TURN_ASKING;
    else if (check && !(poll && waiting->last_was_check))
        *turn = WAITING_TURN_CHECK;
    else if (poll)
        *turn = WAITING_TURN_POLL;
    else
        return false;
    waiting->last_turn = *turn;
    if (*turn != WAITING_TURN_ASKING)
        waiting->last_was_check = *turn == WAITING_TURN_CHECK;
    return true;
}

enum waiting_step waiting_next(struct waiting *waiting, struct waiting_batch *batch, usec_t now)
{
    enum waiting_turn turn;

    waiting_release_held(waiting, now);
    if (!waiting_choose_turn(waiting, &turn, now))
        return WAITING_STEP_NOTHING;
    switch (turn) {
    case WAITING_TURN_ASKING:
        waiting_take_asking(waiting, now);
        break;
    case WAITING_TURN_CHECK:
        waiting->sent_at = now;
        return WAITING_STEP_CHECK;
    case WAITING_TURN_POLL:
        waiting_take_polls(waiting, now);
        break;
    }
    waiting_copy_batch(waiting, batch);
    return WAITING_STEP_BATCH;
}

usec_t waiting_due(const struct waiting *waiting, usec_t now)
{
    usec_t due = usec_min(waiting_poll_due(waiting), waiting_held_due(waiting));

    if (waiting_any_asking(waiting))
        due = usec_min(due, waiting_gathers(waiting, now) ? waiting->gather_until : now);
    if (waiting_parked(waiting) > 0)
        due = usec_min(due, waiting->check_due);
    return due;
}

void waiting_checked(struct waiting *waiting, uint64_t version, usec_t now)
{
    waiting_set_version(waiting, version);
    round_trip_add(&waiting->round_trip, now - waiting->sent_at);
    /* Where the round trip is long, at least half of the connection's time is left for other
     * batches. */
    waiting->check_due = usec_max(
        waiting->sent_at + waiting->check_interval, now + round_trip_time(&waiting->round_trip));
}

static bool watch_learn(struct watch *watch, const struct session_answer *answer)
{
    char *order_id = answer->order_id ? strdup(answer->order_id) : NULL;

    if (answer->order_id && !order_id)
        return false;
    free(watch->order_id);
    watch->order_id = order_id;
    watch->status = answer->status;
    return true;
}

/* Moves waiters from one state to another, if the batch under way can answer them. */
static void waiting_move_asked(
    struct waiting *waiting, struct watch *watch, enum waiter_state from, enum waiter_state to)
{
    struct waiter *waiter;

    while ((waiter = TAILQ_FIRST(&watch->waiters[from])) && waiter->batch <= waiting->batch_number)
        waiting_set_state(waiting, waiter, to);
}

/* Answers new requests that were looked up and are not paid, except those that are to be parked:
 * they have time, and there is room. */
static void waiting_answer_new(
    struct waiting *waiting, struct watch *watch, size_t park_limit, usec_t now)
{
    struct waiter *waiter;

    while ((waiter = TAILQ_FIRST(&watch->waiters[WAITER_NEW])) &&
           waiter->batch <= waiting->batch_number) {
        bool room = waiting->counts[WAITER_PARKED] + waiting->counts[WAITER_PARKABLE] < park_limit;
        bool time = waiter->deadline > now && waiting->stop_limit == USEC_NEVER;

        waiting_set_state(waiting, waiter, room && time ? WAITER_PARKABLE : WAITER_KNOWN);
    }
}

static void waiting_answer_watch(struct waiting *waiting, struct watch *watch,
    const struct session_answer *answer, size_t park_limit, usec_t now)
{
    bool everything = waiting->question == QUESTION_EVERYTHING;
    bool final = answer->status == SESSION_PAID || answer->status == SESSION_NO_INSTANCE;
    /* A poll does not tell unclaimed orders, and the one that is known may be newer. */
    bool news = answer->status == SESSION_UNPAID && watch->status == SESSION_UNKNOWN;

    if (answer->status == SESSION_NOT_ASKED)
        return;
    if (answer->status == SESSION_FAILED) {
        watch->held_until = now + HOLD_TIME;
        return;
    }
    if ((everything || final || news) && !watch_learn(watch, answer))
        return; /* out of memory: asked about again */
    watch->version_before = watch->version;
    watch->version = waiting->version;
    watch->claimed = answer->claimed;
    if (final) {
        waiting_move_asked(waiting, watch, WAITER_NEW, WAITER_KNOWN);
        waiting_move_asked(waiting, watch, WAITER_PARKED, WAITER_KNOWN);
        waiting_move_asked(waiting, watch, WAITER_LAST, WAITER_KNOWN);
    } else if (everything) {
        waiting_answer_new(waiting, watch, park_limit, now);
        waiting_move_asked(waiting, watch, WAITER_LAST, WAITER_KNOWN);
    }
}

static void waiting_end_batch(struct waiting *waiting)
{
    for (size_t i = 0; i < waiting->batch_count; i++) {
        struct watch *watch = waiting->batch[i];

        waiting_move_watch(waiting, watch, watch_proper_place(watch));
        waiting_free_unused(waiting, watch);
    }
    waiting->batch_count = 0;
}

void waiting_answered(
    struct waiting *waiting, const struct session_answer *answers, size_t park_limit, usec_t now)
{
    if (waiting->question == QUESTION_PAYMENT)
        budget_charge(&waiting->budgets[waiting->last_polled],
            usec_max(now - waiting->sent_at - round_trip_time(&waiting->round_trip), 0), now);
    else
        waiting_note_load(waiting, now);
    for (size_t i = 0; i < waiting->batch_count; i++)
        waiting_answer_watch(waiting, waiting->batch[i], &answers[i], park_limit, now);
    waiting_end_batch(waiting);
}

void waiting_failed(struct waiting *waiting)
{
    waiting_end_batch(waiting);
}

static struct waiter *waiting_waiter_of(struct heap_node *node)
{
    return (struct waiter *)((char *)node - offsetof(struct waiter, alarm));
}

/* The time of a waiter's state is over. The patience of the last lookup begins now, not at the
 * deadline: this process may not have run meanwhile, and then the database was not asked. */
static void waiting_expire_waiter(struct waiting *waiting, struct waiter *waiter, usec_t now)
{
    bool stopping = waiting->stop_limit != USEC_NEVER;

    switch (waiter->state) {
    case WAITER_PARKED:
        heap_move(&waiting->alarms, &waiter->alarm, now + waiting->patience);
        waiting_set_state(waiting, waiter, WAITER_LAST);
        break;
    case WAITER_LAST:
        waiting_set_state(waiting, waiter, stopping ? WAITER_KNOWN : WAITER_FAILED);
        break;
    case WAITER_NEW:
        waiting_set_state(waiting, waiter, WAITER_FAILED);
        break;
    case WAITER_PARKABLE:
        waiting_set_state(waiting, waiter, WAITER_KNOWN);
        break;
    case WAITER_KNOWN:
    case WAITER_FAILED:
        break; /* they have no alarm */
    }
}

void waiting_expire(struct waiting *waiting, usec_t now)
{
    struct heap_node *first;

    while (
        (first = heap_first(&waiting->alarms)) && (first->due <= now || waiting->stop_limit <= now))
        waiting_expire_waiter(waiting, waiting_waiter_of(first), now);
}

usec_t waiting_expire_due(const struct waiting *waiting)
{
    const struct heap_node *first = heap_first(&waiting->alarms);

    return first ? usec_min(first->due, waiting->stop_limit) : USEC_NEVER;
}

void waiting_stop(struct waiting *waiting, usec_t limit)
{
    waiting->stop_limit = limit;
    /* Backwards, since an alarm that is put off moves towards the end. */
    for (size_t i = waiting->alarms.count; i-- > 0;) {
        struct waiter *waiter = waiting_waiter_of(waiting->alarms.nodes[i]);

        if (waiter->state != WAITER_PARKED && waiter->state != WAITER_LAST)
            continue;
        if (waiter->state == WAITER_PARKED)
            waiting_set_state(waiting, waiter, WAITER_LAST);
        if (waiter->alarm.due < limit)
            heap_move(&waiting->alarms, &waiter->alarm, limit);
    }
}

struct waiter *waiting_outcome(struct waiting *waiting)
{
    return TAILQ_FIRST(&waiting->outcomes);
}
