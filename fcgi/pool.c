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
#include "listener.h"
#include "log.h"
#include "metrics.h"
#include "state.h"
#include "worker.h"

/* A worker that ran this long did not fail at its start. */
#define START_TIME USEC_PER_SEC
/* Limits of the pause before a worker that failed at its start is replaced. */
#define PAUSE_MIN (100 * USEC_PER_MS)
#define PAUSE_MAX (10 * USEC_PER_SEC)
/* Limit of that pause while there is no worker at all. */
#define AWAY_MAX (900 * USEC_PER_MS)
/* Time that a worker has to stop before it is killed. The worker's own limit is shorter. */
#define STOP_GRACE (1800 * USEC_PER_MS)
/* Limit of the wait for killed workers when the pool stops. */
#define KILL_GRACE (100 * USEC_PER_MS)

/*
 * A slot holds one worker process. There is one slot more than there are workers, for the new
 * worker in a replacement. Its transitions are made by the functions pool_slot_*:
 *
 *     SPARE or PAUSED       start   STARTING (PAUSED if fork() fails)
 *     STARTING              due     SERVING
 *     STARTING or SERVING   died    PAUSED
 *     STARTING or SERVING   retire  RETIRING
 *     PAUSED                retire  SPARE
 *     RETIRING              due     KILLED
 *     RETIRING or KILLED    died    SPARE
 */
enum slot_state {
    SLOT_SPARE,    /* no process, and none is wanted; never due */
    SLOT_PAUSED,   /* no process; due: when one is to be started */
    SLOT_STARTING, /* a young process; due: when it has survived its start */
    SLOT_SERVING,  /* a process that has survived its start; never due */
    SLOT_RETIRING, /* a process that was asked to stop; due: when it is to be killed */
    SLOT_KILLED,   /* a process that was sent SIGKILL, and has not been reaped; never due */
};

static const unsigned slot_sources[] = {
    [SLOT_SPARE] = STATE_SET(SLOT_PAUSED) | STATE_SET(SLOT_RETIRING) | STATE_SET(SLOT_KILLED),
    [SLOT_PAUSED] = STATE_SET(SLOT_SPARE) | STATE_SET(SLOT_PAUSED) | STATE_SET(SLOT_STARTING) |
                    STATE_SET(SLOT_SERVING),
    [SLOT_STARTING] = STATE_SET(SLOT_SPARE) | STATE_SET(SLOT_PAUSED),
    [SLOT_SERVING] = STATE_SET(SLOT_STARTING),
    [SLOT_RETIRING] = STATE_SET(SLOT_STARTING) | STATE_SET(SLOT_SERVING),
    [SLOT_KILLED] = STATE_SET(SLOT_RETIRING),
};

struct slot {
    enum slot_state state;
    usec_t due;          /* USEC_NEVER: never */
    pid_t pid;           /* where there is a process */
    unsigned generation; /* of the process: that of the pool when it was started */
    usec_t pause;        /* after the last failure at start; 0: no failure since one survived it */
};

enum pool_state {
    POOL_SERVING,   /* no process is of an older generation */
    POOL_REPLACING, /* after a SIGHUP, while there are processes of an older generation */
    POOL_STOPPING,  /* all processes were asked to stop; none is started any more */
};

static const unsigned pool_sources[] = {
    [POOL_SERVING] = STATE_SET(POOL_REPLACING),
    [POOL_REPLACING] = STATE_SET(POOL_SERVING) | STATE_SET(POOL_REPLACING),
    [POOL_STOPPING] = STATE_SET(POOL_SERVING) | STATE_SET(POOL_REPLACING),
};

struct pool {
    const struct options *options;
    int listen_fd;
    sigset_t signals;
    enum pool_state state;
    unsigned generation; /* number of SIGHUPs so far */
    usec_t stop_due;     /* when a stopping pool gives up what is left; USEC_NEVER: not stopping */
    bool killed;         /* a worker had to be killed while stopping */
    struct metrics *metrics; /* with the same slots */
    size_t slot_count;
    struct slot slots[];
};

static _Noreturn void pool_become_worker(struct pool *pool, const struct slot *slot, pid_t parent)
{
    const struct options *options = pool->options;
    struct metrics *metrics = pool->metrics;
    int listen_fd = pool->listen_fd, status;
    sigset_t children;

    /* A terminal sends its signals to all processes of a group. Only the pool is to get them; it
     * passes them on. */
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        exit(EXIT_FAILURE);
    /* Signals that stop a worker stay blocked until worker_run() has its handlers: a signal
     * between libfcgi's handlers and ours would be lost. */
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_UNBLOCK, &children, NULL);
    metrics_enter(metrics, (size_t)(slot - pool->slots));
    free(pool);
    status = worker_run(options, listen_fd, metrics);
    metrics_free(metrics);
    exit(status);
}

