/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "layout.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sql.h"

/* The columns of sql/layout.sql. */
enum layout_column {
    LAYOUT_COLUMN_SCHEMA,
    LAYOUT_COLUMN_TABLE,
    LAYOUT_COLUMN_NAME,
    LAYOUT_COLUMN_PRESENT,
    LAYOUT_COLUMN_READABLE,
    LAYOUT_COLUMN_INDEXED,
    LAYOUT_COLUMN_TRACKED,
    LAYOUT_COLUMN_BACKEND,
    LAYOUT_COLUMN_COUNT
};

static const char *layout_text(const PGresult *rows, int row, enum layout_column column)
{
    return PQgetvalue(rows, row, (int)column);
}

static bool layout_is_true(const PGresult *rows, int row, enum layout_column column)
{
    return layout_text(rows, row, column)[0] == 't';
}

static int layout_find_row(const PGresult *rows, const char *table, const char *column)
{
    for (int row = 0; row < PQntuples(rows); row++)
        if (strcmp(layout_text(rows, row, LAYOUT_COLUMN_TABLE), table) == 0 &&
            strcmp(layout_text(rows, row, LAYOUT_COLUMN_NAME), column) == 0)
            return row;
    return -1;
}

static bool layout_has_column(const PGresult *rows, const char *table, const char *column)
{
    int row = layout_find_row(rows, table, column);

    return row >= 0 && layout_is_true(rows, row, LAYOUT_COLUMN_PRESENT);
}

static bool layout_is_indexed(const PGresult *rows, const char *table)
{
    int row = layout_find_row(rows, table, "merchant_serial");

    return row >= 0 && layout_is_true(rows, row, LAYOUT_COLUMN_INDEXED);
}

static bool layout_is_tracked(const PGresult *rows)
{
    for (int row = 0; row < PQntuples(rows); row++)
        if (!layout_is_true(rows, row, LAYOUT_COLUMN_TRACKED))
            return false;
    return true;
}

/* Whether a lookup reads the column in this row. */
static bool layout_is_needed(const PGresult *rows, int row, const struct layout *layout)
{
    if (layout->per_instance)
        return strcmp(layout_text(rows, row, LAYOUT_COLUMN_TABLE), "merchant_instances") == 0;
    if (strcmp(layout_text(rows, row, LAYOUT_COLUMN_TABLE), "merchant_orders") != 0)
        return true;
    return layout->tables.finds_unclaimed;
}

static bool layout_check_row(const PGresult *rows, int row, struct layout *layout)
{
    const char *trouble = NULL;

    if (!layout_is_true(rows, row, LAYOUT_COLUMN_PRESENT))
        trouble = "is not there";
    else if (!layout_is_true(rows, row, LAYOUT_COLUMN_READABLE))
        trouble = "may not be read by this role; run sql/role.sql";
    if (!trouble)
        return true;
    snprintf(layout->problem, sizeof layout->problem, "column %s.%s.%s %s", layout->schema,
        layout_text(rows, row, LAYOUT_COLUMN_TABLE), layout_text(rows, row, LAYOUT_COLUMN_NAME),
        trouble);
    return false;
}

/* Whether each instance has a schema: merchant_instances is there, and no column of
 * merchant_contract_terms. */
static bool layout_is_per_instance(const PGresult *rows)
{
    for (int row = 0; row < PQntuples(rows); row++)
        if (strcmp(layout_text(rows, row, LAYOUT_COLUMN_TABLE), "merchant_contract_terms") == 0 &&
            layout_is_true(rows, row, LAYOUT_COLUMN_PRESENT))
            return false;
    return layout_has_column(rows, "merchant_instances", "merchant_id") &&
           layout_has_column(rows, "merchant_instances", "merchant_serial");
}

