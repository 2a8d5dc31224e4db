/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "pipeline.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "layout.h"
#include "log.h"
#include "sqlstate.h"
#include "state.h"

/* Limit of prepared statements, each of which takes about 150 KiB of the database's memory. The
 * statements of one batch may exceed it. */
#define PREPARED_MAX 640
/* Limit of the statements that one batch prepares. Preparing one takes the database 1 to 2 ms. */
#define PREPARES_MAX 32
/* Rest of a schema after a failure: doubles from the first to the second. */
#define REST_LOCKED     (100 * USEC_PER_MS)
#define REST_LOCKED_MAX (800 * USEC_PER_MS)
#define REST_SLOW       USEC_PER_SEC
#define REST_SLOW_MAX   (8 * USEC_PER_SEC)
#define REST_OTHER      (100 * USEC_PER_MS)
#define REST_OTHER_MAX  (3200 * USEC_PER_MS)
/* Pause of trials after a statement that was too slow, so that trials do not take all of the
 * time when many schemas are slow. */
#define TRIAL_PAUSE USEC_PER_SEC
/* Number of failures in a row for a lock from which on it is logged. */
#define LOCKS_UNTOLD 2

#define NAME_SIZE 32

/* What the transaction of a group is waiting for, or how it has ended. */
enum group_state {
    GROUP_PREPARING, /* the confirmation that its statement is prepared */
    GROUP_SETTING,   /* the result of its settings, through a pooler */
    GROUP_ASKING,    /* its rows */
    GROUP_ANSWERED,  /* it has its rows */
    GROUP_FAILED,    /* a statement has failed */
};

static const unsigned group_sources[] = {
    [GROUP_PREPARING] = STATE_SET(GROUP_ASKING), /* while it is sent */
    [GROUP_ASKING] = STATE_SET(GROUP_PREPARING) | STATE_SET(GROUP_SETTING),
    [GROUP_ANSWERED] = STATE_SET(GROUP_ASKING),
    [GROUP_FAILED] = STATE_SET(GROUP_PREPARING) | STATE_SET(GROUP_SETTING) |
                     STATE_SET(GROUP_ASKING) | STATE_SET(GROUP_ANSWERED) | STATE_SET(GROUP_FAILED),
};

/* The keys of one schema in the batch. */
struct pipeline_group {
    struct instance_schema *schema;
    size_t first, count; /* in members */
    enum group_state state;
    PGresult *rows; /* in GROUP_ANSWERED */
};

struct pipeline {
    struct instances *instances;
    PGconn *connection;
    const struct settings *settings; /* of each transaction, through a pooler; else NULL */
    uint32_t numbered;               /* the last number of a statement's name */
    enum session_question question;
    const struct session_key *const *keys;
    struct session_answer *answers;
    struct pipeline_group groups[SESSION_BATCH_MAX];
    size_t group_count;
    uint16_t members[SESSION_BATCH_MAX]; /* indexes of keys, group after group */
    size_t member_count;
    size_t prepares;  /* statements that this batch prepares */
    usec_t trial_due; /* no schema is on trial before */
    bool has_trial;   /* one schema of this batch is on trial */
    bool deallocates; /* the first transaction of this batch only deallocates */
    size_t transactions_ended;
    struct batch_params params;
};

struct pipeline *pipeline_new(struct instances *instances)
{
    struct pipeline *pipeline = calloc(1, sizeof *pipeline);

    if (pipeline)
        pipeline->instances = instances;
    return pipeline;
}

/* All transitions of group_state. */
static void pipeline_set_group_state(struct pipeline_group *group, enum group_state state)
{
    state_check(group_sources, group->state, state);
    group->state = state;
}

void pipeline_forget(struct pipeline *pipeline)
{
    for (size_t i = 0; i < pipeline->group_count; i++)
        PQclear(pipeline->groups[i].rows);
    pipeline->group_count = 0;
}

void pipeline_free(struct pipeline *pipeline)
{
    if (!pipeline)
        return;
    pipeline_forget(pipeline);
    batch_params_free(&pipeline->params);
    free(pipeline);
}

/* ---- Who is asked ---- */

/* Whether a schema is asked in this batch; else *why_not is what its keys get. */
static bool pipeline_admit(struct pipeline *pipeline, const struct instance_schema *schema,
    usec_t now, enum session_status *why_not)
{
    /* Through a pooler no statement is kept: each costs what preparing it does. */
    bool prepare = schema->statements[pipeline->question] == 0 || schema->stale;
    bool trial = schema->failures > 0;

    *why_not = SESSION_FAILED;
    if (schema->fault != SCHEMA_FINE || schema->rests_until > now ||
        (trial && pipeline->trial_due > now))
        return false;
    *why_not = SESSION_NOT_ASKED;
    if ((prepare && pipeline->prepares == PREPARES_MAX) || (trial && pipeline->has_trial))
        return false;
    pipeline->prepares += prepare;
    pipeline->has_trial |= trial;
    return true;
}

