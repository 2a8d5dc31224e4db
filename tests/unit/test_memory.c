/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Each allocation fails once, in turn: nothing crashes, nothing leaks (AddressSanitizer looks), and
 * the answer is clear. What query.c does needs no memory. */
#include "unit.h"

#include <cjson/cJSON.h>
#include <search.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "conninfo.h"
#include "heap.h"
#include "instances.h"
#include "layout.h"
#include "lookup.h"
#include "metrics.h"
#include "pipeline.h"
#include "plan.h"
#include "record.h"
#include "reply.h"
#include "textarray.h"
#include "waiting.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void *__real_reallocarray(void *block, size_t count, size_t size);
char *__real_strdup(const char *text);
void *__real_tsearch(const void *key, void **root, int (*compare)(const void *, const void *));

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
void *__wrap_reallocarray(void *block, size_t count, size_t size);
char *__wrap_strdup(const char *text);
void *__wrap_tsearch(const void *key, void **root, int (*compare)(const void *, const void *));

/* Allocations so far, and the number of the one that fails; 0: none. */
static unsigned allocations, failing;

static bool memory_is_lacking(void)
{
    return ++allocations == failing;
}

void *__wrap_malloc(size_t size)
{
    return memory_is_lacking() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return memory_is_lacking() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *block, size_t size)
{
    return memory_is_lacking() ? NULL : __real_realloc(block, size);
}

void *__wrap_reallocarray(void *block, size_t count, size_t size)
{
    return memory_is_lacking() ? NULL : __real_reallocarray(block, count, size);
}

char *__wrap_strdup(const char *text)
{
    return memory_is_lacking() ? NULL : __real_strdup(text);
}

/* It allocates a node for each new key. */
void *__wrap_tsearch(const void *key, void **root, int (*compare)(const void *, const void *))
{
    return memory_is_lacking() ? NULL : __real_tsearch(key, root, compare);
}

