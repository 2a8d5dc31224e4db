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

/* Under load the next batch waits this long for more requests, at most. */
#define GATHER_TIME 500

static const struct session_answer unknown = {SESSION_UNKNOWN, false, NULL};
static const struct session_answer no_instance = {SESSION_NO_INSTANCE, false, NULL};
static const struct session_answer failed = {SESSION_FAILED, false, NULL};
static const struct session_answer not_asked = {SESSION_NOT_ASKED, false, NULL};
static const struct session_answer unclaimed = {SESSION_UNPAID, false, "order"};
static const struct session_answer claimed = {SESSION_UNPAID, true, "order"};
static const struct session_answer paid = {SESSION_PAID, false, "paid-order"};

/* Each test begins at START: nobody waits, and a check has just been made. Requests that have not
 * left at its end leave then, and nothing must be left to do. */
struct fixture {
    void (*test)(struct fixture *f);
    struct waiting *waiting;
    struct waiting_batch batch; /* the last one that was sent */
    usec_t now;
    uint64_t version; /* what the last check has found */
    size_t count;     /* requests that came */
    struct waiter waiters[MANY + SESSION_BATCH_MAX];
};

/* ---- Requests ---- */

static struct waiter *add_key(struct fixture *f, const struct session_key *key, usec_t deadline)
{
    struct waiter *waiter = &f->waiters[f->count++];

    assert_in_range(f->count, 1, COUNT_OF(f->waiters));
    assert_true(waiting_add(f->waiting, waiter, key, deadline, f->now));
    assert_int_equal(waiter->state, WAITER_NEW);
    return waiter;
}

static struct waiter *add_until(struct fixture *f, const char *session, usec_t deadline)
{
    const struct session_key key = {session, "https://shop.example/", "shop"};

    return add_key(f, &key, deadline);
}

static struct waiter *add(struct fixture *f, const char *session)
{
    return add_until(f, session, f->now + WAIT);
}

/* Adds requests with a session of their own each: the number of the request in the test, from 0.
 * Returns the first; the others follow it. */
static struct waiter *add_many(struct fixture *f, size_t count)
{
    struct waiter *first = &f->waiters[f->count];

    for (size_t i = 0; i < count; i++) {
        char session[24];

        snprintf(session, sizeof session, "%zu", f->count);
        add(f, session);
    }
    return first;
}

/* The request leaves. What has no watch has left. */
static void leave(struct fixture *f, struct waiter *waiter)
{
    waiting_remove(f->waiting, waiter);
    waiter->watch = NULL;
}

/* ---- What the database is asked ---- */

static void assert_in_batch(
    const struct fixture *f, enum session_question question, const char *session)
{
    size_t found = 0;

    assert_int_equal(f->batch.question, question);
    for (size_t i = 0; i < f->batch.count; i++)
        found += strcmp(f->batch.keys[i]->session, session) == 0;
    assert_int_equal(found, 1);
}

static bool is_about(const struct fixture *f, const char *session)
{
    return strcmp(f->batch.keys[0]->session, session) == 0;
}

static void send_nothing(struct fixture *f)
{
    assert_true(waiting_due(f->waiting, f->now) > f->now);
    assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_STEP_NOTHING);
}

/* Waits until something is due, and sends it. */
static enum waiting_step send_due(struct fixture *f)
{
    f->now = usec_max(f->now, waiting_due(f->waiting, f->now));
    return waiting_next(f->waiting, &f->batch, f->now);
}

/* Sends a batch, which has `count` keys and may have been gathered. A check that comes before it
 * finds nothing new. */
static void send_batch(struct fixture *f, enum session_question question, size_t count)
{
    enum waiting_step step;

    f->now = usec_max(f->now, usec_min(waiting_due(f->waiting, f->now), f->now + GATHER_TIME));
    assert_true(waiting_due(f->waiting, f->now) <= f->now);
    while ((step = waiting_next(f->waiting, &f->batch, f->now)) == WAITING_STEP_CHECK)
        waiting_checked(f->waiting, f->version, f->now);
    assert_int_equal(step, WAITING_STEP_BATCH);
    assert_int_equal(f->batch.question, question);
    assert_int_equal(f->batch.count, count);
}

/* The batch came back, and says the same of each key. */
static void settle_within(struct fixture *f, const struct session_answer *answer, size_t limit)
{
    struct session_answer answers[SESSION_BATCH_MAX];

    for (size_t i = 0; i < f->batch.count; i++)
        answers[i] = *answer;
    waiting_answered(f->waiting, answers, limit, f->now);
}

static void settle(struct fixture *f, const struct session_answer *answer)
{
    settle_within(f, answer, PLENTY);
}

static void look_up(struct fixture *f, size_t count, const struct session_answer *answer)
{
    send_batch(f, QUESTION_EVERYTHING, count);
    settle(f, answer);
}

static void poll_keys(struct fixture *f, size_t count, const struct session_answer *answer)
{
    send_batch(f, QUESTION_PAYMENT, count);
    settle(f, answer);
}

/* The check under way finds that the database has changed. */
static void find_change(struct fixture *f)
{
    waiting_checked(f->waiting, ++f->version, f->now);
}

