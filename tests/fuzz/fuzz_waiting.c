/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "fuzz.h"

#include <limits.h>
#include <stdbool.h>

#include "waiting.h"

/*
 * Oracle: a model of the contract in waiting.h, with arrays and linear searches, and a simulated
 * database. The input drives a random caller. Before each call the model says which states each
 * waiter may have afterwards; after it every waiter, every watch and the times that are due are
 * held against that.
 *
 * An input is three bytes of settings, then one byte for each action with the bytes it needs. At
 * its end the caller runs on until nothing is left to do.
 */

#define KEYS_MAX    400
#define GUESTS_MAX  700
#define PARK_PLENTY 100000
#define BATCHES_MAX UINT64_MAX

/* The limits of the policy that waiting.h gives in words. */
#define GATHER_TIME   500 /* microseconds */
#define LAST_SHARE    (SESSION_BATCH_MAX / 4)
#define NEW_SHARE     (SESSION_BATCH_MAX - LAST_SHARE)
#define POLL_FRACTION 10
/* How long the budget may put off a poll that is owed, and how many other steps may then still go
 * before it. */
#define POLL_PAUSE_MAX (1100 * USEC_PER_MS)
#define POLL_STEPS_MAX 12
/* How far polling may be ahead of its tenth, and what one poll is charged with at most. */
#define POLL_CREDIT_MAX (300 * USEC_PER_MS)
#define POLL_CHARGE_MAX (100 * USEC_PER_MS)
/* How long a key is held back whose instance cannot be asked. */
#define HOLD_TIME (250 * USEC_PER_MS)

#define STATES      (WAITER_FAILED + 1)
#define STATE(name) (1u << WAITER_##name)

/* What the simulated database holds about one key. */
struct fuzz_row {
    enum session_status status;
    enum session_status trouble; /* SESSION_FAILED, or for one batch SESSION_NOT_ASKED; else 0 */
    bool claimed, told;          /* told: a poll says too that there is no instance */
    unsigned order;              /* number of the order that is paid, or the newest */
    uint64_t changed;            /* number of the commit that last changed the row */
};

/* One request: the real waiter, and what the model knows of it. It is allocated by itself, so that
 * AddressSanitizer sees a use after its removal. */
struct fuzz_guest {
    struct waiter waiter;
    size_t key;
    unsigned allowed; /* the states that it may have after the call under way */
    enum waiter_state state;
    bool was_parked;
    usec_t arrived, deadline;
    usec_t last_at; /* when it became LAST */
    uint64_t asked; /* how many batches had been sent when it became NEW or LAST */
};

/* Why a key is waiting for a batch. */
enum fuzz_need {
    NEED_NOTHING,
    NEED_NEW,
    NEED_LAST,
    NEED_CLAIMED,
    NEED_UNCLAIMED,
    NEED_TIME, /* it is held back */
    NEEDS      /* how many there are */
};

/* The least that a budget of polling can hold, at a time. */
struct fuzz_credit {
    usec_t least, at;
};

/* What the model knows of one key. */
struct fuzz_key {
    char session[16];
    size_t count[STATES], guests;
    bool in_batch;
    usec_t held_until;                   /* 0: it is not held back */
    const struct session_answer *answer; /* while the batch that asked for it is settled */
    bool told_by_poll;                   /* the order is the one that a poll found */
    bool looked_up, claimed;
    enum session_status status;
    unsigned order;     /* 0: none */
    uint64_t seen;      /* the last lookup saw all commits up to this one */
    bool version_known; /* whether the database had been checked before the last lookup, */
    uint64_t version;   /* and what the check had said */
    enum fuzz_need need;
    uint64_t bound; /* the batch of its kind that has to ask for it at the latest */
    bool owed;      /* it has changed, and a check has said so */
};

/* What is under way. */
enum fuzz_flight {
    FLIGHT_NONE,
    FLIGHT_CHECK,
    FLIGHT_BATCH,
};

/* The polls of one kind that are owed. */
struct fuzz_debt {
    size_t keys;
    usec_t since;   /* when there was none, or one was polled */
    unsigned steps; /* what was asked since then, when the budget allowed a poll again */
};

static struct fuzz_world {
    struct fuzz_input input;
    struct waiting *waiting;
    usec_t now, start, interval, patience;
    struct fuzz_guest *guests[GUESTS_MAX];
    size_t guest_count, key_count;
    struct fuzz_key keys[KEYS_MAX];
    struct fuzz_row rows[KEYS_MAX], snapshot[KEYS_MAX];
    uint64_t commit, snapshot_commit;
    unsigned orders;
    bool checked, stopping;
    uint64_t version; /* as the last check reported it: the number of a commit */
    usec_t checked_at, check_sent, limit;
    enum fuzz_flight flight;
    enum waiting_step last_step;
    enum session_question last_question;
    bool check_was_due; /* at the last call of waiting_next() */
    struct waiting_batch batch;
    usec_t gather_until;                  /* so long those who ask may be put off, */
    size_t gather_enough;                 /* unless so many requests do */
    usec_t sent_at, check_took, road_max; /* of checks: how long the last and the slowest took */
    uint64_t sent, sent_everything, sent_claimed, sent_unclaimed;
    enum fuzz_need last_poll; /* which keys the last poll was about */
    usec_t poll_ended;        /* when the last one came back */
    usec_t polling[NEEDS];    /* what the polls of each kind took, at least */
    struct fuzz_credit credits[NEEDS];
    struct fuzz_debt debts[NEEDS];
    size_t needs[NEEDS]; /* keys by need */
} w;

