/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "instances.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The columns of sql/instances.sql. */
enum instances_column {
    INSTANCES_COLUMN_ID,
    INSTANCES_COLUMN_SERIAL,
    INSTANCES_COLUMN_SCHEMA,
    INSTANCES_COLUMN_COMPLETE,
    INSTANCES_COLUMN_READABLE,
    INSTANCES_COLUMN_FINDS_UNCLAIMED,
    INSTANCES_COLUMN_HAS_SERIAL,
    INSTANCES_COLUMN_CLAIMED_INDEXED,
    INSTANCES_COLUMN_UNCLAIMED_INDEXED,
    INSTANCES_COLUMN_TRACKED,
    INSTANCES_COLUMN_COUNT
};

/* Limit of the names of schemas in a problem's text. */
#define NAMES_MAX 5

/* The list as it was read. It owns its memory. */
struct instances_list {
    PGresult *rows;
    struct instance *instances; /* sorted by id */
    size_t count;
    struct instance_schema *schemas; /* sorted by name */
    size_t schema_count;
};

struct instances {
    const char *given; /* the operator's pattern, or NULL */
    char found[NAMING_PATTERN_SIZE];
    struct instances_list list;
    char rule[NAMING_PATTERN_SIZE + 40]; /* instances_rule() */
    char problem[300];
};

struct instances *instances_new(const char *pattern)
{
    struct instances *instances = calloc(1, sizeof *instances);

    if (instances)
        instances->given = pattern;
    return instances;
}

static void instances_free_list(struct instances_list *list)
{
    PQclear(list->rows);
    free(list->instances);
    free(list->schemas);
    *list = (struct instances_list){0};
}

void instances_free(struct instances *instances)
{
    if (!instances)
        return;
    instances_free_list(&instances->list);
    free(instances);
}

static int instance_compare(const void *left, const void *right)
{
    const struct instance *a = left, *b = right;

    return strcmp(a->name.id, b->name.id);
}

static int schema_compare(const void *left, const void *right)
{
    const struct instance_schema *a = left, *b = right;

    return strcmp(a->name, b->name);
}

static void instances_sort_schemas(struct instances_list *list)
{
    qsort(list->schemas, list->schema_count, sizeof *list->schemas, schema_compare);
}

static struct instance *instances_find_id(const struct instances_list *list, const char *id)
{
    struct instance key = {.name.id = id};

    /* A list that was never read has no array: bsearch() must not get NULL. */
    if (list->count == 0)
        return NULL;
    return bsearch(&key, list->instances, list->count, sizeof key, instance_compare);
}

/* The index of the schema of this name among the first count, which are sorted, or the index at
 * which it belongs. */
static size_t instances_place_of_schema(
    const struct instances_list *list, size_t count, const char *name)
{
    size_t low = 0;

    while (low < count) {
        size_t middle = low + (count - low) / 2;

        if (strcmp(list->schemas[middle].name, name) < 0)
            low = middle + 1;
        else
            count = middle;
    }
    return low;
}

/* The schema of this name among the first count, which are sorted; NULL if there is none. */
static struct instance_schema *instances_find_schema(
    const struct instances_list *list, size_t count, const char *name)
{
    size_t place = instances_place_of_schema(list, count, name);

    if (place == count || strcmp(list->schemas[place].name, name) != 0)
        return NULL;
    return &list->schemas[place];
}

static bool instances_flag(const PGresult *rows, int row, enum instances_column column)
{
    return PQgetvalue(rows, row, (int)column)[0] == 't';
}

static struct instance_schema instances_read_schema(const PGresult *rows, int row)
{
    struct instance_schema schema = {
        .tables.finds_unclaimed = instances_flag(rows, row, INSTANCES_COLUMN_FINDS_UNCLAIMED),
        .tables.has_serial = instances_flag(rows, row, INSTANCES_COLUMN_HAS_SERIAL),
        .tables.claimed_indexed = instances_flag(rows, row, INSTANCES_COLUMN_CLAIMED_INDEXED),
        .tables.unclaimed_indexed = instances_flag(rows, row, INSTANCES_COLUMN_UNCLAIMED_INDEXED),
        .tables.tracked = instances_flag(rows, row, INSTANCES_COLUMN_TRACKED),
    };

