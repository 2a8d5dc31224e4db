/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <fastcgi.h>
#include <stdlib.h>
#include <string.h>

#include "record.h"

/* Records to be sent. */
struct wire {
    unsigned char bytes[300000];
    size_t length;
};

static struct wire wire;

static void put_record(
    int version, int type, int id, const void *content, size_t length, int padding)
{
    unsigned char header[8] = {(unsigned char)version, (unsigned char)type,
        (unsigned char)(id >> 8), (unsigned char)id, (unsigned char)(length >> 8),
        (unsigned char)length, (unsigned char)padding, 0};

    memcpy(wire.bytes + wire.length, header, 8);
    if (length)
        memcpy(wire.bytes + wire.length + 8, content, length);
    memset(wire.bytes + wire.length + 8 + length, 'p', (size_t)padding);
    wire.length += 8 + length + (size_t)padding;
}

static void put(int type, int id, const void *content, size_t length)
{
    put_record(1, type, id, content, length, 0);
}

static void put_begin(int id, int role, int flags)
{
    unsigned char body[8] = {(unsigned char)(role >> 8), (unsigned char)role, (unsigned char)flags};

    put(FCGI_BEGIN_REQUEST, id, body, 8);
}

/* Parameters that are wanted, in all forms that a pair may have. */
#define WANTED                         \
    "\x0e\x03"                         \
    "REQUEST_METHODGET"                \
    "\x0c\x00"                         \
    "QUERY_STRING"                     \
    "\x80\x00\x00\x09\x80\x00\x00\x02" \
    "PATH_INFO/x"                      \
    "\x19\x01"                         \
    "MERCHANT_SESSIONS_METRICS1"
/* Parameters that are not: another name, a wanted name again, and names that are like it. */
#define UNWANTED                      \
    "\x01\x01"                        \
    "ab"                              \
    "\x09\x00"                        \
    "PATH_INFO"                       \
    "\x08\x80\x00\x00\x03"            \
    "PATH_INFefg"                     \
    "\x0a\x00"                        \
    "PATH_INFO="                      \
    "\x1e\x01"                        \
    "HTTP_MERCHANT_SESSIONS_METRICS1" \
    "\x00\x00"
static const char wanted[] = WANTED;
static const char pairs[] = WANTED UNWANTED;
#define PAIRS_LENGTH (sizeof pairs - 1)

static void put_request_of(int id, int flags, const char *params, size_t length)
{
    put_begin(id, FCGI_RESPONDER, flags);
    if (length)
        put(FCGI_PARAMS, id, params, length);
    put(FCGI_PARAMS, id, NULL, 0);
    put(FCGI_STDIN, id, NULL, 0);
}

static void put_request(int id, int flags)
{
    put_request_of(id, flags, pairs, PAIRS_LENGTH);
}

/* The complete request is written again with these parameters. */
static void assert_request(
    const struct record_reader *reader, int id, int flags, const char *params, size_t length)
{
    static struct wire expected, written;
    struct wire before = wire;
    struct record_request request;

    wire.length = 0;
    put_request_of(id, flags, params, length);
    expected = wire;
    wire = before;
    record_request(reader, &request);
    written.length = 0;
    for (size_t i = 0; i < COUNT_OF(request.parts); i++) {
        if (request.parts[i].iov_len)
            memcpy(written.bytes + written.length, request.parts[i].iov_base,
                request.parts[i].iov_len);
        written.length += request.parts[i].iov_len;
    }
    assert_int_equal(request.length, written.length);
    assert_int_equal(written.length, expected.length);
    assert_memory_equal(written.bytes, expected.bytes, written.length);
}

/* Feeds all that is on the wire, step bytes at a time, up to the first event that isn't
 * RECORD_EVENT_MORE. */
static enum record_event feed(struct record_reader *reader, size_t step)
{
    enum record_event event = RECORD_EVENT_MORE;
    size_t at = 0;

