/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * waiters PATHS PER_SECOND PORT...
 *
 * Sends one GET for each line of PATHS, so many a second, to the ports of 127.0.0.1 in turn, and
 * waits for all of them. Prints "sent" when all are on their way, and for each answer
 * "LINE STATUS NANOSECONDS" with the time of its arrival by CLOCK_MONOTONIC; status 0 is a
 * connection closed without an answer.
 */
#include <arpa/inet.h>
#include <err.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct waiters {
    FILE *paths;
    int64_t per_second;
    char **ports;
    uint32_t port_count;
    int epoll;
    int *sockets;
    uint32_t sent;
    uint32_t answered;
    bool all_sent;
};

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int connect_to(const char *port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)atoi(port)),
        .sin_addr = {htonl(INADDR_LOOPBACK)},
    };
    int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address) != 0)
        err(1, "connect to port %s", port);
    return connection;
}

static void send_one(struct waiters *waiters, const char *path)
{
    uint32_t line = waiters->sent++;
    int connection = connect_to(waiters->ports[line % waiters->port_count]);
    dprintf(connection, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);

    waiters->sockets = reallocarray(waiters->sockets, waiters->sent, sizeof *waiters->sockets);
    if (!waiters->sockets)
        err(1, NULL);
    waiters->sockets[line] = connection;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = line};
    if (epoll_ctl(waiters->epoll, EPOLL_CTL_ADD, connection, &event) != 0)
        err(1, "epoll_ctl");
}

static void send_due(struct waiters *waiters, int64_t elapsed)
{
    char path[4096];
    int64_t due = elapsed * waiters->per_second / INT64_C(1000000000);
    while (!waiters->all_sent && waiters->sent < due) {
        if (fgets(path, sizeof path, waiters->paths)) {
            path[strcspn(path, "\n")] = '\0';
            send_one(waiters, path);
        } else {
            waiters->all_sent = true;
            puts("sent");
        }
    }
}

static void receive_one(struct waiters *waiters, uint32_t line, int64_t arrival)
{
    int status = 0;
    char answer[1024];
    ssize_t length = recv(waiters->sockets[line], answer, sizeof answer - 1, 0);
    answer[length > 0 ? length : 0] = '\0';
    sscanf(answer, "HTTP/1.1 %d", &status);
    printf("%" PRIu32 " %d %" PRId64 "\n", line, status, arrival);
    close(waiters->sockets[line]);
    waiters->answered++;
}

static void receive(struct waiters *waiters)
{
    struct epoll_event events[256];
    int count = epoll_wait(waiters->epoll, events, 256, waiters->all_sent ? -1 : 1);
    int64_t arrival = now();
    for (int i = 0; i < count; i++)
        receive_one(waiters, events[i].data.u32, arrival);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        errx(64, "usage: waiters PATHS PER_SECOND PORT...");
    struct waiters waiters = {
        .paths = fopen(argv[1], "re"),
        .per_second = atoi(argv[2]),
        .ports = argv + 3,
        .port_count = (uint32_t)argc - 3,
        .epoll = epoll_create1(EPOLL_CLOEXEC),
    };
    if (!waiters.paths || waiters.epoll < 0)
        err(1, "%s", argv[1]);

    int64_t start = now();
    while (!waiters.all_sent || waiters.answered < waiters.sent) {
        send_due(&waiters, now() - start);
        fflush(stdout);
        receive(&waiters);
    }
    fclose(waiters.paths);
    free(waiters.sockets);
    return 0;
}
