/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "waiting.h"

#define INTERVAL (25 * USEC_PER_MS)
#define PATIENCE (2 * USEC_PER_SEC)
#define WAIT     (30 * USEC_PER_SEC)
#define START    (1000 * USEC_PER_SEC)
#define PLENTY   100000
#define QUARTER  (SESSION_BATCH_MAX / 4)
#define MANY     10000

static const struct session_answer unknown = {SESSION_UNKNOWN, false, NULL};
static const struct session_answer no_instance = {SESSION_NO_INSTANCE, false, NULL};
static const struct session_answer failed = {SESSION_FAILED, false, NULL};
static const struct session_answer not_asked = {SESSION_NOT_ASKED, false, NULL};
static const struct session_answer unclaimed = {SESSION_UNPAID, false, "order"};
static const struct session_answer claimed = {SESSION_UNPAID, true, "order"};
static const struct session_answer paid = {SESSION_PAID, false, "paid-order"};

/* What each test begins with: nobody waits, and a check has just been made. */
/* How long a batch is gathered at most, under load. */
#define GATHER_TIME 500

struct fixture {
    struct waiting *waiting;
    struct waiting_batch batch;
    usec_t now;
    uint64_t version;
};

static void add_until(
    struct fixture *f, struct waiter *waiter, const char *session, usec_t deadline)
{
    struct session_key key = {session, "https://shop.example/", "shop"};

    assert_true(waiting_add(f->waiting, waiter, &key, deadline, f->now));
    assert_int_equal(waiter->state, WAITER_NEW);
}

static void add(struct fixture *f, struct waiter *waiter, const char *session)
{
    add_until(f, waiter, session, f->now + WAIT);
}

/* Adds requests with a key of their own each, numbered from first. */
static void add_many(struct fixture *f, struct waiter *waiters, size_t count, size_t first)
{
    for (size_t i = 0; i < count; i++) {
        char session[24];

        snprintf(session, sizeof session, "%zu", first + i);
        add(f, &waiters[i], session);
    }
}

static void remove_many(struct fixture *f, struct waiter *waiters, size_t count)
{
    for (size_t i = 0; i < count; i++)
        waiting_remove(f->waiting, &waiters[i]);
}

static void assert_in_batch(
    const struct fixture *f, enum session_question question, const char *session)
{
    size_t found = 0;

    assert_int_equal(f->batch.question, question);
    for (size_t i = 0; i < f->batch.count; i++)
        found += strcmp(f->batch.keys[i]->session, session) == 0;
    assert_int_equal(found, 1);
}

static void send_nothing(struct fixture *f)
{
    assert_true(waiting_due(f->waiting, f->now) > f->now);
    assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_NOTHING);
}

/* Sends a batch, which has `count` keys and may have been gathered. A check that comes before it
 * finds nothing new. */
static void send(struct fixture *f, enum session_question question, size_t count)
{
    enum waiting_step step;

    f->now = usec_max(f->now, usec_min(waiting_due(f->waiting, f->now), f->now + GATHER_TIME));
    assert_true(waiting_due(f->waiting, f->now) <= f->now);
    while ((step = waiting_next(f->waiting, &f->batch, f->now)) == WAITING_CHECK)
        waiting_checked(f->waiting, f->version, f->now);
    assert_int_equal(step, WAITING_BATCH);
    assert_int_equal(f->batch.question, question);
    assert_int_equal(f->batch.count, count);
}

/* The batch came back, and says the same of each key. */
static void settle_within(struct fixture *f, const struct session_answer *answer, size_t limit)
{
    struct session_answer answers[SESSION_BATCH_MAX];

    for (size_t i = 0; i < f->batch.count; i++)
        answers[i] = *answer;
    waiting_settle(f->waiting, answers, limit, f->now);
}

static void settle(struct fixture *f, const struct session_answer *answer)
{
    settle_within(f, answer, PLENTY);
}

/* Parks all who may be parked; nobody else has an outcome. */
static void park_all(struct fixture *f)
{
    for (struct waiter *waiter; (waiter = waiting_outcome(f->waiting));) {
        assert_int_equal(waiter->state, WAITER_SETTLED);
        waiting_park(f->waiting, waiter);
        assert_int_equal(waiter->state, WAITER_PARKED);
    }
}

/* Looks up `count` keys that nobody has paid; all who asked are parked. */
static void look_up(struct fixture *f, size_t count, const struct session_answer *answer)
{
    send(f, QUESTION_EVERYTHING, count);
    settle(f, answer);
    park_all(f);
}

static void add_parked(struct fixture *f, struct waiter *waiter, const char *session,
    const struct session_answer *answer)
{
    add(f, waiter, session);
    look_up(f, 1, answer);
    assert_int_equal(waiter->state, WAITER_PARKED);
}

static void add_many_parked(
    struct fixture *f, struct waiter *waiters, size_t count, const struct session_answer *answer)
{
    size_t left = count;

    add_many(f, waiters, count, 0);
    for (; left > SESSION_BATCH_MAX; left -= SESSION_BATCH_MAX)
        look_up(f, SESSION_BATCH_MAX, answer);
    look_up(f, left, answer);
    assert_int_equal(waiting_parked(f->waiting), count);
}

/* A check at the time when it is due. */
static void check(struct fixture *f, uint64_t version)
{
    f->now = usec_max(f->now, waiting_due(f->waiting, f->now));
    assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_CHECK);
    f->version = version;
    waiting_checked(f->waiting, version, f->now);
}

/* The next check finds that the database has changed. */
static void check_finds_change(struct fixture *f)
{
    check(f, f->version + 1);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct waiter waiter = {0};

    assert_non_null(f);
    f->waiting = waiting_new(INTERVAL, PATIENCE);
    assert_non_null(f->waiting);
    f->now = START;
    add_parked(f, &waiter, "first", &unknown);
    check(f, 1);
    waiting_remove(f->waiting, &waiter);
    *state = f;
    return 0;
}