/* A check at the time when it is due. */
static void check(struct fixture *f, uint64_t version)
{
    assert_int_equal(send_due(f), WAITING_STEP_CHECK);
    f->version = version;
    waiting_checked(f->waiting, version, f->now);
}

static void check_finds_change(struct fixture *f)
{
    check(f, f->version + 1);
}

/* ---- Outcomes ---- */

static void assert_no_outcome(const struct fixture *f)
{
    assert_null(waiting_outcome(f->waiting));
}

/* The next outcome is that of this request, which leaves. */
static void take(struct fixture *f, struct waiter *waiter, enum waiter_state state)
{
    assert_ptr_equal(waiting_outcome(f->waiting), waiter);
    assert_int_equal(waiter->state, state);
    leave(f, waiter);
}

static void take_known(struct fixture *f, struct waiter *waiter, enum session_status status)
{
    assert_int_equal(waiter->watch->status, status);
    take(f, waiter, WAITER_KNOWN);
}

/* As many requests, in any order. */
static void take_many_known(struct fixture *f, size_t count, enum session_status status)
{
    for (size_t i = 0; i < count; i++) {
        struct waiter *waiter = waiting_outcome(f->waiting);

        assert_non_null(waiter);
        take_known(f, waiter, status);
    }
    assert_no_outcome(f);
}

/* Parks all who may be parked. The others have an answer, and leave. Returns their number. */
static size_t take_or_park(struct fixture *f, enum session_status status)
{
    size_t taken = 0;

    for (struct waiter *waiter; (waiter = waiting_outcome(f->waiting));) {
        if (waiter->state == WAITER_PARKABLE) {
            waiting_park(f->waiting, waiter);
            assert_int_equal(waiter->state, WAITER_PARKED);
        } else {
            take_known(f, waiter, status);
            taken++;
        }
    }
    return taken;
}

/* Looks up keys that nobody has paid. All who have asked are parked. */
static void look_up_and_park(struct fixture *f, size_t count, const struct session_answer *answer)
{
    look_up(f, count, answer);
    assert_int_equal(take_or_park(f, answer->status), 0);
}

static struct waiter *add_parked(
    struct fixture *f, const char *session, const struct session_answer *answer)
{
    struct waiter *waiter = add(f, session);

    look_up_and_park(f, 1, answer);
    assert_int_equal(waiter->state, WAITER_PARKED);
    return waiter;
}

static struct waiter *add_many_parked(
    struct fixture *f, size_t count, const struct session_answer *answer)
{
    struct waiter *first = add_many(f, count);
    size_t left = count;

    for (; left > SESSION_BATCH_MAX; left -= SESSION_BATCH_MAX)
        look_up_and_park(f, SESSION_BATCH_MAX, answer);
    look_up_and_park(f, left, answer);
    assert_int_equal(waiting_parked(f->waiting), count);
    return first;
}

/* At this time a deadline, or the end of somebody's patience, has come. */
static void expire_at(struct fixture *f, usec_t now)
{
    assert_true(waiting_expire_due(f->waiting) <= now);
    f->now = usec_max(f->now, now);
    waiting_expire(f->waiting, f->now);
    assert_true(waiting_expire_due(f->waiting) > f->now);
}

/* ---- The life of a test ---- */

/* What cmocka passes to setup(). */
struct waiting_test {
    void (*test)(struct fixture *f);
};

static int setup(void **state)
{
    const struct waiting_test *test = *state;
    struct fixture *f = calloc(1, sizeof *f);

    assert_non_null(f);
    f->test = test->test;
    f->waiting = waiting_new(INTERVAL, PATIENCE);
    assert_non_null(f->waiting);
    f->now = START;
    add_parked(f, "first", &unknown);
    check(f, 1);
    leave(f, &f->waiters[0]);
    f->count = 0;
    *state = f;
    return 0;
}

static void run(void **state)
{
    struct fixture *f = *state;

    f->test(f);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    for (size_t i = 0; i < f->count; i++)
        if (f->waiters[i].watch)
            leave(f, &f->waiters[i]);
    assert_int_equal(waiting_parked(f->waiting), 0);
    assert_true(waiting_due(f->waiting, f->now) == USEC_NEVER);
    assert_true(waiting_expire_due(f->waiting) == USEC_NEVER);
    waiting_free(f->waiting);
    free(f);
    return 0;
}

/* ---- Requests and keys ---- */

static void test_nobody_waits_and_nothing_is_due(struct fixture *f)
{
    send_nothing(f);
    assert_no_outcome(f);
}

static void test_equal_keys_share_one_watch(struct fixture *f)
{
    static const struct session_key keys[] = {{"a", "https://shop.example/", "shop"},
        {"a", "https://shop.example/", "shop"}, {"b", "https://shop.example/", "shop"},
        {"a", "https://shop.example/2", "shop"}, {"a", "https://shop.example/", ""}};

    for (size_t i = 0; i < COUNT_OF(keys); i++)
        add_key(f, &keys[i], f->now + WAIT);
    assert_ptr_equal(f->waiters[0].watch, f->waiters[1].watch);
    for (size_t i = 2; i < COUNT_OF(keys); i++)
        assert_ptr_not_equal(f->waiters[0].watch, f->waiters[i].watch);
    look_up_and_park(f, 4, &unknown);
    assert_int_equal(waiting_parked(f->waiting), 5);
}