/* ---- The database ---- */

static bool fuzz_row_has_order(enum session_status status)
{
    return status == SESSION_UNPAID || status == SESSION_PAID;
}

static void fuzz_commit(size_t key, unsigned kind)
{
    struct fuzz_row *row = &w.rows[key];

    row->status = (enum session_status)(kind & 3);
    row->claimed = fuzz_row_has_order(row->status) && (kind & 4);
    row->trouble = kind & 8 ? SESSION_FAILED : kind & 16 ? SESSION_NOT_ASKED : 0;
    row->told = kind & 32;
    row->order = fuzz_row_has_order(row->status) ? ++w.orders : 0;
    row->changed = ++w.commit;
}

/* A lookup sees the database as it is now. */
static void fuzz_take_snapshot(void)
{
    memcpy(w.snapshot, w.rows, w.key_count * sizeof *w.rows);
    w.snapshot_commit = w.commit;
}

static void fuzz_order_name(char name[32], unsigned order, bool claimed)
{
    snprintf(name, 32, "%s%u", claimed ? "claimed-" : "", order);
}

/* What the statement of the batch returns for a key. */
static struct session_answer fuzz_database_answer(size_t key, char name[32])
{
    const struct fuzz_row *row = &w.snapshot[key];
    bool everything = w.batch.question == QUESTION_EVERYTHING;
    bool no_instance = row->status == SESSION_NO_INSTANCE && row->told;
    struct session_answer answer = {row->status, row->claimed, NULL};

    if (row->trouble)
        return (struct session_answer){.status = row->trouble};
    if (!everything && row->status != SESSION_PAID && !no_instance)
        answer.status = row->claimed ? SESSION_UNPAID : SESSION_UNKNOWN;
    if (fuzz_row_has_order(answer.status)) {
        fuzz_order_name(name, row->order, !everything && answer.status == SESSION_UNPAID);
        answer.order_id = name;
    }
    return answer;
}

/* ---- The model ---- */

static size_t model_key_of(const struct session_key *key)
{
    unsigned long number = strtoul(key->session, NULL, 10);

    CHECK(number < w.key_count);
    CHECK(strcmp(key->session, w.keys[number].session) == 0);
    return number;
}

static size_t model_count(enum waiter_state state)
{
    size_t count = 0;

    for (size_t i = 0; i < w.guest_count; i++)
        count += w.guests[i]->state == state;
    return count;
}

/* When the state of a waiter has to end. A caller takes PARKABLE ones before it sleeps. */
static usec_t model_end(const struct fuzz_guest *guest)
{
    usec_t end = USEC_NEVER;

    switch (guest->state) {
    case WAITER_NEW:
        end = guest->arrived + w.patience;
        break;
    case WAITER_LAST:
        return w.stopping ? w.limit : guest->last_at + w.patience;
    case WAITER_PARKED:
        return guest->deadline;
    case WAITER_PARKABLE:
    case WAITER_KNOWN:
    case WAITER_FAILED:
        return USEC_NEVER;
    }
    return w.stopping ? usec_min(end, w.limit) : end;
}

static enum fuzz_need model_need(const struct fuzz_key *key)
{
    size_t asking = key->count[WAITER_NEW] + key->count[WAITER_LAST] + key->count[WAITER_PARKED];

    if (key->in_batch || asking == 0)
        return NEED_NOTHING;
    if (key->held_until > 0)
        return NEED_TIME;
    if (key->count[WAITER_NEW] > 0)
        return NEED_NEW;
    if (key->count[WAITER_LAST] > 0)
        return NEED_LAST;
    return key->claimed ? NEED_CLAIMED : NEED_UNCLAIMED;
}

static size_t model_count_need(enum fuzz_need need)
{
    return w.needs[need];
}

/* By which batch a key has to be asked about, if those who came first go first. */
static uint64_t model_bound(enum fuzz_need need)
{
    size_t count = model_count_need(need);

    switch (need) {
    case NEED_NOTHING:
    case NEED_TIME:
    case NEEDS:
        break;
    case NEED_NEW:
        return w.sent_everything + 1 + (count + NEW_SHARE - 1) / NEW_SHARE;
    case NEED_LAST:
        return w.sent_everything + 1 + (count + LAST_SHARE - 1) / LAST_SHARE;
    case NEED_CLAIMED:
        return w.sent_claimed + 1 + count;
    case NEED_UNCLAIMED:
        return w.sent_unclaimed + 1 + count;
    }
    return BATCHES_MAX;
}

static uint64_t model_batches(enum fuzz_need need)
{
    switch (need) {
    case NEED_NEW:
    case NEED_LAST:
        return w.sent_everything;
    case NEED_CLAIMED:
        return w.sent_claimed;
    case NEED_UNCLAIMED:
        return w.sent_unclaimed;
    case NEED_NOTHING:
    case NEED_TIME:
    case NEEDS:
        break;
    }
    return 0;
}

/* Forgets all bounds: after a failure the order begins anew. */
static void model_forget_bounds(void)
{
    for (size_t i = 0; i < w.key_count; i++)
        w.keys[i].need = NEED_NOTHING;
}

