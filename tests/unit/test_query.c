/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "query.h"
#include "record.h"

#define URL "fulfillment_url=https://shop.example/"

static char space[QUERY_SPACE];

static enum query_verdict read_uri(const char *uri, const char *query_string, struct query *query)
{
    struct query_source source = {
        .method = "GET", .request_uri = uri, .query_string = query_string};

    return query_read(&source, space, query);
}

static void test_paths(void **state)
{
    static const struct {
        const char *uri, *instance, *session;
    } cases[] = {
        {"/sessions/abc", "", "abc"},
        {"/sessions/abc?" URL, "", "abc"},
        {"/sessions/abc/", "", "abc"},
        {"/instances/shop/sessions/abc", "shop", "abc"},
        {"/instances/shop/sessions/abc/?x=/sessions/y", "shop", "abc"},
        {"/taler-merchant/instances/shop/sessions/abc", "shop", "abc"},
        {"/a/b/c/sessions/abc", "", "abc"},
        {"/sessions/sessions/abc", "", "abc"},
        {"/sessions/sessions", "", "sessions"},
        {"/instances/sessions/sessions/instances", "sessions", "instances"},
        {"/shop/sessions/abc", "", "abc"},
        {"/sessions/a%2Fb", "", "a/b"},
        {"/sessions/%2f", "", "/"},
        {"/sessions/a+b", "", "a+b"},
        {"/sessions/a%20b", "", "a b"},
        {"/sessions/%01%10%7F", "", "\001\020\177"},
        {"/sessions/%C3%A9%e2%82%ac", "", "\u00e9\u20ac"},
        {"/sessions/\xf0\x9f\x98\x80", "", "\U0001F600"},
        {"/instances/%73hop/sessions/abc", "shop", "abc"},
        {"http://shop.example/sessions/abc", "", "abc"},
    };
    struct query query;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_int_equal(read_uri(cases[i].uri, URL, &query), QUERY_LOOKUP);
        assert_string_equal(query.key.instance, cases[i].instance);
        assert_string_equal(query.key.session, cases[i].session);
        assert_string_equal(query.key.url, "https://shop.example/");
        assert_int_equal(query.timeout_ms, 0);
    }
}

static void test_other_paths_are_no_endpoint(void **state)
{
    static const char *const uris[] = {"/", "", "/sessions", "/sessions/", "/sessions//",
        "sessions/abc", "/session/abc", "/Sessions/abc", "/%73essions/abc", "/sessions/abc/def",
        "/sessions/abc//", "/instances//sessions/abc", "/instances/shop", "?/sessions/abc", "*"};
    struct query query;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(uris); i++)
        assert_int_equal(read_uri(uris[i], URL, &query), QUERY_ENDPOINT_UNKNOWN);
}

static void test_malformed_path_parts(void **state)
{
    static const struct {
        const char *uri, *parameter;
    } cases[] = {
        {"/sessions/%", "session_id"},
        {"/sessions/a%2", "session_id"},
        {"/sessions/a%2G", "session_id"},
        {"/sessions/a%00b", "session_id"},
        {"/sessions/%00", "session_id"},
        {"/sessions/\xff", "session_id"},
        {"/sessions/%C0%AF", "session_id"},
        {"/sessions/%ED%A0%80", "session_id"},
        {"/sessions/%F4%90%80%80", "session_id"},
        {"/sessions/%E2%82", "session_id"},
        {"/instances/%zz/sessions/abc", "instance"},
        {"/instances/%00/sessions/abc", "instance"},
        {"/instances/%80/sessions/abc", "instance"},
    };
    struct query query;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_int_equal(read_uri(cases[i].uri, URL, &query), QUERY_PARAMETER_MALFORMED);
        assert_string_equal(query.parameter, cases[i].parameter);
    }
}

/* What a sequence of UTF-8 stands for, by its definition; -1 if it is too long or too short. */
static long code_point(const unsigned char *bytes, size_t length)
{
    static const long least[] = {0x80, 0x800, 0x10000}, leads[] = {0xc0, 0xe0, 0xf0, 0xf8};
    long point = bytes[0] - (length < 2 || length > 4 ? 0x100 : leads[length - 2]);

    if (point < 0 || bytes[0] >= leads[length - 1])
        return -1;
    for (size_t i = 1; i < length; i++) {
        if (bytes[i] < 0x80 || bytes[i] > 0xbf)
            return -1;
        point = point * 64 + bytes[i] - 0x80;
    }
    return point >= least[length - 2] ? point : -1;
}

