/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "connection.h"

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_realloc(void *block, size_t size);
void *__wrap_realloc(void *block, size_t size);

/* So many of the next blocks of 16 KiB and more cannot be had. */
static int lacking;

void *__wrap_malloc(size_t size)
{
    if (size >= 16 * 1024 && lacking > 0) {
        lacking--;
        return NULL;
    }
    return __real_malloc(size);
}

/* Whether parameters, which record.c collects by it, find no memory. */
static bool lacking_for_params;

void *__wrap_realloc(void *block, size_t size)
{
    return lacking_for_params ? NULL : __real_realloc(block, size);
}

/* BEGIN_REQUEST with FCGI_KEEP_CONN, REQUEST_URI=/x, the ends of PARAMS and STDIN. */
static const char request[] = "\1\1\0\1\0\x08\0\0\0\1\1\0\0\0\0\0"
                              "\1\4\0\1\0\x0f\0\0\x0b\x02REQUEST_URI/x"
                              "\1\4\0\1\0\0\0\0\1\5\0\1\0\0\0\0";
static const char answer[] = "Status: 500 Internal Server Error\r\n\r\n";

static int epoll_fd, listen_fd, peer_fd;
static struct connections *connections;
static struct connection *connection;

/* A peer has connected and sent a request, and the connection has been accepted. */
static int open_connection(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof address;

    (void)state;
    lacking = 0;
    lacking_for_params = false;
    listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    peer_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    epoll_fd = epoll_create1(0);
    assert_int_equal(bind(listen_fd, (struct sockaddr *)&address, sizeof address.sun_family), 0);
    assert_int_equal(getsockname(listen_fd, (struct sockaddr *)&address, &length), 0);
    assert_int_equal(listen(listen_fd, 1), 0);
    connections = connections_open(epoll_fd, listen_fd);
    assert_non_null(connections);
    assert_int_equal(connect(peer_fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(send(peer_fd, request, sizeof request - 1, 0), sizeof request - 1);
    connection = connections_accept(connections, clock_now());
    assert_non_null(connection);
    return 0;
}

static int close_connection(void **state)
{
    (void)state;
    connections_close(connections);
    close(epoll_fd);
    close(peer_fd);
    close(listen_fd);
    return 0;
}

/* The peer has the answer, in one record, and the end of the request. */
static void assert_answered(void)
{
    unsigned char bytes[200] = {0};
    const size_t content = sizeof answer - 1;
    const size_t padded = 8 + (content + 7) / 8 * 8;

    assert_int_equal(recv(peer_fd, bytes, sizeof bytes, MSG_DONTWAIT), padded + 8 + 16);
    assert_memory_equal(bytes + 8, answer, content);
    assert_int_equal(bytes[padded + 8 + 1], 3);
}

static void reply(void)
{
    connection_reply(connection, answer, sizeof answer - 1, clock_now());
}

static void test_a_request_is_answered(void **state)
{
    (void)state;
    assert_int_equal(connection_read(connection, clock_now()), CONNECTION_EVENT_REQUEST);
    assert_string_equal(connection_param(connection, "REQUEST_URI"), "/x");
    reply();
    assert_answered();
}

/* The peer has the answer in records of our own: without padding. */
static void assert_answered_bare(void)
{
    unsigned char bytes[200] = {0};
    const size_t content = sizeof answer - 1;

    assert_int_equal(recv(peer_fd, bytes, sizeof bytes, MSG_DONTWAIT), 8 + content + 8 + 16);
    assert_memory_equal(bytes, "\1\6\0\1\0", 5);
    assert_int_equal(bytes[5], content);
    assert_memory_equal(bytes + 8, answer, content);
    assert_memory_equal(bytes + 8 + content, "\1\6\0\1\0\0\0\0\1\3\0\1\0\x08\0\0", 16);
}

/* A request is refused without memory to decode it, and the connection goes on. */
static void test_a_request_without_memory_is_refused(void **state)
{
    (void)state;
    lacking = 100;
    assert_int_equal(connection_read(connection, clock_now()), CONNECTION_EVENT_REFUSE);
    assert_null(connection_param(connection, "REQUEST_URI"));
    reply();
    assert_answered_bare();
    assert_int_equal(connections_count(connections), 1);
    lacking = 0;
    assert_int_equal(send(peer_fd, request, sizeof request - 1, 0), sizeof request - 1);
    assert_int_equal(connection_read(connection, clock_now()), CONNECTION_EVENT_REQUEST);
    reply();
    assert_answered();
}

/* Memory that is there again is used. */
static void test_a_refused_request_is_answered_by_libfcgi_if_it_can(void **state)
{
    (void)state;
    lacking = 1;
    assert_int_equal(connection_read(connection, clock_now()), CONNECTION_EVENT_REFUSE);
    assert_int_equal(lacking, 0);
    reply();
    assert_answered();
}

/* A request whose parameters found no memory is read to its end and refused, and the next one on
 * the connection is as any other. */
static void test_a_request_that_has_lost_its_parameters_is_refused(void **state)
{
    (void)state;
    lacking_for_params = true;
    assert_int_equal(connection_read(connection, clock_now()), CONNECTION_EVENT_REFUSE);
    assert_null(connection_param(connection, "REQUEST_URI"));
    reply();
    assert_answered();
    lacking_for_params = false;
    assert_int_equal(send(peer_fd, request, sizeof request - 1, 0), sizeof request - 1);
    assert_int_equal(connection_read(connection, clock_now()), CONNECTION_EVENT_REQUEST);
    assert_string_equal(connection_param(connection, "REQUEST_URI"), "/x");
    reply();
    assert_answered();
}

static void test_a_shed_request_without_memory_is_answered(void **state)
{
    (void)state;
    assert_int_equal(connection_read(connection, clock_now()), CONNECTION_EVENT_REQUEST);
    assert_true(connection_shed(connection));
    lacking = 100;
    reply();
    assert_answered_bare();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_a_request_is_answered, open_connection, close_connection),
        cmocka_unit_test_setup_teardown(
            test_a_request_without_memory_is_refused, open_connection, close_connection),
        cmocka_unit_test_setup_teardown(test_a_refused_request_is_answered_by_libfcgi_if_it_can,
            open_connection, close_connection),
        cmocka_unit_test_setup_teardown(test_a_request_that_has_lost_its_parameters_is_refused,
            open_connection, close_connection),
        cmocka_unit_test_setup_teardown(
            test_a_shed_request_without_memory_is_answered, open_connection, close_connection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