static void model_count_guests(void)
{
    for (size_t i = 0; i < w.key_count; i++) {
        memset(w.keys[i].count, 0, sizeof w.keys[i].count);
        w.keys[i].guests = 0;
    }
    for (size_t i = 0; i < w.guest_count; i++) {
        struct fuzz_key *key = &w.keys[w.guests[i]->key];

        key->count[w.guests[i]->state]++;
        key->guests++;
    }
}

/* A key that nobody asks for any more is forgotten. */
static void model_forget_key(struct fuzz_key *key)
{
    key->looked_up = key->claimed = key->version_known = false;
    key->order = 0;
}

static void model_pay_debt(enum fuzz_need need)
{
    w.debts[need].since = w.now;
    w.debts[need].steps = 0;
}

static void model_update_debt(enum fuzz_need need)
{
    size_t count = 0;

    for (size_t i = 0; i < w.key_count; i++)
        count += w.keys[i].need == need && w.keys[i].owed;
    if (w.debts[need].keys == 0)
        model_pay_debt(need);
    w.debts[need].keys = count;
}

/* Whether a check has found another state of the database than the last lookup of the key. */
static bool model_is_stale(const struct fuzz_key *key)
{
    return w.checked && !(key->version_known && key->version == w.version);
}

/* Works out what each key needs, and gives bounds to those that need something else than before. */
static void model_update_keys(void)
{
    static bool changed[KEYS_MAX];

    memset(w.needs, 0, sizeof w.needs);
    for (size_t i = 0; i < w.key_count; i++) {
        struct fuzz_key *key = &w.keys[i];
        enum fuzz_need need;

        if (key->guests == 0 && !key->in_batch)
            model_forget_key(key);
        need = model_need(key);
        if (need == NEED_NOTHING && !key->in_batch)
            key->held_until = 0;
        changed[i] = need != key->need;
        key->need = need;
        w.needs[need]++;
    }
    for (size_t i = 0; i < w.key_count; i++) {
        struct fuzz_key *key = &w.keys[i];
        bool polled = key->need == NEED_CLAIMED || key->need == NEED_UNCLAIMED;
        bool owed = polled && model_is_stale(key);

        if (changed[i] || (owed && !key->owed))
            key->bound = !polled || owed ? model_bound(key->need) : BATCHES_MAX;
        key->owed = owed;
    }
    model_update_debt(NEED_CLAIMED);
    model_update_debt(NEED_UNCLAIMED);
}

static enum watch_place model_place(const struct fuzz_key *key)
{
    if (key->in_batch)
        return WATCH_IN_BATCH;
    switch (key->need) {
    case NEED_NEW:
        return WATCH_NEWCOMERS;
    case NEED_LAST:
        return WATCH_LASTS;
    case NEED_CLAIMED:
        return WATCH_CLAIMED;
    case NEED_UNCLAIMED:
        return WATCH_UNCLAIMED;
    case NEED_TIME:
        return WATCH_HELD;
    case NEED_NOTHING:
    case NEEDS:
        break;
    }
    return WATCH_AWAY;
}

/* What the watch knows is what the database has said. */
static void model_check_watch(const struct fuzz_guest *guest)
{
    const struct fuzz_key *key = &w.keys[guest->key];
    const struct watch *watch = guest->waiter.watch;
    char name[32];

    CHECK(strcmp(watch->key.session, key->session) == 0);
    CHECK(watch->place == model_place(key));
    if (!key->looked_up)
        return;
    CHECK(watch->status == key->status);
    CHECK(watch->claimed == key->claimed);
    CHECK(!watch->order_id == (key->order == 0));
    if (!watch->order_id)
        return;
    fuzz_order_name(name, key->order, key->told_by_poll);
    CHECK(strcmp(watch->order_id, name) == 0);
}

static void model_check_all(void)
{
    usec_t end = USEC_NEVER;

    for (size_t i = 0; i < w.guest_count; i++) {
        const struct fuzz_guest *guest = w.guests[i];

        model_check_watch(guest);
        CHECK(!w.stopping || (guest->state != WAITER_PARKED && guest->state != WAITER_PARKABLE));
        CHECK(guest->state != WAITER_KNOWN || w.keys[guest->key].looked_up);
        end = usec_min(end, model_end(guest));
    }
    for (size_t i = 0; i < w.key_count; i++)
        CHECK(w.keys[i].need == NEED_NOTHING || w.keys[i].need == NEED_TIME ||
              model_batches(w.keys[i].need) < w.keys[i].bound);
    CHECK(waiting_parked(w.waiting) == model_count(WAITER_PARKED));
    CHECK(model_count(WAITER_PARKABLE) > 0 || waiting_expire_due(w.waiting) == end);
}

/* Before a call: nobody's state may change but by what is allowed afterwards. */
static void model_expect_no_change(void)
{
    for (size_t i = 0; i < w.guest_count; i++)
        w.guests[i]->allowed = 1u << w.guests[i]->state;
}

static void model_accept_state(struct fuzz_guest *guest)
{
    enum waiter_state state = guest->waiter.state;

    CHECK(guest->allowed & (1u << state));
    if (state == WAITER_LAST && guest->state != state) {
        guest->asked = w.sent;
        guest->last_at = w.now;
    }
    if (state == WAITER_PARKED)
        guest->was_parked = true;
    guest->state = state;
}

/* After a call: everybody is where the model says. */
static void model_accept(void)
{
    for (size_t i = 0; i < w.guest_count; i++)
        model_accept_state(w.guests[i]);
    model_count_guests();
    model_update_keys();
    model_check_all();
}