    while (event == RECORD_EVENT_MORE && at < wire.length) {
        size_t used, length = wire.length - at < step ? wire.length - at : step;

        event = record_read(reader, wire.bytes + at, length, &used);
        assert_true(used <= length);
        assert_true(event != RECORD_EVENT_MORE || used == length);
        at += used;
    }
    memmove(wire.bytes, wire.bytes + at, wire.length - at);
    wire.length -= at;
    return event;
}

static int reset(void **state)
{
    (void)state;
    wire.length = 0;
    return 0;
}

static void test_request_in_pieces_of_any_size(void **state)
{
    static const size_t steps[] = {1, 2, 7, 8, 9, 16, 100, 100000};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(steps); i++) {
        struct record_reader reader = {0};

        assert_true(record_is_between(&reader));
        put_request(0x1234, FCGI_KEEP_CONN);
        assert_int_equal(feed(&reader, steps[i]), RECORD_EVENT_REQUEST);
        assert_int_equal(wire.length, 0);
        assert_int_equal(reader.request_id, 0x1234);
        assert_true(reader.keep);
        assert_request(&reader, 0x1234, FCGI_KEEP_CONN, wanted, sizeof wanted - 1);
        record_next(&reader);
        assert_true(record_is_between(&reader));
    }
}

static void test_records_are_joined_and_padding_dropped(void **state)
{
    struct record_reader reader = {0};

    (void)state;
    put_begin(1, FCGI_RESPONDER, 0);
    for (size_t i = 0; i < PAIRS_LENGTH; i++)
        put_record(1, FCGI_PARAMS, 1, pairs + i, 1, 255);
    put_record(1, FCGI_PARAMS, 1, NULL, 0, 7);
    put_record(1, FCGI_STDIN, 1, "body", 4, 3);
    put(FCGI_STDIN, 1, NULL, 0);
    assert_int_equal(feed(&reader, 11), RECORD_EVENT_REQUEST);
    assert_false(reader.keep);
    assert_request(&reader, 1, 0, wanted, sizeof wanted - 1);
    /* What is left of it is enough to answer it. */
    record_forget(&reader);
    assert_request(&reader, 1, 0, NULL, 0);
    record_close(&reader);
}

static void test_request_without_parameters(void **state)
{
    struct record_reader reader = {0};

    (void)state;
    put_begin(7, FCGI_RESPONDER, 0);
    put(FCGI_PARAMS, 7, NULL, 0);
    put(FCGI_STDIN, 7, NULL, 0);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_REQUEST);
    assert_request(&reader, 7, 0, NULL, 0);
    record_close(&reader);
}

static void test_large_body_is_passed_over(void **state)
{
    static unsigned char body[60000];
    struct record_reader reader = {0};

    (void)state;
    put_begin(1, FCGI_RESPONDER, 0);
    put(FCGI_PARAMS, 1, NULL, 0);
    assert_int_equal(feed(&reader, 100000), RECORD_EVENT_MORE);
    for (int i = 0; i < 20; i++) {
        put(FCGI_STDIN, 1, body, sizeof body);
        assert_int_equal(feed(&reader, 1000), RECORD_EVENT_MORE);
        assert_int_equal(reader.params.room, 0);
    }
    put(FCGI_STDIN, 1, NULL, 0);
    assert_int_equal(feed(&reader, 1000), RECORD_EVENT_REQUEST);
    record_close(&reader);
}

/* Writes a pair whose value is of some letters; returns its length. */
static size_t make_pair(unsigned char *to, const char *name, size_t value_length)
{
    size_t name_length = strlen(name);
    unsigned char head[5] = {(unsigned char)name_length, (unsigned char)(0x80 | value_length >> 24),
        (unsigned char)(value_length >> 16), (unsigned char)(value_length >> 8),
        (unsigned char)value_length};

    memcpy(to, head, sizeof head);
    memcpy(to + sizeof head, name, name_length);
    memset(to + sizeof head + name_length, 'v', value_length);
    return sizeof head + name_length + value_length;
}