/* Each test removes its waiters: then nothing is left to do. */
static int teardown(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(waiting_parked(f->waiting), 0);
    assert_true(waiting_due(f->waiting, f->now) == USEC_NEVER);
    assert_true(waiting_expire_due(f->waiting) == USEC_NEVER);
    waiting_free(f->waiting);
    free(f);
    return 0;
}

/* Its deadline makes a parked request one that asks a last time. */
static void expire_at(struct fixture *f, usec_t now)
{
    assert_true(waiting_expire_due(f->waiting) <= now);
    f->now = usec_max(f->now, now);
    waiting_expire(f->waiting, f->now);
    assert_true(waiting_expire_due(f->waiting) > f->now);
}

/* The outcome of one request, which leaves. */
static void take(struct fixture *f, struct waiter *waiter, enum waiter_state state)
{
    assert_ptr_equal(waiting_outcome(f->waiting), waiter);
    assert_int_equal(waiter->state, state);
    waiting_remove(f->waiting, waiter);
}

static void take_known(struct fixture *f, struct waiter *waiter, enum session_status status)
{
    assert_int_equal(waiter->watch->status, status);
    take(f, waiter, WAITER_KNOWN);
}

static void assert_no_outcome(const struct fixture *f)
{
    assert_null(waiting_outcome(f->waiting));
}

/* ---- Requests and keys ---- */

static void test_nobody_waits_and_nothing_is_due(void **state)
{
    struct fixture *f = *state;

    send_nothing(f);
    assert_no_outcome(f);
}

static void test_equal_keys_share_one_watch(void **state)
{
    struct fixture *f = *state;
    struct waiter waiters[5] = {0};
    struct session_key keys[] = {{"a", "https://shop.example/", "shop"},
        {"a", "https://shop.example/", "shop"}, {"b", "https://shop.example/", "shop"},
        {"a", "https://shop.example/2", "shop"}, {"a", "https://shop.example/", ""}};

    for (size_t i = 0; i < COUNT_OF(keys); i++)
        assert_true(waiting_add(f->waiting, &waiters[i], &keys[i], f->now + WAIT, f->now));
    assert_ptr_equal(waiters[0].watch, waiters[1].watch);
    for (size_t i = 2; i < COUNT_OF(keys); i++)
        assert_ptr_not_equal(waiters[0].watch, waiters[i].watch);
    look_up(f, 4, &unknown);
    assert_int_equal(waiting_parked(f->waiting), 5);
    remove_many(f, waiters, COUNT_OF(waiters));
}

/* For who measures how long ago a change was that a lookup has found. */
static void test_versions_of_the_last_two_lookups(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &claimed);
    assert_int_equal(waiter.watch->version, 1);
    check(f, 2);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &claimed);
    check(f, 4);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &paid);
    assert_int_equal(waiter.watch->version, 4);
    assert_int_equal(waiter.watch->version_before, 2);
    take_known(f, &waiter, SESSION_PAID);
}

static void test_key_is_copied(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};
    char session[] = "a";

    add(f, &waiter, session);
    session[0] = 'x';
    assert_string_equal(waiter.watch->key.session, "a");
    waiting_remove(f->waiting, &waiter);
}

static void test_what_a_lookup_found_is_kept(void **state)
{
    struct fixture *f = *state;
    struct waiter first = {0}, second = {0};
    char name[] = "order-1";
    struct session_answer unpaid = {SESSION_UNPAID, true, name};

    add_parked(f, &first, "a", &unpaid);
    name[0] = 'x';
    assert_int_equal(first.watch->status, SESSION_UNPAID);
    assert_true(first.watch->claimed);
    assert_string_equal(first.watch->order_id, "order-1");
    add_parked(f, &second, "a", &unknown);
    assert_int_equal(first.watch->status, SESSION_UNKNOWN);
    assert_null(first.watch->order_id);
    waiting_remove(f->waiting, &first);
    waiting_remove(f->waiting, &second);
}

/* ---- The first lookup ---- */

static void test_lookup_that_finds_it_paid_answers(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add(f, &waiter, "a");
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &paid);
    assert_string_equal(waiter.watch->order_id, "paid-order");
    take_known(f, &waiter, SESSION_PAID);
}

static void test_unknown_instance_is_answered_at_once(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add(f, &waiter, "a");
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &no_instance);
    take_known(f, &waiter, SESSION_NO_INSTANCE);
}

static void test_without_time_what_is_known_is_the_answer(void **state)
{
    static const usec_t deadlines[] = {0, START, START + 1};
    struct fixture *f = *state;

    for (size_t i = 0; i < COUNT_OF(deadlines); i++) {
        struct waiter waiter = {0};

        f->now = START;
        add_until(f, &waiter, "a", deadlines[i]);
        send(f, QUESTION_EVERYTHING, 1);
        f->now++;
        settle(f, &unclaimed);
        take_known(f, &waiter, SESSION_UNPAID);
    }
}

static void test_beyond_the_park_limit_what_is_known_is_the_answer(void **state)
{
    struct fixture *f = *state;
    struct waiter waiters[4] = {0};
    size_t known = 0;

    add_parked(f, &waiters[0], "parked", &unknown);
    add_many(f, &waiters[1], 3, 0);
    send(f, QUESTION_EVERYTHING, 3);
    settle_within(f, &unknown, 2);
    for (struct waiter *waiter; (waiter = waiting_outcome(f->waiting));) {
        known += waiter->state == WAITER_KNOWN;
        if (waiter->state == WAITER_SETTLED)
            waiting_park(f->waiting, waiter);
        else
            waiting_remove(f->waiting, waiter);
    }
    assert_int_equal(known, 2);
    assert_int_equal(waiting_parked(f->waiting), 2);
    for (size_t i = 0; i < COUNT_OF(waiters); i++)
        if (waiters[i].state == WAITER_PARKED)
            waiting_remove(f->waiting, &waiters[i]);
}

static void test_caller_may_answer_instead_of_parking(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add(f, &waiter, "a");
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &unknown);
    take(f, &waiter, WAITER_SETTLED);
}

