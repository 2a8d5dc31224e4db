/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "pool.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "worker.h"

#define PAUSE_MIN (100 * USEC_PER_MS)
#define PAUSE_MAX (10 * USEC_PER_SEC)
/* A worker that has lived so long died of something else than its start. */
#define LONG_LIFE (10 * USEC_PER_SEC)
/* When workers that do not stop are killed. */
#define STOP_LIMIT (1900 * USEC_PER_MS)

/* The place of one worker. */
struct slot {
    pid_t pid; /* 0: none */
    usec_t born;
    usec_t pause; /* before the next one that has to replace it */
    usec_t due;   /* when to start one, if there is none */
};

struct pool {
    const struct options *options;
    int listen_fd;
    sigset_t signals;
    struct slot *slots;
    pid_t retiring;  /* the worker that a SIGHUP has told to stop; 0: none */
    int replacing;   /* the next slot whose worker a SIGHUP replaces; options->workers: none */
    usec_t stop_due; /* when to kill those who have not stopped; USEC_NEVER: not stopping */
};

static _Noreturn void become_worker(const struct pool *pool, pid_t parent)
{
    /* The terminal's signals are for the pool, which passes on what they mean. */
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        exit(EXIT_FAILURE);
    sigprocmask(SIG_UNBLOCK, &pool->signals, NULL);
    exit(worker_run(pool->options, pool->listen_fd));
}

static void start_worker(struct pool *pool, struct slot *slot, usec_t now)
{
    pid_t parent = getpid(), pid = fork();

    if (pid == 0)
        become_worker(pool, parent);
    slot->born = now;
    slot->pid = pid > 0 ? pid : 0;
    if (pid > 0)
        return;
    log_error("cannot start a worker: %s", strerror(errno));
    slot->due = now + PAUSE_MAX;
}

static void start_due(struct pool *pool, usec_t now)
{
    for (int i = 0; i < pool->options->workers; i++)
        if (pool->slots[i].pid == 0 && pool->slots[i].due <= now)
            start_worker(pool, &pool->slots[i], now);
}

static void log_death(pid_t pid, int status, usec_t pause)
{
    const char *how = WIFSIGNALED(status) ? "killed by signal" : "ended with status";
    int number = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);

    log_error(
        "worker %d %s %d; replaced in %d ms", (int)pid, how, number, (int)(pause / USEC_PER_MS));
}

static void worker_died(struct slot *slot, int status, usec_t now)
{
    if (now - slot->born >= LONG_LIFE)
        slot->pause = PAUSE_MIN;
    log_death(slot->pid, status, slot->pause);
    slot->pid = 0;
    slot->due = now + slot->pause;
    slot->pause = usec_min(slot->pause * 2, PAUSE_MAX);
}

static void reap(struct pool *pool, usec_t now)
{
    pid_t pid;
    int status;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == pool->retiring)
            pool->retiring = 0;
        for (int i = 0; i < pool->options->workers; i++) {
            if (pool->slots[i].pid != pid)
                continue;
            if (pool->stop_due == USEC_NEVER)
                worker_died(&pool->slots[i], status, now);
            else
                pool->slots[i].pid = 0;
        }
    }
}

/* Goes on with replacing: the next one only when the last one has gone. */
static void replace_next(struct pool *pool, usec_t now)
{
    while (pool->retiring == 0 && pool->replacing < pool->options->workers) {
        struct slot *slot = &pool->slots[pool->replacing++];

        if (slot->pid == 0)
            continue;
        pool->retiring = slot->pid;
        start_worker(pool, slot, now);
        if (slot->pid != 0) {
            kill(pool->retiring, SIGTERM);
        } else {
            /* No process can be had: the old one stays. */
            slot->pid = pool->retiring;
            pool->retiring = 0;
        }
        if (pool->replacing == pool->options->workers)
            log_info("workers replaced");
    }
}

/* Whether any worker is left, the retiring one included. */
static bool signal_all(const struct pool *pool, int signal)
{
    bool any = pool->retiring != 0;

    if (pool->retiring)
        kill(pool->retiring, signal);
    for (int i = 0; i < pool->options->workers; i++) {
        if (pool->slots[i].pid)
            kill(pool->slots[i].pid, signal);
        any = any || pool->slots[i].pid != 0;
    }
    return any;
}

static usec_t next_due(const struct pool *pool)
{
    usec_t due = pool->stop_due;

    if (pool->stop_due != USEC_NEVER)
        return due;
    for (int i = 0; i < pool->options->workers; i++)
        if (pool->slots[i].pid == 0)
            due = usec_min(due, pool->slots[i].due);
    return due;
}

/* Sleeps until a signal arrives, and returns it, or until something is due, and returns 0. */
static int wait_for_signal(const struct pool *pool)
{
    usec_t due = next_due(pool), left;
    struct timespec timeout;
    int signal;

    if (due == USEC_NEVER) {
        signal = sigwaitinfo(&pool->signals, NULL);
    } else {
        left = usec_max(due - clock_now(), 0);
        timeout.tv_sec = left / USEC_PER_SEC;
        timeout.tv_nsec = left % USEC_PER_SEC * 1000;
        signal = sigtimedwait(&pool->signals, NULL, &timeout);
    }
    return signal > 0 ? signal : 0;
}

static void handle_signal(struct pool *pool, int signal, usec_t now)
{
    switch (signal) {
    case SIGCHLD:
        reap(pool, now);
        break;
    case SIGHUP:
        pool->replacing = 0;
        break;
    case SIGTERM:
    case SIGINT:
        if (pool->stop_due != USEC_NEVER)
            break;
        log_info("stopping");
        pool->stop_due = now + STOP_LIMIT;
        signal_all(pool, SIGTERM);
        break;
    default:
        break;
    }
}

static void supervise(struct pool *pool)
{
    while (pool->stop_due == USEC_NEVER) {
        int signal = wait_for_signal(pool);
        usec_t now = clock_now();

        handle_signal(pool, signal, now);
        if (pool->stop_due == USEC_NEVER) {
            start_due(pool, now);
            replace_next(pool, now);
        }
    }
}

/* Waits for the workers to end; false if one had to be killed. */
static bool await_end(struct pool *pool)
{
    while (signal_all(pool, 0)) {
        int signal = wait_for_signal(pool);
        usec_t now = clock_now();

        handle_signal(pool, signal, now);
        if (now < pool->stop_due)
            continue;
        log_error("a worker did not stop in time, and is killed");
        signal_all(pool, SIGKILL);
        return false;
    }
    return true;
}

int pool_run(const struct options *options, int listen_fd)
{
    struct pool pool = {
        .options = options,
        .listen_fd = listen_fd,
        .slots = calloc((size_t)options->workers, sizeof *pool.slots),
        .replacing = options->workers,
        .stop_due = USEC_NEVER,
    };
    bool ok;

    if (!pool.slots) {
        log_error("out of memory");
        return EXIT_FAILURE;
    }
    sigemptyset(&pool.signals);
    sigaddset(&pool.signals, SIGCHLD);
    sigaddset(&pool.signals, SIGTERM);
    sigaddset(&pool.signals, SIGINT);
    sigaddset(&pool.signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &pool.signals, NULL);
    for (int i = 0; i < options->workers; i++)
        pool.slots[i].pause = PAUSE_MIN;
    start_due(&pool, clock_now());
    log_info("pool of %d workers", options->workers);
    supervise(&pool);
    ok = await_end(&pool);
    free(pool.slots);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
