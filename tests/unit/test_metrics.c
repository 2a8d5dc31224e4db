/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "metrics.h"

/* The text must have this line. */
static void assert_line(const struct metrics *metrics, const char *line)
{
    char *text = metrics_print(metrics), *wanted, *marked;

    assert_non_null(text);
    assert_true(asprintf(&wanted, "\nmerchant_sessions_%s\n", line) > 0);
    assert_true(asprintf(&marked, "\n%s", text) > 0);
    if (!strstr(marked, wanted))
        fail_msg("no line %s in\n%s", line, text);
    free(text);
    free(wanted);
    free(marked);
}

static struct metrics *metrics_of(size_t slots)
{
    struct metrics *metrics = metrics_new(slots);

    assert_non_null(metrics);
    metrics_enter(metrics, 0);
    return metrics;
}

static void test_answers(void **state)
{
    struct metrics *metrics = metrics_of(1);

    (void)state;
    assert_line(metrics, "requests_total{status=\"200\",code=\"0\"} 0");
    metrics_count_answer(metrics, REPLY_PAID);
    metrics_count_answer(metrics, REPLY_PAID);
    metrics_count_answer(metrics, REPLY_DATABASE_FAILED);
    metrics_count_unanswered(metrics);
    assert_line(metrics, "requests_total{status=\"200\",code=\"0\"} 2");
    assert_line(metrics, "requests_total{status=\"202\",code=\"0\"} 0");
    assert_line(metrics, "requests_total{status=\"404\",code=\"2038\"} 0");
    assert_line(metrics, "requests_total{status=\"500\",code=\"53\"} 1");
    assert_line(metrics, "unanswered_total 1");
    metrics_free(metrics);
}

/* A limit belongs to its bucket, and the next number to the next one. */
static void test_histograms(void **state)
{
    struct metrics *metrics = metrics_of(1);

    (void)state;
    metrics_observe_batch(metrics, QUESTION_EVERYTHING, 1, 0);
    metrics_observe_batch(metrics, QUESTION_EVERYTHING, 2, 500);
    metrics_observe_batch(metrics, QUESTION_EVERYTHING, 3, 501);
    metrics_observe_batch(metrics, QUESTION_EVERYTHING, 256, 60 * USEC_PER_SEC + 1);
    metrics_observe_batch(metrics, QUESTION_PAYMENT, 64, -1);
    assert_line(metrics, "batch_keys_bucket{question=\"everything\",le=\"1\"} 1");
    assert_line(metrics, "batch_keys_bucket{question=\"everything\",le=\"2\"} 2");
    assert_line(metrics, "batch_keys_bucket{question=\"everything\",le=\"4\"} 3");
    assert_line(metrics, "batch_keys_bucket{question=\"everything\",le=\"128\"} 3");
    assert_line(metrics, "batch_keys_bucket{question=\"everything\",le=\"256\"} 4");
    assert_line(metrics, "batch_keys_bucket{question=\"everything\",le=\"+Inf\"} 4");
    assert_line(metrics, "batch_keys_sum{question=\"everything\"} 262");
    assert_line(metrics, "batch_keys_count{question=\"everything\"} 4");
    assert_line(metrics, "batch_keys_bucket{question=\"payment\",le=\"32\"} 0");
    assert_line(metrics, "batch_keys_bucket{question=\"payment\",le=\"64\"} 1");
    assert_line(metrics, "lookups_total{question=\"everything\"} 262");
    assert_line(metrics, "lookups_total{question=\"payment\"} 64");
    assert_line(metrics, "batch_seconds_bucket{question=\"everything\",le=\"0.0005\"} 2");
    assert_line(metrics, "batch_seconds_bucket{question=\"everything\",le=\"0.001\"} 3");
    assert_line(metrics, "batch_seconds_bucket{question=\"everything\",le=\"60\"} 3");
    assert_line(metrics, "batch_seconds_bucket{question=\"everything\",le=\"+Inf\"} 4");
    assert_line(metrics, "batch_seconds_sum{question=\"everything\"} 60.001002");
    assert_line(metrics, "batch_seconds_sum{question=\"payment\"} 0.000000");
    assert_line(metrics, "batch_seconds_count{question=\"payment\"} 1");
    metrics_free(metrics);
}