/* A result may be older than a request that came in meanwhile. */
static void test_batch_does_not_answer_who_came_after_it_was_sent(void **state)
{
    struct fixture *f = *state;
    struct waiter first = {0}, second = {0};

    add(f, &first, "a");
    send(f, QUESTION_EVERYTHING, 1);
    add(f, &second, "a");
    settle(f, &paid);
    take_known(f, &first, SESSION_PAID);
    assert_no_outcome(f);
    assert_int_equal(second.state, WAITER_NEW);
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &paid);
    take_known(f, &second, SESSION_PAID);
}

static void test_all_leave_while_the_batch_is_under_way(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add(f, &waiter, "a");
    send(f, QUESTION_EVERYTHING, 1);
    waiting_remove(f->waiting, &waiter);
    assert_in_batch(f, QUESTION_EVERYTHING, "a");
    settle(f, &paid);
    assert_no_outcome(f);
}

static void test_failed_batch_is_asked_again(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add(f, &waiter, "a");
    send(f, QUESTION_EVERYTHING, 1);
    waiting_failed(f->waiting);
    assert_int_equal(waiter.state, WAITER_NEW);
    assert_no_outcome(f);
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &paid);
    take_known(f, &waiter, SESSION_PAID);
}

static void test_new_request_fails_when_its_patience_ends(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add(f, &waiter, "a");
    send(f, QUESTION_EVERYTHING, 1);
    assert_true(waiting_expire_due(f->waiting) == START + PATIENCE);
    waiting_expire(f->waiting, START + PATIENCE - 1);
    assert_no_outcome(f);
    expire_at(f, START + PATIENCE);
    take(f, &waiter, WAITER_FAILED);
    settle(f, &paid);
    assert_no_outcome(f);
}

/* ---- What goes first ---- */

static void test_new_requests_go_before_polls(void **state)
{
    struct fixture *f = *state;
    struct waiter old = {0}, new = {0};

    add_parked(f, &old, "old", &claimed);
    check_finds_change(f);
    add(f, &new, "new");
    send(f, QUESTION_EVERYTHING, 1);
    assert_in_batch(f, QUESTION_EVERYTHING, "new");
    settle(f, &unknown);
    park_all(f);
    send(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "old");
    settle(f, &claimed);
    waiting_remove(f->waiting, &old);
    waiting_remove(f->waiting, &new);
}

static void test_new_requests_go_in_the_order_of_their_arrival(void **state)
{
    struct fixture *f = *state;
    static struct waiter waiters[2 * SESSION_BATCH_MAX];

    memset(waiters, 0, sizeof waiters);
    add_many(f, waiters, COUNT_OF(waiters), 0);
    send(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    assert_in_batch(f, QUESTION_EVERYTHING, "0");
    assert_in_batch(f, QUESTION_EVERYTHING, "255");
    settle(f, &unknown);
    park_all(f);
    remove_many(f, waiters, COUNT_OF(waiters));
}

/* Requests without end must not keep the parked ones from being polled: checks and polls have
 * every other turn. */
static void test_checks_and_polls_have_every_other_turn(void **state)
{
    struct fixture *f = *state;
    struct waiter old = {0}, new = {0};

    add_parked(f, &old, "old", &unknown);
    add(f, &new, "new");
    for (int i = 0; i < 4; i++) {
        f->now += INTERVAL;
        assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_CHECK);
        waiting_checked(f->waiting, ++f->version, f->now);
        send(f, QUESTION_EVERYTHING, 1);
        waiting_failed(f->waiting);
        send(f, QUESTION_PAYMENT, 1);
        settle(f, &unknown);
        send(f, QUESTION_EVERYTHING, 1);
        waiting_failed(f->waiting);
    }
    waiting_remove(f->waiting, &old);
    waiting_remove(f->waiting, &new);
}

/* Where a batch takes longer than the check interval a check is always due. */
static void test_checks_leave_turns_to_polls(void **state)
{
    struct fixture *f = *state;
    struct waiter old = {0}, new = {0};
    size_t polls = 0;

    add_parked(f, &old, "old", &unknown);
    add(f, &new, "new");
    for (int i = 0; i < 40; i++) {
        enum waiting_step step = waiting_next(f->waiting, &f->batch, f->now);

        f->now += 2 * INTERVAL;
        if (step == WAITING_CHECK)
            waiting_checked(f->waiting, ++f->version, f->now);
        else if (f->batch.question == QUESTION_EVERYTHING)
            waiting_failed(f->waiting);
        else
            settle(f, &unknown);
        polls += step == WAITING_BATCH && f->batch.question == QUESTION_PAYMENT;
    }
    assert_in_range(polls, 5, 15);
    waiting_remove(f->waiting, &old);
    waiting_remove(f->waiting, &new);
}