/* For the caller, who measures how long ago a change was that a lookup has found. */
static void test_versions_of_the_last_two_lookups(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &claimed);

    assert_int_equal(waiter->watch->version, 1);
    check(f, 2);
    poll_keys(f, 1, &claimed);
    check(f, 4);
    poll_keys(f, 1, &paid);
    assert_int_equal(waiter->watch->version, 4);
    assert_int_equal(waiter->watch->version_before, 2);
    take_known(f, waiter, SESSION_PAID);
}

static void test_key_is_copied(struct fixture *f)
{
    char session[] = "a";
    struct waiter *waiter = add(f, session);

    session[0] = 'x';
    assert_string_equal(waiter->watch->key.session, "a");
}

static void test_what_a_lookup_found_is_kept(struct fixture *f)
{
    char name[] = "order-1";
    const struct session_answer unpaid = {SESSION_UNPAID, true, name};
    struct waiter *waiter = add_parked(f, "a", &unpaid);

    name[0] = 'x';
    assert_int_equal(waiter->watch->status, SESSION_UNPAID);
    assert_true(waiter->watch->claimed);
    assert_string_equal(waiter->watch->order_id, "order-1");
    add_parked(f, "a", &unknown);
    assert_int_equal(waiter->watch->status, SESSION_UNKNOWN);
    assert_null(waiter->watch->order_id);
}

/* ---- The first lookup ---- */

static void test_lookup_that_finds_it_paid_answers(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    look_up(f, 1, &paid);
    assert_string_equal(waiter->watch->order_id, "paid-order");
    take_known(f, waiter, SESSION_PAID);
}

static void test_unknown_instance_is_answered_at_once(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    look_up(f, 1, &no_instance);
    take_known(f, waiter, SESSION_NO_INSTANCE);
}

static void test_without_time_what_is_known_is_the_answer(struct fixture *f)
{
    static const usec_t deadlines[] = {0, START, START + 1};

    for (size_t i = 0; i < COUNT_OF(deadlines); i++) {
        struct waiter *waiter;

        f->now = START;
        waiter = add_until(f, "a", deadlines[i]);
        send_batch(f, QUESTION_EVERYTHING, 1);
        f->now++;
        settle(f, &unclaimed);
        take_known(f, waiter, SESSION_UNPAID);
    }
}

static void test_beyond_the_park_limit_what_is_known_is_the_answer(struct fixture *f)
{
    add_parked(f, "parked", &unknown);
    add_many(f, 3);
    send_batch(f, QUESTION_EVERYTHING, 3);
    settle_within(f, &unknown, 2);
    assert_int_equal(take_or_park(f, SESSION_UNKNOWN), 2);
    assert_int_equal(waiting_parked(f->waiting), 2);
}

static void test_caller_may_answer_instead_of_parking(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    look_up(f, 1, &unknown);
    take(f, waiter, WAITER_PARKABLE);
}

/* A result may be older than a request that came in meanwhile. */
static void test_batch_does_not_answer_who_came_after_it_was_sent(struct fixture *f)
{
    struct waiter *first = add(f, "a"), *second;

    send_batch(f, QUESTION_EVERYTHING, 1);
    second = add(f, "a");
    settle(f, &paid);
    take_known(f, first, SESSION_PAID);
    assert_no_outcome(f);
    assert_int_equal(second->state, WAITER_NEW);
    look_up(f, 1, &paid);
    take_known(f, second, SESSION_PAID);
}

static void test_all_leave_while_the_batch_is_under_way(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    send_batch(f, QUESTION_EVERYTHING, 1);
    leave(f, waiter);
    assert_in_batch(f, QUESTION_EVERYTHING, "a");
    settle(f, &paid);
    assert_no_outcome(f);
}

static void test_failed_batch_is_asked_again(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    send_batch(f, QUESTION_EVERYTHING, 1);
    waiting_failed(f->waiting);
    assert_int_equal(waiter->state, WAITER_NEW);
    assert_no_outcome(f);
    look_up(f, 1, &paid);
    take_known(f, waiter, SESSION_PAID);
}

static void test_new_request_fails_when_its_patience_ends(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    send_batch(f, QUESTION_EVERYTHING, 1);
    assert_true(waiting_expire_due(f->waiting) == START + PATIENCE);
    waiting_expire(f->waiting, START + PATIENCE - 1);
    assert_no_outcome(f);
    expire_at(f, START + PATIENCE);
    take(f, waiter, WAITER_FAILED);
    settle(f, &paid);
    assert_no_outcome(f);
}

/* ---- What goes first ---- */

static void test_new_requests_go_before_polls(struct fixture *f)
{
    add_parked(f, "old", &claimed);
    check_finds_change(f);
    add(f, "new");
    send_batch(f, QUESTION_EVERYTHING, 1);
    assert_in_batch(f, QUESTION_EVERYTHING, "new");
    settle(f, &unknown);
    take_or_park(f, SESSION_UNKNOWN);
    send_batch(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "old");
    settle(f, &claimed);
}