/* ---- The caller: requests ---- */

static usec_t fuzz_duration(void)
{
    static const usec_t units[] = {0, 1, 100, USEC_PER_MS, 10 * USEC_PER_MS, 100 * USEC_PER_MS,
        USEC_PER_SEC, 10 * USEC_PER_SEC};
    uint8_t byte = fuzz_byte(&w.input);

    return units[byte % 8] * (byte / 8 + 1);
}

static void caller_add(size_t number, usec_t deadline)
{
    struct session_key key = {w.keys[number].session, "https://shop.example/", ""};
    struct fuzz_guest *guest;

    if (w.guest_count == GUESTS_MAX)
        return;
    guest = calloc(1, sizeof *guest);
    CHECK(guest);
    model_expect_no_change();
    guest->key = number;
    guest->allowed = STATE(NEW);
    guest->arrived = w.now;
    guest->deadline = deadline;
    guest->asked = w.sent;
    w.guests[w.guest_count++] = guest;
    CHECK(waiting_add(w.waiting, &guest->waiter, &key, deadline, w.now));
    CHECK(guest->waiter.deadline == deadline);
}

static usec_t caller_deadline(void)
{
    usec_t wait = fuzz_duration();

    return wait == 0 ? 0 : wait == 1 ? w.now : w.now + wait;
}

static void caller_add_one(void)
{
    size_t number = fuzz_byte(&w.input) % w.key_count;

    caller_add(number, caller_deadline());
    model_accept();
}

/* Requests for many keys in a row, all with one deadline. */
static void caller_add_many(void)
{
    size_t count = fuzz_byte(&w.input), first = fuzz_byte(&w.input) * 3u;
    usec_t deadline = caller_deadline();

    for (size_t i = 0; i < count; i++)
        caller_add((first + i) % w.key_count, deadline);
    model_accept();
}

static void caller_remove_guest(size_t index)
{
    struct fuzz_guest *guest = w.guests[index];

    waiting_remove(w.waiting, &guest->waiter);
    w.guests[index] = w.guests[--w.guest_count];
    free(guest);
}

static void caller_remove(size_t count)
{
    model_expect_no_change();
    for (size_t i = 0; i < count && w.guest_count > 0; i++)
        caller_remove_guest(fuzz_byte(&w.input) * 257u % w.guest_count);
    model_accept();
}

/* ---- The caller: outcomes ---- */

static size_t caller_find_guest(const struct waiter *waiter)
{
    size_t i = 0;

    while (i < w.guest_count && &w.guests[i]->waiter != waiter)
        i++;
    CHECK(i < w.guest_count);
    return i;
}

static void caller_take_outcome(struct waiter *waiter, bool answer)
{
    size_t index = caller_find_guest(waiter);
    struct fuzz_guest *guest = w.guests[index];

    CHECK(guest->state >= WAITER_PARKABLE && guest->state == waiter->state);
    if (guest->state == WAITER_PARKABLE && !answer) {
        guest->allowed = STATE(PARKED);
        waiting_park(w.waiting, waiter);
    } else {
        caller_remove_guest(index);
    }
}

static size_t model_count_outcomes(void)
{
    return model_count(WAITER_PARKABLE) + model_count(WAITER_KNOWN) + model_count(WAITER_FAILED);
}

/* Takes outcomes, at most max. Of those that could be parked the caller answers every n-th; 0: it
 * parks all. */
static void caller_take_outcomes(unsigned max, unsigned nth)
{
    struct waiter *waiter = NULL;

    model_expect_no_change();
    for (unsigned i = 1; i <= max && (waiter = waiting_outcome(w.waiting)); i++)
        caller_take_outcome(waiter, nth > 0 && i % nth == 0);
    model_accept();
    CHECK(waiter || max == 0 || model_count_outcomes() == 0);
}

static void caller_take_all_outcomes(void)
{
    caller_take_outcomes(UINT_MAX, 0);
    CHECK(!waiting_outcome(w.waiting));
}

/* ---- The caller: time and stopping ---- */

static unsigned model_expired(const struct fuzz_guest *guest)
{
    if (model_end(guest) > w.now)
        return 1u << guest->state;
    switch (guest->state) {
    case WAITER_NEW:
        return STATE(FAILED) | (w.stopping && w.keys[guest->key].looked_up ? STATE(KNOWN) : 0u);
    case WAITER_PARKED:
        return STATE(LAST);
    case WAITER_LAST:
        return w.stopping ? STATE(KNOWN) : STATE(FAILED);
    case WAITER_PARKABLE:
    case WAITER_KNOWN:
    case WAITER_FAILED:
        break;
    }
    return 1u << guest->state;
}

static void caller_expire(void)
{
    caller_take_all_outcomes();
    for (size_t i = 0; i < w.guest_count; i++)
        w.guests[i]->allowed = model_expired(w.guests[i]);
    waiting_expire(w.waiting, w.now);
    model_accept();
    CHECK(model_count(WAITER_PARKABLE) > 0 || waiting_expire_due(w.waiting) > w.now);
}

static void caller_stop(usec_t limit)
{
    caller_take_all_outcomes();
    model_expect_no_change();
    for (size_t i = 0; i < w.guest_count; i++)
        if (w.guests[i]->state == WAITER_PARKED)
            w.guests[i]->allowed = STATE(LAST);
    waiting_stop(w.waiting, limit);
    w.stopping = true;
    w.limit = limit;
    model_accept();
}