/* Ten thousand whose time is up at once must not keep a new request waiting. */
static void test_new_requests_go_before_last_ones_which_have_a_quarter(void **state)
{
    struct fixture *f = *state;
    static struct waiter lasts[2 * SESSION_BATCH_MAX], new[2 * SESSION_BATCH_MAX];

    memset(lasts, 0, sizeof lasts);
    memset(new, 0, sizeof new);
    add_many_parked(f, lasts, COUNT_OF(lasts), &unknown);
    expire_at(f, START + WAIT);
    add_many(f, new, 10, 1000);
    send(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    for (size_t i = 0; i < 10; i++)
        assert_in_batch(f, QUESTION_EVERYTHING, new[i].watch->key.session);
    waiting_failed(f->waiting);
    add_many(f, new + 10, COUNT_OF(new) - 10, 2000);
    send(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    settle(f, &unknown);
    for (struct waiter *waiter; (waiter = waiting_outcome(f->waiting));) {
        if (waiter->state == WAITER_SETTLED)
            waiting_park(f->waiting, waiter);
        else
            take_known(f, waiter, SESSION_UNKNOWN);
    }
    assert_int_equal(waiting_parked(f->waiting), SESSION_BATCH_MAX - QUARTER);
    remove_many(f, new, COUNT_OF(new));
    for (size_t i = 0; i < COUNT_OF(lasts); i++)
        if (lasts[i].state == WAITER_LAST)
            waiting_remove(f->waiting, &lasts[i]);
}

/* A last request whose key a new one asks for too goes with that one. */
static void test_last_request_goes_with_a_new_one_of_its_key(void **state)
{
    struct fixture *f = *state;
    static struct waiter lasts[2 * SESSION_BATCH_MAX];
    struct waiter new = {0};

    memset(lasts, 0, sizeof lasts);
    add_many_parked(f, lasts, COUNT_OF(lasts), &unknown);
    expire_at(f, START + WAIT);
    add(f, &new, "511");
    send(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    assert_in_batch(f, QUESTION_EVERYTHING, "511");
    settle(f, &paid);
    assert_int_equal(new.state, WAITER_KNOWN);
    assert_int_equal(lasts[511].state, WAITER_KNOWN);
    remove_many(f, lasts, COUNT_OF(lasts));
    waiting_remove(f->waiting, &new);
}

/* While new requests come in each may have to wait for a batch of polls: that is a small one. */
static void test_polls_are_few_at_once_while_requests_come_in(void **state)
{
    struct fixture *f = *state;
    static struct waiter waiters[200];
    struct waiter new = {0};

    memset(waiters, 0, sizeof waiters);
    add_many_parked(f, waiters, COUNT_OF(waiters), &unknown);
    f->now += USEC_PER_SEC;
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, COUNT_OF(waiters));
    settle(f, &unknown);
    check_finds_change(f);
    add_parked(f, &new, "new", &unknown);
    assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_BATCH);
    assert_int_equal(f->batch.question, QUESTION_PAYMENT);
    assert_in_range(f->batch.count, 1, COUNT_OF(waiters) / 2);
    settle(f, &unknown);
    remove_many(f, waiters, COUNT_OF(waiters));
    waiting_remove(f->waiting, &new);
}

/* ---- Checks and polls ---- */

static void test_check_is_due_every_interval_while_requests_are_parked(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    for (int i = 0; i < 3; i++) {
        usec_t due = waiting_due(f->waiting, f->now);

        assert_true(due > f->now && due <= f->now + INTERVAL);
        f->now = due - 1;
        send_nothing(f);
        check(f, 1);
    }
    waiting_remove(f->waiting, &waiter);
}

static void test_quiet_database_is_not_polled(void **state)
{
    struct fixture *f = *state;
    struct waiter waiters[2] = {0};

    add_parked(f, &waiters[0], "a", &claimed);
    add_parked(f, &waiters[1], "b", &unknown);
    check(f, 7);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &claimed);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &unknown);
    for (int i = 0; i < 5; i++) {
        check(f, 7);
        send_nothing(f);
    }
    remove_many(f, waiters, COUNT_OF(waiters));
}

/* What was looked up after the last check is as good as polled. */
static void test_what_was_just_looked_up_is_not_polled(void **state)
{
    struct fixture *f = *state;
    struct waiter first = {0}, second = {0};

    add_parked(f, &first, "a", &unknown);
    check(f, 2);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &unknown);
    add_parked(f, &second, "b", &claimed);
    check(f, 2);
    send_nothing(f);
    check(f, 3);
    send(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "b");
    settle(f, &claimed);
    waiting_remove(f->waiting, &first);
    waiting_remove(f->waiting, &second);
}

static void test_poll_that_finds_it_paid_answers(void **state)
{
    struct fixture *f = *state;
    struct waiter waiters[2] = {0};

    add(f, &waiters[0], "a");
    add_parked(f, &waiters[1], "a", &unclaimed);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &paid);
    assert_string_equal(waiters[0].watch->order_id, "paid-order");
    take_known(f, &waiters[0], SESSION_PAID);
    take_known(f, &waiters[1], SESSION_PAID);
}

/* A poll knows nothing of unclaimed orders. */
static void test_poll_that_finds_nothing_paid_leaves_what_is_known(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unclaimed);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &unknown);
    assert_int_equal(waiter.state, WAITER_PARKED);
    assert_int_equal(waiter.watch->status, SESSION_UNPAID);
    assert_string_equal(waiter.watch->order_id, "order");
    waiting_remove(f->waiting, &waiter);
}

static void test_failed_poll_is_sent_again(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    waiting_failed(f->waiting);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &paid);
    take_known(f, &waiter, SESSION_PAID);
}

/* A key that was polled in vain must not get behind those that need no poll. */
static void test_failed_poll_goes_before_keys_just_looked_up(void **state)
{
    struct fixture *f = *state;
    struct waiter old = {0}, new = {0};

    add_parked(f, &old, "old", &unknown);
    check_finds_change(f);
    add_parked(f, &new, "new", &unknown);
    send(f, QUESTION_PAYMENT, 1);
    waiting_failed(f->waiting);
    send(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "old");
    settle(f, &paid);
    take_known(f, &old, SESSION_PAID);
    waiting_remove(f->waiting, &new);
}

static void test_failed_check_is_sent_again(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    f->now = waiting_due(f->waiting, f->now);
    assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_CHECK);
    waiting_failed(f->waiting);
    check_finds_change(f);
    waiting_remove(f->waiting, &waiter);
}

static void test_claimed_orders_are_polled_first_after_a_change(void **state)
{
    struct fixture *f = *state;
    static struct waiter many[SESSION_BATCH_MAX];
    struct waiter one = {0};

    memset(many, 0, sizeof many);
    add_many_parked(f, many, COUNT_OF(many), &unknown);
    add_parked(f, &one, "one", &claimed);
    for (int i = 0; i < 3; i++) {
        f->now += USEC_PER_SEC;
        check_finds_change(f);
        send(f, QUESTION_PAYMENT, 1);
        assert_in_batch(f, QUESTION_PAYMENT, "one");
        settle(f, &claimed);
        send(f, QUESTION_PAYMENT, COUNT_OF(many));
        settle(f, &unknown);
    }
    remove_many(f, many, COUNT_OF(many));
    waiting_remove(f->waiting, &one);
}

