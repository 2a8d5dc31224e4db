/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "naming.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMING_ID     "{id}"
#define NAMING_SERIAL "{serial}"

/* How well a pattern explains the names. */
enum naming_fit {
    FIT_NOT,    /* some instances and some schemas are not explained */
    FIT_PARTLY, /* all instances are, or all schemas */
    FIT_WHOLLY, /* both are */
    FITS
};

/* The input of naming_find(), and the first pattern found of each fit. */
struct naming_search {
    const struct naming_instance *instances;
    size_t instance_count;
    const char *const *schemas;
    size_t schema_count;
    struct {
        char pattern[NAMING_PATTERN_SIZE];
        bool ambiguous; /* there is another one */
    } found[FITS];
};

bool naming_is_pattern(const char *pattern)
{
    return strstr(pattern, NAMING_ID) || strstr(pattern, NAMING_SERIAL);
}

/* What the head of a pattern stands for, and the length of that head. */
static const char *naming_head(
    const char *pattern, const struct naming_instance *instance, char self[2], size_t *taken)
{
    if (strncmp(pattern, NAMING_ID, strlen(NAMING_ID)) == 0) {
        *taken = strlen(NAMING_ID);
        return instance->id;
    }
    if (strncmp(pattern, NAMING_SERIAL, strlen(NAMING_SERIAL)) == 0) {
        *taken = strlen(NAMING_SERIAL);
        return instance->serial;
    }
    *taken = 1;
    self[0] = *pattern;
    self[1] = '\0';
    return self;
}

bool naming_expand(
    const char *pattern, const struct naming_instance *instance, char name[NAMING_SCHEMA_SIZE])
{
    size_t used = 0;

    while (*pattern) {
        char self[2];
        size_t taken;
        const char *text = naming_head(pattern, instance, self, &taken);
        size_t length = strlen(text);

        if (length >= NAMING_SCHEMA_SIZE - used)
            return false;
        memcpy(name + used, text, length);
        used += length;
        pattern += taken;
    }
    name[used] = '\0';
    return used > 0;
}

static int naming_compare(const void *left, const void *right)
{
    return strcmp(left, *(const char *const *)right);
}

/* A pattern of naming_find() gives different names to different instances, so it explains as many
 * schemas as instances. */
static enum naming_fit naming_judge(const struct naming_search *search, const char *pattern)
{
    size_t explained = 0;

    for (size_t i = 0; i < search->instance_count; i++) {
        char name[NAMING_SCHEMA_SIZE];

        if (naming_expand(pattern, &search->instances[i], name) &&
            bsearch(name, search->schemas, search->schema_count, sizeof *search->schemas,
                naming_compare))
            explained++;
    }
    if (explained == search->instance_count && explained == search->schema_count)
        return FIT_WHOLLY;
    if (explained == search->instance_count || explained == search->schema_count)
        return FIT_PARTLY;
    return FIT_NOT;
}

static void naming_try(struct naming_search *search, const char *pattern)
{
    enum naming_fit fit = naming_judge(search, pattern);
    char *found = search->found[fit].pattern;

    if (*found && strcmp(found, pattern) != 0)
        search->found[fit].ambiguous = true;
    else
        snprintf(found, NAMING_PATTERN_SIZE, "%s", pattern);
}

/* Tries the pattern by which the schema is named after this serial or id. */
static void naming_try_key(
    struct naming_search *search, const char *schema, const char *key, const char *placeholder)
{
    size_t length = strlen(schema), of_key = strlen(key);
    char pattern[NAMING_PATTERN_SIZE];
    int of_prefix;

    if (of_key == 0 || of_key > length || length >= NAMING_SCHEMA_SIZE ||
        strcmp(schema + length - of_key, key) != 0)
        return;
    of_prefix = (int)(length - of_key);
    snprintf(pattern, sizeof pattern, "%.*s", of_prefix, schema);
    /* A prefix with a brace would not stand for itself. */
    if (naming_is_pattern(pattern))
        return;
    snprintf(pattern, sizeof pattern, "%.*s%s", of_prefix, schema, placeholder);
    naming_try(search, pattern);
}

static void naming_try_pair(
    struct naming_search *search, const char *schema, const struct naming_instance *instance)
{
    naming_try_key(search, schema, instance->serial, NAMING_SERIAL);
    naming_try_key(search, schema, instance->id, NAMING_ID);
}

enum naming_result naming_find(const struct naming_instance instances[], size_t instance_count,
    const char *const schemas[], size_t schema_count, char pattern[NAMING_PATTERN_SIZE])
{
    struct naming_search search = {
        .instances = instances,
        .instance_count = instance_count,
        .schemas = schemas,
        .schema_count = schema_count,
    };
    enum naming_fit best;

    if (instance_count == 0 || schema_count == 0)
        return NAMING_NONE;
    /* A pattern that explains all instances explains the first one; likewise all schemas. */
    for (size_t i = 0; i < schema_count; i++)
        naming_try_pair(&search, schemas[i], &instances[0]);
    for (size_t i = 0; i < instance_count; i++)
        naming_try_pair(&search, schemas[0], &instances[i]);
    best = *search.found[FIT_WHOLLY].pattern ? FIT_WHOLLY : FIT_PARTLY;
    if (!*search.found[best].pattern)
        return NAMING_NONE;
    if (search.found[best].ambiguous)
        return NAMING_AMBIGUOUS;
    snprintf(pattern, NAMING_PATTERN_SIZE, "%s", search.found[best].pattern);
    return NAMING_FOUND;
}
