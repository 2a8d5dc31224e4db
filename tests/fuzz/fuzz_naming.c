/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "fuzz.h"

#include <stdbool.h>
#include <stdlib.h>

#include "naming.h"

/*
 * Oracle: every prefix of every schema, with either placeholder behind it, is tried as the rule,
 * and what it explains is counted by comparing all names with all. naming_find() has to find the
 * one that fits best, or to say that there is none, or several. Names are also expanded by
 * replacing the placeholders in a copy.
 *
 * An input is a byte for the way the schemas are named, then strings: ids of instances, each with a
 * byte for its serial before it; after an empty id, names of schemas. In most ways the schemas are
 * named after the instances.
 */

#define INSTANCES_MAX 6
#define SCHEMAS_MAX   8
#define RULES_MAX     (SCHEMAS_MAX * (NAMING_SCHEMA_SIZE + 1) * 2)

struct names {
    struct naming_instance instances[INSTANCES_MAX];
    size_t instance_count;
    char *schemas[SCHEMAS_MAX];
    size_t schema_count;
};

static char *print_serial(unsigned number)
{
    char *text;

    CHECK(asprintf(&text, "%u", number) > 0);
    return text;
}

/* Replaces the placeholders; what an id holds is not replaced again. */
static char *expand_all(const char *pattern, const struct naming_instance *instance)
{
    size_t size = (strlen(pattern) + 1) * (strlen(instance->id) + strlen(instance->serial) + 1);
    char *name = calloc(1, size), *end = name;

    CHECK(name);
    while (*pattern)
        if (strncmp(pattern, "{id}", 4) == 0) {
            end = stpcpy(end, instance->id);
            pattern += 4;
        } else if (strncmp(pattern, "{serial}", 8) == 0) {
            end = stpcpy(end, instance->serial);
            pattern += 8;
        } else {
            *end++ = *pattern++;
        }
    return name;
}

static void check_expand(const char *pattern, const struct naming_instance *instance)
{
    char name[NAMING_SCHEMA_SIZE];
    char *wanted = expand_all(pattern, instance);
    bool good = *wanted && strlen(wanted) < NAMING_SCHEMA_SIZE;

    CHECK(naming_expand(pattern, instance, name) == good);
    CHECK(!good || strcmp(name, wanted) == 0);
    free(wanted);
}

static int compare_texts(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static bool has_schema(const struct names *names, const char *name)
{
    for (size_t i = 0; i < names->schema_count; i++)
        if (strcmp(names->schemas[i], name) == 0)
            return true;
    return false;
}

/* Takes the name over. Those of PostgreSQL are not empty, and have at most 63 bytes. */
static void add_schema(struct names *names, char *name)
{
    if (names->schema_count == SCHEMAS_MAX || !*name || strlen(name) >= NAMING_SCHEMA_SIZE ||
        has_schema(names, name)) {
        free(name);
        return;
    }
    names->schemas[names->schema_count++] = name;
}

static bool has_instance(const struct names *names, const char *id, const char *serial)
{
    for (size_t i = 0; i < names->instance_count; i++)
        if (strcmp(names->instances[i].id, id) == 0 ||
            strcmp(names->instances[i].serial, serial) == 0)
            return true;
    return false;
}

static void read_names(struct names *names, struct fuzz_input *input)
{
    static const char *const patterns[] = {
        "", "m_{serial}", "{id}", "m{id}", "{serial}", "1{serial}"};
    const char *pattern = patterns[fuzz_byte(input) % COUNT_OF(patterns)];

    while (input->left > 0 && names->instance_count < INSTANCES_MAX) {
        char *serial = print_serial(fuzz_byte(input)), *id = fuzz_string(input);

        if (!*id || has_instance(names, id, serial)) {
            bool end = !*id;

            free(id);
            free(serial);
            if (end)
                break;
            continue;
        }
        names->instances[names->instance_count++] = (struct naming_instance){id, serial};
        add_schema(names, expand_all(pattern, &names->instances[names->instance_count - 1]));
    }
    while (input->left > 0)
        add_schema(names, fuzz_string(input));
    qsort(names->schemas, names->schema_count, sizeof *names->schemas, compare_texts);
}

/* How well the rule explains the names: 2 all of them, 1 all instances or all schemas, else 0. */
static int judge(const struct names *names, const char *prefix, bool by_serial)
{
    size_t explained = 0;

    for (size_t i = 0; i < names->instance_count; i++) {
        char *name;

        CHECK(asprintf(&name, "%s%s", prefix,
                  by_serial ? names->instances[i].serial : names->instances[i].id) >= 0);
        explained += has_schema(names, name);
        free(name);
    }
    return (explained > 0 && explained == names->instance_count) +
           (explained > 0 && explained == names->schema_count);
}

/* The number of rules that fit so well, and the last one of them. */
static size_t count_rules(const struct names *names, int fit, char rule[NAMING_PATTERN_SIZE])
{
    static char rules[RULES_MAX][NAMING_PATTERN_SIZE];
    size_t count = 0;

    for (size_t i = 0; i < names->schema_count; i++)
        for (size_t length = 0; length <= strlen(names->schemas[i]); length++)
            for (int by_serial = 0; by_serial < 2; by_serial++) {
                char prefix[NAMING_SCHEMA_SIZE];
                bool known = false;

                snprintf(prefix, sizeof prefix, "%.*s", (int)length, names->schemas[i]);
                if (strstr(prefix, "{id}") || strstr(prefix, "{serial}") ||
                    judge(names, prefix, by_serial) != fit)
                    continue;
                snprintf(rules[count], sizeof rules[count], "%s%s", prefix,
                    by_serial ? "{serial}" : "{id}");
                for (size_t j = 0; j < count; j++)
                    known |= strcmp(rules[j], rules[count]) == 0;
                count += !known;
            }
    if (count > 0)
        strcpy(rule, rules[count - 1]);
    return count;
}

static void check_find(const struct names *names)
{
    char pattern[NAMING_PATTERN_SIZE] = "", rule[NAMING_PATTERN_SIZE] = "";
    enum naming_result result = naming_find(names->instances, names->instance_count,
        (const char *const *)names->schemas, names->schema_count, pattern);
    size_t count = count_rules(names, 2, rule);

    if (count == 0)
        count = count_rules(names, 1, rule);
    CHECK(result == (count == 0 ? NAMING_NONE : count == 1 ? NAMING_FOUND : NAMING_AMBIGUOUS));
    if (result == NAMING_FOUND)
        CHECK(strcmp(pattern, rule) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    struct names names = {0};

    read_names(&names, &input);
    check_find(&names);
    for (size_t i = 0; i < names.instance_count; i++) {
        for (size_t j = 0; j < names.schema_count; j++)
            check_expand(names.schemas[j], &names.instances[i]);
        check_expand("a{id}{serial}", &names.instances[i]);
    }
    for (size_t i = 0; i < names.instance_count; i++) {
        free((char *)(uintptr_t)names.instances[i].id);
        free((char *)(uintptr_t)names.instances[i].serial);
    }
    for (size_t i = 0; i < names.schema_count; i++)
        free(names.schemas[i]);
    return 0;
}
