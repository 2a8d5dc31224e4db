/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * connection.c, with libfcgi behind it, end to end on Unix sockets. The input is a script for
 * several peers, who send requests and other bytes, cut at any place, half-close, close and read,
 * and for a caller, who answers, waits, parks and closes at any moment, while the clock goes on.
 * Memory and descriptors may be short, too.
 *
 * The oracle: what a peer reads is well-formed FastCGI. Each request that the caller was told of
 * has the parameters that were sent, and is either answered, with the very bytes that the caller
 * gave and exactly one FCGI_END_REQUEST, or its connection is closed. A peer that plays by the
 * rules and stays gets each answer. At the end no connection and no descriptor is left.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "connection.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);

#define PEERS      4
#define REPLY_HEAD "Status: 200 OK\r\n\r\n"

/* A peer at the other end. */
struct peer {
    int fd;       /* -1: not connected */
    bool honest;  /* has only sent requests, one after the other, and reads to the end */
    bool sending; /* has not closed or half-closed */
    bool keep;    /* what its last request has said */
    bool waiting; /* an honest one: for the answer to a request that it has sent whole */
    bool partial; /* an honest one: has sent a part of a request */
    uint8_t rest[600];
    size_t rest_at, rest_length; /* of that request, what has not been sent */
    uint16_t id;
    unsigned serial; /* of its last request */
    uint8_t received[1 << 16];
    size_t received_length;
};

/* A request that the caller has been told of. */
struct held {
    struct connection *connection;
    unsigned serial; /* what its parameters say; 0: they were not sound enough to say */
    bool waited, parked;
    struct held *next;
};

struct script {
    const uint8_t *at;
    size_t left;
};

static struct peer peers[PEERS];
static struct held *held;
static struct connections *connections;
static int epoll_fd, listen_fd;
static struct sockaddr_un address;
static socklen_t address_length;
static usec_t fuzz_now;
static unsigned serials;
static int connects;
/* The number of allocations of connection.c and record.c that are still to fail; of malloc() only
 * the larger ones. */
static unsigned failing;
static unsigned crowded; /* turns for which no descriptor can be had */

/* connection.c and record.c ask for memory by this; libfcgi does not. */
void *__wrap_malloc(size_t size)
{
    if (failing > 0 && size > 10000) {
        failing--;
        return NULL;
    }
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    if (failing > 0) {
        failing--;
        return NULL;
    }
    return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    if (failing > 0) {
        failing--;
        return NULL;
    }
    return __real_realloc(old, size);
}

static void fuzz_require(bool condition, const char *what, int line)
{
    if (condition)
        return;
    fprintf(stderr, "line %d: does not hold: %s\n", line, what);
    abort();
}

#define REQUIRE(condition) fuzz_require(condition, #condition, __LINE__)

static unsigned script_byte(struct script *script)
{
    if (script->left == 0)
        return 0;
    script->left--;
    return *script->at++;
}

/* ---- the caller ---- */

static void caller_forget(struct held *request)
{
    struct held **at = &held;

    while (*at != request)
        at = &(*at)->next;
    *at = request->next;
    free(request);
}

static void caller_answer(struct held *request)
{
    char text[3000];
    int length = snprintf(text, sizeof text, REPLY_HEAD "%u;", request->serial);
    struct connection *connection = request->connection;

    /* Some answers are longer than a buffer of libfcgi's. */
    memset(text + length, 'a', sizeof text - (size_t)length);
    if (request->serial % 3 == 0)
        length = sizeof text;
    REQUIRE(connection_owner(connection) == request);
    caller_forget(request);
    connection_reply(connection, text, (size_t)length, fuzz_now);
}

static void caller_close(struct held *request, const char *reason)
{
    struct connection *connection = request->connection;

    caller_forget(request);
    connection_close(connection, reason);
}

/* A request's REQUEST_URI is its serial number, if it comes from an honest peer. */
static void caller_take(struct connection *connection, bool refuse)
{
    struct held *request = __real_calloc(1, sizeof *request);
    const char *uri = connection_param(connection, "REQUEST_URI");

    REQUIRE(request != NULL && connection_owner(connection) == NULL);
    REQUIRE(!refuse || !uri);
    REQUIRE(connection_param(connection, "HTTP_COOKIE") == NULL);
    request->connection = connection;
    request->serial = uri && uri[0] == '#' ? (unsigned)atoi(uri + 1) : 0;
    request->next = held;
    held = request;
    connection_set_owner(connection, request);
    if (refuse)
        caller_answer(request);
}

