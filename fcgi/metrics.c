/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "metrics.h"

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "version.h"

#define METRICS_PREFIX "merchant_sessions_"
/* How many changes of the database the time is kept of. */
#define METRICS_CHANGES 256
/* Limit of the number of upper limits of a histogram's buckets. */
#define METRICS_LIMITS 16

/* One process writes a cell, all read it. A reader must never see half a number. */
typedef _Atomic uint64_t metrics_cell;
static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "processes can share only atomics without locks");

enum metrics_histogram {
    METRICS_HISTOGRAM_KEYS,                                                  /* by question */
    METRICS_HISTOGRAM_BATCH = METRICS_HISTOGRAM_KEYS + QUESTION_PAYMENT + 1, /* by question */
    METRICS_HISTOGRAM_ANSWER =
        METRICS_HISTOGRAM_BATCH + QUESTION_PAYMENT + 1, /* at once, and after a wait */
    METRICS_HISTOGRAM_PAYMENT = METRICS_HISTOGRAM_ANSWER + 2,
    METRICS_HISTOGRAMS,
};

/* The cells of a histogram: the events in each bucket alone, the last one without a limit, and the
 * sum of what was observed. */
#define METRICS_BUCKETS         (METRICS_LIMITS + 1)
#define METRICS_HISTOGRAM_CELLS (METRICS_BUCKETS + 1)

/* The cells of a block. */
enum metrics_place {
    /* Gauges. */
    METRICS_PLACE_WORKERS,
    METRICS_PLACE_WAITING,
    METRICS_PLACE_WAITING_LIMIT,
    METRICS_PLACE_CONNECTIONS,
    METRICS_PLACE_DATABASE_UP,
    /* Counters. */
    METRICS_PLACE_RECONNECTS,
    METRICS_PLACE_UNANSWERED,
    METRICS_PLACE_ANSWERS, /* by kind of reply */
    METRICS_PLACE_HISTOGRAM = METRICS_PLACE_ANSWERS + REPLY_KINDS,
    METRICS_CELLS = METRICS_PLACE_HISTOGRAM + METRICS_HISTOGRAMS * METRICS_HISTOGRAM_CELLS,
};
#define METRICS_GAUGES METRICS_PLACE_RECONNECTS

/* Aligned, so that no two processes write the same cache line. */
struct metrics_block {
    alignas(64) metrics_cell cells[METRICS_CELLS];
};

struct metrics_shared {
    metrics_cell ends[METRICS_END_STOPPED + 1]; /* of workers, by reason; the pool writes them */
    struct metrics_block blocks[];              /* one a slot */
};

/* What this worker knows of its database connection. */
enum metrics_database {
    METRICS_DATABASE_NEVER_UP, /* there was none yet */
    METRICS_DATABASE_UP,
    METRICS_DATABASE_LOST, /* there was one */
};

struct metrics {
    struct metrics_shared *shared;
    size_t slots;

    /* Of this process. */
    metrics_cell *own; /* the cells of its block */
    enum metrics_database database;
    uint64_t version;                /* of the database, as the last check found it */
    usec_t changes[METRICS_CHANGES]; /* when each of the last versions was found, by its number */
};

static size_t metrics_size(size_t slots)
{
    return sizeof(struct metrics_shared) + slots * sizeof(struct metrics_block);
}

struct metrics *metrics_new(size_t slots)
{
    struct metrics *metrics = calloc(1, sizeof *metrics);
    void *shared;

    if (!metrics)
        return NULL;
    shared =
        mmap(NULL, metrics_size(slots), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        free(metrics);
        return NULL;
    }
    metrics->shared = shared;
    metrics->slots = slots;
    return metrics;
}

void metrics_free(struct metrics *metrics)
{
    munmap(metrics->shared, metrics_size(metrics->slots));
    free(metrics);
}

static void metrics_set(metrics_cell *cell, uint64_t number)
{
    atomic_store_explicit(cell, number, memory_order_relaxed);
}

static uint64_t metrics_get(const metrics_cell *cell)
{
    return atomic_load_explicit(cell, memory_order_relaxed);
}

/* Load and store are apart, which is cheaper: no other process writes this cell. */
static void metrics_add(metrics_cell *cell, uint64_t number)
{
    metrics_set(cell, metrics_get(cell) + number);
}

void metrics_enter(struct metrics *metrics, size_t slot)
{
    metrics->own = metrics->shared->blocks[slot].cells;
    metrics_set(&metrics->own[METRICS_PLACE_WORKERS], 1);
}

