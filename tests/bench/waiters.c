/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * waiters PATHS PER_SECOND PARKED TARGET...
 *
 * Sends one GET for each of the first PARKED lines of PATHS, PER_SECOND a second, to the targets in
 * turn (see target.h). Then sends one for the next line whenever a request has been answered, so
 * that PARKED wait at any time. Ends when there are no more lines and all requests are answered.
 *
 * Prints "sent" when the first PARKED are sent, and for each answer "LINE STATUS NANOSECONDS" with
 * the time of its arrival by CLOCK_MONOTONIC; status 0 is a connection closed without an answer.
 */
#include "target.h"

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
    int64_t per_second; /* requests sent at most */
    uint32_t parked;    /* requests that wait at a time */
    char **targets;
    uint32_t target_count;
    int epoll;
    int *sockets; /* of each line that was sent */
    uint32_t sent;
    uint32_t answered;
    bool no_more_lines;
};

/* Nanoseconds by CLOCK_MONOTONIC. */
static int64_t waiters_now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static const char *waiters_target_of(const struct waiters *waiters, uint32_t line)
{
    return waiters->targets[line % waiters->target_count];
}

static void waiters_send_one(struct waiters *waiters, const char *path)
{
    uint32_t line = waiters->sent++;
    int connection = target_request(waiters_target_of(waiters, line), path);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = line};

    waiters->sockets = reallocarray(waiters->sockets, waiters->sent, sizeof *waiters->sockets);
    if (!waiters->sockets)
        err(1, NULL);
    waiters->sockets[line] = connection;
    if (epoll_ctl(waiters->epoll, EPOLL_CTL_ADD, connection, &event) != 0)
        err(1, "epoll_ctl");
    if (waiters->sent == waiters->parked)
        puts("sent");
}

/* How many requests should have been sent by now. */
static int64_t waiters_count_due(const struct waiters *waiters, int64_t elapsed)
{
    int64_t allowed = (int64_t)waiters->parked + waiters->answered;
    int64_t paced = elapsed * waiters->per_second / INT64_C(1000000000);

    return paced < allowed ? paced : allowed;
}

static void waiters_send_due(struct waiters *waiters, int64_t elapsed)
{
    char path[TARGET_PATH_MAX];
    int64_t due = waiters_count_due(waiters, elapsed);

    while (!waiters->no_more_lines && waiters->sent < due) {
        if (fgets(path, sizeof path, waiters->paths)) {
            path[strcspn(path, "\n")] = '\0';
            waiters_send_one(waiters, path);
        } else {
            waiters->no_more_lines = true;
        }
    }
}

static void waiters_receive_one(struct waiters *waiters, uint32_t line, int64_t arrival)
{
    char answer[1024];
    ssize_t length = recv(waiters->sockets[line], answer, sizeof answer, 0);
    int status =
        target_status(waiters_target_of(waiters, line), answer, length > 0 ? (size_t)length : 0);

    printf("%" PRIu32 " %d %" PRId64 "\n", line, status, arrival);
    close(waiters->sockets[line]);
    waiters->answered++;
}

/* Waits for answers: for a millisecond while there are requests to send. */
static void waiters_receive(struct waiters *waiters)
{
    struct epoll_event events[256];
    int count = epoll_wait(waiters->epoll, events, 256, waiters->sent < waiters->parked ? 1 : -1);
    int64_t arrival = waiters_now();

    for (int i = 0; i < count; i++)
        waiters_receive_one(waiters, events[i].data.u32, arrival);
}

int main(int argc, char **argv)
{
    struct waiters waiters = {.epoll = epoll_create1(EPOLL_CLOEXEC)};
    int64_t start = waiters_now();

    if (argc < 5)
        errx(64, "usage: waiters PATHS PER_SECOND PARKED TARGET...");
    waiters.paths = fopen(argv[1], "re");
    waiters.per_second = atoi(argv[2]);
    waiters.parked = (uint32_t)atoi(argv[3]);
    waiters.targets = argv + 4;
    waiters.target_count = (uint32_t)argc - 4;
    if (!waiters.paths || waiters.epoll < 0)
        err(1, "%s", argv[1]);
    while (!waiters.no_more_lines || waiters.answered < waiters.sent) {
        waiters_send_due(&waiters, waiters_now() - start);
        fflush(stdout);
        waiters_receive(&waiters);
    }
    fclose(waiters.paths);
    free(waiters.sockets);
    return 0;
}
