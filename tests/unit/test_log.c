/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "log.h"

/* The longest line, its end included (log.h). */
#define LINE_MAX_BYTES 1000

static void test_form(void **state)
{
    struct capture capture;
    char expected[200];
    int pid = (int)getpid();

    (void)state;
    capture_begin(&capture);
    log_error("one %d", 1);
    log_warning("two");
    log_info("three");
    snprintf(expected, sizeof expected,
        "merchant-sessions[%d] error: one 1\n"
        "merchant-sessions[%d] warning: two\n"
        "merchant-sessions[%d] info: three\n",
        pid, pid, pid);
    assert_string_equal(capture_end(&capture), expected);
}

static void test_debug_lines_on_request_only(void **state)
{
    struct capture capture;

    (void)state;
    capture_begin(&capture);
    log_debug("no");
    log_set_level(LOG_DEBUG);
    log_debug("yes");
    log_set_level(LOG_INFO);
    log_debug("no");
    capture_end(&capture);
    assert_int_equal(count_lines(capture.text), 1);
    assert_contains(capture.text, " debug: yes\n");
}

static void test_lines_below_the_level_are_left_out(void **state)
{
    struct capture capture;

    (void)state;
    capture_begin(&capture);
    log_set_level(LOG_WARNING);
    log_info("no");
    log_warning("yes");
    log_set_level(LOG_INFO);
    capture_end(&capture);
    assert_int_equal(count_lines(capture.text), 1);
    assert_contains(capture.text, " warning: yes\n");
}

static void test_muted_log_has_no_lines(void **state)
{
    struct capture capture;
    pid_t pid;
    int status;

    (void)state;
    capture_begin(&capture);
    fflush(stdout);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        /* For good: in a process of its own. */
        log_mute();
        log_error("no");
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_string_equal(capture_end(&capture), "");
}

static void test_control_characters(void **state)
{
    struct capture capture;

    (void)state;
    capture_begin(&capture);
    log_info("%s", "a\nb\tc\x01\x1f\x7f d\xc3\xa4~");
    capture_end(&capture);
    assert_contains(capture.text, " info: a?b?c??? d\xc3\xa4~\n");
}

/* A long line is cut, and ends as any other. */
static void test_long_lines(void **state)
{
    (void)state;
    for (size_t length = 900; length < 1100; length++) {
        struct capture capture;
        char text[1101];
        size_t prefix, written;

        memset(text, 'x', length);
        text[length] = '\0';
        capture_begin(&capture);
        log_info("%s", text);
        capture_end(&capture);
        prefix = (size_t)(strstr(capture.text, "info: ") - capture.text) + strlen("info: ");
        written = strlen(capture.text);
        assert_int_equal(count_lines(capture.text), 1);
        assert_int_equal(capture.text[written - 1], '\n');
        if (prefix + length + 1 < LINE_MAX_BYTES)
            assert_int_equal(written, prefix + length + 1);
        else
            assert_in_range(written, LINE_MAX_BYTES - 1, LINE_MAX_BYTES);
        assert_int_equal(strspn(capture.text + prefix, "x"), written - prefix - 1);
    }
}

static void test_no_standard_error(void **state)
{
    struct capture capture;
    int fd = dup(STDERR_FILENO);

    (void)state;
    close(STDERR_FILENO);
    log_error("to nobody");
    assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
    close(fd);
    capture_begin(&capture);
    log_info("to somebody");
    capture_end(&capture);
    assert_contains(capture.text, "lines of the log that could not be written and are lost: 1");
}

/* A limit on the size of a file cuts a line as a full disk does. */
static void test_a_line_that_is_cut(void **state)
{
    struct rlimit limit, small = {.rlim_cur = 20, .rlim_max = RLIM_INFINITY};
    struct capture capture;
    char expected[400];
    int pid = (int)getpid();

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small.rlim_max = limit.rlim_max;
    capture_begin(&capture);
    log_open();
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    log_info("cut");
    log_info("not written");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    log_info("whole");
    capture_end(&capture);
    log_open();
    snprintf(expected, sizeof expected, "merchant-sessions[%d", pid);
    snprintf(expected + 20, sizeof expected - 20,
        "\nmerchant-sessions[%d] warning: lines of the log that could not be written and are lost: "
        "2\n"
        "merchant-sessions[%d] info: whole\n",
        pid, pid);
    assert_string_equal(capture.text, expected);
}

/* Of a text that was read: the lines below, and those that it says were lost. */
static int count_read_and_lost(const char *text)
{
    static const char read_line[] = "info: nobody reads this", lost_line[] = "are lost: ";
    int count = 0;

    for (const char *at = text; (at = strstr(at, read_line)); at += strlen(read_line))
        count++;
    for (const char *at = text; (at = strstr(at, lost_line)); at += strlen(lost_line))
        count += atoi(at + strlen(lost_line));
    return count;
}

/* Logs to a pipe or a socket that is read only after many lines: none blocks, and those that were
 * lost are told of as soon as there is room again. */
static void check_unread(int ends[2])
{
    enum { LINES = 20 * 1000 };
    static char text[1 << 20];
    int saved = dup(STDERR_FILENO);
    size_t length = 0;
    ssize_t more;

    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    log_open();
    for (int i = 0; i < LINES; i++)
        log_info("nobody reads this");
    /* Whoever else has it is not concerned. */
    assert_int_equal(fcntl(ends[1], F_GETFL) & O_NONBLOCK, 0);
    assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    for (int logged = 0; logged < 2; logged++) {
        while ((more = read(ends[0], text + length, sizeof text - 1 - length)) > 0)
            length += (size_t)more;
        if (logged == 0)
            log_info("somebody reads this");
    }
    dup2(saved, STDERR_FILENO);
    log_open();
    close(saved);
    text[length] = '\0';
    assert_int_equal(count_read_and_lost(text), LINES);
    assert_contains(text, " could not be written and are lost: ");
    assert_contains(text, " info: somebody reads this\n");
    close(ends[0]);
    close(ends[1]);
}

static void test_unread_pipe(void **state)
{
    int ends[2];

    (void)state;
    assert_int_equal(pipe(ends), 0);
    check_unread(ends);
}

static void test_unread_socket(void **state)
{
    int ends[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    check_unread(ends);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form),
        cmocka_unit_test(test_debug_lines_on_request_only),
        cmocka_unit_test(test_lines_below_the_level_are_left_out),
        cmocka_unit_test(test_muted_log_has_no_lines),
        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_no_standard_error),
        cmocka_unit_test(test_a_line_that_is_cut),
        cmocka_unit_test(test_unread_pipe),
        cmocka_unit_test(test_unread_socket),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