/* Takes all keys of the schema of key `first` out of schemas: into a group, or with an answer
 * that needs no lookup. */
static void pipeline_take_group(struct pipeline *pipeline, struct instance_schema *schemas[],
    size_t first, size_t count, usec_t now)
{
    struct instance_schema *schema = schemas[first];
    struct pipeline_group *group = &pipeline->groups[pipeline->group_count];
    struct session_answer answer = {0};
    bool admitted = pipeline_admit(pipeline, schema, now, &answer.status);

    *group = (struct pipeline_group){
        .schema = schema,
        .first = pipeline->member_count,
        .state = pipeline->settings ? GROUP_SETTING : GROUP_ASKING,
    };
    for (size_t i = first; i < count; i++) {
        if (schemas[i] != schema)
            continue;
        schemas[i] = NULL;
        if (admitted)
            pipeline->members[pipeline->member_count++] = (uint16_t)i;
        else
            pipeline->answers[i] = answer;
    }
    if (!admitted)
        return;
    group->count = pipeline->member_count - group->first;
    schema->used_at = now;
    pipeline->group_count++;
}

static void pipeline_group_keys(struct pipeline *pipeline, size_t count, usec_t now)
{
    struct instance_schema *schemas[SESSION_BATCH_MAX];

    for (size_t i = 0; i < count; i++) {
        schemas[i] = instances_find(pipeline->instances, pipeline->keys[i]->instance);
        if (!schemas[i])
            pipeline->answers[i] = (struct session_answer){.status = SESSION_NO_INSTANCE};
    }
    for (size_t i = 0; i < count; i++)
        if (schemas[i])
            pipeline_take_group(pipeline, schemas, i, count, now);
}

/* ---- Prepared statements ---- */

static void pipeline_name_statement(uint32_t number, char name[NAME_SIZE])
{
    snprintf(name, NAME_SIZE, "merchant_sessions_%lu", (unsigned long)number);
}

static bool pipeline_deallocate(struct pipeline *pipeline, uint32_t *number)
{
    char name[NAME_SIZE], sql[NAME_SIZE + 16];

    if (*number == 0)
        return true;
    pipeline_name_statement(*number, name);
    snprintf(sql, sizeof sql, "DEALLOCATE %s", name);
    *number = 0;
    pipeline->deallocates = true;
    return PQsendQueryParams(pipeline->connection, sql, 0, NULL, NULL, NULL, NULL, 1);
}

static bool pipeline_deallocate_schema(struct pipeline *pipeline, struct instance_schema *schema)
{
    schema->stale = false;
    return pipeline_deallocate(pipeline, &schema->statements[QUESTION_EVERYTHING]) &&
           pipeline_deallocate(pipeline, &schema->statements[QUESTION_PAYMENT]);
}

/* Deallocates outdated statements, and those of the least recently used schemas until there is
 * room for the statements that this batch prepares. */
static bool pipeline_make_room(struct pipeline *pipeline, usec_t now)
{
    struct instance_schema *schema = NULL;

    while ((schema = instances_next_schema(pipeline->instances, schema)))
        if (schema->stale && !pipeline_deallocate_schema(pipeline, schema))
            return false;
    while (instances_prepared(pipeline->instances) + pipeline->prepares > PREPARED_MAX) {
        schema = instances_least_used(pipeline->instances);
        if (!schema || schema->used_at >= now)
            break;
        if (!pipeline_deallocate_schema(pipeline, schema))
            return false;
    }
    return !pipeline->deallocates || PQpipelineSync(pipeline->connection);
}

/* The text of the statement for this schema, to be freed by the caller; NULL if out of memory. */
static char *pipeline_make_text(struct pipeline *pipeline, const struct instance_schema *schema)
{
    char *quoted = PQescapeIdentifier(pipeline->connection, schema->name, strlen(schema->name));
    char *text =
        quoted ? layout_make_statement(pipeline->question, &schema->tables, quoted, schema->serial)
               : NULL;

    PQfreemem(quoted);
    return text;
}

static bool pipeline_prepare(struct pipeline *pipeline, struct pipeline_group *group)
{
    struct instance_schema *schema = group->schema;
    char *text = pipeline_make_text(pipeline, schema);
    char name[NAME_SIZE];
    bool sent;

    pipeline_set_group_state(group, GROUP_PREPARING);
    schema->statements[pipeline->question] = ++pipeline->numbered;
    schema->prepared_serial = schema->serial;
    pipeline_name_statement(pipeline->numbered, name);
    sent = text && PQsendPrepare(pipeline->connection, name, text, 0, NULL);
    free(text);
    return sent;
}