/* Puts PARAMS into as many records as they take, and ends them. */
static void put_params(int id, const unsigned char *params, size_t length)
{
    for (size_t at = 0; at < length; at += RECORD_CONTENT_MAX)
        put(FCGI_PARAMS, id, params + at,
            length - at < RECORD_CONTENT_MAX ? length - at : RECORD_CONTENT_MAX);
    put(FCGI_PARAMS, id, NULL, 0);
}

/* Two wanted pairs that together are as long as allowed, or longer by one byte. */
static void test_bound_on_wanted_params(void **state)
{
    static unsigned char params[RECORD_PARAMS_MAX + 1];

    (void)state;
    for (size_t over = 0; over <= 1; over++) {
        struct record_reader reader = {0};
        size_t length = make_pair(params, "QUERY_STRING", 30000);

        length += make_pair(params + length, "REQUEST_URI",
            RECORD_PARAMS_MAX + over - length - 5 - strlen("REQUEST_URI"));
        assert_int_equal(length, RECORD_PARAMS_MAX + over);
        wire.length = 0;
        put_begin(1, FCGI_RESPONDER, 0);
        put_params(1, params, length);
        put(FCGI_STDIN, 1, NULL, 0);
        assert_int_equal(feed(&reader, 5000), over ? RECORD_EVENT_BROKEN : RECORD_EVENT_REQUEST);
        if (!over)
            assert_request(&reader, 1, 0, (const char *)params, length);
        record_close(&reader);
    }
}

/* What is not wanted may have any length, and takes no memory. */
static void test_long_params_are_passed_over(void **state)
{
    static const size_t steps[] = {1, 100, 4095, 4096, 4097, 1000000};
    static unsigned char params[200000];
    size_t length = make_pair(params, "HTTP_COOKIE", 90000);

    (void)state;
    memcpy(params + length, pairs, PAIRS_LENGTH);
    length += PAIRS_LENGTH;
    length += make_pair(params + length, "HTTP_A_NAME_LONGER_THAN_WANTED_ONES", 80000);
    for (size_t i = 0; i < COUNT_OF(steps); i++) {
        struct record_reader reader = {0};

        wire.length = 0;
        put_begin(1, FCGI_RESPONDER, 0);
        put_params(1, params, length);
        put(FCGI_STDIN, 1, NULL, 0);
        assert_int_equal(feed(&reader, steps[i]), RECORD_EVENT_REQUEST);
        assert_request(&reader, 1, 0, wanted, sizeof wanted - 1);
        assert_true(reader.params.room < 16384);
        record_close(&reader);
    }
}

/* A NUL, and an end, within a part that is passed over. */
static void test_long_params_are_checked(void **state)
{
    static unsigned char params[200000];
    size_t length = make_pair(params, "HTTP_COOKIE", 90000);

    (void)state;
    for (int cut = 0; cut <= 1; cut++) {
        struct record_reader reader = {0};

        params[70000] = cut ? 'v' : 0;
        wire.length = 0;
        put_begin(1, FCGI_RESPONDER, 0);
        put_params(1, params, length - (size_t)cut);
        assert_int_equal(feed(&reader, 5000), RECORD_EVENT_BROKEN);
        record_close(&reader);
    }
}

static void expect_broken_params(const char *params, size_t length)
{
    struct record_reader reader = {0};

    wire.length = 0;
    put_begin(1, FCGI_RESPONDER, 0);
    put(FCGI_PARAMS, 1, params, length);
    put(FCGI_PARAMS, 1, NULL, 0);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_BROKEN);
    record_close(&reader);
}

static void test_unsound_pairs(void **state)
{
    (void)state;
    expect_broken_params("\x01", 1);
    expect_broken_params("\x01\x01", 2);
    expect_broken_params("\x01\x01"
                         "a",
        3);
    expect_broken_params("\x80\x00\x00", 3);
    expect_broken_params("\x01\x01"
                         "ab\x05\x05",
        6);
    expect_broken_params("\xff\xff\xff\xfe\xff\xff\xff\xfe", 8);
    expect_broken_params("\xff\xff\xff\xff\xff\xff\xff\xff"
                         "abc",
        11);
    expect_broken_params("\x01\x03"
                         "aa\0b",
        6);
}