/* A poll learns that a wallet has claimed an order: the next change is near. */
static void test_poll_that_finds_a_claim_puts_the_key_first(void **state)
{
    struct fixture *f = *state;
    struct waiter one = {0}, other = {0};

    add_parked(f, &one, "one", &unknown);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &claimed);
    add_parked(f, &other, "other", &unknown);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "one");
    settle(f, &claimed);
    waiting_remove(f->waiting, &one);
    waiting_remove(f->waiting, &other);
}

/* Changes that never cease: still every key is polled in its turn. */
static void test_every_key_is_polled_in_its_turn(void **state)
{
    struct fixture *f = *state;
    static struct waiter waiters[600];
    static unsigned polled[COUNT_OF(waiters)];

    memset(waiters, 0, sizeof waiters);
    memset(polled, 0, sizeof polled);
    add_many_parked(f, waiters, COUNT_OF(waiters), &unknown);
    for (int round = 0; round < 12; round++) {
        f->now += USEC_PER_SEC;
        check_finds_change(f);
        assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_BATCH);
        for (size_t i = 0; i < f->batch.count; i++)
            polled[strtoul(f->batch.keys[i]->session, NULL, 10)]++;
        settle(f, &unknown);
    }
    for (size_t i = 0; i < COUNT_OF(waiters); i++)
        assert_in_range(polled[i], 5, 6);
    remove_many(f, waiters, COUNT_OF(waiters));
}

/* ---- The budget of polls ---- */

/* Sends polls that take 2 ms each for that many keys; returns how long they took in all. */
static usec_t poll_keys(struct fixture *f, size_t keys)
{
    usec_t took = 0;

    while (keys > 0) {
        enum waiting_step step;

        f->now = usec_max(f->now, waiting_due(f->waiting, f->now));
        step = waiting_next(f->waiting, &f->batch, f->now);
        assert_int_not_equal(step, WAITING_NOTHING);
        if (step == WAITING_CHECK) {
            waiting_checked(f->waiting, ++f->version, f->now);
            continue;
        }
        assert_int_equal(f->batch.question, QUESTION_PAYMENT);
        f->now += 2 * USEC_PER_MS;
        took += 2 * USEC_PER_MS;
        settle(f, &unknown);
        keys -= f->batch.count < keys ? f->batch.count : keys;
    }
    return took;
}

static void test_polling_takes_a_tenth_of_the_time(void **state)
{
    struct fixture *f = *state;
    struct waiter *waiters = calloc(MANY, sizeof *waiters);
    usec_t took, start;

    assert_non_null(waiters);
    add_many_parked(f, waiters, MANY, &unknown);
    /* What was saved up is spent first. */
    poll_keys(f, 5 * MANY);
    start = f->now;
    took = poll_keys(f, 5 * MANY);
    assert_true(took * 10 <= f->now - start + 40 * USEC_PER_MS);
    assert_true(took * 12 >= f->now - start);
    remove_many(f, waiters, MANY);
    free(waiters);
}

/* What was not used in quiet seconds may be used at once. */
static void test_one_round_after_a_quiet_time_is_not_held_up(void **state)
{
    struct fixture *f = *state;
    struct waiter *waiters = calloc(MANY, sizeof *waiters);
    usec_t start;

    assert_non_null(waiters);
    add_many_parked(f, waiters, MANY, &unknown);
    f->now += 10 * USEC_PER_SEC;
    start = f->now;
    poll_keys(f, MANY);
    assert_true(f->now - start < 200 * USEC_PER_MS);
    remove_many(f, waiters, MANY);
    free(waiters);
}

static void test_one_slow_poll_does_not_stop_polling(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};
    usec_t end;

    add_until(f, &waiter, "a", f->now + 100 * USEC_PER_SEC);
    look_up(f, 1, &unknown);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    f->now += 60 * USEC_PER_SEC;
    settle(f, &unknown);
    end = f->now;
    poll_keys(f, 1);
    assert_true(f->now - end <= 2 * USEC_PER_SEC);
    waiting_remove(f->waiting, &waiter);
}

/* Polls of one session for a while, on a database that changes all the time: how much of the time
 * the polls took, in percent. Of 16
 * checks 15 are slow. */
static int percent_polling(
    struct fixture *f, usec_t road, usec_t slow_check, usec_t work, usec_t duration)
{
    usec_t begin = f->now, polling = 0;
    int checks = 0;

    while (f->now - begin < duration) {
        enum waiting_step step;

        f->now = usec_max(f->now, waiting_due(f->waiting, f->now));
        step = waiting_next(f->waiting, &f->batch, f->now);
        if (step == WAITING_CHECK) {
            f->now += checks++ % 16 == 0 ? road : slow_check;
            waiting_checked(f->waiting, ++f->version, f->now);
        } else {
            f->now += road + work;
            polling += work;
            settle(f, &unknown);
        }
    }
    return (int)(polling * 100 / (f->now - begin));
}

/* Where the machine is busy most checks are slow, and that is not the road. */
static void test_slow_checks_do_not_make_polls_free(void **state)
{
    static const usec_t ms = USEC_PER_MS;
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    assert_in_range(percent_polling(f, ms, 12 * ms, 5 * ms, 100 * USEC_PER_SEC), 8, 11);
    waiting_remove(f->waiting, &waiter);
}

/* The road costs the database nothing: the check measures it. One that becomes longer for good is
 * not charged any more after a few seconds. */
static void test_long_road_is_not_charged(void **state)
{
    static const usec_t ms = USEC_PER_MS;
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    percent_polling(f, 40 * ms, 40 * ms, 5 * ms, 20 * USEC_PER_SEC);
    /* Charged, they would have a tenth of the time, road and all: 1 %. */
    assert_in_range(percent_polling(f, 40 * ms, 40 * ms, 5 * ms, 20 * USEC_PER_SEC), 4, 7);
    waiting_remove(f->waiting, &waiter);
}