static void test_new_requests_go_in_the_order_of_their_arrival(struct fixture *f)
{
    add_many(f, 2 * SESSION_BATCH_MAX);
    send_batch(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    assert_in_batch(f, QUESTION_EVERYTHING, "0");
    assert_in_batch(f, QUESTION_EVERYTHING, "255");
    settle(f, &unknown);
    take_or_park(f, SESSION_UNKNOWN);
}

/* Requests without end must not keep the parked ones from being polled: checks and polls have
 * every other turn. */
static void test_checks_and_polls_have_every_other_turn(struct fixture *f)
{
    add_parked(f, "old", &unknown);
    add(f, "new");
    for (int i = 0; i < 4; i++) {
        f->now += INTERVAL;
        check_finds_change(f);
        send_batch(f, QUESTION_EVERYTHING, 1);
        waiting_failed(f->waiting);
        poll_keys(f, 1, &unknown);
        send_batch(f, QUESTION_EVERYTHING, 1);
        waiting_failed(f->waiting);
    }
}

/* Where a batch takes longer than the check interval a check is always due. */
static void test_checks_leave_turns_to_polls(struct fixture *f)
{
    size_t polls = 0;

    add_parked(f, "old", &unknown);
    add(f, "new");
    for (int i = 0; i < 40; i++) {
        enum waiting_step step = waiting_next(f->waiting, &f->batch, f->now);

        f->now += 2 * INTERVAL;
        if (step == WAITING_STEP_CHECK)
            find_change(f);
        else if (f->batch.question == QUESTION_EVERYTHING)
            waiting_failed(f->waiting);
        else
            settle(f, &unknown);
        polls += step == WAITING_STEP_BATCH && f->batch.question == QUESTION_PAYMENT;
    }
    assert_in_range(polls, 5, 15);
}

/* Ten thousand whose time is up at once must not keep a new request waiting. */
static void test_new_requests_go_before_last_ones_which_have_a_quarter(struct fixture *f)
{
    struct waiter *new;

    add_many_parked(f, 2 * SESSION_BATCH_MAX, &unknown);
    expire_at(f, START + WAIT);
    new = add_many(f, 10);
    send_batch(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    for (size_t i = 0; i < 10; i++)
        assert_in_batch(f, QUESTION_EVERYTHING, new[i].watch->key.session);
    waiting_failed(f->waiting);
    add_many(f, 2 * SESSION_BATCH_MAX);
    look_up(f, SESSION_BATCH_MAX, &unknown);
    assert_int_equal(take_or_park(f, SESSION_UNKNOWN), QUARTER);
    assert_int_equal(waiting_parked(f->waiting), SESSION_BATCH_MAX - QUARTER);
}

/* A last request whose key a new one asks for too goes with that one. */
static void test_last_request_goes_with_a_new_one_of_its_key(struct fixture *f)
{
    struct waiter *lasts = add_many_parked(f, 2 * SESSION_BATCH_MAX, &unknown), *new;

    expire_at(f, START + WAIT);
    new = add(f, "511");
    send_batch(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    assert_in_batch(f, QUESTION_EVERYTHING, "511");
    settle(f, &paid);
    assert_int_equal(new->state, WAITER_KNOWN);
    assert_int_equal(lasts[511].state, WAITER_KNOWN);
}

/* While new requests come in each may have to wait for a batch of polls: that is a small one. */
static void test_polls_are_few_at_once_while_requests_come_in(struct fixture *f)
{
    add_many_parked(f, 200, &unknown);
    f->now += USEC_PER_SEC;
    check_finds_change(f);
    poll_keys(f, 200, &unknown);
    check_finds_change(f);
    add_parked(f, "new", &unknown);
    assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_STEP_BATCH);
    assert_int_equal(f->batch.question, QUESTION_PAYMENT);
    assert_in_range(f->batch.count, 1, 100);
    settle(f, &unknown);
}

/* ---- Checks and polls ---- */

static void test_check_is_due_every_interval_while_requests_are_parked(struct fixture *f)
{
    add_parked(f, "a", &unknown);
    for (int i = 0; i < 3; i++) {
        usec_t due = waiting_due(f->waiting, f->now);

        assert_true(due > f->now && due <= f->now + INTERVAL);
        f->now = due - 1;
        send_nothing(f);
        check(f, 1);
    }
}

static void test_quiet_database_is_not_polled(struct fixture *f)
{
    add_parked(f, "a", &claimed);
    add_parked(f, "b", &unknown);
    check(f, 7);
    poll_keys(f, 1, &claimed);
    poll_keys(f, 1, &unknown);
    for (int i = 0; i < 5; i++) {
        check(f, 7);
        send_nothing(f);
    }
}

/* What was looked up after the last check is as good as polled. */
static void test_what_was_just_looked_up_is_not_polled(struct fixture *f)
{
    add_parked(f, "a", &unknown);
    check(f, 2);
    poll_keys(f, 1, &unknown);
    add_parked(f, "b", &claimed);
    check(f, 2);
    send_nothing(f);
    check(f, 3);
    send_batch(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "b");
    settle(f, &claimed);
}

static void test_poll_that_finds_it_paid_answers(struct fixture *f)
{
    struct waiter *first = add(f, "a"), *second = add_parked(f, "a", &unclaimed);

    check_finds_change(f);
    poll_keys(f, 1, &paid);
    assert_string_equal(first->watch->order_id, "paid-order");
    take_known(f, first, SESSION_PAID);
    take_known(f, second, SESSION_PAID);
}

/* A poll knows nothing of unclaimed orders. */
static void test_poll_that_finds_nothing_paid_leaves_what_is_known(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unclaimed);

    check_finds_change(f);
    poll_keys(f, 1, &unknown);
    assert_int_equal(waiter->state, WAITER_PARKED);
    assert_int_equal(waiter->watch->status, SESSION_UNPAID);
    assert_string_equal(waiter->watch->order_id, "order");
}

static void test_poll_that_finds_no_instance_answers(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &claimed);

    check_finds_change(f);
    poll_keys(f, 1, &no_instance);
    assert_null(waiter->watch->order_id);
    take_known(f, waiter, SESSION_NO_INSTANCE);
}