    snprintf(schema.name, sizeof schema.name, "%s", PQgetvalue(rows, row, INSTANCES_COLUMN_SCHEMA));
    if (!instances_flag(rows, row, INSTANCES_COLUMN_COMPLETE))
        schema.fault = SCHEMA_INCOMPLETE;
    else if (!instances_flag(rows, row, INSTANCES_COLUMN_READABLE))
        schema.fault = SCHEMA_UNREADABLE;
    return schema;
}

/* Sorts the rows into instances and schemas. Leaves room for one missing schema for each
 * instance. */
static bool instances_read_rows(struct instances_list *list)
{
    size_t count = (size_t)PQntuples(list->rows);

    list->instances = calloc(count + 1, sizeof *list->instances);
    list->schemas = calloc(count + 1, sizeof *list->schemas);
    if (!list->instances || !list->schemas)
        return false;
    for (int row = 0; row < PQntuples(list->rows); row++)
        if (PQgetisnull(list->rows, row, INSTANCES_COLUMN_ID))
            list->schemas[list->schema_count++] = instances_read_schema(list->rows, row);
        else
            list->instances[list->count++].name =
                (struct naming_instance){PQgetvalue(list->rows, row, INSTANCES_COLUMN_ID),
                    PQgetvalue(list->rows, row, INSTANCES_COLUMN_SERIAL)};
    qsort(list->instances, list->count, sizeof *list->instances, instance_compare);
    instances_sort_schemas(list);
    return true;
}

/* Writes the problem that no rule, or no single rule, explains the names, with a few of the
 * schemas. */
static void instances_say_names(
    struct instances *instances, const char *what, const char *const names[], size_t count)
{
    char *problem = instances->problem;
    size_t size = sizeof instances->problem;
    size_t length = (size_t)snprintf(problem, size, "%s of the instances' schemas:", what);

    for (size_t i = 0; i < count && i < NAMES_MAX; i++)
        length += (size_t)snprintf(problem + length, size - length, " \"%.24s\"", names[i]);
    snprintf(problem + length, size - length, "%s; say it by --instance-schema",
        count > NAMES_MAX ? " and others" : "");
}

static const char *instances_pattern(const struct instances *instances)
{
    return instances->given ? instances->given : instances->found;
}

static void instances_say_rule(struct instances *instances)
{
    const char *pattern = instances_pattern(instances);

    snprintf(instances->rule, sizeof instances->rule, *pattern ? "named \"%.*s\", %s" : "%.*s%s",
        NAMING_PATTERN_SIZE, pattern,
        instances->given ? "as --instance-schema says"
        : *pattern       ? "found by itself"
                         : "none yet");
}

/* Searches for the pattern of the schemas' names. names and of have room for all schemas and
 * instances. */
static bool instances_search(
    struct instances *instances, const char *names[], struct naming_instance of[])
{
    const struct instances_list *list = &instances->list;
    size_t count = 0;

    for (size_t i = 0; i < list->schema_count; i++)
        if (list->schemas[i].fault != SCHEMA_INCOMPLETE)
            names[count++] = list->schemas[i].name;
    for (size_t i = 0; i < list->count; i++)
        of[i] = list->instances[i].name;
    if (list->count == 0)
        return true; /* there is no name to explain yet */
    if (count == 0) {
        snprintf(instances->problem, sizeof instances->problem,
            "a table merchant_contract_terms with the columns of a lookup is not there, in any "
            "schema");
        return false;
    }
    switch (naming_find(of, list->count, names, count, instances->found)) {
    case NAMING_FOUND:
        return true;
    case NAMING_NONE:
        instances_say_names(instances, "no rule explains the names", names, count);
        break;
    case NAMING_AMBIGUOUS:
        instances_say_names(instances, "several rules explain the names", names, count);
        break;
    }
    return false;
}

static bool instances_find_pattern(struct instances *instances)
{
    const char **names = calloc(instances->list.schema_count + 1, sizeof *names);
    struct naming_instance *of = calloc(instances->list.count + 1, sizeof *of);
    bool found = names && of && instances_search(instances, names, of);

    free(names);
    free(of);
    return found;
}

/* The name of an instance's schema by the pattern; "" if it is too long for PostgreSQL. */
static void instances_name_schema(
    const struct instances *instances, const struct instance *instance, char *name)
{
    if (!naming_expand(instances_pattern(instances), &instance->name, name))
        *name = '\0';
}