/* The fortified name of the next one. */
int __wrap___asprintf_chk(char **text, int flag, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int __wrap_asprintf(char **text, const char *format, ...) __attribute__((format(printf, 2, 3)));

int __wrap___asprintf_chk(char **text, int flag, const char *format, ...)
{
    va_list args;
    int length;

    (void)flag;
    va_start(args, format);
    length = memory_is_lacking() ? -1 : vasprintf(text, format, args);
    va_end(args);
    return length;
}

int __wrap_asprintf(char **text, const char *format, ...)
{
    va_list args;
    int length;

    va_start(args, format);
    length = memory_is_lacking() ? -1 : vasprintf(text, format, args);
    va_end(args);
    return length;
}

/* Stands for a stream of open_memstream() in glibc, which allocates when it is written to. Where it
 * cannot, the write fails, but the stream has no error indicator, and what was not written is just
 * missing. */
static ssize_t stream_write(void *cookie, const char *bytes, size_t length)
{
    FILE *memory = cookie;

    if (memory_is_lacking())
        return 0;
    return (ssize_t)fwrite(bytes, 1, length, memory);
}

static int stream_close(void *cookie)
{
    return fclose(cookie);
}

FILE *__real_fopencookie(void *cookie, const char *mode, cookie_io_functions_t functions);
FILE *__wrap_fopencookie(void *cookie, const char *mode, cookie_io_functions_t functions);

FILE *__wrap_fopencookie(void *cookie, const char *mode, cookie_io_functions_t functions)
{
    return memory_is_lacking() ? NULL : __real_fopencookie(cookie, mode, functions);
}

FILE *__real_open_memstream(char **bytes, size_t *length);
FILE *__wrap_open_memstream(char **bytes, size_t *length);

FILE *__wrap_open_memstream(char **bytes, size_t *length)
{
    cookie_io_functions_t functions = {.write = stream_write, .close = stream_close};
    FILE *memory = memory_is_lacking() ? NULL : __real_open_memstream(bytes, length);
    FILE *stream = memory ? __real_fopencookie(memory, "w", functions) : NULL;

    if (stream)
        setvbuf(stream, NULL, _IONBF, 0);
    return stream;
}

int __wrap_ferror(FILE *stream);

int __wrap_ferror(FILE *stream)
{
    (void)stream;
    return 0;
}

/* Runs the scenario once for each of its allocations, which fails, and once more where none does.
 * A scenario returns whether it has met the lack of memory, in the way that it has to. */
static void fail_each_in_turn(bool (*scenario)(void))
{
    bool lacked = true;

    for (failing = 1; lacked; failing++) {
        bool met;

        allocations = 0;
        met = scenario();
        lacked = allocations >= failing;
        assert_int_equal(met, lacked);
    }
    assert_true(failing > 2);
    failing = 0;
}

/* ---- record ---- */

/* BEGIN_REQUEST, and PARAMS in two records. */
static const unsigned char request[] = "\1\1\0\1\0\x08\0\0\0\1\1\0\0\0\0\0"
                                       "\1\4\0\1\0\x0f\0\0\x0b\x02REQUEST_URI/x"
                                       "\1\4\0\1\0\x11\0\0\x0c\x03QUERY_STRINGa=b"
                                       "\1\4\0\1\0\0\0\0\1\5\0\1\0\0\0\0";
static const unsigned char values[] = "\1\x09\0\0\0\x11\0\0\x0f\0FCGI_MPXS_CONNS";

/* Reads bytes one by one, up to the first event. */
static enum record_event read_bytes(
    struct record_reader *reader, const unsigned char *bytes, size_t length)
{
    enum record_event event = RECORD_EVENT_MORE;

    for (size_t i = 0; i < length && event == RECORD_EVENT_MORE; i++) {
        size_t used;

        event = record_read(reader, bytes + i, 1, &used);
    }
    return event;
}

/* A request whose parameters were lost is read to its end, so that it can be refused. */
static bool read_request(void)
{
    struct record_reader reader = {0};
    struct record_request written;
    bool lost;

    assert_int_equal(read_bytes(&reader, request, sizeof request - 1), RECORD_EVENT_REQUEST);
    lost = record_has_lost_params(&reader);
    record_request(&reader, &written);
    assert_int_equal(written.parts[1].iov_len, lost ? 0 : 0x0f + 0x11);
    record_next(&reader);
    assert_false(record_has_lost_params(&reader));
    record_close(&reader);
    return lost;
}

static bool read_management(void)
{
    struct record_reader reader = {0};
    enum record_event event = read_bytes(&reader, values, sizeof values - 1);

    if (event != RECORD_EVENT_NO_MEMORY)
        assert_int_equal(event, RECORD_EVENT_MANAGEMENT);
    record_close(&reader);
    return event == RECORD_EVENT_NO_MEMORY;
}

static void test_record(void **state)
{
    (void)state;
    fail_each_in_turn(read_request);
    fail_each_in_turn(read_management);
}

/* ---- reply ---- */

static enum reply_kind reply_kind;

static bool make_reply(void)
{
    size_t length = 0;
    char *reply = reply_make(reply_kind, "fulfillment_url", false, &length);
    bool lacked = !reply;

    if (!lacked)
        assert_int_equal(strlen(reply), length);
    free(reply);
    return lacked;
}

static void test_reply(void **state)
{
    cJSON_Hooks hooks = {.malloc_fn = __wrap_malloc, .free_fn = free};

    (void)state;
    cJSON_InitHooks(&hooks);
    for (reply_kind = 0; reply_kind < REPLY_KINDS; reply_kind++)
        fail_each_in_turn(make_reply);
    cJSON_InitHooks(NULL);
}

/* ---- parameters of a lookup ---- */

static bool make_array(void)
{
    struct text_array array = {0};
    char text[1000];
    bool lacked;

    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    text_array_start(&array, 20);
    for (int i = 0; i < 20; i++)
        text_array_add(&array, text);
    lacked = array.failed;
    text_array_free(&array);
    return lacked;
}

static bool make_params(void)
{
    const struct session_key key = {"session", "https://shop.example/", "shop"};
    struct batch_params params = {0};
    bool lacked;

    batch_params_start(&params, SESSION_BATCH_MAX);
    for (int i = 0; i < SESSION_BATCH_MAX; i++)
        batch_params_add(&params, &key);
    lacked = !batch_params_finish(&params);
    batch_params_free(&params);
    return lacked;
}

static void test_parameters(void **state)
{
    (void)state;
    fail_each_in_turn(make_array);
    fail_each_in_turn(make_params);
}

/* ---- statements ---- */

/* A text with a hole in it would be another statement. */
static bool make_statement(void)
{
    static const struct layout_tables tables = {.finds_unclaimed = true, .has_serial = true};
    static size_t length; /* of the whole text */
    char *text = layout_make_statement(QUESTION_PAYMENT, &tables, "\"m_1\"", 1);
    bool lacked = !text;

    if (failing == 0)
        length = text ? strlen(text) : 0;
    else if (!lacked)
        assert_int_equal(strlen(text), length);
    free(text);
    return lacked;
}

static void test_statement(void **state)
{
    (void)state;
    assert_false(make_statement());
    fail_each_in_turn(make_statement);
}

/* ---- metrics ---- */

static bool print_metrics(void)
{
    struct metrics *metrics = metrics_new(1);
    static size_t length; /* of the whole text */
    char *text;
    bool lacked;

    if (!metrics)
        return true;
    metrics_enter(metrics, 0);
    text = metrics_print(metrics);
    lacked = !text;
    if (failing == 0)
        length = text ? strlen(text) : 0;
    else if (!lacked)
        assert_int_equal(strlen(text), length);
    free(text);
    metrics_free(metrics);
    return lacked;
}

static bool make_metrics_reply(void)
{
    size_t length;
    char *reply = reply_make_metrics("text\n", false, &length);
    bool lacked = !reply;

    free(reply);
    return lacked;
}

static void test_metrics(void **state)
{
    (void)state;
    assert_false(print_metrics());
    fail_each_in_turn(print_metrics);
    fail_each_in_turn(make_metrics_reply);
}

/* ---- lookup, without a connection ---- */

static bool make_lookup(void)
{
    struct lookup *lookup = lookup_new(-1, NULL, NULL, USEC_PER_SEC);
    bool lacked = !lookup;

    if (lookup)
        lookup_free(lookup);
    return lacked;
}

/* Of two hosts the first one is tried, and is to be left out. */
static bool leave_out_host(void)
{
    PGconn *connection = PQconnectStart("hostaddr=127.0.0.1,127.0.0.2 port=1,2");
    struct conninfo_hosts others = conninfo_other_hosts(connection);
    bool lacked = !others.hostaddr;

    if (lacked)
        assert_null(others.port);
    else
        assert_string_equal(others.hostaddr, "127.0.0.2");
    conninfo_free_hosts(&others);
    PQfinish(connection);
    return lacked;
}

static void test_lookup(void **state)
{
    (void)state;
    fail_each_in_turn(make_lookup);
    fail_each_in_turn(leave_out_host);
}

/* ---- plan ---- */

static bool judge_plan(void)
{
    return plan_judge(
               "[{\"Plan\": {\"Node Type\": \"Index Scan\", \"Index Cond\": "
               "\"((fulfillment_url = k.url) AND (session_id >= k.session))\"}}]") == PLAN_UNKNOWN;
}

static void test_plan(void **state)
{
    cJSON_Hooks hooks = {.malloc_fn = __wrap_malloc, .free_fn = free};

    (void)state;
    cJSON_InitHooks(&hooks);
    fail_each_in_turn(judge_plan);
    cJSON_InitHooks(NULL);
}

/* ---- instances ---- */

/* Two instances and the schema of one of them. What libpq allocates is had. */
static PGresult *make_rows(void)
{
    static const char *const texts[][3] = {
        {"admin", "1", NULL}, {"shop", "2", NULL}, {NULL, NULL, "m_2"}};
    static char name[] = "", yes[] = "t";
    PGresAttDesc fields[10] = {0};
    PGresult *rows = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);

    for (int i = 0; i < 10; i++)
        fields[i].name = name;
    assert_true(PQsetResultAttrs(rows, 10, fields));
    for (int row = 0; row < 3; row++)
        for (int field = 0; field < 10; field++) {
            const char *text = field < 3 ? texts[row][field] : yes;

            /* It does not write to the text. */
            assert_true(PQsetvalue(
                rows, row, field, (char *)(uintptr_t)text, text ? (int)strlen(text) : -1));
        }
    return rows;
}