/* Dashboards and alerts of operators name these. */
static void test_limits(void **state)
{
    static const char *const keys[] = {"1", "2", "4", "8", "16", "32", "64", "128", "256", "+Inf"};
    static const char *const seconds[] = {"0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025",
        "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "+Inf"};
    struct metrics *metrics = metrics_of(1);
    char line[100];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        snprintf(line, sizeof line, "batch_keys_bucket{question=\"payment\",le=\"%s\"} 0", keys[i]);
        assert_line(metrics, line);
    }
    for (size_t i = 0; i < COUNT_OF(seconds); i++) {
        snprintf(line, sizeof line, "check_to_answer_seconds_bucket{le=\"%s\"} 0", seconds[i]);
        assert_line(metrics, line);
    }
    metrics_free(metrics);
}

static void test_answer_times(void **state)
{
    struct metrics *metrics = metrics_of(1);

    (void)state;
    metrics_observe_answer(metrics, false, 2500);
    metrics_observe_answer(metrics, true, 30 * USEC_PER_SEC);
    assert_line(metrics, "answer_seconds_bucket{waited=\"no\",le=\"0.001\"} 0");
    assert_line(metrics, "answer_seconds_bucket{waited=\"no\",le=\"0.0025\"} 1");
    assert_line(metrics, "answer_seconds_bucket{waited=\"yes\",le=\"10\"} 0");
    assert_line(metrics, "answer_seconds_bucket{waited=\"yes\",le=\"30\"} 1");
    assert_line(metrics, "answer_seconds_sum{waited=\"yes\"} 30.000000");
    metrics_free(metrics);
}

static void assert_payments(const struct metrics *metrics, unsigned count, const char *sum)
{
    char line[80];

    snprintf(line, sizeof line, "check_to_answer_seconds_count %u", count);
    assert_line(metrics, line);
    snprintf(line, sizeof line, "check_to_answer_seconds_sum %s", sum);
    assert_line(metrics, line);
}

/* Counted from the first change after the last lookup without a payment. */
static void test_payments(void **state)
{
    struct metrics *metrics = metrics_of(1);

    (void)state;
    metrics_note_version(metrics, 1, 1 * USEC_PER_SEC);
    metrics_note_version(metrics, 2, 2 * USEC_PER_SEC);
    metrics_note_version(metrics, 2, 3 * USEC_PER_SEC);
    metrics_note_version(metrics, 3, 4 * USEC_PER_SEC);
    metrics_observe_payment(metrics, 3, 5 * USEC_PER_SEC);
    metrics_observe_payment(metrics, 4, 5 * USEC_PER_SEC);
    assert_payments(metrics, 0, "0.000000");
    metrics_observe_payment(metrics, 2, 5 * USEC_PER_SEC);
    assert_payments(metrics, 1, "1.000000");
    metrics_observe_payment(metrics, 1, 5 * USEC_PER_SEC);
    assert_payments(metrics, 2, "4.000000");
    metrics_observe_payment(metrics, 0, 5 * USEC_PER_SEC);
    assert_payments(metrics, 3, "8.000000");
    metrics_free(metrics);
}

/* Of many changes the oldest that is kept counts. */
static void test_payment_after_many_changes(void **state)
{
    struct metrics *metrics = metrics_of(1);

    (void)state;
    for (unsigned version = 1; version <= 1000; version++)
        metrics_note_version(metrics, version, version * USEC_PER_SEC);
    metrics_observe_payment(metrics, 744, 1000 * USEC_PER_SEC);
    assert_payments(metrics, 1, "255.000000");
    metrics_observe_payment(metrics, 743, 1000 * USEC_PER_SEC);
    assert_payments(metrics, 2, "510.000000");
    metrics_observe_payment(metrics, 0, 1000 * USEC_PER_SEC);
    assert_payments(metrics, 3, "765.000000");
    metrics_free(metrics);
}

static void set_database(struct metrics *metrics, bool up)
{
    metrics_set_gauges(metrics, &(struct metrics_gauges){.database_up = up});
}