/* ---- Sending ---- */

/* The prepared statement of a group. */
static bool pipeline_send_prepared(struct pipeline *pipeline, struct pipeline_group *group)
{
    const uint32_t *number = &group->schema->statements[pipeline->question];
    const struct batch_params *params = &pipeline->params;
    char name[NAME_SIZE];

    if (*number == 0 && !pipeline_prepare(pipeline, group))
        return false;
    pipeline_name_statement(*number, name);
    return PQsendQueryPrepared(pipeline->connection, name, BATCH_PARAMS, params->values,
        params->lengths, params->formats, 1);
}

/* Settings and statement of a group, through a pooler. */
static bool pipeline_send_with_settings(
    struct pipeline *pipeline, const struct pipeline_group *group)
{
    const struct batch_params *params = &pipeline->params;
    char *text = pipeline_make_text(pipeline, group->schema);
    bool sent = text &&
                settings_send(pipeline->connection, pipeline->settings, SETTINGS_OF_TRANSACTION) &&
                PQsendQueryParams(pipeline->connection, text, BATCH_PARAMS, NULL, params->values,
                    params->lengths, params->formats, 1);

    free(text);
    return sent;
}

/* The transaction of a group. */
static bool pipeline_send_group(struct pipeline *pipeline, struct pipeline_group *group)
{
    struct batch_params *params = &pipeline->params;

    batch_params_start(params, group->count);
    for (size_t i = 0; i < group->count; i++)
        batch_params_add(params, pipeline->keys[pipeline->members[group->first + i]]);
    return batch_params_finish(params) &&
           (pipeline->settings ? pipeline_send_with_settings(pipeline, group)
                               : pipeline_send_prepared(pipeline, group)) &&
           PQpipelineSync(pipeline->connection);
}

static bool pipeline_send_groups(struct pipeline *pipeline, usec_t now)
{
    if (!PQenterPipelineMode(pipeline->connection) || !pipeline_make_room(pipeline, now))
        return false;
    for (size_t i = 0; i < pipeline->group_count; i++)
        if (!pipeline_send_group(pipeline, &pipeline->groups[i]))
            return false;
    return true;
}

enum pipeline_result pipeline_send(struct pipeline *pipeline, PGconn *connection,
    const struct settings *settings, enum session_question question,
    const struct session_key *const keys[], size_t count, struct session_answer answers[],
    usec_t now)
{
    pipeline_forget(pipeline);
    pipeline->connection = connection;
    pipeline->settings = settings;
    pipeline->question = question;
    pipeline->keys = keys;
    pipeline->answers = answers;
    pipeline->member_count = 0;
    pipeline->prepares = 0;
    pipeline->has_trial = false;
    pipeline->deallocates = false;
    pipeline->transactions_ended = 0;
    pipeline_group_keys(pipeline, count, now);
    if (pipeline->group_count == 0)
        return PIPELINE_DONE;
    if (pipeline_send_groups(pipeline, now))
        return PIPELINE_BUSY;
    return PQstatus(connection) == CONNECTION_BAD ? PIPELINE_BROKEN : PIPELINE_NO_MEMORY;
}

/* ---- Failures ---- */

static usec_t pipeline_rest(enum sqlstate_kind kind, unsigned failures)
{
    usec_t first = REST_OTHER, last = REST_OTHER_MAX;

    if (kind == SQLSTATE_LOCKED) {
        first = REST_LOCKED;
        last = REST_LOCKED_MAX;
    } else if (kind == SQLSTATE_SLOW) {
        first = REST_SLOW;
        last = REST_SLOW_MAX;
    }
    return failures > 6 ? last : usec_min(first << (failures - 1), last);
}

/* Puts a schema to rest after a failure; nothing else does. `why` is logged once. */
static void pipeline_set_aside(struct pipeline *pipeline, struct instance_schema *schema,
    enum sqlstate_kind kind, const char *why, usec_t now)
{
    bool tell;

    if (kind == SQLSTATE_SLOW)
        pipeline->trial_due = now + TRIAL_PAUSE;
    schema->failures++;
    schema->rests_until = now + pipeline_rest(kind, schema->failures);
    tell = !schema->told_failure && (kind != SQLSTATE_LOCKED || schema->failures > LOCKS_UNTOLD);
    log_write(tell ? LOG_WARNING : LOG_DEBUG,
        "database: schema \"%s\": %s; its instance is not answered until it can be asked again",
        schema->name, why);
    schema->told_failure |= tell;
}

static void pipeline_note_success(struct instance_schema *schema)
{
    if (schema->told_failure)
        log_info("database: schema \"%s\" can be asked again", schema->name);
    schema->told_failure = false;
    schema->failures = 0;
}