void metrics_leave(struct metrics *metrics, size_t slot, enum metrics_end end)
{
    for (int gauge = 0; gauge < METRICS_GAUGES; gauge++)
        metrics_set(&metrics->shared->blocks[slot].cells[gauge], 0);
    metrics_add(&metrics->shared->ends[end], 1);
}

void metrics_count_answer(struct metrics *metrics, enum reply_kind kind)
{
    metrics_add(&metrics->own[METRICS_PLACE_ANSWERS + kind], 1);
}

void metrics_count_unanswered(struct metrics *metrics)
{
    metrics_add(&metrics->own[METRICS_PLACE_UNANSWERED], 1);
}

/* A number belongs into the first bucket whose limit it does not exceed. */
static const uint32_t metrics_key_limits[METRICS_LIMITS] = {1, 2, 4, 8, 16, 32, 64, 128, 256};

/* In microseconds: from half a millisecond, which is a quick batch, to a minute. */
static const uint32_t metrics_time_limits[METRICS_LIMITS] = {500, 1000, 2500, 5000, 10000, 25000,
    50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 30000000, 60000000};

/* The place of the first cell of a histogram. */
static int metrics_histogram_place(enum metrics_histogram histogram)
{
    return METRICS_PLACE_HISTOGRAM + (int)histogram * METRICS_HISTOGRAM_CELLS;
}

/* 0 ends a list of limits that is not full. */
static void metrics_observe(struct metrics *metrics, enum metrics_histogram histogram,
    const uint32_t limits[METRICS_LIMITS], uint64_t number)
{
    metrics_cell *cells = &metrics->own[metrics_histogram_place(histogram)];
    int bucket = 0;

    while (bucket < METRICS_LIMITS && limits[bucket] < number && limits[bucket] > 0)
        bucket++;
    metrics_add(&cells[bucket], 1);
    metrics_add(&cells[METRICS_BUCKETS], number);
}

static void metrics_observe_time(
    struct metrics *metrics, enum metrics_histogram histogram, usec_t took)
{
    metrics_observe(metrics, histogram, metrics_time_limits, took > 0 ? (uint64_t)took : 0);
}

void metrics_observe_answer(struct metrics *metrics, bool waited, usec_t took)
{
    metrics_observe_time(metrics, METRICS_HISTOGRAM_ANSWER + waited, took);
}

void metrics_observe_batch(
    struct metrics *metrics, enum session_question question, size_t keys, usec_t took)
{
    metrics_observe(metrics, METRICS_HISTOGRAM_KEYS + question, metrics_key_limits, keys);
    metrics_observe_time(metrics, METRICS_HISTOGRAM_BATCH + question, took);
}

void metrics_note_version(struct metrics *metrics, uint64_t version, usec_t now)
{
    if (version == metrics->version)
        return;
    metrics->version = version;
    metrics->changes[version % METRICS_CHANGES] = now;
}

void metrics_observe_payment(struct metrics *metrics, uint64_t unpaid_version, usec_t now)
{
    uint64_t changes = metrics->version - unpaid_version;

    if (metrics->version <= unpaid_version)
        return;
    if (changes > METRICS_CHANGES)
        changes = METRICS_CHANGES;
    metrics_observe_time(metrics, METRICS_HISTOGRAM_PAYMENT,
        now - metrics->changes[(metrics->version - changes + 1) % METRICS_CHANGES]);
}

/* All transitions of metrics_database. */
static void metrics_set_database(struct metrics *metrics, bool up)
{
    switch (metrics->database) {
    case METRICS_DATABASE_NEVER_UP:
        if (up)
            metrics->database = METRICS_DATABASE_UP;
        break;
    case METRICS_DATABASE_UP:
        if (!up)
            metrics->database = METRICS_DATABASE_LOST;
        break;
    case METRICS_DATABASE_LOST:
        if (!up)
            break;
        metrics->database = METRICS_DATABASE_UP;
        metrics_add(&metrics->own[METRICS_PLACE_RECONNECTS], 1);
        break;
    }
    metrics_set(&metrics->own[METRICS_PLACE_DATABASE_UP], up);
}

void metrics_set_gauges(struct metrics *metrics, const struct metrics_gauges *gauges)
{
    metrics_set(&metrics->own[METRICS_PLACE_WAITING], gauges->waiting);
    metrics_set(&metrics->own[METRICS_PLACE_WAITING_LIMIT], gauges->waiting_limit);
    metrics_set(&metrics->own[METRICS_PLACE_CONNECTIONS], gauges->connections);
    metrics_set_database(metrics, gauges->database_up);
}

/* Sums up all blocks. Each block is read once, so that the numbers of one event, which are
 * neighbours, are mostly read together. */