/* All first bytes, with the edges of what may follow. */
static void test_utf8_sequences(void **state)
{
    static const unsigned char edges[] = {0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0};
    char uri[20] = "/sessions/";
    unsigned char *bytes = (unsigned char *)uri + 10;
    struct query query;

    (void)state;
    for (unsigned i = 0; i < 128 * 8 * 8 * 8 * 4; i++) {
        size_t length = 1 + i % 4;
        enum query_verdict wanted = QUERY_PARAMETER_MALFORMED;
        long point;

        bytes[0] = (unsigned char)(0x80 + i / 4 % 128);
        for (unsigned k = 1; k < 4; k++)
            bytes[k] = edges[i / 512 >> (3 * (k - 1)) & 7];
        bytes[length] = '\0';
        /* Bytes that are ASCII make sequences of their own. */
        if (memchr(bytes, 0x7f, length))
            continue;
        point = code_point(bytes, length);
        if (point > 0 && point <= 0x10ffff && (point < 0xd800 || point > 0xdfff))
            wanted = QUERY_LOOKUP;
        if (length == 4 && code_point(bytes, 2) > 0 && code_point(bytes + 2, 2) > 0)
            wanted = QUERY_LOOKUP;
        assert_int_equal(read_uri(uri, URL, &query), wanted);
    }
}

static void test_path_from_cgi_variables_is_decoded_already(void **state)
{
    struct query_source source = {.method = "GET",
        .script_name = "/shop/instances/i",
        .path_info = "/sessions/100%25",
        .query_string = URL};
    struct query query;

    (void)state;
    assert_int_equal(query_read(&source, space, &query), QUERY_LOOKUP);
    assert_string_equal(query.key.instance, "i");
    assert_string_equal(query.key.session, "100%25");
    source.path_info = NULL;
    assert_int_equal(query_read(&source, space, &query), QUERY_ENDPOINT_UNKNOWN);
    source.script_name = NULL;
    assert_int_equal(query_read(&source, space, &query), QUERY_ENDPOINT_UNKNOWN);
}

static void test_urls(void **state)
{
    static const struct {
        const char *value, *url;
    } cases[] = {
        {"https://shop.example/a%26b%3Dc", "https://shop.example/a&b=c"},
        {"https://shop.example/a%2Bb", "https://shop.example/a+b"},
        {"https%3A%2F%2Fshop.example%2F%23part", "https://shop.example/#part"},
        {"taler://fulfillment-success/thx", "taler://fulfillment-success/thx"},
        {"urn:x", "urn:x"},
        {"a+b", NULL},
        {"a%2Bb.c-1:x", "a+b.c-1:x"},
        {"https://shop.example/%C3%BC", "https://shop.example/\u00fc"},
        {"https://shop.example/?a=b=c", "https://shop.example/?a=b=c"},
        {"", NULL},
        {"https:", NULL},
        {":x", NULL},
        {"1a:x", NULL},
        {"/path", NULL},
        {"shop.example", NULL},
        {"https://shop.example/a+b", NULL},
        {"https://shop.example/a%20b", NULL},
        {"https://shop.example/%0A", NULL},
        {"https://shop.example/%7F", NULL},
        {"https://shop.example/%00", NULL},
        {"https://shop.example/%FF", NULL},
        {"https://shop.example/%", NULL},
        {"https://shop.example/%4", NULL},
    };
    struct query query;
    char text[200];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        stpcpy(stpcpy(text, "x=1&fulfillment_url="), cases[i].value);
        if (cases[i].url) {
            assert_int_equal(read_uri("/sessions/s", text, &query), QUERY_LOOKUP);
            assert_string_equal(query.key.url, cases[i].url);
        } else {
            assert_int_equal(read_uri("/sessions/s", text, &query), QUERY_PARAMETER_MALFORMED);
            assert_string_equal(query.parameter, "fulfillment_url");
        }
    }
}

static void test_missing_url(void **state)
{
    static const char *const texts[] = {NULL, "", "&", "&&=&", "timeout_ms=x",
        "fulfillment_urls=a:b", "fulfillment_url%ZZ=a:b", "FULFILLMENT_URL=a:b",
        "x=fulfillment_url"};
    struct query query;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        assert_int_equal(read_uri("/sessions/s", texts[i], &query), QUERY_PARAMETER_MISSING);
        assert_string_equal(query.parameter, "fulfillment_url");
    }
}

static void test_encoded_names_and_unknown_parameters(void **state)
{
    struct query query;

    (void)state;
    assert_int_equal(
        read_uri("/sessions/s", "%FF=%FF&a=%&b&fulfillment%5Furl=a:b&&timeout%5fms=7&=", &query),
        QUERY_LOOKUP);
    assert_string_equal(query.key.url, "a:b");
    assert_int_equal(query.timeout_ms, 7);
}

static void test_parameters_given_twice(void **state)
{
    struct query query;

    (void)state;
    assert_int_equal(read_uri("/sessions/s", "fulfillment_url=a:b&fulfillment_url=a:b", &query),
        QUERY_PARAMETER_MALFORMED);
    assert_string_equal(query.parameter, "fulfillment_url");
    assert_int_equal(read_uri("/sessions/s", "timeout_ms=1&" URL "&timeout_ms=1", &query),
        QUERY_PARAMETER_MALFORMED);
    assert_string_equal(query.parameter, "timeout_ms");
}

