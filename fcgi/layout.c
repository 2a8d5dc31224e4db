/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "layout.h"

#include <stdio.h>
#include <string.h>

#include "sql.h"

/* The columns of sql/layout.sql. */
enum column { SCHEMA, TABLE, COLUMN, PRESENT, READABLE, INDEXED, TRACKED };

static const char *text(const PGresult *rows, int row, enum column column)
{
    return PQgetvalue(rows, row, (int)column);
}

static bool is_true(const PGresult *rows, int row, enum column column)
{
    return text(rows, row, column)[0] == 't';
}

static int find_row(const PGresult *rows, const char *table, const char *column)
{
    for (int row = 0; row < PQntuples(rows); row++)
        if (strcmp(text(rows, row, TABLE), table) == 0 &&
            strcmp(text(rows, row, COLUMN), column) == 0)
            return row;
    return -1;
}

static bool has_column(const PGresult *rows, const char *table, const char *column)
{
    int row = find_row(rows, table, column);

    return row >= 0 && is_true(rows, row, PRESENT);
}

static bool is_indexed(const PGresult *rows, const char *table)
{
    int row = find_row(rows, table, "merchant_serial");

    return row >= 0 && is_true(rows, row, INDEXED);
}

static bool is_tracked(const PGresult *rows)
{
    for (int row = 0; row < PQntuples(rows); row++)
        if (!is_true(rows, row, TRACKED))
            return false;
    return true;
}

/* Whether the lookup reads the column in this row. */
static bool is_needed(const PGresult *rows, int row, const struct layout *layout)
{
    if (strcmp(text(rows, row, TABLE), "merchant_orders") != 0)
        return true;
    return layout->has_order_session;
}

static bool check_row(const PGresult *rows, int row, struct layout *layout)
{
    const char *trouble = NULL;

    if (!is_true(rows, row, PRESENT))
        trouble = "is not there";
    else if (!is_true(rows, row, READABLE))
        trouble = "may not be read by this role";
    if (!trouble)
        return true;
    snprintf(layout->problem, sizeof layout->problem, "column %s.%s.%s %s", layout->schema,
        text(rows, row, TABLE), text(rows, row, COLUMN), trouble);
    return false;
}

bool layout_read(const PGresult *rows, struct layout *layout)
{
    *layout = (struct layout){0};
    if (PQntuples(rows) == 0 || PQnfields(rows) <= TRACKED) {
        snprintf(layout->problem, sizeof layout->problem, "the catalogue did not answer");
        return false;
    }
    snprintf(layout->schema, sizeof layout->schema, "%s", text(rows, 0, SCHEMA));
    layout->has_order_session = has_column(rows, "merchant_orders", "session_id") &&
                                has_column(rows, "merchant_orders", "fulfillment_url");
    layout->contracts_indexed = is_indexed(rows, "merchant_contract_terms");
    layout->orders_indexed = is_indexed(rows, "merchant_orders");
    layout->tracked = is_tracked(rows);
    /* Without the table itself this is a layout that we do not know, and must not guess about. */
    if (!has_column(rows, "merchant_orders", "order_id")) {
        snprintf(layout->problem, sizeof layout->problem,
            "column %s.merchant_orders.order_id is not there", layout->schema);
        return false;
    }
    for (int row = 0; row < PQntuples(rows); row++)
        if (is_needed(rows, row, layout) && !check_row(rows, row, layout))
            return false;
    return true;
}

const char *layout_lookup(const struct layout *layout)
{
    if (!layout->has_order_session)
        return sql_lookup_contracts;
    return layout->orders_indexed ? sql_lookup : sql_lookup_unindexed;
}
