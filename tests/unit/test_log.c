/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture.h"

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
    log_set_verbose(true);
    log_debug("yes");
    log_set_verbose(false);
    log_debug("no");
    capture_end(&capture);
    assert_int_equal(count_lines(capture.text), 1);
    assert_contains(capture.text, " debug: yes\n");
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
    int fd = dup(STDERR_FILENO);

    (void)state;
    close(STDERR_FILENO);
    log_error("to nobody");
    assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form),
        cmocka_unit_test(test_debug_lines_on_request_only),
        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_no_standard_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