static void metrics_sum_up(const struct metrics *metrics, uint64_t sums[METRICS_CELLS])
{
    memset(sums, 0, METRICS_CELLS * sizeof *sums);
    for (size_t slot = 0; slot < metrics->slots; slot++)
        for (int place = 0; place < METRICS_CELLS; place++)
            sums[place] += metrics_get(&metrics->shared->blocks[slot].cells[place]);
}

static void metrics_print_head(FILE *text, const char *name, const char *type, const char *help)
{
    fprintf(text, "# HELP " METRICS_PREFIX "%s %s\n", name, help);
    fprintf(text, "# TYPE " METRICS_PREFIX "%s %s\n", name, type);
}

/* The metrics that are one cell. */
static const struct {
    enum metrics_place place;
    const char *name, *type, *help;
} metrics_singles[] = {
    {METRICS_PLACE_WORKERS, "workers", "gauge", "Worker processes."},
    {METRICS_PLACE_WAITING, "waiting", "gauge", "Requests that wait for a payment."},
    {METRICS_PLACE_WAITING_LIMIT, "waiting_limit", "gauge",
        "How many requests may wait: --max-waiting of each worker, or what its descriptors allow."},
    {METRICS_PLACE_CONNECTIONS, "connections", "gauge",
        "Connections of web servers, idle ones too."},
    {METRICS_PLACE_DATABASE_UP, "database_up", "gauge",
        "Workers that have a working connection to the database."},
    {METRICS_PLACE_RECONNECTS, "database_reconnects_total", "counter",
        "Connections to the database that replaced a lost one."},
    {METRICS_PLACE_UNANSWERED, "unanswered_total", "counter",
        "Requests that ended without an answer, mostly because the client left."},
};

static void metrics_print_singles(FILE *text, const uint64_t sums[METRICS_CELLS])
{
    for (size_t i = 0; i < sizeof metrics_singles / sizeof metrics_singles[0]; i++) {
        metrics_print_head(
            text, metrics_singles[i].name, metrics_singles[i].type, metrics_singles[i].help);
        fprintf(text, METRICS_PREFIX "%s %ju\n", metrics_singles[i].name,
            (uintmax_t)sums[metrics_singles[i].place]);
    }
}

static void metrics_print_answers(FILE *text, const uint64_t sums[METRICS_CELLS])
{
    metrics_print_head(text, "requests_total", "counter",
        "Requests that were answered, by HTTP status and Taler error code (0: no error).");
    for (enum reply_kind kind = 0; kind < REPLY_KINDS; kind++)
        fprintf(text, METRICS_PREFIX "requests_total{status=\"%d\",code=\"%d\"} %ju\n",
            reply_status(kind), reply_code(kind), (uintmax_t)sums[METRICS_PLACE_ANSWERS + kind]);
}

/* Name, help and labels of each histogram. Those of the same name are neighbours. */
static const struct {
    const char *name, *help, *label;
    const uint32_t *limits;
    double unit; /* the limits and the sum are divided by it */
} metrics_histograms[METRICS_HISTOGRAMS] = {
    [METRICS_HISTOGRAM_KEYS + QUESTION_EVERYTHING] = {"batch_keys", "Keys in a batch of lookups.",
        "question=\"everything\"", metrics_key_limits, 1},
    [METRICS_HISTOGRAM_KEYS +
        QUESTION_PAYMENT] = {"batch_keys", NULL, "question=\"payment\"", metrics_key_limits, 1},
    [METRICS_HISTOGRAM_BATCH + QUESTION_EVERYTHING] = {"batch_seconds",
        "Time from sending a batch of lookups to its result.", "question=\"everything\"",
        metrics_time_limits, USEC_PER_SEC},
    [METRICS_HISTOGRAM_BATCH + QUESTION_PAYMENT] = {"batch_seconds", NULL, "question=\"payment\"",
        metrics_time_limits, USEC_PER_SEC},
    [METRICS_HISTOGRAM_ANSWER + false] = {"answer_seconds",
        "Time from a request that needs the database to its answer, by whether it waited for a "
        "payment.",
        "waited=\"no\"", metrics_time_limits, USEC_PER_SEC},
    [METRICS_HISTOGRAM_ANSWER +
        true] = {"answer_seconds", NULL, "waited=\"yes\"", metrics_time_limits, USEC_PER_SEC},
    [METRICS_HISTOGRAM_PAYMENT] = {"check_to_answer_seconds",
        "Time from the check that found the first change since the last lookup to the answer to a "
        "request that waited and is paid.",
        "", metrics_time_limits, USEC_PER_SEC},
};

