/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef INSTANCES_H
#define INSTANCES_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "layout.h"
#include "naming.h"
#include "session.h"

/* The instances and their schemas, where each instance has a schema of its own, as
 * sql/instances.sql found them. The state of a schema, such as its prepared statements, is kept
 * when the list is read again. */
struct instances;

/* Whether the schema of an instance can be asked. */
enum schema_fault {
    SCHEMA_FINE,
    SCHEMA_MISSING,    /* there is no such schema, or it has no merchant_contract_terms */
    SCHEMA_INCOMPLETE, /* its tables lack columns that a lookup needs */
    SCHEMA_UNREADABLE, /* this role may not read them */
    SCHEMA_SHARED,     /* the operator's pattern gives its name to several instances */
};

/* The number of faults. */
#define SCHEMA_FAULTS (SCHEMA_SHARED + 1)

/* The schema of an instance. */
struct instance_schema {
    char name[NAMING_SCHEMA_SIZE]; /* first: schemas are sorted by it; "": too long a name */
    struct layout_tables tables;
    enum schema_fault fault;
    enum schema_fault told_fault; /* that was logged last */
    size_t used;                  /* number of instances in it */
    int64_t serial;               /* merchant_serial of its instance */

    /* What pipeline.c knows of it: */
    uint32_t statements[QUESTION_PAYMENT + 1]; /* the numbers in their names; 0: not prepared */
    int64_t prepared_serial;                   /* that is in their texts */
    bool stale;                                /* they are to be deallocated */
    usec_t used_at;                            /* when one of them was last used */
    unsigned failures;  /* statements that have failed since the last success */
    bool told_failure;  /* the failure was logged */
    usec_t rests_until; /* it is not asked before */
};

/* An instance; its texts live until instances_read(). */
struct instance {
    struct naming_instance name;
    struct instance_schema *schema;
};

/* For the log: what was found. */
struct instances_summary {
    size_t instances;
    size_t claimed_unindexed; /* those whose schema can be asked, without an index for the lookup */
    size_t unclaimed_unindexed; /* likewise */
};

/* pattern is the operator's, and not copied; NULL: it is found from the names. NULL if out of
 * memory. */
struct instances *instances_new(const char *pattern);

/* Frees it; NULL is allowed. */
void instances_free(struct instances *instances);

/* Replaces the list by the rows of sql/instances.sql, which it owns from now on. Searches for
 * the pattern if there is none yet. *gone: an instance of the old list is not in the new one.
 * False if no instance can be served: see instances_problem(). */
bool instances_read(struct instances *instances, PGresult *rows, bool *gone);

/* Why instances_read() failed: for the log. */
const char *instances_problem(const struct instances *instances);

/* Tells that the connection was lost, and with it the prepared statements. A pattern that was
 * found from the names is searched for again. */
void instances_disconnected(struct instances *instances);

/* The schema of the instance; NULL if there is no such instance. id "" is the instance of the
 * un-prefixed path. It lives until instances_read(). */
struct instance_schema *instances_find(struct instances *instances, const char *id);

/* The instance after this one, by id; NULL: the first. NULL if there is none. */
const struct instance *instances_next(
    const struct instances *instances, const struct instance *after);

/* The schema after this one, by name; NULL: the first. NULL if there is none. */
struct instance_schema *instances_next_schema(
    struct instances *instances, const struct instance_schema *after);

/* How many statements are prepared. */
size_t instances_prepared(const struct instances *instances);

/* The schema with prepared statements that was used least recently; NULL if none. */
struct instance_schema *instances_least_used(struct instances *instances);

/* Whether sql/changes.sql notices all changes of all schemas. */
bool instances_tracked(const struct instances *instances);

/* For the log and --check: the pattern of the names, and how it is known. It belongs to the
 * instances until instances_read(). */
const char *instances_rule(const struct instances *instances);

/* Counts what was found. */
struct instances_summary instances_summary(const struct instances *instances);

/* For the log and --check: what is wrong with a schema, and what to do; "can be asked" if nothing
 * is. */
const char *schema_fault_text(enum schema_fault fault);

/* The name of a schema as the log and --check have it. */
const char *schema_printed_name(const struct instance_schema *schema);

#endif