static void caller_read(struct connection *connection)
{
    switch (connection_read(connection, fuzz_now)) {
    case CONNECTION_EVENT_NOTHING:
        break;
    case CONNECTION_EVENT_REQUEST:
        caller_take(connection, false);
        break;
    case CONNECTION_EVENT_REFUSE:
        caller_take(connection, true);
        break;
    case CONNECTION_EVENT_GONE:
        REQUIRE(connection_trouble(connection) != NULL);
        caller_close(connection_owner(connection), connection_trouble(connection));
        break;
    }
}

/* One turn of an event loop. */
static void caller_one_turn(void)
{
    struct epoll_event events[16];
    int count = epoll_wait(epoll_fd, events, 16, 0);
    struct connection *connection;

    for (int i = 0; i < count; i++)
        if (events[i].data.ptr)
            caller_read(events[i].data.ptr);
    while ((connection = connections_accept(connections, fuzz_now)))
        caller_read(connection);
    connections_expire(connections, fuzz_now);
    REQUIRE(connections_due(connections) > fuzz_now);
}

static void set_descriptors(rlim_t limit)
{
    struct rlimit descriptors;

    REQUIRE(getrlimit(RLIMIT_NOFILE, &descriptors) == 0);
    descriptors.rlim_cur = limit ? limit : descriptors.rlim_max;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &descriptors) == 0);
}

static void caller_turn(void)
{
    int lowest = dup(epoll_fd);

    close(lowest);
    if (crowded > 0) {
        crowded--;
        set_descriptors((rlim_t)lowest);
    }
    caller_one_turn();
    set_descriptors(0);
}

static struct held *caller_pick(unsigned which)
{
    struct held *request = held;

    while (request && which-- > 0)
        request = request->next;
    return request;
}

static void caller_act(struct script *script)
{
    unsigned what = script_byte(script);
    struct held *request = caller_pick(what >> 3 & 3);

    if (!request)
        return;
    switch (what % 8) {
    case 0:
    case 1:
    case 2:
        caller_answer(request);
        break;
    case 3:
        connection_wait(request->connection);
        break;
    case 4:
    case 5:
        REQUIRE(connection_shed(request->connection));
        break;
    case 6:
        REQUIRE(connections_park_limit(connections) < 1u << 30);
        break;
    default:
        /* Its peer is not to be blamed. */
        for (int i = 0; i < PEERS; i++)
            peers[i].honest = false;
        caller_close(request, "test");
        break;
    }
}

/* ---- the peers ---- */

static void peer_connect(struct peer *peer)
{
    *peer = (struct peer){.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0),
        .honest = failing == 0,
        .sending = true,
        .keep = true};
    connects++;
    REQUIRE(peer->fd >= 0);
    REQUIRE(connect(peer->fd, (const struct sockaddr *)&address, address_length) == 0);
}

/* What was sent may have met a closed connection. */
static void peer_send(struct peer *peer, const uint8_t *bytes, size_t length)
{
    ssize_t sent = send(peer->fd, bytes, length, MSG_NOSIGNAL);

    if (sent != (ssize_t)length)
        peer->honest = false;
}

static size_t put_record(
    uint8_t *at, unsigned type, unsigned id, const void *content, size_t length)
{
    uint8_t header[8] = {1, (uint8_t)type, (uint8_t)(id >> 8), (uint8_t)id, (uint8_t)(length >> 8),
        (uint8_t)length, 0, 0};

    memcpy(at, header, 8);
    if (length)
        memcpy(at + 8, content, length);
    return 8 + length;
}

static size_t put_pair(uint8_t *at, const char *name, const char *value)
{
    size_t n = strlen(name), v = strlen(value);

    at[0] = (uint8_t)n;
    at[1] = (uint8_t)v;
    memcpy(at + 2, name, n);
    memcpy(at + 2 + n, value, v);
    return 2 + n + v;
}

/* Composes a request of an honest peer. */
static void peer_compose(struct peer *peer, struct script *script)
{
    unsigned form = script_byte(script);
    uint8_t params[200];
    char uri[20];
    size_t length = 0, at = 0;

    peer->id = (uint16_t)(1 + form / 64);
    peer->keep = form & 1;
    peer->serial = ++serials;
    snprintf(uri, sizeof uri, "#%u", peer->serial);
    if (form & 2)
        length += put_pair(params + length, "HTTP_COOKIE", "a=b");
    length += put_pair(params + length, "REQUEST_URI", uri);
    if (form & 4)
        length += put_pair(params + length, "REQUEST_URI", "/again");
    at += put_record(peer->rest, 1, peer->id, (uint8_t[8]){0, 1, peer->keep}, 8);
    at += put_record(peer->rest + at, 4, peer->id, params, length / 2);
    at += put_record(peer->rest + at, 4, peer->id, params + length / 2, length - length / 2);
    at += put_record(peer->rest + at, 4, peer->id, NULL, 0);
    if (form & 8)
        at += put_record(peer->rest + at, 5, peer->id, "body", 4);
    at += put_record(peer->rest + at, 5, peer->id, NULL, 0);
    peer->rest_length = at;
    peer->rest_at = 0;
    peer->partial = true;
}