static bool read_instances(void)
{
    struct instances *instances = instances_new(NULL);
    bool lacked = !instances, gone;

    for (int i = 0; i < 2 && !lacked; i++) {
        lacked = !instances_read(instances, make_rows(), &gone);
        if (lacked)
            assert_string_equal(instances_problem(instances), "out of memory");
        else
            assert_string_equal(instances_find(instances, "shop")->name, "m_2");
    }
    instances_free(instances);
    return lacked;
}

static void test_instances(void **state)
{
    (void)state;
    fail_each_in_turn(read_instances);
}

/* ---- pipeline ---- */

/* On a connection that is not made: all is done but the sending. */
static bool send_pipeline(void)
{
    static const struct session_key key = {"session", "https://shop.example/", "shop"};
    const struct session_key *asked[] = {&key};
    struct session_answer answers[1];
    struct instances *instances = instances_new(NULL);
    struct pipeline *pipeline = pipeline_new(instances);
    PGconn *connection = PQconnectStart("hostaddr=nonsense");
    bool gone;

    if (instances && pipeline && instances_read(instances, make_rows(), &gone))
        assert_int_equal(
            pipeline_send(pipeline, connection, NULL, QUESTION_EVERYTHING, asked, 1, answers, 0),
            PIPELINE_BROKEN);
    PQfinish(connection);
    pipeline_free(pipeline);
    instances_free(instances);
    return allocations >= failing;
}