/* Adds the schemas that the pattern requires and the database does not have. */
static void instances_add_missing(struct instances *instances)
{
    struct instances_list *list = &instances->list;
    size_t there = list->schema_count;

    for (size_t i = 0; i < list->count; i++) {
        struct instance_schema missing = {.fault = SCHEMA_MISSING};

        instances_name_schema(instances, &list->instances[i], missing.name);
        if (!instances_find_schema(list, there, missing.name))
            list->schemas[list->schema_count++] = missing;
    }
    instances_sort_schemas(list);
}

/* Points each instance to its schema, which is in the list. */
static void instances_match(struct instances *instances)
{
    struct instances_list *list = &instances->list;

    for (size_t i = 0; i < list->count; i++) {
        struct instance_schema *schema;
        char name[NAMING_SCHEMA_SIZE];

        instances_name_schema(instances, &list->instances[i], name);
        schema = &list->schemas[instances_place_of_schema(list, list->schema_count, name)];
        list->instances[i].schema = schema;
        schema->serial = strtoll(list->instances[i].name.serial, NULL, 10);
        schema->used++;
        /* It is unknown whose orders are in this schema. */
        if (schema->used > 1 && schema->fault != SCHEMA_MISSING)
            schema->fault = SCHEMA_SHARED;
    }
}

static bool schema_has_statements(const struct instance_schema *schema)
{
    return schema->statements[QUESTION_EVERYTHING] || schema->statements[QUESTION_PAYMENT];
}

/* Carries the state of a schema over to the new list, apart from what the rows say. */
static void schema_keep_state(struct instance_schema *schema, const struct instance_schema *old)
{
    schema->told_fault = old->told_fault;
    memcpy(schema->statements, old->statements, sizeof schema->statements);
    schema->prepared_serial = old->prepared_serial;
    schema->stale = old->stale || !layout_same_statements(&schema->tables, &old->tables);
    schema->used_at = old->used_at;
    schema->told_failure = old->told_failure;
    /* A schema whose fault was mended is asked at once. */
    if (schema->fault == old->fault && !schema->stale) {
        schema->failures = old->failures;
        schema->rests_until = old->rests_until;
    }
}

/* Carries the state of all schemas over. A schema that has gone stays in the list until its
 * statements are deallocated. */
static bool instances_keep_state(struct instances_list *list, const struct instances_list *old)
{
    size_t there = list->schema_count;
    struct instance_schema *schemas =
        reallocarray(list->schemas, there + old->schema_count + 1, sizeof *schemas);

    if (!schemas)
        return false;
    list->schemas = schemas;
    for (size_t i = 0; i < old->schema_count; i++) {
        const struct instance_schema *from = &old->schemas[i];
        struct instance_schema *to = instances_find_schema(list, there, from->name);

        if (!to && schema_has_statements(from)) {
            to = &schemas[list->schema_count++];
            *to = *from;
            to->fault = SCHEMA_MISSING;
            to->used = 0;
        }
        if (to)
            schema_keep_state(to, from);
    }
    instances_sort_schemas(list);
    return true;
}

/* Marks statements for deallocation: those of schemas that are not asked any more, or that now
 * belong to another instance. */
static void instances_mark_stale(struct instances_list *list)
{
    for (size_t i = 0; i < list->schema_count; i++) {
        struct instance_schema *schema = &list->schemas[i];

        if (!schema_has_statements(schema))
            schema->stale = false;
        else if (schema->used == 0 || schema->fault != SCHEMA_FINE ||
                 schema->prepared_serial != schema->serial)
            schema->stale = true;
    }
}

static bool instances_build(struct instances *instances, const struct instances_list *old)
{
    snprintf(instances->problem, sizeof instances->problem, "out of memory");
    if (!instances_read_rows(&instances->list))
        return false;
    if (!*instances_pattern(instances) && !instances_find_pattern(instances))
        return false;
    instances_say_rule(instances);
    instances_add_missing(instances);
    if (!instances_keep_state(&instances->list, old))
        return false;
    instances_match(instances);
    instances_mark_stale(&instances->list);
    instances->problem[0] = '\0';
    return true;
}

