/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>

#include "waiting.h"

#define INTERVAL (250 * USEC_PER_MS)
#define START    (1000 * USEC_PER_SEC)
#define MANY     10000

static const struct session_key key_a = {"a", "https://shop.example/", "shop"};
static const struct session_key key_b = {"b", "https://shop.example/", "shop"};

static void add(struct waiting *waiting, struct waiter *waiter, const struct session_key *key)
{
    assert_true(waiting_add(waiting, waiter, key, START + USEC_PER_SEC, START + 2 * USEC_PER_SEC));
}

/* A lookup that finds nothing paid: all that were asked about are parked. */
static void look_up(struct waiting *waiting, struct watch **batch, size_t count, usec_t now)
{
    for (size_t i = 0; i < count; i++) {
        struct waiter *waiter, *next;

        for (waiter = TAILQ_FIRST(&batch[i]->asking); waiter; waiter = next) {
            next = TAILQ_NEXT(waiter, link);
            if (waiter->state == WAITER_ASKED)
                waiting_park(waiting, waiter);
        }
        waiting_settle(waiting, batch[i], now);
    }
}

/* Looks up a new request once, which parks it. */
static void park(struct waiting *waiting, struct waiter *waiter)
{
    struct watch *batch[1];
    bool fresh;

    add(waiting, waiter, &key_a);
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, START), 1);
    assert_true(fresh);
    look_up(waiting, batch, 1, START);
    assert_int_equal(waiter->state, WAITER_PARKED);
}

/* Adds so many requests, each with a key of its own. */
static void add_many(struct waiting *waiting, struct waiter *waiters, size_t count)
{
    struct session_key key = key_a;
    char session[24];

    key.session = session;
    for (size_t i = 0; i < count; i++) {
        snprintf(session, sizeof session, "%zu", i);
        add(waiting, &waiters[i], &key);
    }
}

static void remove_many(struct waiting *waiting, struct waiter *waiters, size_t count)
{
    for (size_t i = 0; i < count; i++)
        waiting_remove(waiting, &waiters[i]);
}

static void test_equal_keys_share_one_watch(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiters[4] = {0};
    struct session_key other_url = {"a", "https://shop.example/2", "shop"};
    struct session_key other_instance = {"a", "https://shop.example/", ""};
    struct watch *batch[8];
    bool fresh;

    (void)state;
    add(waiting, &waiters[0], &key_a);
    add(waiting, &waiters[1], &key_a);
    add(waiting, &waiters[2], &other_url);
    add(waiting, &waiters[3], &other_instance);
    assert_ptr_equal(waiters[0].watch, waiters[1].watch);
    assert_ptr_not_equal(waiters[0].watch, waiters[2].watch);
    assert_ptr_not_equal(waiters[0].watch, waiters[3].watch);
    assert_int_equal(waiting_take(waiting, batch, 8, &fresh, START), 3);
    look_up(waiting, batch, 3, START);
    assert_int_equal(waiting_parked(waiting), 4);
    remove_many(waiting, waiters, COUNT_OF(waiters));
    assert_int_equal(waiting_parked(waiting), 0);
    assert_true(waiting_take_due(waiting) == USEC_NEVER);
    waiting_free(waiting);
}

static void test_new_ones_go_first_and_ask_everything(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter old = {0}, new = {0};
    struct watch *batch[1];
    bool fresh;

    (void)state;
    add(waiting, &old, &key_a);
    assert_true(waiting_take_due(waiting) == 0);
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, START), 1);
    assert_true(fresh);
    look_up(waiting, batch, 1, START);
    add(waiting, &new, &key_b);
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, START), 1);
    assert_ptr_equal(batch[0], new.watch);
    assert_true(fresh);
    look_up(waiting, batch, 1, START);
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, START + USEC_PER_SEC), 1);
    assert_ptr_equal(batch[0], old.watch);
    assert_false(fresh);
    look_up(waiting, batch, 1, START + USEC_PER_SEC);
    waiting_remove(waiting, &old);
    waiting_remove(waiting, &new);
    waiting_free(waiting);
}

static void test_polls_are_due_after_the_interval(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiter = {0};
    struct watch *batch[1];
    bool fresh;
    usec_t due;

    (void)state;
    park(waiting, &waiter);
    due = waiting_take_due(waiting);
    assert_true(due >= START + INTERVAL && due < START + INTERVAL + INTERVAL / 10);
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, due - 1), 0);
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, due), 1);
    look_up(waiting, batch, 1, due);
    waiting_remove(waiting, &waiter);
    waiting_free(waiting);
}

/* Requests without end must not keep the parked ones from being polled. */
static void test_polls_have_every_other_batch(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter old = {0}, new = {0};
    struct watch *batch[1];
    bool fresh;
    usec_t later = START + USEC_PER_SEC;

    (void)state;
    park(waiting, &old);
    add(waiting, &new, &key_b);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(waiting_take(waiting, batch, 1, &fresh, later), 1);
        assert_int_equal(fresh, i % 2);
        assert_ptr_equal(batch[0], fresh ? new.watch : old.watch);
        waiting_settle(waiting, batch[0], START);
    }
    waiting_remove(waiting, &old);
    waiting_remove(waiting, &new);
    waiting_free(waiting);
}