/* All transitions of pool_state. */
static void pool_set_state(struct pool *pool, enum pool_state state)
{
    state_check(pool_sources, pool->state, state);
    pool->state = state;
}

/* All transitions of slot_state. */
static void pool_slot_set_state(struct slot *slot, enum slot_state state, usec_t due)
{
    state_check(slot_sources, slot->state, state);
    slot->state = state;
    slot->due = due;
}

static void pool_slot_free(struct slot *slot)
{
    slot->pause = 0;
    pool_slot_set_state(slot, SLOT_SPARE, USEC_NEVER);
}

static bool pool_slot_active(const struct slot *slot)
{
    return slot->state == SLOT_STARTING || slot->state == SLOT_SERVING;
}

static bool pool_slot_has_process(const struct slot *slot)
{
    return pool_slot_active(slot) || slot->state == SLOT_RETIRING || slot->state == SLOT_KILLED;
}

static usec_t pool_next_pause(usec_t pause)
{
    return pause ? usec_min(pause * 2, PAUSE_MAX) : PAUSE_MIN;
}

/* SPARE or PAUSED to STARTING; or to PAUSED, with growing pauses, where fork() fails. */
static void pool_slot_start(struct pool *pool, struct slot *slot, usec_t now)
{
    pid_t parent = getpid(), pid = fork();

    if (pid == 0)
        pool_become_worker(pool, slot, parent);
    if (pid < 0) {
        slot->pause = pool_next_pause(slot->pause);
        log_error("cannot start a worker: %s; trying again in at most %d ms", strerror(errno),
            (int)(slot->pause / USEC_PER_MS));
        pool_slot_set_state(slot, SLOT_PAUSED, now + slot->pause);
        return;
    }
    slot->pid = pid;
    slot->generation = pool->generation;
    pool_slot_set_state(slot, SLOT_STARTING, now + START_TIME);
}

/* RETIRING to KILLED. */
static void pool_slot_kill(struct pool *pool, struct slot *slot)
{
    log_error("worker %d did not stop within %d ms and is killed", (int)slot->pid,
        (int)(STOP_GRACE / USEC_PER_MS));
    kill(slot->pid, SIGKILL);
    if (pool->state == POOL_STOPPING)
        pool->killed = true;
    pool_slot_set_state(slot, SLOT_KILLED, USEC_NEVER);
}

/* Handles a slot whose time is due. */
static void pool_slot_handle_due(struct pool *pool, struct slot *slot, usec_t now)
{
    switch (slot->state) {
    case SLOT_PAUSED:
        pool_slot_start(pool, slot, now);
        break;
    case SLOT_STARTING:
        slot->pause = 0;
        pool_slot_set_state(slot, SLOT_SERVING, USEC_NEVER);
        break;
    case SLOT_RETIRING:
        pool_slot_kill(pool, slot);
        break;
    case SLOT_SPARE:
    case SLOT_SERVING:
    case SLOT_KILLED:
        break;
    }
}

/* Gives up the process of a slot: active to RETIRING, PAUSED to SPARE. */
static void pool_slot_retire(struct slot *slot, usec_t now)
{
    switch (slot->state) {
    case SLOT_STARTING:
    case SLOT_SERVING:
        kill(slot->pid, SIGTERM);
        pool_slot_set_state(slot, SLOT_RETIRING, now + STOP_GRACE);
        break;
    case SLOT_PAUSED:
        pool_slot_free(slot);
        break;
    case SLOT_SPARE:
    case SLOT_RETIRING:
    case SLOT_KILLED:
        break;
    }
}

/* Signals that a process gets for its own faults; others come from outside. */
static bool pool_is_crash(int signal)
{
    static const int crashes[] = {SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS};

    for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++)
        if (signal == crashes[i])
            return true;
    return false;
}

/* Whether a worker that died in its first second failed, rather than was stopped from outside. */
static bool pool_has_failed(int status)
{
    if (WIFSIGNALED(status))
        return pool_is_crash(WTERMSIG(status));
    return WEXITSTATUS(status) != EXIT_SUCCESS;
}

static const char *pool_end_text(int status)
{
    return WIFSIGNALED(status) ? "killed by signal" : "ended with status";
}