static void test_timeouts(void **state)
{
    static const struct {
        const char *value;
        int64_t low; /* -1: malformed */
    } cases[] = {
        {"0", 0},
        {"1", 1},
        {"007", 7},
        {"%31%32", 12},
        {"30000", 30000},
        {"9223372036854775807", 90000000000000000},
        {"99999999999999999999999999999999", 90000000000000000},
        {"", -1},
        {"+1", -1},
        {"-1", -1},
        {"%2B1", -1},
        {"1.5", -1},
        {"1e3", -1},
        {"0x10", -1},
        {"ten", -1},
        {"1%20", -1},
        {"+", -1},
        {"1%", -1},
        {"1%00", -1},
    };
    struct query query;
    char text[200];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        stpcpy(stpcpy(text, URL "&timeout_ms="), cases[i].value);
        if (cases[i].low < 0) {
            assert_int_equal(read_uri("/sessions/s", text, &query), QUERY_PARAMETER_MALFORMED);
            assert_string_equal(query.parameter, "timeout_ms");
            continue;
        }
        assert_int_equal(read_uri("/sessions/s", text, &query), QUERY_LOOKUP);
        if (cases[i].low < 90000000000000000)
            assert_true(query.timeout_ms == cases[i].low);
        else
            assert_true(query.timeout_ms >= cases[i].low);
    }
}

static void test_methods(void **state)
{
    static const struct {
        const char *method, *uri;
        enum query_verdict verdict;
    } cases[] = {
        {"GET", "/sessions/s", QUERY_LOOKUP},
        {"HEAD", "/sessions/s", QUERY_LOOKUP},
        {"OPTIONS", "/sessions/s", QUERY_OPTIONS},
        {"OPTIONS", "/other", QUERY_ENDPOINT_UNKNOWN},
        {"POST", "/sessions/s", QUERY_METHOD_INVALID},
        {"POST", "/sessions/%zz", QUERY_METHOD_INVALID},
        {"get", "/sessions/s", QUERY_METHOD_INVALID},
        {"", "/sessions/s", QUERY_METHOD_INVALID},
        {NULL, "/sessions/s", QUERY_METHOD_INVALID},
        {"POST", "/other", QUERY_ENDPOINT_UNKNOWN},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct query_source source = {
            .method = cases[i].method, .request_uri = cases[i].uri, .query_string = URL};
        struct query query;

        assert_int_equal(query_read(&source, space, &query), cases[i].verdict);
    }
}

/* The largest request that a PARAMS record can carry fits into the space. */
/* They are asked for by the web server's configuration, whatever the client's request is. */
static void test_metrics(void **state)
{
    struct query_source source = {.method = "GET", .request_uri = "/x", .metrics = "1"};
    struct query query;

    (void)state;
    assert_int_equal(query_read(&source, space, &query), QUERY_METRICS);
    source.request_uri = "/sessions/s";
    assert_int_equal(query_read(&source, space, &query), QUERY_METRICS);
    assert_int_equal(
        query_read(&(struct query_source){.metrics = "0"}, space, &query), QUERY_METRICS);
    source.metrics = "";
    source.query_string = "MERCHANT_SESSIONS_METRICS=1&" URL;
    assert_int_equal(query_read(&source, space, &query), QUERY_LOOKUP);
}

static void test_largest_request(void **state)
{
    size_t length = 32000;
    char *uri = malloc(length + 1), *text = malloc(length + 1);
    struct query query;

    (void)state;
    memset(stpcpy(uri, "/sessions/"), 's', length - 10);
    memset(stpcpy(text, "fulfillment_url=a:"), 'u', length - 18);
    uri[length] = text[length] = '\0';
    assert_int_equal(read_uri(uri, text, &query), QUERY_LOOKUP);
    assert_int_equal(strlen(query.key.session), length - 10);
    assert_int_equal(strlen(query.key.url), length - 16);
    free(uri);
    free(text);
}

/* Without REQUEST_URI the path is needed twice: joined and decoded. All of PARAMS may be path, or
 * query. */
static void test_largest_path_from_cgi_variables(void **state)
{
    static const size_t lengths[] = {32800, RECORD_PARAMS_MAX - sizeof URL - 100};
    struct query query;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        char *path = calloc(1, lengths[i] + 1);
        struct query_source source = {.method = "GET",
            .script_name = "/instances/i",
            .path_info = path,
            .query_string = URL "&timeout_ms=7"};

        assert_non_null(path);
        memset(stpcpy(path, "/sessions/"), 's', lengths[i] - 10);
        assert_int_equal(query_read(&source, space, &query), QUERY_LOOKUP);
        assert_int_equal(strlen(query.key.session), lengths[i] - 10);
        assert_string_equal(query.key.session + lengths[i] - 11, "s");
        assert_string_equal(query.key.instance, "i");
        assert_string_equal(query.key.url, "https://shop.example/");
        assert_int_equal(query.timeout_ms, 7);
        free(path);
    }
}

