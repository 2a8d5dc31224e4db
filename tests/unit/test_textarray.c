/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <string.h>

#include "textarray.h"

MALLOC_MAY_FAIL

static void test_binary_format(void **state)
{
    static const char wire[] = "\0\0\0\1"
                               "\0\0\0\0"
                               "\0\0\0\31"
                               "\0\0\0\3"
                               "\0\0\0\1"
                               "\0\0\0\2"
                               "ab"
                               "\0\0\0\0"
                               "\0\0\0\2"
                               "\xc3\xa9";
    struct text_array array = {0};

    (void)state;
    /* Twice: an array can be started again. */
    for (int i = 0; i < 2; i++) {
        text_array_start(&array, 3);
        text_array_add(&array, "ab");
        text_array_add(&array, "");
        text_array_add(&array, "\xc3\xa9");
        assert_false(array.failed);
        assert_int_equal(array.length, sizeof wire - 1);
        assert_memory_equal(array.at, wire, array.length);
    }
    text_array_free(&array);
}

static void test_many_large_elements(void **state)
{
    struct text_array array = {0};
    char text[5001];

    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    text_array_start(&array, 256);
    for (int i = 0; i < 256; i++)
        text_array_add(&array, text);
    assert_false(array.failed);
    assert_int_equal(array.length, 20 + 256 * (4 + 5000));
    assert_memory_equal(array.at + array.length - 5000, text, 5000);
    text_array_free(&array);
}

/* Without memory it says so, until it is started again. */
static void test_no_memory(void **state)
{
    struct text_array array = {0};

    (void)state;
    text_array_start(&array, 1);
    text_array_free(&array);
    array.length = array.room = SIZE_MAX / 8;
    text_array_add(&array, "a");
    assert_true(array.failed);
    assert_null(array.at);
    text_array_add(&array, "b");
    assert_true(array.failed);
    array.room = 0;
    text_array_start(&array, 1);
    text_array_add(&array, "a");
    assert_false(array.failed);
    assert_int_equal(array.length, 20 + 4 + 1);
    text_array_free(&array);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_binary_format),
        cmocka_unit_test(test_many_large_elements),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