bool layout_read(const PGresult *rows, struct layout *layout)
{
    *layout = (struct layout){0};
    if (PQntuples(rows) == 0 || PQnfields(rows) < LAYOUT_COLUMN_COUNT) {
        snprintf(layout->problem, sizeof layout->problem, "the catalogue did not answer");
        return false;
    }
    snprintf(
        layout->schema, sizeof layout->schema, "%s", layout_text(rows, 0, LAYOUT_COLUMN_SCHEMA));
    layout->tables.finds_unclaimed = layout_has_column(rows, "merchant_orders", "session_id") &&
                                     layout_has_column(rows, "merchant_orders", "fulfillment_url");
    layout->tables.has_serial = true;
    layout->tables.claimed_indexed = layout_is_indexed(rows, "merchant_contract_terms");
    layout->tables.unclaimed_indexed = layout_is_indexed(rows, "merchant_orders");
    layout->tables.tracked = layout_is_tracked(rows);
    layout->per_instance = layout_is_per_instance(rows);
    layout->backend = (int)strtol(layout_text(rows, 0, LAYOUT_COLUMN_BACKEND), NULL, 10);
    /* Without the table this layout is unknown, and lookups would be guesses. */
    if (!layout->per_instance && !layout_has_column(rows, "merchant_orders", "order_id")) {
        snprintf(layout->problem, sizeof layout->problem,
            "column %s.merchant_orders.order_id is not there", layout->schema);
        return false;
    }
    for (int row = 0; row < PQntuples(rows); row++)
        if (layout_is_needed(rows, row, layout) && !layout_check_row(rows, row, layout))
            return false;
    return true;
}

const char *layout_lookup(const struct layout_tables *tables)
{
    if (!tables->finds_unclaimed)
        return sql_lookup_claimed;
    return tables->unclaimed_indexed ? sql_lookup : sql_lookup_unindexed;
}

/* Marks in the texts of statements. They are comments, so that the texts are valid as they are.
 * The text from a mark to the end mark is about one thing, and may be left out. */
#define MARK_SCHEMA    "/*schema*/"
#define MARK_SERIAL    "/*serial*/"
#define MARK_INSTANCES "/*instances*/"
#define MARK_END       "/*end*/"

static bool layout_has_mark(const char *text, const char *mark)
{
    return strncmp(text, mark, strlen(mark)) == 0;
}

/* The text after the end of the part that a mark begins. */
static const char *layout_after_mark(const char *text)
{
    const char *end = strstr(text, MARK_END);

    return end ? end + strlen(MARK_END) : "";
}

/* Writes the head of the text as the layout needs it. Returns the rest of the text; NULL if out of
 * memory. Each write is checked: a stream of open_memstream() has no error indicator for a lack of
 * memory, and its text would just be incomplete. */
static const char *layout_write_head(FILE *to, const char *text, const struct layout_tables *tables,
    const char *quoted, int64_t serial)
{
    if (layout_has_mark(text, MARK_SCHEMA)) {
        return fprintf(to, "%s.", quoted) < 0 ? NULL : text + strlen(MARK_SCHEMA);
    }
    if (layout_has_mark(text, MARK_INSTANCES)) {
        if (tables->has_serial &&
            fprintf(to, "CROSS JOIN (SELECT %" PRId64 "::bigint AS merchant_serial) i", serial) < 0)
            return NULL;
        return layout_after_mark(text);
    }
    if (layout_has_mark(text, MARK_SERIAL) && !tables->has_serial)
        return layout_after_mark(text);
    return putc(*text, to) == EOF ? NULL : text + 1;
}

char *layout_make_statement(enum session_question question, const struct layout_tables *tables,
    const char *quoted, int64_t serial)
{
    const char *text = question == QUESTION_PAYMENT ? sql_poll : layout_lookup(tables);
    char *made = NULL;
    size_t size;
    FILE *to = open_memstream(&made, &size);

    if (!to)
        return NULL;
    while (text && *text)
        text = layout_write_head(to, text, tables, quoted, serial);
    if (fclose(to) == 0 && text)
        return made;
    free(made);
    return NULL;
}

bool layout_same_statements(const struct layout_tables *a, const struct layout_tables *b)
{
    return a->finds_unclaimed == b->finds_unclaimed && a->has_serial == b->has_serial &&
           a->unclaimed_indexed == b->unclaimed_indexed;
}