/* A check and the first poll after it may take longer than the check interval. */
static void test_long_road_leaves_turns_to_unclaimed_orders(void **state)
{
    struct fixture *f = *state;
    struct waiter one = {0}, other = {0};
    size_t polls = 0;

    add_parked(f, &one, "claimed", &claimed);
    add_parked(f, &other, "unclaimed", &unknown);
    for (int i = 0; i < 200; i++) {
        enum waiting_step step;
        bool about_other;

        f->now = usec_max(f->now, waiting_due(f->waiting, f->now));
        step = waiting_next(f->waiting, &f->batch, f->now);
        f->now += 20 * USEC_PER_MS;
        if (step == WAITING_CHECK) {
            waiting_checked(f->waiting, ++f->version, f->now);
            continue;
        }
        about_other = strcmp(f->batch.keys[0]->session, "unclaimed") == 0;
        polls += about_other;
        settle(f, about_other ? &unknown : &claimed);
    }
    assert_in_range(polls, 30, 100);
    waiting_remove(f->waiting, &one);
    waiting_remove(f->waiting, &other);
}

/* After a batch of four the next one waits for eight requests, or half a millisecond. */
static void test_batches_are_gathered_under_load(void **state)
{
    struct fixture *f = *state;
    static struct waiter many[4 + 7 + 1 + 2];

    memset(many, 0, sizeof many);
    add_many(f, many, 4, 0);
    send(f, QUESTION_EVERYTHING, 4);
    settle(f, &unknown);
    add_many(f, many + 4, 7, 4);
    assert_int_equal(waiting_due(f->waiting, f->now), f->now + GATHER_TIME);
    send_nothing(f);
    f->now += GATHER_TIME - 1;
    send_nothing(f);
    add_many(f, many + 11, 1, 11);
    assert_int_equal(waiting_due(f->waiting, f->now), f->now);
    send(f, QUESTION_EVERYTHING, 8);
    settle(f, &unknown);
    add_many(f, many + 12, 2, 12);
    send_nothing(f);
    f->now += GATHER_TIME;
    assert_int_equal(waiting_due(f->waiting, f->now), f->now);
    send(f, QUESTION_EVERYTHING, 2);
    settle(f, &unknown);
    remove_many(f, many, COUNT_OF(many));
}

static void test_few_requests_are_not_put_off(void **state)
{
    struct fixture *f = *state;
    static struct waiter many[4];

    memset(many, 0, sizeof many);
    add_many(f, many, 3, 0);
    send(f, QUESTION_EVERYTHING, 3);
    settle(f, &unknown);
    add_many(f, many + 3, 1, 3);
    assert_int_equal(waiting_due(f->waiting, f->now), f->now);
    remove_many(f, many, COUNT_OF(many));
}

/* Claimed keys whose polls use up the budget must not keep the others from being found. */
static void test_claimed_orders_leave_budget_to_the_others(void **state)
{
    struct fixture *f = *state;
    static struct waiter many[64];
    struct waiter one = {0};
    usec_t end = f->now + 20 * USEC_PER_SEC;
    size_t polled = 0;

    memset(many, 0, sizeof many);
    add_many_parked(f, many, COUNT_OF(many), &claimed);
    add_parked(f, &one, "one", &unknown);
    while (f->now < end) {
        enum waiting_step step;
        bool about_one;

        f->now = usec_max(f->now, waiting_due(f->waiting, f->now));
        step = waiting_next(f->waiting, &f->batch, f->now);
        if (step == WAITING_CHECK) {
            waiting_checked(f->waiting, ++f->version, f->now);
            continue;
        }
        f->now += 5 * USEC_PER_MS;
        /* What was saved up is spent in the first half. */
        about_one = strcmp(f->batch.keys[0]->session, "one") == 0;
        polled += about_one && f->now > end - 10 * USEC_PER_SEC;
        settle(f, about_one ? &unknown : &claimed);
    }
    assert_in_range(polled, 10, 1000);
    remove_many(f, many, COUNT_OF(many));
    waiting_remove(f->waiting, &one);
}

/* A check that was held up must not put off the next ones as long as it took. */
static void test_one_slow_check_does_not_stop_checks(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    f->now = usec_max(f->now, waiting_due(f->waiting, f->now));
    assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_CHECK);
    f->now += 2 * USEC_PER_SEC;
    waiting_checked(f->waiting, 1, f->now);
    assert_true(waiting_due(f->waiting, f->now) <= f->now + 4 * INTERVAL);
    waiting_remove(f->waiting, &waiter);
}

/* ---- Deadlines ---- */

static void test_deadline_is_a_last_lookup(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    assert_true(waiting_expire_due(f->waiting) == waiter.deadline);
    waiting_expire(f->waiting, waiter.deadline - 1);
    assert_int_equal(waiter.state, WAITER_PARKED);
    expire_at(f, waiter.deadline);
    assert_int_equal(waiter.state, WAITER_LAST);
    assert_int_equal(waiting_parked(f->waiting), 0);
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &unclaimed);
    take_known(f, &waiter, SESSION_UNPAID);
}

static void test_batch_sent_before_the_deadline_is_not_the_last_lookup(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    expire_at(f, waiter.deadline);
    settle(f, &unknown);
    assert_no_outcome(f);
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &paid);
    take_known(f, &waiter, SESSION_PAID);
}

static void test_last_request_fails_when_its_patience_ends(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    expire_at(f, waiter.deadline);
    assert_true(waiting_expire_due(f->waiting) == waiter.deadline + PATIENCE);
    send(f, QUESTION_EVERYTHING, 1);
    waiting_failed(f->waiting);
    expire_at(f, waiter.deadline + PATIENCE);
    take(f, &waiter, WAITER_FAILED);
}

/* The process was stopped, or its machine was, for longer than the wait and the patience. */
static void test_last_request_is_asked_about_however_late_its_deadline_is_noticed(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    expire_at(f, waiter.deadline + 3 * PATIENCE);
    assert_int_equal(waiter.state, WAITER_LAST);
    assert_true(waiting_expire_due(f->waiting) == f->now + PATIENCE);
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &unknown);
    take_known(f, &waiter, SESSION_UNKNOWN);
}