static void test_pipeline(void **state)
{
    (void)state;
    fail_each_in_turn(send_pipeline);
    assert_true(allocations > 100);
}

/* ---- waiting ---- */

#define WAITERS 4

static const struct session_key keys[WAITERS] = {
    {"one", "https://shop.example/", "shop"},
    {"two", "https://shop.example/", "shop"},
    {"two", "https://shop.example/", "shop"},
    {"three", "https://shop.example/", ""},
};

/* What the database says: nothing is paid in the first batch, everything in the others. */
static void settle(struct waiting *waiting, const struct waiting_batch *batch, int number)
{
    static char order_id[] = "order";
    static struct session_answer answers[SESSION_BATCH_MAX];

    for (size_t i = 0; i < batch->count; i++)
        answers[i] = (struct session_answer){.status = number == 0 ? SESSION_UNPAID : SESSION_PAID,
            .claimed = true,
            .order_id = order_id};
    waiting_answered(waiting, answers, WAITERS, number + 1);
}

/* Takes the outcomes; returns how many requests were answered. */
static int take_outcomes(struct waiting *waiting)
{
    struct waiter *waiter;
    int answered = 0;

    while ((waiter = waiting_outcome(waiting))) {
        if (waiter->state == WAITER_PARKABLE) {
            waiting_park(waiting, waiter);
            continue;
        }
        assert_int_equal(waiter->state, WAITER_KNOWN);
        assert_int_equal(waiter->watch->status, SESSION_PAID);
        assert_string_equal(waiter->watch->order_id, "order");
        waiting_remove(waiting, waiter);
        answered++;
    }
    return answered;
}

/* Whoever could be added is answered in the end, whatever allocation has failed. */
static bool wait_for_payment(void)
{
    struct waiting *waiting = waiting_new(1, USEC_PER_SEC);
    struct waiter waiters[WAITERS] = {0};
    struct waiting_batch batch;
    int added = 0, batches = 0;
    uint64_t version = 0;

    if (!waiting)
        return true;
    for (int i = 0; i < WAITERS; i++)
        added += waiting_add(waiting, &waiters[i], &keys[i], USEC_PER_SEC, 0);
    for (usec_t now = 1; added > 0; now += USEC_PER_MS) {
        assert_true(now < USEC_PER_SEC / 2);
        switch (waiting_next(waiting, &batch, now)) {
        case WAITING_STEP_NOTHING:
            break;
        case WAITING_STEP_CHECK:
            waiting_checked(waiting, ++version, now);
            break;
        case WAITING_STEP_BATCH:
            settle(waiting, &batch, batches++);
            break;
        }
        added -= take_outcomes(waiting);
    }
    waiting_free(waiting);
    return allocations >= failing;
}

static void test_waiting(void **state)
{
    (void)state;
    fail_each_in_turn(wait_for_payment);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_reply),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_statement),
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_lookup),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_instances),
        cmocka_unit_test(test_waiting),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