static void test_failed_poll_is_sent_again(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unknown);

    check_finds_change(f);
    send_batch(f, QUESTION_PAYMENT, 1);
    waiting_failed(f->waiting);
    poll_keys(f, 1, &paid);
    take_known(f, waiter, SESSION_PAID);
}

/* A key that was polled in vain must not get behind those that need no poll. */
static void test_failed_poll_goes_before_keys_just_looked_up(struct fixture *f)
{
    struct waiter *old = add_parked(f, "old", &unknown);

    check_finds_change(f);
    add_parked(f, "new", &unknown);
    send_batch(f, QUESTION_PAYMENT, 1);
    waiting_failed(f->waiting);
    send_batch(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "old");
    settle(f, &paid);
    take_known(f, old, SESSION_PAID);
}

static void test_failed_check_is_sent_again(struct fixture *f)
{
    add_parked(f, "a", &unknown);
    assert_int_equal(send_due(f), WAITING_STEP_CHECK);
    waiting_failed(f->waiting);
    check_finds_change(f);
}

static void test_claimed_orders_are_polled_first_after_a_change(struct fixture *f)
{
    add_many_parked(f, SESSION_BATCH_MAX, &unknown);
    add_parked(f, "one", &claimed);
    for (int i = 0; i < 3; i++) {
        f->now += USEC_PER_SEC;
        check_finds_change(f);
        send_batch(f, QUESTION_PAYMENT, 1);
        assert_in_batch(f, QUESTION_PAYMENT, "one");
        settle(f, &claimed);
        poll_keys(f, SESSION_BATCH_MAX, &unknown);
    }
}

/* A poll learns that a wallet has claimed an order: the next change is near. */
static void test_poll_that_finds_a_claim_puts_the_key_first(struct fixture *f)
{
    add_parked(f, "one", &unknown);
    check_finds_change(f);
    poll_keys(f, 1, &claimed);
    add_parked(f, "other", &unknown);
    check_finds_change(f);
    send_batch(f, QUESTION_PAYMENT, 1);
    assert_in_batch(f, QUESTION_PAYMENT, "one");
    settle(f, &claimed);
}

/* Changes that never cease: still every key is polled in its turn. */
static void test_every_key_is_polled_in_its_turn(struct fixture *f)
{
    unsigned polled[600] = {0};

    add_many_parked(f, COUNT_OF(polled), &unknown);
    for (int round = 0; round < 12; round++) {
        f->now += USEC_PER_SEC;
        check_finds_change(f);
        assert_int_equal(waiting_next(f->waiting, &f->batch, f->now), WAITING_STEP_BATCH);
        for (size_t i = 0; i < f->batch.count; i++)
            polled[strtoul(f->batch.keys[i]->session, NULL, 10)]++;
        settle(f, &unknown);
    }
    for (size_t i = 0; i < COUNT_OF(polled); i++)
        assert_in_range(polled[i], 5, 6);
}

/* ---- The budget of polls ---- */

/* Sends what is due, on a database that changes all the time, until that is a batch of polls.
 * Checks take no time. */
static void send_next_poll(struct fixture *f)
{
    enum waiting_step step;

    while ((step = send_due(f)) == WAITING_STEP_CHECK)
        find_change(f);
    assert_int_equal(step, WAITING_STEP_BATCH);
    assert_int_equal(f->batch.question, QUESTION_PAYMENT);
}

/* Polls as many keys, in batches that take 2 ms each. Returns how long the batches took in all. */
static usec_t poll_many_keys(struct fixture *f, size_t keys)
{
    usec_t took = 0;

    while (keys > 0) {
        send_next_poll(f);
        f->now += 2 * USEC_PER_MS;
        took += 2 * USEC_PER_MS;
        settle(f, &unknown);
        keys -= f->batch.count < keys ? f->batch.count : keys;
    }
    return took;
}

static void test_polling_takes_a_tenth_of_the_time(struct fixture *f)
{
    usec_t took, start;

    add_many_parked(f, MANY, &unknown);
    /* What was saved up is spent first. */
    poll_many_keys(f, 5 * MANY);
    start = f->now;
    took = poll_many_keys(f, 5 * MANY);
    assert_true(took * 10 <= f->now - start + 40 * USEC_PER_MS);
    assert_true(took * 12 >= f->now - start);
}