/* A result may be older than a request that came in meanwhile. */
static void test_newcomer_to_a_watch_under_way_is_asked_about_again(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter first = {0}, second = {0};
    struct watch *batch[1];
    bool fresh;

    (void)state;
    add(waiting, &first, &key_a);
    waiting_take(waiting, batch, 1, &fresh, START);
    add(waiting, &second, &key_a);
    assert_int_equal(first.state, WAITER_ASKED);
    assert_int_equal(second.state, WAITER_ASKING);
    look_up(waiting, batch, 1, START);
    assert_int_equal(first.state, WAITER_PARKED);
    assert_int_equal(second.state, WAITER_ASKING);
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, START), 1);
    assert_true(fresh);
    look_up(waiting, batch, 1, START);
    assert_int_equal(second.state, WAITER_PARKED);
    waiting_remove(waiting, &first);
    waiting_remove(waiting, &second);
    waiting_free(waiting);
}

static void test_all_leave_while_the_batch_is_under_way(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiter = {0};
    struct watch *batch[1];
    bool fresh;

    (void)state;
    add(waiting, &waiter, &key_a);
    waiting_take(waiting, batch, 1, &fresh, START);
    waiting_remove(waiting, &waiter);
    assert_string_equal(batch[0]->key.session, "a");
    waiting_settle(waiting, batch[0], START);
    assert_true(waiting_take_due(waiting) == USEC_NEVER);
    waiting_free(waiting);
}

static void test_failed_batch_is_asked_again(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiter = {0};
    struct watch *batch[1];
    bool fresh;

    (void)state;
    add(waiting, &waiter, &key_a);
    waiting_take(waiting, batch, 1, &fresh, START);
    waiting_settle(waiting, batch[0], START);
    assert_int_equal(waiter.state, WAITER_ASKING);
    assert_true(waiting_take_due(waiting) == 0);
    waiting_remove(waiting, &waiter);
    waiting_free(waiting);
}

static void test_alarms(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiter = {0};
    struct watch *batch[1];
    bool fresh;

    (void)state;
    assert_true(waiting_alarm_due(waiting) == USEC_NEVER);
    add(waiting, &waiter, &key_a);
    assert_true(waiting_alarm_due(waiting) == START + 2 * USEC_PER_SEC);
    waiting_take(waiting, batch, 1, &fresh, START);
    look_up(waiting, batch, 1, START);
    assert_true(waiting_alarm_due(waiting) == waiter.deadline);
    assert_null(waiting_alarm(waiting, waiter.deadline - 1));
    assert_ptr_equal(waiting_alarm(waiting, waiter.deadline), &waiter);
    waiting_ask(waiting, &waiter, START + 5 * USEC_PER_SEC);
    assert_int_equal(waiting_parked(waiting), 0);
    assert_null(waiting_alarm(waiting, waiter.deadline));
    assert_int_equal(waiting_take(waiting, batch, 1, &fresh, START), 1);
    assert_true(fresh);
    waiting_remove(waiting, &waiter);
    waiting_settle(waiting, batch[0], START);
    waiting_free(waiting);
}

static void test_what_was_learned_is_kept(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiter = {0};
    struct watch *batch[1];
    bool fresh;

    (void)state;
    add(waiting, &waiter, &key_a);
    waiting_take(waiting, batch, 1, &fresh, START);
    waiting_learn(batch[0], SESSION_UNPAID, "order");
    look_up(waiting, batch, 1, START);
    assert_ptr_equal(waiting_any_parked(waiting), &waiter);
    assert_int_equal(waiter.watch->known, SESSION_UNPAID);
    assert_string_equal(waiter.watch->order_id, "order");
    waiting_learn(batch[0], SESSION_UNKNOWN, NULL);
    assert_null(waiter.watch->order_id);
    waiting_remove(waiting, &waiter);
    assert_null(waiting_any_parked(waiting));
    waiting_free(waiting);
}

static void test_polling_takes_a_tenth_of_the_time(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter *waiters = calloc(MANY, sizeof *waiters);
    struct watch *batch[256];
    usec_t now = START, took = 0;
    size_t polled = 0;
    bool fresh;

    (void)state;
    add_many(waiting, waiters, MANY);
    for (size_t n; (n = waiting_take(waiting, batch, COUNT_OF(batch), &fresh, now)) > 0;)
        look_up(waiting, batch, n, now);
    assert_int_equal(waiting_parked(waiting), MANY);
    /* Five rounds of batches that take 2 ms each. */
    while (polled < 5 * MANY) {
        size_t n;

        now = usec_max(now, waiting_take_due(waiting));
        n = waiting_take(waiting, batch, COUNT_OF(batch), &fresh, now);
        assert_true(n > 0 && !fresh);
        now += 2 * USEC_PER_MS;
        took += 2 * USEC_PER_MS;
        waiting_charge(waiting, 2 * USEC_PER_MS, now);
        look_up(waiting, batch, n, now);
        polled += n;
    }
    assert_true(took * 10 <= now - START + 20 * USEC_PER_MS);
    assert_true(took * 12 >= now - START);
    remove_many(waiting, waiters, MANY);
    waiting_free(waiting);
    free(waiters);
}

