/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LAYOUT_H
#define LAYOUT_H

#include <libpq-fe.h>
#include <stdbool.h>

/* How a merchant database is laid out, as sql/layout.sql found it. */
struct layout {
    char schema[64];        /* where the tables are */
    bool has_order_session; /* merchant_orders tells the session of unclaimed orders */
    bool contracts_indexed; /* an index serves the lookup in merchant_contract_terms */
    bool orders_indexed;    /* likewise in merchant_orders */
    bool tracked;           /* sql/changes.sql notices all changes of the tables */
    char problem[200];      /* why sessions can't be looked up: which table or column */
};

/* Fills in the layout from the rows of sql/layout.sql. False if sessions can't be looked up in this
 * database, with the problem said. */
bool layout_read(const PGresult *rows, struct layout *layout);

/* The text of the lookup statement for this layout. */
const char *layout_lookup(const struct layout *layout);

#endif