/* What was not used in quiet seconds may be used at once. */
static void test_one_round_after_a_quiet_time_is_not_held_up(struct fixture *f)
{
    usec_t start;

    add_many_parked(f, MANY, &unknown);
    f->now += 10 * USEC_PER_SEC;
    start = f->now;
    poll_many_keys(f, MANY);
    assert_true(f->now - start < 200 * USEC_PER_MS);
}

static void test_one_slow_poll_does_not_stop_polling(struct fixture *f)
{
    usec_t end;

    add_until(f, "a", f->now + 100 * USEC_PER_SEC);
    look_up_and_park(f, 1, &unknown);
    check_finds_change(f);
    send_batch(f, QUESTION_PAYMENT, 1);
    f->now += 60 * USEC_PER_SEC;
    settle(f, &unknown);
    end = f->now;
    poll_many_keys(f, 1);
    assert_true(f->now - end <= 2 * USEC_PER_SEC);
}

/* Polls of one session for a while, on a database that changes all the time: how much of the time
 * the polls took, in percent. Of 16 checks 15 are slow. */
static int percent_polling(
    struct fixture *f, usec_t road, usec_t slow_check, usec_t work, usec_t duration)
{
    usec_t begin = f->now, polling = 0;
    int checks = 0;

    while (f->now - begin < duration) {
        if (send_due(f) == WAITING_STEP_CHECK) {
            f->now += checks++ % 16 == 0 ? road : slow_check;
            find_change(f);
        } else {
            f->now += road + work;
            polling += work;
            settle(f, &unknown);
        }
    }
    return (int)(polling * 100 / (f->now - begin));
}

/* Where the machine is busy most checks are slow, and that is not the road. */
static void test_slow_checks_do_not_make_polls_free(struct fixture *f)
{
    static const usec_t ms = USEC_PER_MS;

    add_parked(f, "a", &unknown);
    assert_in_range(percent_polling(f, ms, 12 * ms, 5 * ms, 100 * USEC_PER_SEC), 8, 11);
}

/* The road costs the database nothing: the check measures it. One that becomes longer for good is
 * not charged any more after a few seconds. */
static void test_long_road_is_not_charged(struct fixture *f)
{
    static const usec_t ms = USEC_PER_MS;

    add_parked(f, "a", &unknown);
    percent_polling(f, 40 * ms, 40 * ms, 5 * ms, 20 * USEC_PER_SEC);
    /* Charged, they would have a tenth of the time, road and all: 1 %. */
    assert_in_range(percent_polling(f, 40 * ms, 40 * ms, 5 * ms, 20 * USEC_PER_SEC), 4, 7);
}

/* A check and the first poll after it may take longer than the check interval. */
static void test_long_road_leaves_turns_to_unclaimed_orders(struct fixture *f)
{
    size_t polls = 0;

    add_parked(f, "claimed", &claimed);
    add_parked(f, "unclaimed", &unknown);
    for (int i = 0; i < 200; i++) {
        enum waiting_step step = send_due(f);

        f->now += 20 * USEC_PER_MS;
        if (step == WAITING_STEP_CHECK) {
            find_change(f);
            continue;
        }
        polls += is_about(f, "unclaimed");
        settle(f, is_about(f, "unclaimed") ? &unknown : &claimed);
    }
    assert_in_range(polls, 30, 100);
}

/* Claimed keys whose polls use up the budget must not keep the others from being found. */
static void test_claimed_orders_leave_budget_to_the_others(struct fixture *f)
{
    usec_t end = f->now + 20 * USEC_PER_SEC;
    size_t polled = 0;

    add_many_parked(f, 64, &claimed);
    add_parked(f, "one", &unknown);
    while (f->now < end) {
        send_next_poll(f);
        f->now += 5 * USEC_PER_MS;
        /* What was saved up is spent in the first half. */
        polled += is_about(f, "one") && f->now > end - 10 * USEC_PER_SEC;
        settle(f, is_about(f, "one") ? &unknown : &claimed);
    }
    assert_in_range(polled, 10, 1000);
}

/* A check that was held up must not put off the next ones as long as it took. */
static void test_one_slow_check_does_not_stop_checks(struct fixture *f)
{
    add_parked(f, "a", &unknown);
    assert_int_equal(send_due(f), WAITING_STEP_CHECK);
    f->now += 2 * USEC_PER_SEC;
    waiting_checked(f->waiting, 1, f->now);
    assert_true(waiting_due(f->waiting, f->now) <= f->now + 4 * INTERVAL);
}

/* ---- Gathering under load ---- */

/* After a batch of four the next one waits for eight requests, or half a millisecond. */
static void test_batches_are_gathered_under_load(struct fixture *f)
{
    add_many(f, 4);
    look_up(f, 4, &unknown);
    add_many(f, 7);
    assert_int_equal(waiting_due(f->waiting, f->now), f->now + GATHER_TIME);
    send_nothing(f);
    f->now += GATHER_TIME - 1;
    send_nothing(f);
    add_many(f, 1);
    assert_int_equal(waiting_due(f->waiting, f->now), f->now);
    look_up(f, 8, &unknown);
    add_many(f, 2);
    send_nothing(f);
    f->now += GATHER_TIME;
    assert_int_equal(waiting_due(f->waiting, f->now), f->now);
    look_up(f, 2, &unknown);
}

