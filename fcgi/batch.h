/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef BATCH_H
#define BATCH_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "session.h"
#include "textarray.h"

/*
 * The parameters and the rows of the statements that look up many sessions at once: sql/keys.sql.
 * Both are in PostgreSQL's binary format.
 */

/* The parameters: instances, URLs, sessions. */
#define BATCH_PARAMS 3

/* The parameters as libpq takes them. All zero is empty; can be used again and again. */
struct batch_params {
    struct text_array arrays[BATCH_PARAMS];
    const char *values[BATCH_PARAMS];
    int lengths[BATCH_PARAMS], formats[BATCH_PARAMS];
};

/* Starts the parameters for exactly count keys. */
void batch_params_start(struct batch_params *params, size_t count);

/* Adds a key, which is copied. */
void batch_params_add(struct batch_params *params, const struct session_key *key);

/* All keys are there: fills in what libpq takes. False if out of memory. */
bool batch_params_finish(struct batch_params *params);

/* Frees the memory. */
void batch_params_free(struct batch_params *params);

/* The result of batch_read(). */
enum batch_result {
    BATCH_RESULT_READ,
    BATCH_RESULT_MISSHAPEN, /* the rows have other columns */
    BATCH_RESULT_STRANGE,   /* a row is not about any of the keys */
};

/*
 * Reads the answers to count keys from the rows. members are the keys' indexes in answers; NULL:
 * they are the first ones. A key without a row gets the status `without`. The texts of the answers
 * live as long as the rows.
 */
enum batch_result batch_read(const PGresult *rows, struct session_answer answers[],
    const uint16_t members[], size_t count, enum session_status without);

/* For the log: what is wrong with the rows. */
const char *batch_trouble(enum batch_result result);

#endif