/* ---- The caller: asking the database ---- */

static bool model_check_is_due(void)
{
    return model_count(WAITER_PARKED) > 0 &&
           model_count_need(NEED_CLAIMED) + model_count_need(NEED_UNCLAIMED) > 0 &&
           (!w.checked || w.now >= w.checked_at + usec_max(w.interval, w.check_took));
}

static bool model_poll_is_owed(void)
{
    return w.debts[NEED_CLAIMED].keys + w.debts[NEED_UNCLAIMED].keys > 0;
}

/* The first time at which a key is not held back any more. */
static usec_t model_held_due(void)
{
    usec_t due = USEC_NEVER;

    for (size_t i = 0; i < w.key_count; i++)
        if (w.keys[i].need == NEED_TIME)
            due = usec_min(due, w.keys[i].held_until);
    return due;
}

/* Whether any was held back until now. */
static bool model_release_held(void)
{
    bool any = false;

    for (size_t i = 0; i < w.key_count; i++) {
        struct fuzz_key *key = &w.keys[i];

        if (key->need != NEED_TIME || key->held_until > w.now)
            continue;
        key->held_until = 0;
        any = true;
    }
    if (any)
        model_update_keys();
    return any;
}

static size_t model_count_stale(enum fuzz_need need)
{
    size_t count = 0;

    for (size_t i = 0; i < w.key_count; i++)
        count += w.keys[i].need == need && model_is_stale(&w.keys[i]);
    return count;
}

/* Whatever else there is to do, a change is found in time. */
static void model_check_debt(enum fuzz_need need)
{
    struct fuzz_debt *debt = &w.debts[need];

    if (debt->keys == 0 || w.now <= debt->since + POLL_PAUSE_MAX)
        return;
    debt->steps++;
    CHECK(debt->steps <= POLL_STEPS_MAX);
}

/* Only the budget may put off a poll that is owed. */
static void model_check_pause(enum fuzz_need need)
{
    usec_t since = usec_max(w.debts[need].since, w.poll_ended);

    CHECK(w.debts[need].keys == 0 || w.now <= since + POLL_PAUSE_MAX);
}

/* Whether those who ask may be put off, so that the next batch becomes larger. */
static bool model_gathers(void)
{
    return w.now < w.gather_until &&
           model_count(WAITER_NEW) + model_count(WAITER_LAST) < w.gather_enough;
}

/* Nothing to ask: then nobody asks, or may be put off, and the time to ask again is right. */
static void model_check_nothing(usec_t due)
{
    if (model_count_need(NEED_NEW) + model_count_need(NEED_LAST) > 0) {
        CHECK(model_gathers());
        CHECK(due <= w.gather_until);
    }
    CHECK(!model_check_is_due());
    CHECK(due <= model_held_due());
    if (w.guest_count == 0)
        CHECK(due == USEC_NEVER);
    if (model_count(WAITER_PARKED) > 0)
        CHECK(due <= w.now + usec_max(w.interval, w.check_took));
    model_check_pause(NEED_CLAIMED);
    model_check_pause(NEED_UNCLAIMED);
}

static void model_check_check(void)
{
    CHECK(model_count(WAITER_PARKED) > 0);
    CHECK(w.check_sent < 0 || w.now >= w.check_sent + w.interval);
}

static size_t model_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* A batch that asks everything: new keys first, but a quarter for the last ones. */
static void model_check_everything(size_t new, size_t last)
{
    size_t all_new = model_count_need(NEED_NEW), all_last = model_count_need(NEED_LAST);

    CHECK(new + last == w.batch.count);
    CHECK(new >= model_min(all_new, all_last > 0 ? NEW_SHARE : SESSION_BATCH_MAX));
    CHECK(last >= model_min(all_last, LAST_SHARE));
    CHECK(new + last == model_min(all_new + all_last, SESSION_BATCH_MAX));
}

/* The polls of each kind keep to their tenth of the time. */
static void model_check_budget(enum fuzz_need need)
{
    CHECK(w.polling[need] <= (w.now - w.start) / POLL_FRACTION + POLL_CREDIT_MAX + POLL_CHARGE_MAX);
}

static usec_t model_credit(enum fuzz_need need)
{
    const struct fuzz_credit *credit = &w.credits[need];

    return usec_min(credit->least + (w.now - credit->at) / POLL_FRACTION, POLL_CREDIT_MAX);
}

/* A poll: only parked keys that may have changed. Claimed ones go first if their budget allows, but
 * take turns with the others. */
static void model_check_poll(size_t claimed, size_t unclaimed)
{
    enum fuzz_need need = claimed > 0 ? NEED_CLAIMED : NEED_UNCLAIMED;

    CHECK(w.checked);
    CHECK(claimed + unclaimed == w.batch.count);
    CHECK(claimed == 0 || unclaimed == 0);
    if (unclaimed > 0 && model_count_stale(NEED_CLAIMED) > 0)
        CHECK(w.last_poll == NEED_CLAIMED || model_credit(NEED_CLAIMED) <= 0);
    model_check_budget(need);
    model_pay_debt(need);
    w.last_poll = need;
    w.sent_claimed += claimed > 0;
    w.sent_unclaimed += unclaimed > 0;
}