static void test_few_requests_are_not_put_off(struct fixture *f)
{
    add_many(f, 3);
    look_up(f, 3, &unknown);
    add_many(f, 1);
    assert_int_equal(waiting_due(f->waiting, f->now), f->now);
}

/* ---- Deadlines ---- */

static void test_deadline_is_a_last_lookup(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unknown);

    assert_true(waiting_expire_due(f->waiting) == waiter->deadline);
    waiting_expire(f->waiting, waiter->deadline - 1);
    assert_int_equal(waiter->state, WAITER_PARKED);
    expire_at(f, waiter->deadline);
    assert_int_equal(waiter->state, WAITER_LAST);
    assert_int_equal(waiting_parked(f->waiting), 0);
    look_up(f, 1, &unclaimed);
    take_known(f, waiter, SESSION_UNPAID);
}

static void test_batch_sent_before_the_deadline_is_not_the_last_lookup(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unknown);

    check_finds_change(f);
    send_batch(f, QUESTION_PAYMENT, 1);
    expire_at(f, waiter->deadline);
    settle(f, &unknown);
    assert_no_outcome(f);
    look_up(f, 1, &paid);
    take_known(f, waiter, SESSION_PAID);
}

static void test_last_request_fails_when_its_patience_ends(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unknown);

    expire_at(f, waiter->deadline);
    assert_true(waiting_expire_due(f->waiting) == waiter->deadline + PATIENCE);
    send_batch(f, QUESTION_EVERYTHING, 1);
    waiting_failed(f->waiting);
    expire_at(f, waiter->deadline + PATIENCE);
    take(f, waiter, WAITER_FAILED);
}

/* The process was stopped, or its machine was, for longer than the wait and the patience. */
static void test_last_request_is_asked_about_however_late_its_deadline_is_noticed(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unknown);

    expire_at(f, waiter->deadline + 3 * PATIENCE);
    assert_int_equal(waiter->state, WAITER_LAST);
    assert_true(waiting_expire_due(f->waiting) == f->now + PATIENCE);
    look_up(f, 1, &unknown);
    take_known(f, waiter, SESSION_UNKNOWN);
}

static void test_equal_deadlines_expire_together(struct fixture *f)
{
    struct waiter *waiters = add_many_parked(f, SESSION_BATCH_MAX, &unknown);

    expire_at(f, START + WAIT);
    for (size_t i = 0; i < SESSION_BATCH_MAX; i++)
        assert_int_equal(waiters[i].state, WAITER_LAST);
    look_up(f, SESSION_BATCH_MAX, &paid);
}

static void test_key_of_a_last_request_is_not_polled_but_others_wait_on(struct fixture *f)
{
    struct waiter *first = add_until(f, "a", f->now + USEC_PER_SEC);
    struct waiter *second = add_parked(f, "a", &unknown);

    expire_at(f, first->deadline);
    assert_int_equal(second->state, WAITER_PARKED);
    look_up(f, 1, &unknown);
    take_known(f, first, SESSION_UNKNOWN);
    assert_no_outcome(f);
    check_finds_change(f);
    poll_keys(f, 1, &paid);
    take_known(f, second, SESSION_PAID);
}

/* ---- Stopping ---- */

static void test_stop_asks_all_parked_a_last_time(struct fixture *f)
{
    add_many_parked(f, 100, &unknown);
    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    assert_int_equal(waiting_parked(f->waiting), 0);
    look_up(f, 100, &unclaimed);
    take_many_known(f, 100, SESSION_UNPAID);
}

/* Also those whose key is in a batch, and those whose deadlines differ: nobody is left out. */
static void test_stop_answers_with_what_the_last_lookup_knew(struct fixture *f)
{
    usec_t limit;

    for (size_t i = 0; i < 100; i++) {
        char session[24];

        snprintf(session, sizeof session, "%zu", i);
        add_until(f, session, START + WAIT + (usec_t)(i * 7919 % 101));
    }
    look_up_and_park(f, 100, &unclaimed);
    f->now = START + WAIT + 50;
    waiting_expire(f->waiting, f->now);
    send_batch(f, QUESTION_EVERYTHING, 51);
    limit = f->now + USEC_PER_SEC;
    waiting_stop(f->waiting, limit);
    assert_true(waiting_expire_due(f->waiting) == limit);
    waiting_expire(f->waiting, limit - 1);
    assert_no_outcome(f);
    waiting_failed(f->waiting);
    expire_at(f, limit);
    take_many_known(f, 100, SESSION_UNPAID);
}

/* The database was away at its deadline, and its patience would end before the limit. */
static void test_stop_fails_nobody_who_was_parked(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unclaimed);

    expire_at(f, waiter->deadline);
    waiting_stop(f->waiting, waiter->deadline + 2 * PATIENCE);
    waiting_expire(f->waiting, waiter->deadline + PATIENCE);
    assert_int_not_equal(waiter->state, WAITER_FAILED);
    expire_at(f, waiter->deadline + 2 * PATIENCE);
    take_known(f, waiter, SESSION_UNPAID);
}

static void test_after_stop_nobody_is_parked(struct fixture *f)
{
    struct waiter *early = add(f, "a"), *late;

    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    late = add(f, "b");
    look_up(f, 2, &unclaimed);
    take_known(f, early, SESSION_UNPAID);
    take_known(f, late, SESSION_UNPAID);
}