static void metrics_print_histogram(
    FILE *text, enum metrics_histogram histogram, const uint64_t sums[METRICS_CELLS])
{
    const uint64_t *cells = &sums[metrics_histogram_place(histogram)];
    const char *name = metrics_histograms[histogram].name;
    const char *label = metrics_histograms[histogram].label;
    const char *comma = *label ? "," : "", *left = *label ? "{" : "", *right = *label ? "}" : "";
    const uint32_t *limits = metrics_histograms[histogram].limits;
    const double unit = metrics_histograms[histogram].unit;
    uint64_t count = 0;
    int bucket;

    if (metrics_histograms[histogram].help)
        metrics_print_head(text, name, "histogram", metrics_histograms[histogram].help);
    for (bucket = 0; bucket < METRICS_LIMITS && limits[bucket] > 0; bucket++) {
        count += cells[bucket];
        fprintf(text, METRICS_PREFIX "%s_bucket{%s%sle=\"%g\"} %ju\n", name, label, comma,
            limits[bucket] / unit, (uintmax_t)count);
    }
    count += cells[bucket];
    fprintf(text, METRICS_PREFIX "%s_bucket{%s%sle=\"+Inf\"} %ju\n", name, label, comma,
        (uintmax_t)count);
    fprintf(text, METRICS_PREFIX "%s_sum%s%s%s %.*f\n", name, left, label, right, unit > 1 ? 6 : 0,
        (double)cells[METRICS_BUCKETS] / unit);
    fprintf(
        text, METRICS_PREFIX "%s_count%s%s%s %ju\n", name, left, label, right, (uintmax_t)count);
}

/* A lookup is a key in a batch. */
static void metrics_print_lookups(FILE *text, const uint64_t sums[METRICS_CELLS])
{
    metrics_print_head(text, "lookups_total", "counter",
        "Sessions looked up, by question: everything (requests that come, or stop waiting) or "
        "payment (requests that wait).");
    for (enum session_question question = 0; question <= QUESTION_PAYMENT; question++) {
        enum metrics_histogram histogram = METRICS_HISTOGRAM_KEYS + question;

        fprintf(text, METRICS_PREFIX "lookups_total{%s} %ju\n", metrics_histograms[histogram].label,
            (uintmax_t)sums[metrics_histogram_place(histogram) + METRICS_BUCKETS]);
    }
}

static void metrics_print_pool(FILE *text, const struct metrics *metrics)
{
    const metrics_cell *ends = metrics->shared->ends;

    metrics_print_head(text, "build_info", "gauge", "The version that runs.");
    fputs(METRICS_PREFIX "build_info{version=\"" VERSION "\"} 1\n", text);
    metrics_print_head(text, "worker_restarts_total", "counter",
        "Workers that ended and were replaced: they died, or the pool was asked to replace them.");
    fprintf(text, METRICS_PREFIX "worker_restarts_total{reason=\"died\"} %ju\n",
        (uintmax_t)metrics_get(&ends[METRICS_END_DIED]));
    fprintf(text, METRICS_PREFIX "worker_restarts_total{reason=\"replaced\"} %ju\n",
        (uintmax_t)metrics_get(&ends[METRICS_END_REPLACED]));
}

/* What is printed. Not open_memstream(): its stream has no error indicator for a lack of memory,
 * and what could not be written is just missing in its text. */
struct metrics_text {
    char *bytes; /* ends with a NUL */
    size_t length;
    bool failed; /* out of memory */
};

static ssize_t metrics_write(void *cookie, const char *bytes, size_t length)
{
    struct metrics_text *to = cookie;
    char *grown = realloc(to->bytes, to->length + length + 1);

    to->failed |= !grown;
    if (!grown)
        return 0;
    to->bytes = grown;
    memcpy(to->bytes + to->length, bytes, length);
    to->length += length;
    to->bytes[to->length] = '\0';
    return (ssize_t)length;
}

char *metrics_print(const struct metrics *metrics)
{
    uint64_t sums[METRICS_CELLS];
    struct metrics_text to = {0};
    FILE *text = fopencookie(&to, "w", (cookie_io_functions_t){.write = metrics_write});

    if (!text)
        return NULL;
    metrics_sum_up(metrics, sums);
    metrics_print_pool(text, metrics);
    metrics_print_singles(text, sums);
    metrics_print_answers(text, sums);
    metrics_print_lookups(text, sums);
    for (enum metrics_histogram histogram = 0; histogram < METRICS_HISTOGRAMS; histogram++)
        metrics_print_histogram(text, histogram, sums);
    if (fclose(text) == 0 && !to.failed)
        return to.bytes;
    free(to.bytes);
    return NULL;
}