static void model_check_batch(void)
{
    size_t needs[NEEDS] = {0};

    CHECK(w.batch.count > 0 && w.batch.count <= SESSION_BATCH_MAX);
    for (size_t i = 0; i < w.batch.count; i++) {
        struct fuzz_key *key = &w.keys[model_key_of(w.batch.keys[i])];

        CHECK(!key->in_batch);
        CHECK(w.batch.question == QUESTION_EVERYTHING || model_is_stale(key));
        key->in_batch = true;
        needs[key->need]++;
    }
    if (w.batch.question == QUESTION_EVERYTHING)
        model_check_everything(needs[NEED_NEW], needs[NEED_LAST]);
    else
        model_check_poll(needs[NEED_CLAIMED], needs[NEED_UNCLAIMED]);
    w.sent++;
    w.sent_everything += w.batch.question == QUESTION_EVERYTHING;
}

static bool model_is_about_new(enum waiting_step step, enum session_question question)
{
    return step == WAITING_STEP_BATCH && question == QUESTION_EVERYTHING;
}

/* Polls and checks have every other turn, and no more than that. */
static void model_check_turn(enum waiting_step step)
{
    bool about_new = model_is_about_new(step, w.batch.question);
    bool was_about_new = model_is_about_new(w.last_step, w.last_question);
    bool asked = model_count_need(NEED_NEW) + model_count_need(NEED_LAST) > 0 && !model_gathers();
    bool check_due = model_check_is_due();

    if (w.last_step != WAITING_STEP_NOTHING && !was_about_new && asked)
        CHECK(about_new);
    if (was_about_new && w.check_was_due && check_due)
        CHECK(!about_new);
    w.check_was_due = check_due;
    w.last_step = step;
    w.last_question = w.batch.question;
}

static enum waiting_step caller_ask(void)
{
    usec_t due = waiting_due(w.waiting, w.now);
    bool released = model_release_held();
    enum waiting_step step;

    model_check_debt(NEED_CLAIMED);
    model_check_debt(NEED_UNCLAIMED);
    model_expect_no_change();
    step = waiting_next(w.waiting, &w.batch, w.now);
    /* Who was held back and is parked may have to go on waiting. */
    CHECK((due <= w.now) == (step != WAITING_STEP_NOTHING || released));
    model_check_turn(step);
    w.sent_at = w.now;
    switch (step) {
    case WAITING_STEP_NOTHING:
        model_check_nothing(waiting_due(w.waiting, w.now));
        break;
    case WAITING_STEP_CHECK:
        model_check_check();
        w.check_sent = w.now;
        w.flight = FLIGHT_CHECK;
        break;
    case WAITING_STEP_BATCH:
        model_check_batch();
        w.flight = FLIGHT_BATCH;
        break;
    }
    fuzz_take_snapshot();
    model_accept();
    return step;
}

static unsigned model_settled(const struct fuzz_guest *guest, const struct session_answer *answer)
{
    bool asked_in_time = guest->asked < w.sent;
    bool everything = w.batch.question == QUESTION_EVERYTHING;

    bool final;

    if (!answer || answer->status == SESSION_FAILED || answer->status == SESSION_NOT_ASKED)
        return 1u << guest->state;
    final = answer->status == SESSION_PAID || answer->status == SESSION_NO_INSTANCE;
    switch (guest->state) {
    case WAITER_NEW:
        if (!asked_in_time)
            return STATE(NEW);
        if (final || guest->deadline <= w.now || w.stopping)
            return STATE(KNOWN);
        return STATE(PARKABLE) | STATE(KNOWN);
    case WAITER_PARKED:
        return final ? STATE(KNOWN) : STATE(PARKED);
    case WAITER_LAST:
        if (asked_in_time && everything)
            return STATE(KNOWN);
        return final ? STATE(LAST) | STATE(KNOWN) : STATE(LAST);
    case WAITER_PARKABLE:
    case WAITER_KNOWN:
    case WAITER_FAILED:
        break;
    }
    return 1u << guest->state;
}

static void model_learn(struct fuzz_key *key, const struct session_answer *answer, unsigned order)
{
    bool everything = w.batch.question == QUESTION_EVERYTHING;

    key->in_batch = false;
    if (answer->status == SESSION_FAILED)
        key->held_until = w.now + HOLD_TIME;
    if (answer->status == SESSION_FAILED || answer->status == SESSION_NOT_ASKED)
        return;
    key->claimed = answer->claimed;
    key->seen = w.snapshot_commit;
    key->version_known = w.checked;
    key->version = w.version;
    /* A poll knows nothing of unclaimed orders. */
    if (!everything && answer->status != SESSION_PAID && answer->status != SESSION_NO_INSTANCE &&
        (answer->status != SESSION_UNPAID || key->status != SESSION_UNKNOWN))
        return;
    key->looked_up = true;
    key->told_by_poll = !everything && answer->status == SESSION_UNPAID;
    key->status = answer->status;
    key->order = answer->order_id ? order : 0;
}

/* Nobody is parked beyond the limit, and nobody is sent away for less. */
static void model_check_park_limit(size_t before, size_t limit)
{
    size_t settled = 0;
    bool refused = false;

    for (size_t i = 0; i < w.guest_count; i++) {
        const struct fuzz_guest *guest = w.guests[i];

        if (guest->allowed != (STATE(PARKABLE) | STATE(KNOWN)))
            continue;
        settled += guest->waiter.state == WAITER_PARKABLE;
        refused |= guest->waiter.state == WAITER_KNOWN;
    }
    if (refused)
        CHECK(before + settled >= limit);
    if (settled > 0)
        CHECK(model_count(WAITER_PARKED) + model_count(WAITER_PARKABLE) <= limit);
}