static void test_new_request_without_an_answer_fails_at_the_limit(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    expire_at(f, f->now + USEC_PER_SEC);
    take(f, waiter, WAITER_FAILED);
}

/* The worker's last act, whether or not something is under way. */
static void test_second_stop_may_have_an_earlier_limit(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &unknown);

    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    waiting_failed(f->waiting);
    waiting_stop(f->waiting, f->now);
    expire_at(f, f->now);
    take_known(f, waiter, SESSION_UNKNOWN);
}

/* ---- Keys without an answer in a batch that came back ---- */

static void test_key_that_was_not_asked_about_is_in_the_next_batch(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    look_up(f, 1, &not_asked);
    assert_no_outcome(f);
    look_up_and_park(f, 1, &claimed);
    check_finds_change(f);
    poll_keys(f, 1, &not_asked);
    f->now += USEC_PER_SEC;
    poll_keys(f, 1, &paid);
    take_known(f, waiter, SESSION_PAID);
}

static void test_instance_without_an_answer_is_held_back_alone(struct fixture *f)
{
    struct waiter *first = add(f, "a"), *second, *other;

    look_up(f, 1, &failed);
    assert_no_outcome(f);
    /* One more for the same key does not hasten it, and another key goes on. */
    second = add(f, "a");
    send_nothing(f);
    other = add_parked(f, "b", &claimed);
    assert_true(waiting_due(f->waiting, f->now) <= f->now + PATIENCE / 2);
    leave(f, other);
    f->now += USEC_PER_SEC / 2;
    look_up(f, 1, &paid);
    take_known(f, first, SESSION_PAID);
    take_known(f, second, SESSION_PAID);
}

static void test_instance_without_an_answer_fails_when_patience_ends(struct fixture *f)
{
    struct waiter *waiter = add(f, "a");

    for (; waiter->state == WAITER_NEW; f->now += USEC_PER_SEC / 2) {
        look_up(f, 1, &failed);
        waiting_expire(f->waiting, f->now + USEC_PER_SEC / 2);
    }
    assert_int_equal(waiter->state, WAITER_FAILED);
}

static void test_held_request_is_answered_at_a_stop(struct fixture *f)
{
    struct waiter *waiter = add_parked(f, "a", &claimed);

    check_finds_change(f);
    poll_keys(f, 1, &failed);
    waiting_stop(f->waiting, f->now + USEC_PER_SEC);
    send_nothing(f);
    expire_at(f, f->now + USEC_PER_SEC);
    take_known(f, waiter, SESSION_UNPAID);
}

/* 5,000 new requests for one instance take twenty batches. One for another instance, which comes
 * after them, is in the next batch, and so are a few for a third. */
static void test_many_for_one_instance_do_not_delay_another(struct fixture *f)
{
    static const struct session_key keys[] = {
        {"a", "https://shop.example/", "other"},
        {"a", "https://shop.example/", "third"},
        {"b", "https://shop.example/", "third"},
        {"c", "https://shop.example/", "third"},
    };
    struct waiter *few[COUNT_OF(keys)];

    add_many(f, MANY / 2);
    send_batch(f, QUESTION_EVERYTHING, SESSION_BATCH_MAX);
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        few[i] = add_key(f, &keys[i], f->now);
    settle(f, &unknown);
    look_up(f, SESSION_BATCH_MAX, &unknown);
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        assert_int_equal(few[i]->state, WAITER_KNOWN);
}

static struct CMUnitTest waiting_test(const char *name, struct waiting_test *test)
{
    return (struct CMUnitTest){name, run, setup, teardown, test};
}

#define WAITING_TEST(name) waiting_test(#name, &(struct waiting_test){name})

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
        WAITING_TEST(test_poll_that_finds_no_instance_answers),
        WAITING_TEST(test_failed_poll_is_sent_again),
        WAITING_TEST(test_failed_poll_goes_before_keys_just_looked_up),
        WAITING_TEST(test_failed_check_is_sent_again),
        WAITING_TEST(test_claimed_orders_are_polled_first_after_a_change),
        WAITING_TEST(test_poll_that_finds_a_claim_puts_the_key_first),
        WAITING_TEST(test_every_key_is_polled_in_its_turn),
        WAITING_TEST(test_polling_takes_a_tenth_of_the_time),
        WAITING_TEST(test_one_round_after_a_quiet_time_is_not_held_up),
        WAITING_TEST(test_one_slow_poll_does_not_stop_polling),
        WAITING_TEST(test_slow_checks_do_not_make_polls_free),
        WAITING_TEST(test_long_road_is_not_charged),
        WAITING_TEST(test_long_road_leaves_turns_to_unclaimed_orders),
        WAITING_TEST(test_claimed_orders_leave_budget_to_the_others),
        WAITING_TEST(test_one_slow_check_does_not_stop_checks),
        WAITING_TEST(test_batches_are_gathered_under_load),
        WAITING_TEST(test_few_requests_are_not_put_off),
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
        WAITING_TEST(test_held_request_is_answered_at_a_stop),
        WAITING_TEST(test_many_for_one_instance_do_not_delay_another),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