/* Sends the next part of a request, or begins one. */
static void peer_request(struct peer *peer, struct script *script)
{
    size_t length;

    if (!peer->sending || peer->waiting || !peer->keep)
        return;
    if (!peer->partial)
        peer_compose(peer, script);
    length = script_byte(script);
    length = length > 200 ? sizeof peer->rest : length;
    if (length > peer->rest_length - peer->rest_at)
        length = peer->rest_length - peer->rest_at;
    peer_send(peer, peer->rest + peer->rest_at, length);
    peer->rest_at += length;
    peer->partial = peer->rest_at < peer->rest_length;
    peer->waiting = !peer->partial;
}

/* A record that may or may not be in its place. */
static void peer_stray(struct peer *peer, struct script *script)
{
    uint8_t record[300];
    unsigned type = script_byte(script) % 13, id = script_byte(script) % 4;
    size_t length = script_byte(script) % 64, cut;
    uint8_t content[64];

    for (size_t i = 0; i < length; i++)
        content[i] = (uint8_t)script_byte(script);
    if (type == 1)
        length = 8;
    if (type == 1 && length)
        memcpy(content, (uint8_t[8]){0, 1, 1}, 8);
    length = put_record(record, type, id, content, length);
    cut = script_byte(script);
    peer->honest = false;
    peer_send(peer, record, cut < length ? cut : length);
    caller_turn();
    caller_act(script);
    if (cut < length)
        peer_send(peer, record + cut, length - cut);
}

static void peer_noise(struct peer *peer, struct script *script)
{
    uint8_t bytes[64];
    size_t length = script_byte(script) % sizeof bytes;

    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)script_byte(script);
    peer->honest = false;
    if (length > 0)
        peer_send(peer, bytes, length);
}

/* Checks the bytes of one answer: what comes before END_REQUEST is an answer to the last request.
 */
static void peer_check_answer(const struct peer *peer, const uint8_t *text, size_t length)
{
    char expected[64];
    size_t n = (size_t)snprintf(expected, sizeof expected, REPLY_HEAD "%u;", peer->serial);
    size_t empty = (size_t)snprintf(expected, sizeof expected, REPLY_HEAD "0;");

    /* It was refused, for want of memory, or the parameters came from a dishonest one. */
    if (length >= empty && memcmp(text, expected, empty) == 0)
        return;
    if (!peer->honest)
        return;
    snprintf(expected, sizeof expected, REPLY_HEAD "%u;", peer->serial);
    REQUIRE(length >= n && memcmp(text, expected, n) == 0);
    REQUIRE(length == (peer->serial % 3 == 0 ? 3000 : n));
}

/* Reads all whole records that have arrived, and what they mean. */
static void peer_parse(struct peer *peer)
{
    static uint8_t text[1 << 16];
    size_t at = 0, done = 0, text_length = 0;

    while (peer->received_length - at >= 8) {
        const uint8_t *header = peer->received + at;
        size_t length = header[4] * 256u + header[5], whole = 8 + length + header[6];
        unsigned id = header[2] * 256u + header[3];

        if (peer->received_length - at < whole)
            break;
        REQUIRE(header[0] == 1);
        at += whole;
        if (header[1] == 6) {
            memcpy(text + text_length, header + 8, length);
            text_length += length;
        } else if (header[1] == 3) {
            REQUIRE(length == 8);
            if (header[8 + 4] == 0) {
                peer_check_answer(peer, text, text_length);
                if (peer->honest)
                    REQUIRE(peer->waiting && id == peer->id);
                peer->waiting = false;
            } else {
                REQUIRE(!peer->honest && text_length == 0);
            }
            text_length = 0;
            done = at;
        } else {
            REQUIRE(id == 0 && (header[1] == 10 || header[1] == 11) && !peer->honest);
        }
        if (text_length == 0)
            done = at;
    }
    memmove(peer->received, peer->received + done, peer->received_length - done);
    peer->received_length -= done;
}