/* What the poll took at the least, whatever the road to the database is believed to take. */
static void model_charge_poll(void)
{
    usec_t took = w.now - w.sent_at, work = usec_max(took - w.road_max, 0);
    usec_t left = model_credit(w.last_poll) - usec_min(took, POLL_CHARGE_MAX);

    w.poll_ended = w.now;
    w.polling[w.last_poll] += usec_min(work, POLL_CHARGE_MAX);
    w.credits[w.last_poll] = (struct fuzz_credit){usec_max(left, -POLL_CHARGE_MAX), w.now};
}

/* A batch of so many keys has ended: see waiting.c for the rule. */
static void model_gather(size_t keys)
{
    w.gather_until = keys >= 4 ? w.now + GATHER_TIME : 0;
    w.gather_enough = model_min(2 * keys, 16);
}

static void caller_settle(size_t limit)
{
    static struct session_answer answers[SESSION_BATCH_MAX];
    static char names[SESSION_BATCH_MAX][32];
    size_t before = model_count(WAITER_PARKED) + model_count(WAITER_PARKABLE);

    for (size_t i = 0; i < w.batch.count; i++) {
        size_t number = model_key_of(w.batch.keys[i]);

        answers[i] = fuzz_database_answer(number, names[i]);
        w.keys[number].answer = &answers[i];
        model_learn(&w.keys[number], &answers[i], w.snapshot[number].order);
        if (w.rows[number].trouble == SESSION_NOT_ASKED)
            w.rows[number].trouble = 0;
    }
    for (size_t i = 0; i < w.guest_count; i++)
        w.guests[i]->allowed = model_settled(w.guests[i], w.keys[w.guests[i]->key].answer);
    for (size_t i = 0; i < w.batch.count; i++)
        w.keys[model_key_of(w.batch.keys[i])].answer = NULL;
    if (w.batch.question == QUESTION_PAYMENT)
        model_charge_poll();
    else
        model_gather(w.batch.count);
    w.flight = FLIGHT_NONE;
    waiting_answered(w.waiting, answers, limit, w.now);
    /* What the answers pointed to is the caller's again. */
    memset(names, '!', sizeof names);
    for (size_t i = 0; i < w.guest_count; i++)
        model_accept_state(w.guests[i]);
    model_check_park_limit(before, limit);
    model_expect_no_change();
    model_accept();
}

static void caller_report_check(void)
{
    model_expect_no_change();
    w.checked = true;
    w.checked_at = w.now;
    w.check_took = w.now - w.sent_at;
    w.road_max = usec_max(w.road_max, w.check_took);
    w.version = w.snapshot_commit;
    w.flight = FLIGHT_NONE;
    waiting_checked(w.waiting, w.version, w.now);
    model_accept();
}

static void caller_report_failure(void)
{
    model_expect_no_change();
    for (size_t i = 0; i < w.key_count; i++)
        w.keys[i].in_batch = false;
    w.flight = FLIGHT_NONE;
    w.check_sent = -1;
    w.last_step = WAITING_STEP_NOTHING;
    model_pay_debt(NEED_CLAIMED);
    model_pay_debt(NEED_UNCLAIMED);
    waiting_failed(w.waiting);
    model_forget_bounds();
    model_accept();
}

static void caller_report(size_t limit)
{
    if (w.flight == FLIGHT_CHECK)
        caller_report_check();
    else if (w.flight == FLIGHT_BATCH)
        caller_settle(limit);
}

/* ---- The random caller ---- */

/* Asks, if nothing is under way; then all outcomes have been taken. */
static void caller_begin(void)
{
    if (w.flight != FLIGHT_NONE)
        return;
    caller_take_all_outcomes();
    caller_ask();
}

static size_t caller_park_limit(void)
{
    static const size_t limits[] = {PARK_PLENTY, PARK_PLENTY, PARK_PLENTY, 0, 1, 3, 20, 300};

    return limits[fuzz_byte(&w.input) % 8];
}

/* What happens while the caller runs. */
enum {
    RUN_NEWCOMERS = 1, /* a new request in each round */
    RUN_COMMITS = 2,   /* a commit in each round */
    RUN_LONG_ROAD = 4, /* a check takes as long as a batch, else an eighth of that */
    RUN_SLEEPS = 8,    /* the caller sleeps until something is due */
};

/* One round as the worker's loop makes it; false if there is nothing to ask now. */
static bool caller_turn(unsigned flags, usec_t took)
{
    enum waiting_step step;

    caller_expire();
    caller_take_all_outcomes();
    if (flags & RUN_NEWCOMERS) {
        caller_add(w.commit % w.key_count, w.now);
        model_accept();
    }
    w.commit += flags & RUN_COMMITS ? 1 : 0;
    step = caller_ask();
    w.now += step == WAITING_STEP_NOTHING                          ? 0
             : step == WAITING_STEP_BATCH || flags & RUN_LONG_ROAD ? took
                                                                   : took / 8;
    caller_report(PARK_PLENTY);
    caller_take_all_outcomes();
    return step != WAITING_STEP_NOTHING;
}