static void test_reconnects(void **state)
{
    struct metrics *metrics = metrics_of(1);

    (void)state;
    set_database(metrics, false);
    assert_line(metrics, "database_up 0");
    for (int turn = 0; turn < 3; turn++)
        set_database(metrics, true);
    assert_line(metrics, "database_up 1");
    assert_line(metrics, "database_reconnects_total 0");
    set_database(metrics, false);
    set_database(metrics, false);
    assert_line(metrics, "database_up 0");
    assert_line(metrics, "database_reconnects_total 0");
    set_database(metrics, true);
    assert_line(metrics, "database_reconnects_total 1");
    metrics_free(metrics);
}

/* What a worker does that has this slot; it is killed when it has done it. */
static void be_killed_in(struct metrics *metrics, size_t slot)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        metrics_enter(metrics, slot);
        metrics_count_answer(metrics, REPLY_UNPAID);
        metrics_observe_batch(metrics, QUESTION_PAYMENT, 8, 1000);
        metrics_set_gauges(metrics,
            &(struct metrics_gauges){
                .waiting = 5, .waiting_limit = 100, .connections = 7, .database_up = true});
        kill(getpid(), SIGKILL);
    }
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

/* The sums are over all slots; counters stay when a worker goes, and its successor goes on. */
static void test_processes(void **state)
{
    struct metrics *metrics = metrics_new(3);

    (void)state;
    assert_non_null(metrics);
    be_killed_in(metrics, 0);
    be_killed_in(metrics, 2);
    assert_line(metrics, "workers 2");
    assert_line(metrics, "waiting 10");
    assert_line(metrics, "waiting_limit 200");
    assert_line(metrics, "connections 14");
    assert_line(metrics, "database_up 2");
    assert_line(metrics, "requests_total{status=\"202\",code=\"0\"} 2");
    metrics_leave(metrics, 0, METRICS_END_DIED);
    assert_line(metrics, "workers 1");
    assert_line(metrics, "waiting 5");
    assert_line(metrics, "waiting_limit 100");
    assert_line(metrics, "connections 7");
    assert_line(metrics, "database_up 1");
    assert_line(metrics, "requests_total{status=\"202\",code=\"0\"} 2");
    assert_line(metrics, "worker_restarts_total{reason=\"died\"} 1");
    assert_line(metrics, "worker_restarts_total{reason=\"replaced\"} 0");
    be_killed_in(metrics, 0);
    assert_line(metrics, "requests_total{status=\"202\",code=\"0\"} 3");
    assert_line(metrics, "lookups_total{question=\"payment\"} 24");
    assert_line(metrics, "batch_seconds_count{question=\"payment\"} 3");
    metrics_leave(metrics, 0, METRICS_END_STOPPED);
    metrics_leave(metrics, 2, METRICS_END_REPLACED);
    assert_line(metrics, "workers 0");
    assert_line(metrics, "requests_total{status=\"202\",code=\"0\"} 3");
    assert_line(metrics, "worker_restarts_total{reason=\"died\"} 1");
    assert_line(metrics, "worker_restarts_total{reason=\"replaced\"} 1");
    metrics_free(metrics);
}

/* Each metric has its help and type once, before its first sample. */
static void test_text(void **state)
{
    struct metrics *metrics = metrics_of(1);
    char *text = metrics_print(metrics), *rest = text, *line, type[80] = "";
    size_t types = 0;

    (void)state;
    assert_non_null(text);
    assert_int_equal(text[strlen(text) - 1], '\n');
    while ((line = strsep(&rest, "\n")) && *line) {
        if (strncmp(line, "# HELP ", 7) == 0)
            continue;
        if (strncmp(line, "# TYPE ", 7) == 0) {
            assert_true(sscanf(line + 7, "%79s", type) == 1);
            types++;
        }
        assert_int_equal(strncmp(strstr(line, "merchant_sessions_"), type, strlen(type)), 0);
    }
    assert_int_equal(types, 15);
    free(text);
    metrics_free(metrics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_histograms),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_answer_times),
        cmocka_unit_test(test_payments),
        cmocka_unit_test(test_payment_after_many_changes),
        cmocka_unit_test(test_reconnects),
        cmocka_unit_test(test_processes),
        cmocka_unit_test(test_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
