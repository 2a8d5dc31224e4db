/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * probe CONNINFO STATEMENT KEYS BATCH SECONDS
 *
 * Runs the statement in the file STATEMENT, prepared, again and again for some seconds, each time
 * with BATCH lines of the file KEYS as three array parameters. A line has three words without
 * blanks, quotes or backslashes. Prints how many rows came back.
 */
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

#define KEYS_MAX  20000
#define BATCH_MAX 1024
#define COLUMNS   3
#define WORD_SIZE 128

struct probe {
    PGconn *connection;
    char keys[KEYS_MAX][COLUMNS][WORD_SIZE];
    size_t key_count;
    size_t next;                                           /* key of the next batch */
    size_t batch;                                          /* keys in a batch */
    char arrays[COLUMNS][BATCH_MAX * (WORD_SIZE + 3) + 3]; /* each word has quotes and a comma */
};

static void probe_read_keys(struct probe *probe, const char *path)
{
    FILE *file = fopen(path, "re");

    if (!file)
        err(66, "%s", path);
    while (probe->key_count < KEYS_MAX) {
        char(*key)[WORD_SIZE] = probe->keys[probe->key_count];

        if (fscanf(file, "%127s %127s %127s", key[0], key[1], key[2]) != COLUMNS)
            break;
        probe->key_count++;
    }
    fclose(file);
    if (probe->key_count == 0)
        errx(65, "%s: no keys", path);
}

/* Frees the result. Ends the process if it is not what was wanted. */
static void probe_check_result(struct probe *probe, PGresult *result, ExecStatusType wanted)
{
    if (PQresultStatus(result) != wanted)
        errx(69, "%s", PQerrorMessage(probe->connection));
    PQclear(result);
}

static void probe_prepare(struct probe *probe, const char *conninfo, const char *path)
{
    char statement[4096];
    FILE *file = fopen(path, "re");

    if (!file)
        err(66, "%s", path);
    statement[fread(statement, 1, sizeof statement - 1, file)] = '\0';
    fclose(file);
    probe->connection = PQconnectdb(conninfo);
    /* Otherwise PostgreSQL plans small batches anew each time. */
    probe_check_result(probe, PQexec(probe->connection, "SET plan_cache_mode = force_generic_plan"),
        PGRES_COMMAND_OK);
    probe_check_result(
        probe, PQprepare(probe->connection, "probe", statement, COLUMNS, NULL), PGRES_COMMAND_OK);
}

/* Writes the keys of the next batch as three arrays. */
static void probe_fill_arrays(struct probe *probe)
{
    char *ends[COLUMNS];

    for (size_t column = 0; column < COLUMNS; column++)
        ends[column] = probe->arrays[column];
    for (size_t i = 0; i < probe->batch; i++) {
        size_t n = probe->next++ % probe->key_count;

        for (size_t column = 0; column < COLUMNS; column++)
            ends[column] +=
                sprintf(ends[column], "%c\"%s\"", i == 0 ? '{' : ',', probe->keys[n][column]);
    }
    for (size_t column = 0; column < COLUMNS; column++)
        strcpy(ends[column], "}");
}

/* Returns the number of rows. */
static int probe_run_batch(struct probe *probe)
{
    const char *values[] = {probe->arrays[0], probe->arrays[1], probe->arrays[2]};
    PGresult *result;
    int rows;

    probe_fill_arrays(probe);
    result = PQexecPrepared(probe->connection, "probe", COLUMNS, values, NULL, NULL, 0);
    rows = PQntuples(result);
    probe_check_result(probe, result, PGRES_TUPLES_OK);
    return rows;
}

/* Seconds. */
static double probe_now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static struct probe probe;
    int64_t rows = 0;

    if (argc != 6)
        errx(64, "usage: probe CONNINFO STATEMENT KEYS BATCH SECONDS");
    probe_read_keys(&probe, argv[3]);
    probe_prepare(&probe, argv[1], argv[2]);
    probe.batch = (size_t)atoi(argv[4]);
    if (probe.batch < 1 || probe.batch > BATCH_MAX)
        errx(64, "a batch has 1 to %d keys", BATCH_MAX);
    for (double end = probe_now() + atof(argv[5]); probe_now() < end;)
        rows += probe_run_batch(&probe);
    printf("%lld\n", (long long)rows);
    PQfinish(probe.connection);
    return 0;
}
