/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LAYOUT_H
#define LAYOUT_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

#include "session.h"

/* The properties of merchant_contract_terms and merchant_orders that a statement depends on. */
struct layout_tables {
    bool finds_unclaimed;   /* merchant_orders tells the session of unclaimed orders */
    bool has_serial;        /* they have merchant_serial */
    bool claimed_indexed;   /* an index serves the lookup in merchant_contract_terms */
    bool unclaimed_indexed; /* likewise in merchant_orders */
    bool tracked;           /* sql/changes.sql notices all changes of the tables */
};

/* How a merchant database is laid out, as sql/layout.sql found it. */
struct layout {
    char schema[64];             /* where the tables are */
    bool per_instance;           /* each instance has a schema: only merchant_instances is here */
    struct layout_tables tables; /* where all instances share them */
    int backend;                 /* the server's process that answered */
    char problem[200];           /* why sessions can't be looked up: which table or column */
};

/* Fills in the layout from the rows of sql/layout.sql. False if this database cannot be asked
 * about sessions; the problem is then in layout->problem. */
bool layout_read(const PGresult *rows, struct layout *layout);

/* The text of the statement that asks everything, for these tables. */
const char *layout_lookup(const struct layout_tables *tables);

/*
 * Makes the text of a question's statement for the tables in the schema of one instance: with the
 * schema's quoted name, as PQescapeIdentifier() makes it, and with the instance's serial if they
 * have one. The caller frees the result; NULL if out of memory.
 */
char *layout_make_statement(enum session_question question, const struct layout_tables *tables,
    const char *quoted, int64_t serial);

/* Whether both have the same statements, given the same schema and serial. */
bool layout_same_statements(const struct layout_tables *a, const struct layout_tables *b);

#endif
