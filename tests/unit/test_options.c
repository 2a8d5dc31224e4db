/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture.h"

#include <stdlib.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sysexits.h>

#include "options.h"

/* The result of reading options in a process of its own, which they may end. */
struct outcome {
    bool returned;
    int status; /* where it has not */
    struct options options;
    struct capture capture;
};

static void read_options(struct outcome *outcome, const char *first, const char *second)
{
    char *argv[] = {(char *)(uintptr_t) "merchant-sessions.fcgi", (char *)(uintptr_t)first,
        (char *)(uintptr_t)second, NULL};
    int ends[2], status;
    pid_t pid;

    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    capture_begin(&outcome->capture);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct options options;

        dup2(STDERR_FILENO, STDOUT_FILENO);
        options = options_read(first ? second ? 3 : 2 : 1, argv);
        /* The pointers in it are good in the parent: both are copies of one process. */
        _exit(write(ends[1], &options, sizeof options) == (ssize_t)sizeof options ? 0 : 99);
    }
    close(ends[1]);
    outcome->returned = read(ends[0], &outcome->options, sizeof outcome->options) ==
                        (ssize_t)sizeof outcome->options;
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    outcome->status = WEXITSTATUS(status);
    capture_end(&outcome->capture);
}

static struct options accepted(const char *option)
{
    struct outcome outcome;

    read_options(&outcome, option, NULL);
    if (!outcome.returned)
        fail_msg("%s is refused: %s", option, outcome.capture.text);
    assert_string_equal(outcome.capture.text, "");
    return outcome.options;
}

static void refused(const char *option, const char *name)
{
    struct outcome outcome;

    read_options(&outcome, option, NULL);
    if (outcome.returned)
        fail_msg("%s is accepted", option);
    assert_int_equal(outcome.status, EX_USAGE);
    assert_int_equal(count_lines(outcome.capture.text), 1);
    assert_contains(outcome.capture.text, name);
}

static void test_defaults(void **state)
{
    struct outcome outcome;

    (void)state;
    read_options(&outcome, NULL, NULL);
    assert_true(outcome.returned);
    assert_null(outcome.options.database);
    assert_null(outcome.options.instance_schema);
    assert_null(outcome.options.listen);
    assert_int_equal(outcome.options.workers, sysconf(_SC_NPROCESSORS_ONLN));
    assert_int_equal(outcome.options.socket_mode, 0660);
    assert_int_equal(outcome.options.poll_interval_ms, 25);
    assert_int_equal(outcome.options.max_wait_ms, 50000);
    assert_int_equal(outcome.options.max_waiting, 8192);
    assert_int_equal(outcome.options.db_timeout_ms, 2000);
    assert_false(outcome.options.check);
    assert_false(outcome.options.verbose);
}

/* Help has the default in parentheses after the option. */
static void assert_help_says(const char *help, const char *option, int base, int value)
{
    const char *place = strstr(help, option);
    char wanted[32];
    size_t length;

    snprintf(wanted, sizeof wanted, base == 8 ? "%04o" : "%u", (unsigned)value);
    length = strlen(wanted);
    place = place ? strchr(place, '(') : NULL;
    if (!place || strncmp(place + 1, wanted, length) != 0 || place[1 + length] != ')')
        fail_msg("%s is %s by default: %s", option, wanted, help);
}

static void test_help_says_the_defaults(void **state)
{
    struct outcome outcome, help;

    (void)state;
    read_options(&outcome, NULL, NULL);
    read_options(&help, "--help", NULL);
    assert_false(help.returned);
    assert_help_says(help.capture.text, "--socket-mode ", 8, (int)outcome.options.socket_mode);
    assert_help_says(help.capture.text, "--poll-interval ", 10, outcome.options.poll_interval_ms);
    assert_help_says(help.capture.text, "--max-wait ", 10, outcome.options.max_wait_ms);
    assert_help_says(help.capture.text, "--max-waiting ", 10, outcome.options.max_waiting);
    assert_help_says(help.capture.text, "--db-timeout ", 10, outcome.options.db_timeout_ms);
}