static void test_other_broken_records(void **state)
{
    static const struct {
        int version, type, id;
        size_t length;
    } first[] = {{0, FCGI_BEGIN_REQUEST, 1, 8}, {2, FCGI_BEGIN_REQUEST, 1, 8},
        {1, FCGI_BEGIN_REQUEST, 1, 7}, {1, FCGI_BEGIN_REQUEST, 1, 9}, {'G', 'E', 'T', 8}};
    static const int types[] = {FCGI_END_REQUEST, FCGI_STDIN, FCGI_STDOUT, FCGI_STDERR, FCGI_DATA,
        FCGI_BEGIN_REQUEST, FCGI_GET_VALUES, 0, 12, 255};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(first); i++) {
        struct record_reader reader = {0};

        wire.length = 0;
        put_record(
            first[i].version, first[i].type, first[i].id, "\0\1\0\0\0\0\0\0\0", first[i].length, 0);
        assert_int_equal(feed(&reader, 100), RECORD_EVENT_BROKEN);
    }
    /* Of the present request, where only PARAMS may come. */
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        struct record_reader reader = {0};

        wire.length = 0;
        put_begin(1, FCGI_RESPONDER, 0);
        put(types[i], 1, "\0\1\0\0\0\0\0", 8);
        assert_int_equal(feed(&reader, 100), RECORD_EVENT_BROKEN);
        record_close(&reader);
    }
}

static void test_roles(void **state)
{
    static const int roles[] = {0, FCGI_AUTHORIZER, FCGI_FILTER, 4, 257};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(roles); i++) {
        struct record_reader reader = {0};

        wire.length = 0;
        put_begin(3, roles[i], 0);
        assert_int_equal(feed(&reader, 100), RECORD_EVENT_UNKNOWN_ROLE);
        assert_int_equal(reader.event_id, 3);
    }
}

static void test_second_request_and_abort(void **state)
{
    struct record_reader reader = {0};

    (void)state;
    put_request(1, 0);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_REQUEST);
    put_begin(2, FCGI_RESPONDER, 0);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_SECOND);
    assert_int_equal(reader.event_id, 2);
    assert_int_equal(reader.request_id, 1);
    /* The refused request's records, and an abort of it, go by. */
    put(FCGI_PARAMS, 2, "xyz", 3);
    put(FCGI_ABORT_REQUEST, 2, NULL, 0);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_MORE);
    put(FCGI_ABORT_REQUEST, 1, NULL, 0);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_ABORT);
    assert_int_equal(reader.event_id, 1);
    record_close(&reader);
}

static void test_get_values(void **state)
{
    static const char content[] = "\x0e\x00"
                                  "FCGI_MAX_CONNS"
                                  "\x0f\x00"
                                  "FCGI_MPXS_CONNS"
                                  "\x0f\x00"
                                  "FCGI_MPXS_CONNS"
                                  "\x01\x00"
                                  "x";
    static const char result[] = "\x0f\x01"
                                 "FCGI_MPXS_CONNS"
                                 "0";
    struct record_reader reader = {0};
    unsigned char reply[RECORD_REPLY_MAX];
    size_t length;

    (void)state;
    put(FCGI_GET_VALUES, 0, content, sizeof content - 1);
    assert_int_equal(feed(&reader, 5), RECORD_EVENT_MANAGEMENT);
    length = record_management_reply(&reader, reply);
    wire.length = 0;
    put(FCGI_GET_VALUES_RESULT, 0, result, sizeof result - 1);
    assert_int_equal(length, wire.length);
    assert_memory_equal(reply, wire.bytes, length);
    assert_true(record_is_between(&reader));

    wire.length = 0;
    put(FCGI_GET_VALUES, 0, "\xff\xff", 2);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_MANAGEMENT);
    assert_int_equal(record_management_reply(&reader, reply), 8);
}

