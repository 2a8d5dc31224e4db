/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "target.h"

#include <arpa/inet.h>
#include <err.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <fastcgi.h>

/* The bytes of a request: the path is in it twice, as REQUEST_URI and as QUERY_STRING. */
struct buffer {
    unsigned char bytes[2 * TARGET_PATH_MAX + 512];
    size_t length;
};

static bool target_is_fastcgi(const char *target)
{
    return strchr(target, '/') != NULL;
}

static int target_connect(const struct sockaddr *address, socklen_t size, const char *target)
{
    int connection = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (connection < 0 || connect(connection, address, size) != 0)
        err(1, "connect to %s", target);
    return connection;
}

static int target_connect_http(const char *port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)atoi(port)),
        .sin_addr = {htonl(INADDR_LOOPBACK)},
    };

    return target_connect((struct sockaddr *)&address, sizeof address, port);
}

static int target_connect_fastcgi(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return target_connect((struct sockaddr *)&address, sizeof address, path);
}

static void buffer_add(struct buffer *buffer, const void *bytes, size_t length)
{
    if (length > sizeof buffer->bytes - buffer->length)
        errx(1, "a request is too long");
    memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
}

static void buffer_add_header(struct buffer *buffer, unsigned char type, size_t length)
{
    FCGI_Header header = {
        .version = FCGI_VERSION_1,
        .type = type,
        .requestIdB0 = 1,
        .contentLengthB1 = (unsigned char)(length >> 8),
        .contentLengthB0 = (unsigned char)length,
    };

    buffer_add(buffer, &header, sizeof header);
}

/* The length of a name or a value, always in its four-byte form. */
static void buffer_add_size(struct buffer *buffer, size_t size)
{
    uint32_t encoded = htonl((uint32_t)size | UINT32_C(0x80000000));

    buffer_add(buffer, &encoded, sizeof encoded);
}

static void buffer_add_pair(struct buffer *buffer, const char *name, const char *value)
{
    buffer_add_size(buffer, strlen(name));
    buffer_add_size(buffer, strlen(value));
    buffer_add(buffer, name, strlen(name));
    buffer_add(buffer, value, strlen(value));
}

static void target_make_fastcgi(struct buffer *request, const char *path)
{
    static const FCGI_BeginRequestBody begin = {.roleB0 = FCGI_RESPONDER};
    struct buffer params = {.length = 0};
    const char *query = strchr(path, '?');

    buffer_add_pair(&params, "REQUEST_METHOD", "GET");
    buffer_add_pair(&params, "REQUEST_URI", path);
    buffer_add_pair(&params, "QUERY_STRING", query ? query + 1 : "");

    buffer_add_header(request, FCGI_BEGIN_REQUEST, sizeof begin);
    buffer_add(request, &begin, sizeof begin);
    buffer_add_header(request, FCGI_PARAMS, params.length);
    buffer_add(request, params.bytes, params.length);
    buffer_add_header(request, FCGI_PARAMS, 0);
    buffer_add_header(request, FCGI_STDIN, 0);
}

static void target_make_http(struct buffer *request, const char *path)
{
    static const char method[] = "GET ", rest[] = " HTTP/1.1\r\nHost: localhost\r\n\r\n";

    buffer_add(request, method, strlen(method));
    buffer_add(request, path, strlen(path));
    buffer_add(request, rest, strlen(rest));
}

int target_request(const char *target, const char *path)
{
    bool fastcgi = target_is_fastcgi(target);
    struct buffer request = {.length = 0};
    int connection;

    (fastcgi ? target_make_fastcgi : target_make_http)(&request, path);
    connection = (fastcgi ? target_connect_fastcgi : target_connect_http)(target);
    /* The socket blocks: the whole is sent. */
    if (send(connection, request.bytes, request.length, MSG_NOSIGNAL) != (ssize_t)request.length)
        err(1, "send to %s", target);
    return connection;
}

int target_status(const char *target, const char *answer, size_t length)
{
    const char *mark = target_is_fastcgi(target) ? "Status: " : "HTTP/1.1 ";
    const char *found = memmem(answer, length, mark, strlen(mark));
    char digits[4] = "";

    if (found && length - (size_t)(found - answer) >= strlen(mark) + 3)
        memcpy(digits, found + strlen(mark), 3);
    return atoi(digits);
}