static void test_ranges(void **state)
{
    static const struct {
        const char *name;
        size_t offset;
        int low, high;
    } numbers[] = {
        {"--workers", offsetof(struct options, workers), 0, 1024},
        {"--poll-interval", offsetof(struct options, poll_interval_ms), 10, 60000},
        {"--max-wait", offsetof(struct options, max_wait_ms), 0, 86400000},
        {"--max-waiting", offsetof(struct options, max_waiting), 0, 1000000},
        {"--db-timeout", offsetof(struct options, db_timeout_ms), 10, 60000},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        const int values[] = {numbers[i].low, numbers[i].high};
        char option[64];

        for (size_t j = 0; j < COUNT_OF(values); j++) {
            struct options options;
            int value;

            snprintf(option, sizeof option, "%s=%d", numbers[i].name, values[j]);
            options = accepted(option);
            memcpy(&value, (const char *)&options + numbers[i].offset, sizeof value);
            assert_int_equal(value, values[j]);
        }
        snprintf(option, sizeof option, "%s=%d", numbers[i].name, numbers[i].low - 1);
        refused(option, numbers[i].name);
        snprintf(option, sizeof option, "%s=%d", numbers[i].name, numbers[i].high + 1);
        refused(option, numbers[i].name);
    }
}

static void test_socket_mode(void **state)
{
    (void)state;
    assert_int_equal(accepted("--socket-mode=0").socket_mode, 0);
    assert_int_equal(accepted("--socket-mode=777").socket_mode, 0777);
    refused("--socket-mode=1000", "octal number from 00 to 0777");
    refused("--socket-mode=8", "--socket-mode");
}

static void test_addresses(void **state)
{
    static const char *const good[] = {"--listen=/x", "--listen=./x", "--listen=:1",
        "--listen=localhost:65535", "--listen=[::1]:9"};
    static const char *const bad[] = {"--listen=", "--listen=x", "--listen=x:", "--listen=:0",
        "--listen=:65536", "--listen=[::1]", "--listen=x:1 "};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_string_equal(accepted(good[i]).listen, good[i] + strlen("--listen="));
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        refused(bad[i], "--listen");
}

static void test_length_of_a_path(void **state)
{
    char option[200] = "--listen=/";
    size_t start = strlen("--listen="), limit = sizeof((struct sockaddr_un *)NULL)->sun_path;

    (void)state;
    memset(option + start + 1, 'x', limit - 2);
    assert_string_equal(accepted(option).listen, option + start);
    option[start + limit - 1] = 'x';
    refused(option, "--listen");
}

/* What is wrong with it may hold a password. */
static void test_a_conninfo_is_not_repeated(void **state)
{
    struct outcome outcome;

    (void)state;
    read_options(&outcome, "--database", "secret=hidden");
    assert_false(outcome.returned);
    assert_int_equal(outcome.status, EX_USAGE);
    assert_contains(outcome.capture.text, "--database: not a libpq connection string");
    assert_null(strstr(outcome.capture.text, "hidden"));
    assert_string_equal(accepted("--database=host=x").database, "host=x");
}

static void test_pattern_of_schemas(void **state)
{
    static const char *const good[] = {"{id}", "{serial}", "my \"shop\" {serial}; {id}"};
    static const char *const bad[] = {"", "merchant", "{ID}", "{}", "{id", "{serial"};
    char option[80];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        snprintf(option, sizeof option, "--instance-schema=%s", good[i]);
        assert_string_equal(accepted(option).instance_schema, good[i]);
    }
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        snprintf(option, sizeof option, "--instance-schema=%s", bad[i]);
        refused(option, "--instance-schema");
    }
}

static void test_flags(void **state)
{
    static const char *const variables[] = {"MERCHANT_SESSIONS_CHECK", "MERCHANT_SESSIONS_VERBOSE"};

    (void)state;
    assert_true(accepted("--check").check);
    assert_true(accepted("-v").verbose);
    for (size_t i = 0; i < COUNT_OF(variables); i++) {
        struct options options;

        setenv(variables[i], "0", 1);
        options = accepted("-w1");
        assert_false(options.check || options.verbose);
        setenv(variables[i], "1", 1);
        options = accepted("-w1");
        assert_int_equal(options.check, i == 0);
        assert_int_equal(options.verbose, i == 1);
        setenv(variables[i], "2", 1);
        refused("-w1", variables[i]);
        /* An empty variable is as none. */
        setenv(variables[i], "", 1);
        options = accepted("-w1");
        assert_false(options.check || options.verbose);
        unsetenv(variables[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_help_says_the_defaults),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_socket_mode),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_length_of_a_path),
        cmocka_unit_test(test_a_conninfo_is_not_repeated),
        cmocka_unit_test(test_pattern_of_schemas),
        cmocka_unit_test(test_flags),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