static void test_equal_deadlines_expire_together(void **state)
{
    struct fixture *f = *state;
    static struct waiter waiters[SESSION_BATCH_MAX];

    memset(waiters, 0, sizeof waiters);
    add_many_parked(f, waiters, COUNT_OF(waiters), &unknown);
    expire_at(f, START + WAIT);
    for (size_t i = 0; i < COUNT_OF(waiters); i++)
        assert_int_equal(waiters[i].state, WAITER_LAST);
    send(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    settle(f, &paid);
    remove_many(f, waiters, COUNT_OF(waiters));
}

static void test_key_of_a_last_request_is_not_polled_but_others_wait_on(void **state)
{
    struct fixture *f = *state;
    struct waiter first = {0}, second = {0};

    add_until(f, &first, "a", f->now + USEC_PER_SEC);
    add_parked(f, &second, "a", &unknown);
    expire_at(f, first.deadline);
    assert_int_equal(second.state, WAITER_PARKED);
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &unknown);
    take_known(f, &first, SESSION_UNKNOWN);
    assert_no_outcome(f);
    check_finds_change(f);
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &paid);
    take_known(f, &second, SESSION_PAID);
}

/* ---- Stopping ---- */

static void test_stop_asks_all_parked_a_last_time(void **state)
{
    struct fixture *f = *state;
    static struct waiter waiters[100];

    memset(waiters, 0, sizeof waiters);
    add_many_parked(f, waiters, COUNT_OF(waiters), &unknown);
    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    assert_int_equal(waiting_parked(f->waiting), 0);
    send(f, QUESTION_EVERYTHING, COUNT_OF(waiters));
    settle(f, &unclaimed);
    for (size_t i = 0; i < COUNT_OF(waiters); i++)
        take_known(f, waiting_outcome(f->waiting), SESSION_UNPAID);
}

/* Also those whose key is in a batch, and those whose deadlines differ: nobody is left out. */
static void test_stop_answers_with_what_the_last_lookup_knew(void **state)
{
    struct fixture *f = *state;
    static struct waiter waiters[100];
    usec_t limit;

    memset(waiters, 0, sizeof waiters);
    for (size_t i = 0; i < COUNT_OF(waiters); i++) {
        char session[24];

        snprintf(session, sizeof session, "%zu", i);
        add_until(f, &waiters[i], session, START + WAIT + (usec_t)(i * 7919 % 101));
    }
    look_up(f, COUNT_OF(waiters), &unclaimed);
    f->now = START + WAIT + 50;
    waiting_expire(f->waiting, f->now);
    send(f, QUESTION_EVERYTHING, 51);
    limit = f->now + USEC_PER_SEC;
    waiting_stop(f->waiting, limit);
    assert_true(waiting_expire_due(f->waiting) == limit);
    waiting_expire(f->waiting, limit - 1);
    assert_no_outcome(f);
    waiting_failed(f->waiting);
    expire_at(f, limit);
    for (size_t i = 0; i < COUNT_OF(waiters); i++)
        take_known(f, waiting_outcome(f->waiting), SESSION_UNPAID);
}

/* The database was away at its deadline, and its patience would end before the limit. */
static void test_stop_fails_nobody_who_was_parked(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unclaimed);
    expire_at(f, waiter.deadline);
    waiting_stop(f->waiting, waiter.deadline + 2 * PATIENCE);
    waiting_expire(f->waiting, waiter.deadline + PATIENCE);
    assert_int_not_equal(waiter.state, WAITER_FAILED);
    expire_at(f, waiter.deadline + 2 * PATIENCE);
    take_known(f, &waiter, SESSION_UNPAID);
}

static void test_after_stop_nobody_is_parked(void **state)
{
    struct fixture *f = *state;
    struct waiter early = {0}, late = {0};

    add(f, &early, "a");
    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    add(f, &late, "b");
    send(f, QUESTION_EVERYTHING, 2);
    settle(f, &unclaimed);
    take_known(f, &early, SESSION_UNPAID);
    take_known(f, &late, SESSION_UNPAID);
}

static void test_new_request_without_an_answer_fails_at_the_limit(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add(f, &waiter, "a");
    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    expire_at(f, f->now + USEC_PER_SEC);
    take(f, &waiter, WAITER_FAILED);
}

/* The worker's last act, whether or not something is under way. */
static void test_second_stop_may_have_an_earlier_limit(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter = {0};

    add_parked(f, &waiter, "a", &unknown);
    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    waiting_failed(f->waiting);
    waiting_stop(f->waiting, f->now);
    expire_at(f, f->now);
    take_known(f, &waiter, SESSION_UNKNOWN);
}

static void test_key_that_was_not_asked_about_is_in_the_next_batch(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter;

    add(f, &waiter, "a");
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &not_asked);
    assert_null(waiting_outcome(f->waiting));
    look_up(f, 1, &claimed);
    f->version++;
    f->now += INTERVAL;
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &not_asked);
    f->now += USEC_PER_SEC;
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &paid);
    assert_ptr_equal(waiting_outcome(f->waiting), &waiter);
    assert_int_equal(waiter.state, WAITER_KNOWN);
    waiting_remove(f->waiting, &waiter);
}

static void test_instance_without_an_answer_is_held_back_alone(void **state)
{
    struct fixture *f = *state;
    struct waiter first, second, other;
    usec_t due;

    add(f, &first, "a");
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &failed);
    assert_null(waiting_outcome(f->waiting));
    /* One more for the same key does not hasten it, and another key goes on. */
    add(f, &second, "a");
    send_nothing(f);
    add(f, &other, "b");
    look_up(f, 1, &claimed);
    due = waiting_due(f->waiting, f->now);
    assert_true(due <= f->now + PATIENCE / 2);
    waiting_remove(f->waiting, &other);
    f->now += USEC_PER_SEC / 2;
    send(f, QUESTION_EVERYTHING, 1);
    settle(f, &paid);
    for (struct waiter *waiter; (waiter = waiting_outcome(f->waiting));) {
        assert_int_equal(waiter->state, WAITER_KNOWN);
        waiting_remove(f->waiting, waiter);
    }
}