/* Whether an instance of the old list is not in the new one. */
static bool instances_any_gone(const struct instances_list *list, const struct instances_list *old)
{
    for (size_t i = 0; i < old->count; i++)
        if (!instances_find_id(list, old->instances[i].name.id))
            return true;
    return false;
}

bool instances_read(struct instances *instances, PGresult *rows, bool *gone)
{
    struct instances_list old = instances->list;
    bool built;

    instances->list = (struct instances_list){.rows = rows};
    if (PQnfields(rows) == INSTANCES_COLUMN_COUNT) {
        built = instances_build(instances, &old);
    } else {
        snprintf(instances->problem, sizeof instances->problem, "the catalogue did not answer");
        built = false;
    }
    *gone = instances_any_gone(&instances->list, &old);
    if (!built)
        instances_free_list(&instances->list);
    instances_free_list(&old);
    return built;
}

const char *instances_problem(const struct instances *instances)
{
    return instances->problem;
}

void instances_disconnected(struct instances *instances)
{
    instances->found[0] = '\0';
    for (size_t i = 0; i < instances->list.schema_count; i++) {
        struct instance_schema *schema = &instances->list.schemas[i];

        memset(schema->statements, 0, sizeof schema->statements);
        schema->stale = false;
    }
}

struct instance_schema *instances_find(struct instances *instances, const char *id)
{
    struct instance *instance = instances_find_id(&instances->list, *id ? id : "admin");

    if (!instance && !*id)
        instance = instances_find_id(&instances->list, "default");
    return instance ? instance->schema : NULL;
}

const struct instance *instances_next(
    const struct instances *instances, const struct instance *after)
{
    size_t next = after ? (size_t)(after - instances->list.instances) + 1 : 0;

    return next < instances->list.count ? &instances->list.instances[next] : NULL;
}

struct instance_schema *instances_next_schema(
    struct instances *instances, const struct instance_schema *after)
{
    const struct instances_list *list = &instances->list;
    size_t next = after ? (size_t)(after - list->schemas) + 1 : 0;

    return next < list->schema_count ? &list->schemas[next] : NULL;
}

size_t instances_prepared(const struct instances *instances)
{
    size_t prepared = 0;

    for (size_t i = 0; i < instances->list.schema_count; i++)
        for (int question = 0; question <= QUESTION_PAYMENT; question++)
            prepared += instances->list.schemas[i].statements[question] != 0;
    return prepared;
}

struct instance_schema *instances_least_used(struct instances *instances)
{
    struct instance_schema *least = NULL;

    for (size_t i = 0; i < instances->list.schema_count; i++) {
        struct instance_schema *schema = &instances->list.schemas[i];

        if (schema_has_statements(schema) && (!least || schema->used_at < least->used_at))
            least = schema;
    }
    return least;
}

bool instances_tracked(const struct instances *instances)
{
    for (size_t i = 0; i < instances->list.schema_count; i++) {
        const struct instance_schema *schema = &instances->list.schemas[i];

        if (schema->used > 0 && schema->fault == SCHEMA_FINE && !schema->tables.tracked)
            return false;
    }
    return true;
}

const char *instances_rule(const struct instances *instances)
{
    return instances->rule;
}

struct instances_summary instances_summary(const struct instances *instances)
{
    struct instances_summary summary = {
        .instances = instances->list.count,
    };

    for (size_t i = 0; i < instances->list.count; i++) {
        const struct instance_schema *schema = instances->list.instances[i].schema;
        const struct layout_tables *tables = &schema->tables;

        if (schema->fault != SCHEMA_FINE)
            continue;
        summary.claimed_unindexed += !tables->claimed_indexed;
        summary.unclaimed_unindexed += tables->finds_unclaimed && !tables->unclaimed_indexed;
    }
    return summary;
}

const char *schema_fault_text(enum schema_fault fault)
{
    switch (fault) {
    case SCHEMA_FINE:
        break;
    case SCHEMA_MISSING:
        return "is not there, or has no merchant_contract_terms";
    case SCHEMA_INCOMPLETE:
        return "lacks columns that a lookup needs";
    case SCHEMA_UNREADABLE:
        return "may not be read by this role; run sql/role.sql";
    case SCHEMA_SHARED:
        return "--instance-schema gives to several instances";
    }
    return "can be asked";
}

const char *schema_printed_name(const struct instance_schema *schema)
{
    return *schema->name ? schema->name : "(a name that is too long)";
}
