/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * mutate SOCKET CORPUS SEED FIRST COUNT
 *
 * Sends mutated FastCGI streams to the pool at SOCKET, each on a connection of its own: numbers
 * FIRST to FIRST + COUNT - 1 of those that SEED makes of the streams in CORPUS, each of which is
 * preceded by its length, 32 bits in network byte order. The same number is the same stream.
 *
 * What comes back is checked: FastCGI records that an application may send, and no half of one
 * before the end. The first violation is printed, and the exit status is 1. At the end prints how
 * many records came back by type.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fastcgi.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define STREAMS_MAX 256
#define BYTES_MAX   (256 * 1024)
/* Connections that are left open and silent; the oldest is closed for a new one. */
#define SILENT_MAX 32
/* How long an answer is awaited. Some streams ask for a long poll, others never get one. */
#define PATIENCE_MS 20

struct bytes {
    uint8_t at[BYTES_MAX];
    size_t length;
};

struct stream {
    const uint8_t *at;
    size_t length;
};

/* What is done when the stream has been sent. */
enum ending {
    ENDING_CLOSE,      /* close at once, with the answer unread */
    ENDING_READ,       /* read for a moment, then close */
    ENDING_HALF_CLOSE, /* the same, after shutting down the sending side */
    ENDING_SILENT,     /* leave the connection open */
    ENDINGS,
};

/* The records that come back on a connection. */
struct reader {
    uint8_t header[8];
    size_t header_length;
    size_t left; /* of content and padding */
};

static struct stream corpus[STREAMS_MAX];
static size_t corpus_count;
static struct bytes bytes;
static uint64_t rng_state;
static unsigned long long record_counts[FCGI_MAXTYPE + 1];
static int silent[SILENT_MAX];

/* splitmix64. */
static uint64_t rng_next(void)
{
    uint64_t z = rng_state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static size_t rng_below(size_t limit)
{
    return limit ? (size_t)(rng_next() % limit) : 0;
}

static void corpus_load(const char *path)
{
    static uint8_t content[8 << 20];
    FILE *file = fopen(path, "re");
    size_t length = file ? fread(content, 1, sizeof content, file) : 0;
    uint32_t size;

    if (!file || ferror(file))
        err(1, "%s", path);
    fclose(file);
    for (size_t at = 0; at + 4 <= length && corpus_count < STREAMS_MAX; at += 4 + size) {
        memcpy(&size, content + at, 4);
        size = ntohl(size);
        if (size > BYTES_MAX || size > length - at - 4)
            errx(1, "%s: cut short", path);
        corpus[corpus_count++] = (struct stream){content + at + 4, size};
    }
    if (corpus_count == 0)
        errx(1, "%s: no streams", path);
}

/* ---- mutations ---- */

/* Puts these bytes in the place of the removed ones, as far as there is room. */
static void bytes_replace(size_t at, size_t removed, const uint8_t *added, size_t length)
{
    if (length > BYTES_MAX - (bytes.length - removed))
        return;
    memmove(bytes.at + at + length, bytes.at + at + removed, bytes.length - at - removed);
    if (length > 0)
        memcpy(bytes.at + at, added, length);
    bytes.length += length - removed;
}

static void mutate_byte(void)
{
    static const uint8_t edges[] = {0, 1, 2, 8, 0x7f, 0x80, 0xfe, 0xff};
    size_t at = rng_below(bytes.length);

    if (rng_below(2))
        bytes.at[at] ^= (uint8_t)(1u << rng_below(8));
    else
        bytes.at[at] = edges[rng_below(sizeof edges)];
}

static void mutate_remove(void)
{
    size_t at = rng_below(bytes.length), left = bytes.length - at;

    bytes_replace(at, rng_below(rng_below(2) ? left + 1 : (left < 16 ? left : 16)), NULL, 0);
}

static void mutate_repeat(void)
{
    static uint8_t copy[BYTES_MAX];
    size_t at = rng_below(bytes.length);
    size_t length = rng_below(bytes.length - at < 4096 ? bytes.length - at : 4096);

    memcpy(copy, bytes.at + at, length);
    for (size_t times = 1 + rng_below(4); times > 0; times--)
        bytes_replace(at, 0, copy, length);
}

static void mutate_insert(void)
{
    uint8_t noise[32];

    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)rng_next();
    bytes_replace(rng_below(bytes.length), 0, noise, rng_below(sizeof noise));
}

/* The beginning of this stream, and the end of another one. */
static void mutate_splice(void)
{
    struct stream other = corpus[rng_below(corpus_count)];
    size_t at = rng_below(bytes.length), from = rng_below(other.length);

    bytes_replace(at, bytes.length - at, other.at + from, other.length - from);
}

/* A field of a record's header: its lengths, type, id or version. */
static void mutate_header(void)
{
    size_t headers[64], count = 0, at = 0;

    while (at + 8 <= bytes.length && count < 64) {
        headers[count++] = at;
        at += 8 + (size_t)bytes.at[at + 4] * 256 + bytes.at[at + 5] + bytes.at[at + 6];
    }
    if (count == 0)
        return;
    at = headers[rng_below(count)];
    bytes.at[at + rng_below(8)] = (uint8_t)(rng_below(2) ? rng_below(13) : rng_next());
}