static int pool_end_number(int status)
{
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

/* Active to PAUSED; with a pause only if the worker has failed at its start. */
static void pool_slot_restart(struct slot *slot, int status, usec_t now)
{
    int pid = (int)slot->pid, number = pool_end_number(status);
    const char *kind = pool_end_text(status);

    if (slot->state == SLOT_STARTING && pool_has_failed(status)) {
        slot->pause = pool_next_pause(slot->pause);
        log_error("worker %d %s %d at its start; replaced after a pause of at most %d ms", pid,
            kind, number, (int)(slot->pause / USEC_PER_MS));
        pool_slot_set_state(slot, SLOT_PAUSED, now + slot->pause);
    } else {
        log_error("worker %d %s %d; replaced at once", pid, kind, number);
        pool_slot_set_state(slot, SLOT_PAUSED, now);
    }
}

/* The process of a slot has been reaped. */
static void pool_slot_died(struct slot *slot, int status, usec_t now)
{
    switch (slot->state) {
    case SLOT_STARTING:
    case SLOT_SERVING:
        pool_slot_restart(slot, status, now);
        break;
    case SLOT_RETIRING:
        if (status != 0)
            log_error("worker %d %s %d while stopping", (int)slot->pid, pool_end_text(status),
                pool_end_number(status));
        pool_slot_free(slot);
        break;
    case SLOT_KILLED:
        pool_slot_free(slot);
        break;
    case SLOT_SPARE:
    case SLOT_PAUSED:
        break;
    }
}

/* Why the process of a slot has ended, for the metrics. */
static enum metrics_end pool_slot_end_kind(const struct pool *pool, const struct slot *slot)
{
    if (pool_slot_active(slot))
        return METRICS_END_DIED;
    return pool->state == POOL_STOPPING ? METRICS_END_STOPPED : METRICS_END_REPLACED;
}

static void pool_reap(struct pool *pool, usec_t now)
{
    pid_t pid;
    int status;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (size_t i = 0; i < pool->slot_count; i++)
            if (pool_slot_has_process(&pool->slots[i]) && pool->slots[i].pid == pid) {
                metrics_leave(pool->metrics, i, pool_slot_end_kind(pool, &pool->slots[i]));
                pool_slot_died(&pool->slots[i], status, now);
            }
}

static bool pool_slot_outdated(const struct pool *pool, const struct slot *slot)
{
    return pool_slot_has_process(slot) && slot->generation != pool->generation;
}

/* The active slot of the oldest generation, or NULL. */
static struct slot *pool_find_oldest(struct pool *pool)
{
    struct slot *oldest = NULL;

    for (size_t i = 0; i < pool->slot_count; i++) {
        struct slot *slot = &pool->slots[i];

        if (pool_slot_active(slot) && (!oldest || slot->generation < oldest->generation))
            oldest = slot;
    }
    return oldest;
}

/* A slot in this state, or NULL. Of several in PAUSED it is the one that is due first. */
static struct slot *pool_find_slot(struct pool *pool, enum slot_state state)
{
    struct slot *found = NULL;

    for (size_t i = 0; i < pool->slot_count; i++)
        if (pool->slots[i].state == state && (!found || pool->slots[i].due < found->due))
            found = &pool->slots[i];
    return found;
}

static int pool_count_active(const struct pool *pool)
{
    int count = 0;

    for (size_t i = 0; i < pool->slot_count; i++)
        count += pool_slot_active(&pool->slots[i]);
    return count;
}

/* Whether all workers that are wanted are there and have survived their start. */
static bool pool_all_serving(const struct pool *pool)
{
    for (size_t i = 0; i < pool->slot_count; i++)
        if (pool->slots[i].state == SLOT_PAUSED || pool->slots[i].state == SLOT_STARTING)
            return false;
    return true;
}

static bool pool_any_outdated(const struct pool *pool)
{
    for (size_t i = 0; i < pool->slot_count; i++)
        if (pool_slot_outdated(pool, &pool->slots[i]))
            return true;
    return false;
}

/* The slot to retire, or NULL: the oldest worker if there is one too many; or the pause of a new
 * worker that died, where no old one is left to replace. */
static struct slot *pool_find_surplus(struct pool *pool)
{
    int active = pool_count_active(pool);
    struct slot *paused = pool_find_slot(pool, SLOT_PAUSED);

    if (active > pool->options->workers)
        return pool_find_oldest(pool);
    if (active == pool->options->workers && !pool_any_outdated(pool))
        return paused;
    return NULL;
}

/* The next step of a replacement: starts a new worker when the spare slot is free, that is when
 * the last old worker has ended and the last new one has survived its start. */
static void pool_replace(struct pool *pool, usec_t now)
{
    struct slot *oldest = pool_find_oldest(pool), *spare = pool_find_slot(pool, SLOT_SPARE),
                *surplus;

    if (oldest && pool_slot_outdated(pool, oldest) && spare && pool_all_serving(pool))
        pool_slot_start(pool, spare, now);
    surplus = pool_find_surplus(pool);
    if (surplus)
        pool_slot_retire(surplus, now);
    if (pool_any_outdated(pool) || !pool_find_slot(pool, SLOT_SPARE))
        return;
    log_info("workers replaced");
    pool_set_state(pool, POOL_SERVING);
}

/* While there is no worker requests wait: the next one is started soon, however often it has
 * failed. */
static void pool_bound_absence(struct pool *pool, usec_t now)
{
    struct slot *paused = pool_find_slot(pool, SLOT_PAUSED);

    if (paused && pool_count_active(pool) == 0)
        paused->due = usec_min(paused->due, now + AWAY_MAX);
}

/* Does what is due. */
static void pool_step(struct pool *pool, usec_t now)
{
    for (size_t i = 0; i < pool->slot_count; i++)
        if (pool->slots[i].due <= now)
            pool_slot_handle_due(pool, &pool->slots[i], now);
    if (pool->state == POOL_REPLACING)
        pool_replace(pool, now);
    pool_bound_absence(pool, now);
}

static void pool_begin_stopping(struct pool *pool, usec_t now)
{
    if (pool->state == POOL_STOPPING)
        return;
    log_info("stopping");
    pool_set_state(pool, POOL_STOPPING);
    pool->stop_due = now + STOP_GRACE + KILL_GRACE;
    if (pool->options->listen)
        listener_refuse(pool->listen_fd);
    for (size_t i = 0; i < pool->slot_count; i++)
        pool_slot_retire(&pool->slots[i], now);
}

/* A SIGHUP during a replacement replaces all workers that are older than it. */
static void pool_begin_replacing(struct pool *pool)
{
    if (pool->state == POOL_STOPPING)
        return;
    pool->generation++;
    pool_set_state(pool, POOL_REPLACING);
}

static bool pool_has_ended(const struct pool *pool, usec_t now)
{
    if (pool->state != POOL_STOPPING)
        return false;
    for (size_t i = 0; i < pool->slot_count; i++)
        if (pool_slot_has_process(&pool->slots[i]))
            return now >= pool->stop_due;
    return true;
}

static usec_t pool_due(const struct pool *pool)
{
    usec_t due = pool->stop_due;

    for (size_t i = 0; i < pool->slot_count; i++)
        due = usec_min(due, pool->slots[i].due);
    return due;
}

/* Sleeps until a signal arrives, and returns it, or until something is due, and returns 0. */
static int pool_wait(const struct pool *pool)
{
    usec_t due = pool_due(pool), left;
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

static void pool_handle_signal(struct pool *pool, int signal, usec_t now)
{
    switch (signal) {
    case SIGCHLD:
        pool_reap(pool, now);
        break;
    case SIGHUP:
        pool_begin_replacing(pool);
        break;
    case SIGTERM:
    case SIGINT:
    case SIGQUIT:
    case SIGUSR1:
        pool_begin_stopping(pool, now);
        break;
    default:
        break;
    }
}

/* Blocks the signals that pool_wait() waits for. */
static void pool_block_signals(struct pool *pool)
{
    static const int signals[] = {SIGCHLD, SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1};

    sigemptyset(&pool->signals);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        sigaddset(&pool->signals, signals[i]);
    sigprocmask(SIG_BLOCK, &pool->signals, NULL);
    /* Some parents leave SIGCHLD ignored: then the death of a worker would not be noticed. */
    signal(SIGCHLD, SIG_DFL);
}

static struct pool *pool_new(const struct options *options, int listen_fd)
{
    size_t slot_count = (size_t)options->workers + 1;
    struct pool *pool = calloc(1, sizeof *pool + slot_count * sizeof *pool->slots);

    if (!pool)
        return NULL;
    pool->metrics = metrics_new(slot_count);
    if (!pool->metrics) {
        free(pool);
        return NULL;
    }
    pool->options = options;
    pool->listen_fd = listen_fd;
    pool->stop_due = USEC_NEVER;
    pool->slot_count = slot_count;
    pool->slots[0].due = USEC_NEVER; /* SPARE, as all zero is */
    for (size_t i = 1; i < slot_count; i++)
        pool_slot_set_state(&pool->slots[i], SLOT_PAUSED, 0);
    return pool;
}

int pool_run(const struct options *options, int listen_fd)
{
    struct pool *pool = pool_new(options, listen_fd);
    usec_t now = clock_now();
    bool killed;

    if (!pool) {
        log_error("out of memory");
        return EXIT_FAILURE;
    }
    pool_block_signals(pool);
    pool_step(pool, now);
    log_info("pool of %d workers", options->workers);
    while (!pool_has_ended(pool, now)) {
        int signal = pool_wait(pool);

        now = clock_now();
        pool_handle_signal(pool, signal, now);
        pool_step(pool, now);
    }
    killed = pool->killed;
    metrics_free(pool->metrics);
    free(pool);
    return killed ? EXIT_FAILURE : EXIT_SUCCESS;
}
