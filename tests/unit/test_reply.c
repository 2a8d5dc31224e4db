/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "reply.h"

static void expect(enum reply_kind kind, const char *text, const char *status, const char *body)
{
    size_t length, head_length;
    char *reply = reply_make(kind, text, false, &length);
    char *head = reply_make(kind, text, true, &head_length);
    char *end = strstr(reply, "\r\n\r\n");

    assert_int_equal(strlen(reply), length);
    assert_int_equal(strncmp(reply, "Status: ", 8), 0);
    assert_int_equal(strncmp(reply + 8, status, strlen(status)), 0);
    assert_int_equal(strncmp(reply + 8 + strlen(status), "\r\n", 2), 0);
    assert_string_equal(end + 4, body);
    /* HEAD: the same fields, and nothing after them. */
    end[4] = '\0';
    assert_string_equal(head, reply);
    assert_int_equal(strlen(head), head_length);
    free(reply);
    free(head);
}

static void test_every_kind(void **state)
{
    (void)state;
    expect(REPLY_PAID, "2022.243-abc", "200 OK", "{\"order_id\":\"2022.243-abc\"}");
    expect(REPLY_UNPAID, "o", "202 Accepted", "{\"order_id\":\"o\"}");
    expect(REPLY_PARAMETER_MISSING, "fulfillment_url", "400 Bad Request",
        "{\"code\":25,\"hint\":\"A required parameter is "
        "missing.\",\"detail\":\"fulfillment_url\"}");
    expect(REPLY_PARAMETER_MALFORMED, "timeout_ms", "400 Bad Request",
        "{\"code\":26,\"hint\":\"A parameter is malformed.\",\"detail\":\"timeout_ms\"}");
    expect(REPLY_ENDPOINT_UNKNOWN, NULL, "404 Not Found",
        "{\"code\":21,\"hint\":\"There is no such endpoint here.\"}");
    expect(REPLY_INSTANCE_UNKNOWN, NULL, "404 Not Found",
        "{\"code\":2000,\"hint\":\"There is no such merchant instance.\"}");
    expect(REPLY_SESSION_UNKNOWN, NULL, "404 Not Found",
        "{\"code\":2038,\"hint\":\"No order is known for this session.\"}");
    expect(REPLY_METHOD_INVALID, NULL, "405 Method Not Allowed",
        "{\"code\":20,\"hint\":\"This method is not supported here.\"}");
    expect(REPLY_DATABASE_FAILED, NULL, "500 Internal Server Error",
        "{\"code\":53,\"hint\":\"The database did not answer.\"}");
    expect(REPLY_OPTIONS, NULL, "204 No Content", "");
}

static void test_order_ids_are_escaped(void **state)
{
    (void)state;
    expect(REPLY_PAID, "a\"b\\c\nd\x01", "200 OK", "{\"order_id\":\"a\\\"b\\\\c\\nd\\u0001\"}");
    expect(REPLY_PAID, "\u00e9\U0001F600", "200 OK", "{\"order_id\":\"\u00e9\U0001F600\"}");
}

static void test_header_fields(void **state)
{
    size_t length;
    char *reply = reply_make(REPLY_PAID, "o", false, &length);

    (void)state;
    assert_non_null(strstr(reply, "\r\nContent-Type: application/json\r\n"));
    assert_non_null(strstr(reply, "\r\nContent-Length: 16\r\n"));
    assert_non_null(strstr(reply, "\r\nCache-Control: no-store\r\n"));
    assert_non_null(strstr(reply, "\r\nAccess-Control-Allow-Origin: *\r\n"));
    assert_non_null(strstr(reply, "\r\nAccess-Control-Expose-Headers: *\r\n"));
    assert_null(strstr(reply, "\r\nAllow:"));
    free(reply);
    reply = reply_make(REPLY_METHOD_INVALID, NULL, false, &length);
    assert_non_null(strstr(reply, "\r\nAllow: GET, HEAD, OPTIONS\r\n"));
    free(reply);
    reply = reply_make(REPLY_OPTIONS, NULL, false, &length);
    assert_non_null(strstr(reply, "\r\nAccess-Control-Allow-Methods: *\r\n"));
    assert_non_null(strstr(reply, "\r\nAccess-Control-Allow-Headers: *\r\n"));
    free(reply);
}

static void test_status_and_code(void **state)
{
    (void)state;
    assert_int_equal(reply_status(REPLY_PAID), 200);
    assert_int_equal(reply_code(REPLY_PAID), 0);
    assert_int_equal(reply_status(REPLY_INSTANCE_UNKNOWN), 404);
    assert_int_equal(reply_code(REPLY_INSTANCE_UNKNOWN), 2000);
}

/* No page of another origin may read them. */
static void test_metrics(void **state)
{
    static const char expected[] =
        "Status: 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        "Content-Length: 4\r\nCache-Control: no-store\r\n\r\na 1\n";
    size_t length;
    char *reply = reply_make_metrics("a 1\n", false, &length);

    (void)state;
    assert_string_equal(reply, expected);
    assert_int_equal(length, sizeof expected - 1);
    free(reply);
    reply = reply_make_metrics("a 1\n", true, &length);
    assert_int_equal(length, sizeof expected - 1 - 4);
    assert_memory_equal(reply, expected, length);
    free(reply);
}

/* How many allocations of cJSON succeed yet. */
static int allocations_left;

static void *allocate_some(size_t size)
{
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

/* Wherever memory runs out: no reply, and no leak. */
static void test_no_memory(void **state)
{
    cJSON_Hooks hooks = {allocate_some, free};
    int needed = 0;
    char *reply;

    (void)state;
    cJSON_InitHooks(&hooks);
    do {
        size_t length;

        allocations_left = needed++;
        reply = reply_make(REPLY_PARAMETER_MISSING, "timeout_ms", false, &length);
    } while (!reply);
    cJSON_InitHooks(NULL);
    assert_non_null(strstr(reply, "{\"code\":25,"));
    assert_true(needed > 7);
    free(reply);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind),
        cmocka_unit_test(test_order_ids_are_escaped),
        cmocka_unit_test(test_header_fields),
        cmocka_unit_test(test_status_and_code),
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