/* Reads what has arrived. False when the connection has been closed. */
static bool peer_read(struct peer *peer)
{
    for (;;) {
        ssize_t length = recv(peer->fd, peer->received + peer->received_length,
            sizeof peer->received - peer->received_length, 0);

        if (length > 0)
            peer->received_length += (size_t)length;
        peer_parse(peer);
        if (length > 0)
            continue;
        return length < 0 && errno == EAGAIN;
    }
}

/* A connection may be closed in the middle of nothing only, as seen by who plays by the rules. */
static void peer_closed(struct peer *peer)
{
    if (peer->honest) {
        REQUIRE(!peer->waiting);
        REQUIRE(peer->received_length == 0);
    }
    close(peer->fd);
    peer->fd = -1;
}

static void peer_act(struct script *script, unsigned what)
{
    struct peer *peer = &peers[what >> 3 & 3];

    if (peer->fd < 0) {
        peer_connect(peer);
        return;
    }
    switch (what % 8) {
    case 0:
    case 1:
    case 2:
        if (peer->honest)
            peer_request(peer, script);
        break;
    case 3:
        peer_stray(peer, script);
        break;
    case 4:
        peer_noise(peer, script);
        break;
    case 5:
        /* Its answer still comes, if it has asked for one. */
        shutdown(peer->fd, SHUT_WR);
        peer->sending = false;
        break;
    case 6:
        close(peer->fd);
        peer->fd = -1;
        break;
    default:
        if (!peer_read(peer))
            peer_closed(peer);
        break;
    }
}

/* Lets the clock go on. Who has sent half a request, or none, may be closed then. */
static void clock_act(struct script *script)
{
    fuzz_now += script_byte(script) * (100 * USEC_PER_MS);
}

static void memory_act(struct script *script)
{
    failing = script_byte(script) % 4;
    /* A refusal may end with the connection closed. */
    if (failing > 0)
        for (int i = 0; i < PEERS; i++)
            peers[i].honest = false;
}

/* ---- the whole ---- */

static void step(struct script *script)
{
    unsigned what = script_byte(script);

    switch (what >> 6) {
    case 0:
        peer_act(script, what);
        break;
    case 1:
        caller_turn();
        break;
    case 2:
        caller_act(script);
        break;
    default:
        if (what & 1)
            clock_act(script);
        else if (what & 2)
            memory_act(script);
        else if (what & 4)
            crowded = script_byte(script) % 8;
        else
            peer_act(script, what & 0x38);
        break;
    }
}

static void finish(void)
{
    failing = crowded = 0;
    fuzz_now += 2 * USEC_PER_SEC;
    for (int round = 0; round < 10 + 3 * connects; round++) {
        caller_turn();
        fuzz_now += USEC_PER_MS;
        while (held)
            caller_answer(held);
    }
    for (int i = 0; i < PEERS; i++) {
        struct peer *peer = &peers[i];

        if (peer->fd < 0)
            continue;
        if (!peer_read(peer))
            peer_closed(peer);
        else if (peer->honest)
            REQUIRE(!peer->waiting && peer->received_length == 0);
        if (peer->fd >= 0)
            close(peer->fd);
        peer->fd = -1;
    }
    for (int round = 0; round < 4; round++)
        caller_turn();
    while (held)
        caller_answer(held);
    connections_stop(connections);
    for (int round = 0; round < 4; round++) {
        caller_turn();
        while (held)
            caller_answer(held);
        fuzz_now += CONNECTION_ARRIVAL + 1;
    }
    REQUIRE(held == NULL);
    REQUIRE(connections_count(connections) == 0);
    connections_close(connections);
}

static int open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    REQUIRE(directory != NULL);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void start(void)
{
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    address_length = sizeof address;
    listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* An address without a path is made up by the kernel. */
    REQUIRE(bind(listen_fd, (struct sockaddr *)&address, sizeof address.sun_family) == 0);
    REQUIRE(listen(listen_fd, 4096) == 0);
    REQUIRE(getsockname(listen_fd, (struct sockaddr *)&address, &address_length) == 0);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    fuzz_now = clock_now();
    serials = 0;
    connects = 0;
    connections = connections_open(epoll_fd, listen_fd);
    REQUIRE(connections != NULL);
    for (int i = 0; i < PEERS; i++)
        peers[i].fd = -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script script = {data, size};
    int before = open_descriptors();

    start();
    while (script.left > 0)
        step(&script);
    finish();
    close(epoll_fd);
    close(listen_fd);
    REQUIRE(open_descriptors() == before);
    return 0;
}