static void test_unknown_management_record(void **state)
{
    struct record_reader reader = {0};
    unsigned char reply[RECORD_REPLY_MAX];

    (void)state;
    put(99, 0, "abc", 3);
    assert_int_equal(feed(&reader, 100), RECORD_EVENT_MANAGEMENT);
    assert_int_equal(record_management_reply(&reader, reply), 16);
    assert_int_equal(reply[1], FCGI_UNKNOWN_TYPE);
    assert_int_equal(reply[8], 99);
}

/* Management records between those of a request: they are answered, and the request goes on. */
static void test_management_in_mid_request(void **state)
{
    static const char content[] = "\x0f\x00"
                                  "FCGI_MPXS_CONNS";
    unsigned char reply[RECORD_REPLY_MAX];
    struct record_reader reader = {0};

    (void)state;
    put_begin(1, FCGI_RESPONDER, 0);
    put(FCGI_GET_VALUES, 0, content, sizeof content - 1);
    put(FCGI_PARAMS, 1, pairs, PAIRS_LENGTH);
    put(99, 0, content, sizeof content - 1);
    put(FCGI_PARAMS, 1, NULL, 0);
    put(FCGI_GET_VALUES, 0, content, sizeof content - 1);
    put(FCGI_STDIN, 1, NULL, 0);
    put(FCGI_GET_VALUES, 0, content, sizeof content - 1);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(feed(&reader, 5), RECORD_EVENT_MANAGEMENT);
        assert_int_equal(record_management_reply(&reader, reply), i == 1 ? 16 : 26);
    }
    assert_int_equal(feed(&reader, 5), RECORD_EVENT_REQUEST);
    assert_request(&reader, 1, 0, wanted, sizeof wanted - 1);
    assert_int_equal(feed(&reader, 5), RECORD_EVENT_MANAGEMENT);
    assert_int_equal(record_management_reply(&reader, reply), 26);
    assert_request(&reader, 1, 0, wanted, sizeof wanted - 1);
    record_close(&reader);
}

static void test_end_request(void **state)
{
    unsigned char bytes[16];

    (void)state;
    record_end_request(0x0102, FCGI_CANT_MPX_CONN, bytes);
    wire.length = 0;
    put(FCGI_END_REQUEST, 0x0102, "\0\0\0\0\1\0\0\0", 8);
    assert_memory_equal(bytes, wire.bytes, sizeof bytes);
}

/*
 * A request is whole, and the peer has sent a part of its next BEGIN_REQUEST, or of any record,
 * when the answer goes out: at each byte, the record goes on as it would have without that.
 */
static void test_answer_within_a_record(void **state)
{
    static const int types[] = {
        FCGI_BEGIN_REQUEST, FCGI_ABORT_REQUEST, FCGI_PARAMS, FCGI_STDIN, 77};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        for (size_t cut = 0; cut <= 8 + 8 + 3; cut++) {
            struct record_reader reader = {0};
            struct wire rest;
            bool begin = types[i] == FCGI_BEGIN_REQUEST;

            wire.length = 0;
            put_request(1, FCGI_KEEP_CONN);
            assert_int_equal(feed(&reader, 1000), RECORD_EVENT_REQUEST);
            put_record(1, types[i], 2, "\0\1\0\0\0\0\0", 8, 3);
            rest.length = wire.length - cut;
            memcpy(rest.bytes, wire.bytes + cut, rest.length);
            wire.length = cut;
            assert_int_equal(feed(&reader, 1000),
                begin && rest.length == 0 ? RECORD_EVENT_SECOND : RECORD_EVENT_MORE);
            record_next(&reader);
            wire = rest;
            if (begin && rest.length == 0)
                put_begin(2, FCGI_RESPONDER, 0);
            if (!begin) {
                assert_int_equal(feed(&reader, 1), RECORD_EVENT_MORE);
                assert_true(record_is_between(&reader));
                put_begin(2, FCGI_RESPONDER, 0);
            }
            put(FCGI_PARAMS, 2, wanted, sizeof wanted - 1);
            put(FCGI_PARAMS, 2, NULL, 0);
            put(FCGI_STDIN, 2, NULL, 0);
            assert_int_equal(feed(&reader, 1), RECORD_EVENT_REQUEST);
            assert_request(&reader, 2, 0, wanted, sizeof wanted - 1);
            record_close(&reader);
        }
    }
}

