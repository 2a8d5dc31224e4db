/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * lookup-probe CONNINFO SECONDS same|wait
 *
 * Drives fcgi/lookup.c for the tests. Keys come from standard input, one a line: instance, URL and
 * session, separated by tabs. Results go to standard output.
 *
 * same: checks for changes and asks for payment in turn. All answers between two checks that find
 * the same number must be equal to each other. Prints the last ones as "answer STATUS CLAIMED
 * ORDER" and then "batches N versions N differences N".
 *
 * wait: checks for changes and asks only when the number has changed, as a worker may. Prints "paid
 * ORDER" for each key and ends when all are paid, with "batches N versions N missing N".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "lookup.h"

#define TIMEOUT    (2 * USEC_PER_SEC)
#define CHECK_EACH (5 * USEC_PER_MS)
#define KEYS_MAX   SESSION_BATCH_MAX
#define TEXT_MAX   (64 * KEYS_MAX)

struct probe {
    int epoll_fd;
    struct lookup *lookup;
    usec_t end;
    struct session_key keys[KEYS_MAX];
    const struct session_key *pointers[KEYS_MAX];
    size_t count;
    bool paid[KEYS_MAX]; /* wait: already printed */
    char answers[TEXT_MAX], before[TEXT_MAX];
    unsigned long batches, differences;
};

static bool is_over(const struct probe *probe)
{
    return clock_now() >= probe->end;
}

/* One step, after at most 100 ms. */
static enum lookup_event turn(struct probe *probe)
{
    usec_t left = lookup_due(probe->lookup) - clock_now();
    int timeout = (int)(usec_max(usec_min(left, 99 * USEC_PER_MS), 0) / USEC_PER_MS) + 1;
    struct epoll_event event;
    int count = epoll_wait(probe->epoll_fd, &event, 1, timeout);

    return lookup_step(probe->lookup, count > 0, clock_now());
}

static bool wait_ready(struct probe *probe)
{
    while (!lookup_ready(probe->lookup) && !is_over(probe))
        turn(probe);
    return !is_over(probe);
}

/* Whether what was sent has its result. */
static bool wait_result(struct probe *probe, enum lookup_event event)
{
    while (event == LOOKUP_EVENT_NOTHING)
        event = turn(probe);
    return event != LOOKUP_EVENT_FAILED;
}

static bool check(struct probe *probe)
{
    return wait_ready(probe) &&
           wait_result(probe, lookup_check_changes(probe->lookup, clock_now()));
}

/* The answers as one text: status, claim and order of each key. */
static void write_answers(struct probe *probe)
{
    size_t length = 0;

    for (size_t i = 0; i < probe->count && length < TEXT_MAX; i++) {
        struct session_answer answer = lookup_answers(probe->lookup)[i];

        length += (size_t)snprintf(probe->answers + length, TEXT_MAX - length, "answer %d %d %s\n",
            (int)answer.status, answer.claimed, answer.order_id ? answer.order_id : "-");
    }
}

static bool ask(struct probe *probe)
{
    if (!wait_ready(probe) || !wait_result(probe, lookup_send(probe->lookup, QUESTION_PAYMENT,
                                                      probe->pointers, probe->count, clock_now())))
        return false;
    probe->batches++;
    write_answers(probe);
    return true;
}

static void run_same(struct probe *probe)
{
    uint64_t known = 0; /* the version that `before` is of */

    check(probe);
    while (!is_over(probe)) {
        uint64_t version = lookup_version(probe->lookup);

        if (!ask(probe) || !check(probe) || lookup_version(probe->lookup) != version)
            continue;
        if (known == version && strcmp(probe->answers, probe->before) != 0)
            probe->differences++;
        known = version;
        memcpy(probe->before, probe->answers, sizeof probe->before);
    }
    printf("%sbatches %lu versions %lu differences %lu\n", probe->answers, probe->batches,
        (unsigned long)lookup_version(probe->lookup), probe->differences);
}

static size_t print_paid(struct probe *probe)
{
    size_t missing = 0;

    for (size_t i = 0; i < probe->count; i++) {
        struct session_answer answer = lookup_answers(probe->lookup)[i];

        if (answer.status == SESSION_PAID && !probe->paid[i]) {
            printf("paid %s\n", answer.order_id);
            probe->paid[i] = true;
        }
        missing += !probe->paid[i];
    }
    fflush(stdout);
    return missing;
}

static void run_wait(struct probe *probe)
{
    size_t missing = probe->count;
    uint64_t asked = 0;

    while (missing > 0 && !is_over(probe)) {
        uint64_t version;

        if (!check(probe))
            continue;
        version = lookup_version(probe->lookup);
        if (version != asked && ask(probe)) {
            asked = version;
            missing = print_paid(probe);
        }
        usleep((useconds_t)CHECK_EACH);
    }
    printf("batches %lu versions %lu missing %zu\n", probe->batches,
        (unsigned long)lookup_version(probe->lookup), missing);
}

static void read_keys(struct probe *probe)
{
    char line[1024];

    while (probe->count < KEYS_MAX && fgets(line, sizeof line, stdin)) {
        struct session_key *key = &probe->keys[probe->count];
        char *rest = strdup(line);

        rest[strcspn(rest, "\n")] = '\0';
        key->instance = strsep(&rest, "\t");
        key->url = strsep(&rest, "\t");
        key->session = rest;
        probe->pointers[probe->count++] = key;
    }
}

int main(int argc, char *argv[])
{
    static struct probe probe;

    if (argc != 4)
        return EXIT_FAILURE;
    read_keys(&probe);
    probe.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    probe.lookup = lookup_new(probe.epoll_fd, argv[1], NULL, TIMEOUT);
    probe.end = clock_now() + atoi(argv[2]) * USEC_PER_SEC;
    if (strcmp(argv[3], "same") == 0)
        run_same(&probe);
    else
        run_wait(&probe);
    lookup_free(probe.lookup);
    for (size_t i = 0; i < probe.count; i++)
        free((char *)(uintptr_t)probe.keys[i].instance);
    close(probe.epoll_fd);
    return EXIT_SUCCESS;
}