static void mutate_cut(void)
{
    bytes.length = rng_below(bytes.length);
}

static void mutate_once(void)
{
    static void (*const mutations[])(void) = {mutate_byte, mutate_byte, mutate_header,
        mutate_header, mutate_remove, mutate_repeat, mutate_insert, mutate_splice, mutate_cut};

    if (bytes.length > 0)
        mutations[rng_below(sizeof mutations / sizeof mutations[0])]();
}

static void bytes_make(uint64_t seed, uint64_t number)
{
    struct stream stream;

    rng_state = seed * UINT64_C(0x2545f4914f6cdd1d) + number;
    rng_next();
    stream = corpus[rng_below(corpus_count)];
    memcpy(bytes.at, stream.at, stream.length);
    bytes.length = stream.length;
    for (size_t times = 1 + rng_below(4); times > 0; times--)
        mutate_once();
}

/* ---- the connection ---- */

static int pool_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = 10};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof address) != 0)
        err(1, "%s", path);
    return fd;
}

/* In one piece or several. False if the pool takes no more, without having closed. */
static bool pool_send(int fd)
{
    size_t at = 0;

    while (at < bytes.length) {
        size_t left = bytes.length - at, piece = rng_below(3) ? left : 1 + rng_below(left);
        ssize_t sent = send(fd, bytes.at + at, piece, MSG_NOSIGNAL);

        if (sent < 0)
            return errno == EPIPE || errno == ECONNRESET;
        at += (size_t)sent;
    }
    return true;
}

/* A header has come: may an application send it? */
static bool reader_header_is_sound(struct reader *reader)
{
    const uint8_t *header = reader->header;
    size_t content = (size_t)header[4] * 256 + header[5];

    reader->left = content + header[6];
    reader->header_length = 0;
    if (header[0] != FCGI_VERSION_1 || header[1] > FCGI_MAXTYPE)
        return false;
    record_counts[header[1]]++;
    switch (header[1]) {
    case FCGI_STDOUT:
    case FCGI_STDERR:
        return header[2] || header[3];
    case FCGI_END_REQUEST:
        return content == sizeof(FCGI_EndRequestBody) && (header[2] || header[3]);
    case FCGI_GET_VALUES_RESULT:
        return header[2] == 0 && header[3] == 0;
    case FCGI_UNKNOWN_TYPE:
        return content == sizeof(FCGI_UnknownTypeBody) && header[2] == 0 && header[3] == 0;
    default:
        return false;
    }
}

static bool reader_read(struct reader *reader, const uint8_t *at, size_t length)
{
    while (length > 0) {
        if (reader->left > 0) {
            size_t n = reader->left < length ? reader->left : length;

            reader->left -= n;
            at += n;
            length -= n;
            continue;
        }
        reader->header[reader->header_length++] = *at++;
        length--;
        if (reader->header_length == sizeof reader->header && !reader_header_is_sound(reader))
            return false;
    }
    return true;
}

/* Reads until the pool closes, or has nothing to say for a while. NULL, or what is wrong. */
static const char *pool_read(int fd)
{
    static uint8_t buffer[65536];
    struct pollfd peer = {.fd = fd, .events = POLLIN};
    struct reader reader = {0};

    while (poll(&peer, 1, PATIENCE_MS) > 0) {
        ssize_t length = recv(fd, buffer, sizeof buffer, 0);

        if (length == 0 && (reader.header_length > 0 || reader.left > 0))
            return "closed within a record";
        if (length <= 0)
            return NULL;
        if (!reader_read(&reader, buffer, (size_t)length))
            return "sent what no application may send";
    }
    return NULL;
}

static const char *pool_try(const char *path, uint64_t number)
{
    enum ending ending = (enum ending)rng_below(ENDINGS);
    int fd = pool_connect(path), *place = &silent[number % SILENT_MAX];
    const char *wrong = pool_send(fd) ? NULL : "does not read";

    if (!wrong && ending == ENDING_HALF_CLOSE)
        shutdown(fd, SHUT_WR);
    if (!wrong && (ending == ENDING_READ || ending == ENDING_HALF_CLOSE))
        wrong = pool_read(fd);
    if (ending != ENDING_SILENT) {
        close(fd);
        return wrong;
    }
    if (*place > 0)
        close(*place);
    *place = fd;
    return wrong;
}

int main(int argc, char **argv)
{
    uint64_t seed, first, count;

    if (argc != 6)
        errx(64, "usage: mutate SOCKET CORPUS SEED FIRST COUNT");
    corpus_load(argv[2]);
    seed = strtoull(argv[3], NULL, 10);
    first = strtoull(argv[4], NULL, 10);
    count = strtoull(argv[5], NULL, 10);
    for (uint64_t number = first; number < first + count; number++) {
        const char *wrong;

        bytes_make(seed, number);
        wrong = pool_try(argv[1], number);
        if (wrong)
            errx(1, "seed %llu, stream %llu: the pool %s", (unsigned long long)seed,
                (unsigned long long)number, wrong);
    }
    for (int type = 0; type <= FCGI_MAXTYPE; type++)
        if (record_counts[type])
            printf("%d %llu\n", type, record_counts[type]);
    return 0;
}
