/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef NAMING_H
#define NAMING_H

#include <stdbool.h>
#include <stddef.h>

/* The names of schemas, where each instance has one. A pattern is text in which {id} and
 * {serial} stand for those of an instance, and all else for itself. No I/O. */

/* Room for the name of a schema, with its NUL: PostgreSQL's NAMEDATALEN. */
#define NAMING_SCHEMA_SIZE 64
/* Room for a pattern that naming_find() makes: a prefix and a placeholder. */
#define NAMING_PATTERN_SIZE (NAMING_SCHEMA_SIZE + 16)

struct naming_instance {
    const char *id, *serial; /* serial in decimal */
};

/* The result of naming_find(). */
enum naming_result {
    NAMING_FOUND,     /* one pattern explains the names */
    NAMING_NONE,      /* no pattern does */
    NAMING_AMBIGUOUS, /* several do */
};

/* Whether a pattern distinguishes instances: it has {id} or {serial} in it. */
bool naming_is_pattern(const char *pattern);

/* Makes the name that a pattern gives to an instance's schema. False if it is too long for
 * PostgreSQL, or empty: there is no such schema. */
bool naming_expand(
    const char *pattern, const struct naming_instance *instance, char name[NAMING_SCHEMA_SIZE]);

/*
 * Finds the pattern: one common prefix followed by each instance's serial or by its id. schemas are
 * the names of all schemas that look like an instance's, sorted by strcmp(), without duplicates.
 *
 * A pattern that explains both all instances and all schemas goes before one that explains either
 * (an instance may lack its schema, a schema may be left over). At the first of these two levels
 * where any pattern fits exactly one has to: to guess wrong is to answer with the orders of another
 * instance.
 */
enum naming_result naming_find(const struct naming_instance instances[], size_t instance_count,
    const char *const schemas[], size_t schema_count, char pattern[NAMING_PATTERN_SIZE]);

#endif
