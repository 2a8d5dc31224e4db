/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "batch.h"

#include <arpa/inet.h>
#include <string.h>

/* The columns of sql/keys.sql. */
enum batch_column {
    BATCH_COLUMN_N,
    BATCH_COLUMN_PAID,
    BATCH_COLUMN_ORDER_ID,
    BATCH_COLUMN_CLAIMED,
    BATCH_COLUMN_COUNT
};

void batch_params_start(struct batch_params *params, size_t count)
{
    for (int i = 0; i < BATCH_PARAMS; i++)
        text_array_start(&params->arrays[i], count);
}

void batch_params_add(struct batch_params *params, const struct session_key *key)
{
    text_array_add(&params->arrays[0], key->instance);
    text_array_add(&params->arrays[1], key->url);
    text_array_add(&params->arrays[2], key->session);
}

bool batch_params_finish(struct batch_params *params)
{
    for (int i = 0; i < BATCH_PARAMS; i++) {
        if (params->arrays[i].failed)
            return false;
        params->values[i] = params->arrays[i].at;
        params->lengths[i] = (int)params->arrays[i].length;
        params->formats[i] = 1;
    }
    return true;
}

void batch_params_free(struct batch_params *params)
{
    for (int i = 0; i < BATCH_PARAMS; i++)
        text_array_free(&params->arrays[i]);
}

static int64_t batch_int8(const char *at)
{
    uint32_t high, low;

    memcpy(&high, at, 4);
    memcpy(&low, at + 4, 4);
    return (int64_t)((uint64_t)ntohl(high) << 32 | ntohl(low));
}

/* The number of the key of a row, counted from 1; 0 if the row belongs to no key. */
static size_t batch_row_key(const PGresult *rows, int row, size_t count)
{
    int64_t n = PQgetlength(rows, row, BATCH_COLUMN_N) == 8
                    ? batch_int8(PQgetvalue(rows, row, BATCH_COLUMN_N))
                    : 0;

    return n >= 1 && (size_t)n <= count ? (size_t)n : 0;
}

static struct session_answer batch_row_answer(const PGresult *rows, int row)
{
    struct session_answer answer = {.status = SESSION_UNKNOWN};

    if (PQgetisnull(rows, row, BATCH_COLUMN_ORDER_ID))
        return answer;
    answer.order_id = PQgetvalue(rows, row, BATCH_COLUMN_ORDER_ID);
    answer.status = *PQgetvalue(rows, row, BATCH_COLUMN_PAID) != 0 ? SESSION_PAID : SESSION_UNPAID;
    answer.claimed =
        answer.status == SESSION_UNPAID && *PQgetvalue(rows, row, BATCH_COLUMN_CLAIMED) != 0;
    return answer;
}

enum batch_result batch_read(const PGresult *rows, struct session_answer answers[],
    const uint16_t members[], size_t count, enum session_status without)
{
    if (PQnfields(rows) != BATCH_COLUMN_COUNT)
        return BATCH_RESULT_MISSHAPEN;
    for (size_t i = 0; i < count; i++)
        answers[members ? members[i] : i] = (struct session_answer){.status = without};
    for (int row = 0; row < PQntuples(rows); row++) {
        size_t n = batch_row_key(rows, row, count);

        if (n == 0 || PQgetlength(rows, row, BATCH_COLUMN_PAID) != 1 ||
            PQgetlength(rows, row, BATCH_COLUMN_CLAIMED) != 1)
            return BATCH_RESULT_STRANGE;
        answers[members ? members[n - 1] : n - 1] = batch_row_answer(rows, row);
    }
    return BATCH_RESULT_READ;
}

const char *batch_trouble(enum batch_result result)
{
    return result == BATCH_RESULT_MISSHAPEN ? "the lookup returned rows of another shape"
                                            : "the lookup returned a row that was not asked for";
}