/* The current transaction has failed. */
static void pipeline_fail_group(
    struct pipeline *pipeline, struct pipeline_group *group, const PGresult *result, usec_t now)
{
    struct instance_schema *schema = group->schema;
    enum sqlstate_kind kind = sqlstate_of(result);
    char why[200];

    if (!sqlstate_describe(result, why, sizeof why))
        snprintf(why, sizeof why, "a statement failed");
    if (group->state == GROUP_PREPARING)
        schema->statements[pipeline->question] = 0;
    else if (kind == SQLSTATE_OTHER)
        schema->stale = true; /* the tables may have changed */
    pipeline_set_group_state(group, GROUP_FAILED);
    pipeline_set_aside(pipeline, schema, kind, why, now);
}

/* ---- Receiving ---- */

/* The group whose transaction is running; NULL while statements are deallocated. */
static struct pipeline_group *pipeline_current_group(struct pipeline *pipeline)
{
    size_t ended = pipeline->transactions_ended;

    if (pipeline->deallocates && ended-- == 0)
        return NULL;
    return ended < pipeline->group_count ? &pipeline->groups[ended] : NULL;
}

static bool pipeline_has_ended(const struct pipeline *pipeline)
{
    return pipeline->transactions_ended == pipeline->group_count + pipeline->deallocates;
}

/* Handles a result of the current transaction. False if the connection cannot be used any more. */
static bool pipeline_take_result(struct pipeline *pipeline, PGresult *result, usec_t now)
{
    struct pipeline_group *group = pipeline_current_group(pipeline);
    ExecStatusType status = PQresultStatus(result);
    bool usable = true;

    if (status == PGRES_TUPLES_OK && group && group->state == GROUP_ASKING) {
        pipeline_set_group_state(group, GROUP_ANSWERED);
        group->rows = result;
        return true;
    }
    if (status == PGRES_PIPELINE_SYNC)
        pipeline->transactions_ended++;
    else if ((status == PGRES_COMMAND_OK && group && group->state == GROUP_PREPARING) ||
             (status == PGRES_TUPLES_OK && group && group->state == GROUP_SETTING))
        pipeline_set_group_state(group, GROUP_ASKING);
    else if (sqlstate_of(result) == SQLSTATE_SHUTDOWN || status == PGRES_TUPLES_OK ||
             sqlstate_is_copy(result))
        usable = false;
    else if (status == PGRES_FATAL_ERROR && group)
        pipeline_fail_group(pipeline, group, result, now);
    /* The other results need nothing: those of DEALLOCATE, and of statements after a failed one. */
    PQclear(result);
    return usable;
}

/* The answers to the keys of a group, from its rows. */
static bool pipeline_answer_group(struct pipeline *pipeline, struct pipeline_group *group)
{
    const uint16_t *members = &pipeline->members[group->first];

    if (group->state == GROUP_ANSWERED) {
        pipeline_note_success(group->schema);
        return batch_read(group->rows, pipeline->answers, members, group->count, SESSION_UNKNOWN) ==
               BATCH_RESULT_READ;
    }
    for (size_t i = 0; i < group->count; i++)
        pipeline->answers[members[i]] = (struct session_answer){.status = SESSION_FAILED};
    return true;
}

static enum pipeline_result pipeline_end(struct pipeline *pipeline)
{
    /* The NULL after the last synchronization. */
    PQclear(PQgetResult(pipeline->connection));
    if (!PQexitPipelineMode(pipeline->connection))
        return PIPELINE_BROKEN;
    for (size_t i = 0; i < pipeline->group_count; i++)
        if (!pipeline_answer_group(pipeline, &pipeline->groups[i]))
            return PIPELINE_BROKEN;
    return PIPELINE_DONE;
}

enum pipeline_result pipeline_receive(struct pipeline *pipeline, usec_t now)
{
    bool between = false; /* the last result was the NULL between two statements */

    while (!pipeline_has_ended(pipeline)) {
        PGresult *result;

        if (PQisBusy(pipeline->connection))
            return PIPELINE_BUSY;
        result = PQgetResult(pipeline->connection);
        if (!result && (between || PQstatus(pipeline->connection) == CONNECTION_BAD))
            return PIPELINE_BROKEN;
        between = !result;
        if (result && !pipeline_take_result(pipeline, result, now))
            return PIPELINE_BROKEN;
    }
    return pipeline_end(pipeline);
}

void pipeline_blame(struct pipeline *pipeline, usec_t now)
{
    struct pipeline_group *group = pipeline_current_group(pipeline);

    /* If no transaction has ended, the server does not answer: no schema is to blame. */
    if (group && pipeline->transactions_ended > 0)
        pipeline_set_aside(pipeline, group->schema, SQLSTATE_SLOW, "it holds up the others", now);
}