/* What a reader makes of some bytes, in steps of the given size: its events, and what it keeps. */
struct outcome {
    enum record_event events[32];
    size_t count, length;
    unsigned char kept[2000];
};

static void read_all(
    const unsigned char *bytes, size_t length, size_t step, struct outcome *outcome)
{
    struct record_reader reader = {0};
    enum record_event event = RECORD_EVENT_MORE;
    unsigned char reply[RECORD_REPLY_MAX];
    size_t at = 0, used;

    *outcome = (struct outcome){.count = 0};
    while (
        at < length && event != RECORD_EVENT_BROKEN && outcome->count < COUNT_OF(outcome->events)) {
        event = record_read(&reader, bytes + at, length - at < step ? length - at : step, &used);
        at += used;
        if (event != RECORD_EVENT_MORE)
            outcome->events[outcome->count++] = event;
        if (event == RECORD_EVENT_MANAGEMENT)
            record_management_reply(&reader, reply);
        if (event == RECORD_EVENT_REQUEST)
            record_next(&reader);
    }
    assert_true(reader.pairs.kept <= sizeof outcome->kept);
    outcome->length = reader.pairs.kept;
    if (outcome->length)
        memcpy(outcome->kept, reader.params.at, outcome->length);
    record_close(&reader);
}

/* Requests with bytes changed at random: whatever comes of it does not depend on how it was cut,
 * and the sanitizers have nothing to say. */
static void test_random_records(void **state)
{
    static struct outcome whole, pieces;
    uint32_t seed = 1;

    (void)state;
    for (int round = 0; round < 50000; round++) {
        wire.length = 0;
        put(scatter(&seed) % 4 ? FCGI_STDIN : FCGI_GET_VALUES, (int)(scatter(&seed) % 2), pairs, 8);
        put_request(1, FCGI_KEEP_CONN);
        put_request((int)(scatter(&seed) % 3), 0);
        for (uint32_t changes = scatter(&seed) % 4; changes > 0; changes--)
            wire.bytes[scatter(&seed) % wire.length] = (unsigned char)scatter(&seed);
        read_all(wire.bytes, wire.length, wire.length, &whole);
        read_all(wire.bytes, wire.length, 1 + scatter(&seed) % 20, &pieces);
        assert_int_equal(whole.count, pieces.count);
        assert_memory_equal(whole.events, pieces.events, sizeof whole.events);
        assert_int_equal(whole.length, pieces.length);
        assert_memory_equal(whole.kept, pieces.kept, whole.length);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_request_in_pieces_of_any_size, reset),
        cmocka_unit_test_setup(test_records_are_joined_and_padding_dropped, reset),
        cmocka_unit_test_setup(test_request_without_parameters, reset),
        cmocka_unit_test_setup(test_large_body_is_passed_over, reset),
        cmocka_unit_test_setup(test_bound_on_wanted_params, reset),
        cmocka_unit_test_setup(test_long_params_are_passed_over, reset),
        cmocka_unit_test_setup(test_long_params_are_checked, reset),
        cmocka_unit_test_setup(test_unsound_pairs, reset),
        cmocka_unit_test_setup(test_other_broken_records, reset),
        cmocka_unit_test_setup(test_roles, reset),
        cmocka_unit_test_setup(test_second_request_and_abort, reset),
        cmocka_unit_test_setup(test_get_values, reset),
        cmocka_unit_test_setup(test_unknown_management_record, reset),
        cmocka_unit_test_setup(test_management_in_mid_request, reset),
        cmocka_unit_test_setup(test_end_request, reset),
        cmocka_unit_test_setup(test_answer_within_a_record, reset),
        cmocka_unit_test_setup(test_random_records, reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