static void test_instance_without_an_answer_fails_when_patience_ends(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter;

    add(f, &waiter, "a");
    for (; waiter.state == WAITER_NEW; f->now += USEC_PER_SEC / 2) {
        send(f, QUESTION_EVERYTHING, 1);
        settle(f, &failed);
        waiting_expire(f->waiting, f->now + USEC_PER_SEC / 2);
    }
    assert_int_equal(waiter.state, WAITER_FAILED);
    waiting_remove(f->waiting, &waiter);
}

static void test_poll_that_finds_no_instance_answers(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter;

    add_parked(f, &waiter, "a", &claimed);
    f->version++;
    f->now += INTERVAL;
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &no_instance);
    assert_ptr_equal(waiting_outcome(f->waiting), &waiter);
    assert_int_equal(waiter.state, WAITER_KNOWN);
    assert_int_equal(waiter.watch->status, SESSION_NO_INSTANCE);
    assert_null(waiter.watch->order_id);
    waiting_remove(f->waiting, &waiter);
}

static void test_held_request_is_answered_at_a_stop(void **state)
{
    struct fixture *f = *state;
    struct waiter waiter;

    add_parked(f, &waiter, "a", &claimed);
    f->version++;
    f->now += INTERVAL;
    send(f, QUESTION_PAYMENT, 1);
    settle(f, &failed);
    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    send_nothing(f);
    f->now += USEC_PER_SEC;
    waiting_expire(f->waiting, f->now);
    assert_ptr_equal(waiting_outcome(f->waiting), &waiter);
    assert_int_equal(waiter.state, WAITER_KNOWN);
    assert_int_equal(waiter.watch->status, SESSION_UNPAID);
    waiting_remove(f->waiting, &waiter);
}

#define WAITING_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WAITING_TEST(test_nobody_waits_and_nothing_is_due),
        WAITING_TEST(test_equal_keys_share_one_watch),
        WAITING_TEST(test_versions_of_the_last_two_lookups),
        WAITING_TEST(test_key_is_copied),
        WAITING_TEST(test_what_a_lookup_found_is_kept),
        WAITING_TEST(test_lookup_that_finds_it_paid_answers),
        WAITING_TEST(test_unknown_instance_is_answered_at_once),
        WAITING_TEST(test_without_time_what_is_known_is_the_answer),
        WAITING_TEST(test_beyond_the_park_limit_what_is_known_is_the_answer),
        WAITING_TEST(test_caller_may_answer_instead_of_parking),
        WAITING_TEST(test_batch_does_not_answer_who_came_after_it_was_sent),
        WAITING_TEST(test_all_leave_while_the_batch_is_under_way),
        WAITING_TEST(test_failed_batch_is_asked_again),
        WAITING_TEST(test_new_request_fails_when_its_patience_ends),
        WAITING_TEST(test_new_requests_go_before_polls),
        WAITING_TEST(test_new_requests_go_in_the_order_of_their_arrival),
        WAITING_TEST(test_checks_and_polls_have_every_other_turn),
        WAITING_TEST(test_checks_leave_turns_to_polls),
        WAITING_TEST(test_new_requests_go_before_last_ones_which_have_a_quarter),
        WAITING_TEST(test_last_request_goes_with_a_new_one_of_its_key),
        WAITING_TEST(test_polls_are_few_at_once_while_requests_come_in),
        WAITING_TEST(test_check_is_due_every_interval_while_requests_are_parked),
        WAITING_TEST(test_quiet_database_is_not_polled),
        WAITING_TEST(test_what_was_just_looked_up_is_not_polled),
        WAITING_TEST(test_poll_that_finds_it_paid_answers),
        WAITING_TEST(test_poll_that_finds_nothing_paid_leaves_what_is_known),
        WAITING_TEST(test_failed_poll_is_sent_again),
        WAITING_TEST(test_failed_poll_goes_before_keys_just_looked_up),
        WAITING_TEST(test_failed_check_is_sent_again),
        WAITING_TEST(test_claimed_orders_are_polled_first_after_a_change),
        WAITING_TEST(test_poll_that_finds_a_claim_puts_the_key_first),
        WAITING_TEST(test_every_key_is_polled_in_its_turn),
        WAITING_TEST(test_polling_takes_a_tenth_of_the_time),
        WAITING_TEST(test_one_round_after_a_quiet_time_is_not_held_up),
        WAITING_TEST(test_one_slow_poll_does_not_stop_polling),
        WAITING_TEST(test_long_road_is_not_charged),
        WAITING_TEST(test_slow_checks_do_not_make_polls_free),
        WAITING_TEST(test_long_road_leaves_turns_to_unclaimed_orders),
        WAITING_TEST(test_batches_are_gathered_under_load),
        WAITING_TEST(test_few_requests_are_not_put_off),
        WAITING_TEST(test_claimed_orders_leave_budget_to_the_others),
        WAITING_TEST(test_one_slow_check_does_not_stop_checks),
        WAITING_TEST(test_deadline_is_a_last_lookup),
        WAITING_TEST(test_batch_sent_before_the_deadline_is_not_the_last_lookup),
        WAITING_TEST(test_last_request_fails_when_its_patience_ends),
        WAITING_TEST(test_last_request_is_asked_about_however_late_its_deadline_is_noticed),
        WAITING_TEST(test_equal_deadlines_expire_together),
        WAITING_TEST(test_key_of_a_last_request_is_not_polled_but_others_wait_on),
        WAITING_TEST(test_stop_asks_all_parked_a_last_time),
        WAITING_TEST(test_stop_answers_with_what_the_last_lookup_knew),
        WAITING_TEST(test_stop_fails_nobody_who_was_parked),
        WAITING_TEST(test_after_stop_nobody_is_parked),
        WAITING_TEST(test_new_request_without_an_answer_fails_at_the_limit),
        WAITING_TEST(test_second_stop_may_have_an_earlier_limit),
        WAITING_TEST(test_key_that_was_not_asked_about_is_in_the_next_batch),
        WAITING_TEST(test_instance_without_an_answer_is_held_back_alone),
        WAITING_TEST(test_instance_without_an_answer_fails_when_patience_ends),
        WAITING_TEST(test_poll_that_finds_no_instance_answers),
        WAITING_TEST(test_held_request_is_answered_at_a_stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