/* A string of `length` equal characters behind a prefix; the caller frees it. */
static char *long_string(const char *prefix, size_t length)
{
    char *text = calloc(1, strlen(prefix) + length + 1);

    assert_non_null(text);
    memset(stpcpy(text, prefix), 's', length);
    return text;
}

/* record.c lets no such request pass; the space must not overflow all the same. */
static void test_requests_beyond_the_space(void **state)
{
    static const struct {
        size_t uri, path, url; /* how long each is, without its prefix */
        enum query_verdict verdict;
        const char *parameter;
    } cases[] = {
        /* Beside the session there are the URL of 32 bytes and three NULs. */
        {QUERY_SPACE - 35, 0, 30, QUERY_LOOKUP, NULL},
        {QUERY_SPACE - 34, 0, 30, QUERY_PARAMETER_MALFORMED, "fulfillment_url"},
        {QUERY_SPACE - 1, 0, 1, QUERY_PARAMETER_MALFORMED, "session_id"},
        {QUERY_SPACE - 100, 0, 200, QUERY_PARAMETER_MALFORMED, "fulfillment_url"},
        {0, QUERY_SPACE / 2, 200, QUERY_PARAMETER_MALFORMED, "session_id"},
        {0, QUERY_SPACE - 10, 1, QUERY_ENDPOINT_UNKNOWN, NULL},
        {0, QUERY_SPACE - 11, 1, QUERY_PARAMETER_MALFORMED, "instance"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *uri = long_string("/sessions/", cases[i].uri), *path;
        char *text = long_string("fulfillment_url=a:", cases[i].url);
        struct query_source source = {.method = "GET", .query_string = text};
        struct query query;

        path = long_string("/sessions/", cases[i].path);
        source.request_uri = cases[i].uri > 0 ? uri : NULL;
        source.path_info = path;
        assert_int_equal(query_read(&source, space, &query), cases[i].verdict);
        if (cases[i].parameter)
            assert_string_equal(query.parameter, cases[i].parameter);
        free(uri);
        free(path);
        free(text);
    }
}

/* Fills text with pieces that mean something here, and bytes that do not. */
static void scramble(char *text, size_t length, uint32_t *seed)
{
    static const char *const pieces[] = {"/", "sessions", "instances", "%", "%2F", "%00", "%C3%A9",
        "\xc3", "\xa9", "?", "&", "=", "+", "fulfillment_url=", "timeout_ms=", "a:b", "7", "shop",
        ".."};
    size_t at = 0;

    while (at + 20 < length && scatter(seed) % 12) {
        if (scatter(seed) % 8)
            at = (size_t)(stpcpy(text + at, pieces[scatter(seed) % COUNT_OF(pieces)]) - text);
        else
            text[at++] = (char)(1 + scatter(seed) % 255);
    }
    text[at] = '\0';
}

/* Whatever comes in, a lookup has a session and an absolute URI, and the sanitizers nothing to say.
 */
static void test_random_requests(void **state)
{
    uint32_t seed = 1;
    size_t lookups = 0;

    (void)state;
    for (int round = 0; round < 200000; round++) {
        char uri[300], text[300];
        struct query query;

        scramble(stpcpy(uri, scatter(&seed) % 2 ? "/sessions/" : "/"), sizeof uri - 10, &seed);
        scramble(stpcpy(text, scatter(&seed) % 2 ? URL : ""), sizeof text - sizeof URL, &seed);
        if (read_uri(uri, text, &query) != QUERY_LOOKUP)
            continue;
        lookups++;
        assert_true(query.key.session[0] != '\0');
        assert_non_null(strchr(query.key.url, ':'));
        assert_null(strpbrk(query.key.url, " \n\t"));
        assert_true(query.timeout_ms >= 0);
    }
    assert_true(lookups > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_other_paths_are_no_endpoint),
        cmocka_unit_test(test_malformed_path_parts),
        cmocka_unit_test(test_utf8_sequences),
        cmocka_unit_test(test_path_from_cgi_variables_is_decoded_already),
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_missing_url),
        cmocka_unit_test(test_encoded_names_and_unknown_parameters),
        cmocka_unit_test(test_parameters_given_twice),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_methods),
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_largest_request),
        cmocka_unit_test(test_largest_path_from_cgi_variables),
        cmocka_unit_test(test_requests_beyond_the_space),
        cmocka_unit_test(test_random_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