/* Ten thousand whose time is up at once must not keep a newcomer waiting. */
static void test_newcomers_go_before_those_whose_time_is_up(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiters[100] = {0}, new = {0};
    struct watch *batch[100];
    struct session_key key = key_a;
    char session[16];
    bool fresh;

    (void)state;
    key.session = session;
    add_many(waiting, waiters, COUNT_OF(waiters));
    waiting_take(waiting, batch, COUNT_OF(batch), &fresh, START);
    look_up(waiting, batch, COUNT_OF(batch), START);
    for (size_t i = 0; i < COUNT_OF(waiters); i++)
        waiting_ask(waiting, &waiters[i], START + 5 * USEC_PER_SEC);
    add(waiting, &new, &key_b);
    assert_int_equal(waiting_take(waiting, batch, 2, &fresh, START), 2);
    assert_true(fresh);
    assert_ptr_equal(batch[0], new.watch);
    assert_ptr_equal(batch[1], waiters[0].watch);
    look_up(waiting, batch, 2, START);
    /* One of them is asked for by a newcomer too. */
    waiting_remove(waiting, &new);
    snprintf(session, sizeof session, "%d", 99);
    add(waiting, &new, &key);
    assert_int_equal(waiting_take(waiting, batch, 2, &fresh, START), 2);
    assert_ptr_equal(batch[0], waiters[99].watch);
    assert_ptr_equal(batch[1], waiters[1].watch);
    look_up(waiting, batch, 2, START);
    remove_many(waiting, waiters, COUNT_OF(waiters));
    waiting_remove(waiting, &new);
    waiting_free(waiting);
}

/* While new requests come in, each may have to wait for a batch of polls: that is a small one then.
 */
static void test_polls_are_few_at_once_while_requests_come_in(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiters[200] = {0}, new = {0};
    struct watch *batch[256];
    usec_t later = START + 2 * INTERVAL;
    size_t count;
    bool fresh;

    (void)state;
    add_many(waiting, waiters, COUNT_OF(waiters));
    assert_int_equal(waiting_take(waiting, batch, 256, &fresh, START), COUNT_OF(waiters));
    look_up(waiting, batch, COUNT_OF(waiters), START);
    assert_int_equal(waiting_take(waiting, batch, 256, &fresh, later), COUNT_OF(waiters));
    look_up(waiting, batch, COUNT_OF(waiters), START);
    add(waiting, &new, &key_b);
    assert_int_equal(waiting_take(waiting, batch, 256, &fresh, later), 1);
    assert_true(fresh);
    look_up(waiting, batch, 1, START);
    count = waiting_take(waiting, batch, 256, &fresh, later);
    assert_false(fresh);
    assert_in_range(count, 1, COUNT_OF(waiters) / 2);
    look_up(waiting, batch, count, START);
    remove_many(waiting, waiters, COUNT_OF(waiters));
    waiting_remove(waiting, &new);
    waiting_free(waiting);
}

static void test_one_slow_poll_does_not_stop_polling(void **state)
{
    struct waiting *waiting = waiting_new(INTERVAL);
    struct waiter waiter = {0};

    (void)state;
    park(waiting, &waiter);
    waiting_charge(waiting, 60 * USEC_PER_SEC, START);
    assert_true(waiting_take_due(waiting) <= START + 10 * INTERVAL);
    waiting_remove(waiting, &waiter);
    waiting_free(waiting);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_keys_share_one_watch),
        cmocka_unit_test(test_new_ones_go_first_and_ask_everything),
        cmocka_unit_test(test_polls_are_due_after_the_interval),
        cmocka_unit_test(test_polls_have_every_other_batch),
        cmocka_unit_test(test_newcomer_to_a_watch_under_way_is_asked_about_again),
        cmocka_unit_test(test_all_leave_while_the_batch_is_under_way),
        cmocka_unit_test(test_failed_batch_is_asked_again),
        cmocka_unit_test(test_alarms),
        cmocka_unit_test(test_what_was_learned_is_kept),
        cmocka_unit_test(test_newcomers_go_before_those_whose_time_is_up),
        cmocka_unit_test(test_polling_takes_a_tenth_of_the_time),
        cmocka_unit_test(test_polls_are_few_at_once_while_requests_come_in),
        cmocka_unit_test(test_one_slow_poll_does_not_stop_polling),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