/* The caller sleeps until something is due: then there is something to do. */
static bool caller_sleep(void)
{
    usec_t due = waiting_due(w.waiting, w.now), expire_due = waiting_expire_due(w.waiting);

    if (usec_min(due, expire_due) == USEC_NEVER)
        return false;
    w.now = usec_max(w.now, usec_min(due, expire_due));
    if (due <= w.now)
        CHECK(waiting_due(w.waiting, w.now) <= w.now);
    return true;
}

static void caller_run(unsigned flags, unsigned rounds, usec_t took)
{
    caller_report(PARK_PLENTY);
    for (unsigned i = 0; i < rounds; i++)
        if (!caller_turn(flags, took) && (!(flags & RUN_SLEEPS) || !caller_sleep()))
            break;
}

static void caller_commit_many(void)
{
    size_t count = fuzz_byte(&w.input), first = fuzz_byte(&w.input) * 3u;
    unsigned kind = fuzz_byte(&w.input);

    for (size_t i = 0; i < count; i++)
        fuzz_commit((first + i) % w.key_count, kind);
}

static void caller_commit_one(void)
{
    size_t key = fuzz_byte(&w.input) % w.key_count;

    fuzz_commit(key, fuzz_byte(&w.input));
}

static void caller_act(uint8_t action)
{
    unsigned argument = action / 16, rounds;

    switch (action % 16) {
    case 0:
    case 1:
        caller_add_one();
        break;
    case 2:
        caller_add_many();
        break;
    case 3:
        caller_remove(1);
        break;
    case 4:
        caller_remove(argument * argument);
        break;
    case 5:
        w.now += fuzz_duration();
        break;
    case 6:
        caller_commit_one();
        break;
    case 7:
        caller_commit_many();
        break;
    case 8:
        w.commit++;
        if (argument % 2 && w.flight != FLIGHT_NONE)
            fuzz_take_snapshot();
        break;
    case 9:
    case 10:
        caller_begin();
        break;
    case 11:
        caller_report(caller_park_limit());
        break;
    case 12:
        if (argument == 0 && w.flight != FLIGHT_NONE)
            caller_report_failure();
        else if (argument == 1 && !w.stopping)
            caller_stop(w.now + fuzz_duration());
        else if (argument % 2)
            caller_take_outcomes(UINT_MAX, argument);
        else
            caller_take_outcomes(argument, argument / 4);
        break;
    case 13:
        caller_expire();
        break;
    case 14:
    case 15:
        rounds = fuzz_byte(&w.input) % 64u;
        caller_run(argument, rounds, fuzz_duration());
        break;
    }
}

/* ---- One input ---- */

static void fuzz_begin_world(const uint8_t *data, size_t size)
{
    static const usec_t patiences[] = {2 * USEC_PER_SEC, 1, 10 * USEC_PER_MS, 20 * USEC_PER_SEC};
    static const usec_t intervals[] = {
        25 * USEC_PER_MS, 5 * USEC_PER_MS, 500 * USEC_PER_MS, USEC_PER_MS};
    uint8_t keys, times;

    memset(&w, 0, sizeof w);
    w.input = (struct fuzz_input){data, size};
    keys = fuzz_byte(&w.input);
    times = fuzz_byte(&w.input);
    w.key_count = keys % 16 == 0 ? KEYS_MAX : keys / 16 % 8 + 1u;
    w.interval = intervals[times % 4];
    w.patience = patiences[times / 4 % 4];
    w.now = w.start = times & 128 ? 1 : 1000 * USEC_PER_SEC;
    w.check_sent = -1;
    w.commit = 1 + (size_t)fuzz_byte(&w.input) % 2;
    for (size_t i = 0; i < w.key_count; i++) {
        snprintf(w.keys[i].session, sizeof w.keys[i].session, "%u", (unsigned)i);
        w.rows[i].status = SESSION_UNKNOWN;
    }
    w.waiting = waiting_new(w.interval, w.patience);
    CHECK(w.waiting);
}

/* The caller goes on until a quiet database has nothing more to tell. */
static void fuzz_settle_world(void)
{
    for (size_t i = 0; i < w.key_count; i++)
        w.rows[i].trouble = w.snapshot[i].trouble = 0;
    caller_run(RUN_SLEEPS, 50, 100);
    for (unsigned i = 0; i < 5000 && model_poll_is_owed(); i++)
        caller_run(RUN_SLEEPS, 1, 100);
    CHECK(!model_poll_is_owed());
}

/* The end of a worker: it stops, gives the database a last chance or not, and leaves. */
static void fuzz_end_world(bool abandon)
{
    if (abandon) {
        caller_report_failure();
        caller_stop(w.now);
        caller_expire();
        caller_take_all_outcomes();
        CHECK(w.guest_count == 0);
    }
    model_expect_no_change();
    while (w.guest_count > 0)
        caller_remove_guest(w.guest_count - 1);
    CHECK(waiting_parked(w.waiting) == 0);
    CHECK(waiting_expire_due(w.waiting) == USEC_NEVER);
    if (w.flight != FLIGHT_NONE)
        caller_report(PARK_PLENTY);
    CHECK(waiting_due(w.waiting, w.now) == USEC_NEVER);
    CHECK(waiting_next(w.waiting, &w.batch, w.now) == WAITING_STEP_NOTHING);
    waiting_free(w.waiting);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_begin_world(data, size);
    for (unsigned i = 0; w.input.left > 0 && i < 100; i++)
        caller_act(fuzz_byte(&w.input));
    if (size % 2)
        fuzz_settle_world();
    fuzz_end_world(size % 4 > 1);
    return 0;
}
