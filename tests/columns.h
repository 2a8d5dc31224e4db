/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef COLUMNS_H
#define COLUMNS_H

/* The columns that a lookup reads, in the order of sql/columns.sql: sql/layout.sql has a row for
 * each. */
static const struct column {
    const char *table, *name;
} columns[] = {
    {"merchant_instances", "merchant_serial"},
    {"merchant_instances", "merchant_id"},
    {"merchant_contract_terms", "merchant_serial"},
    {"merchant_contract_terms", "order_serial"},
    {"merchant_contract_terms", "order_id"},
    {"merchant_contract_terms", "creation_time"},
    {"merchant_contract_terms", "paid"},
    {"merchant_contract_terms", "fulfillment_url"},
    {"merchant_contract_terms", "session_id"},
    {"merchant_orders", "merchant_serial"},
    {"merchant_orders", "order_serial"},
    {"merchant_orders", "order_id"},
    {"merchant_orders", "creation_time"},
    {"merchant_orders", "fulfillment_url"},
    {"merchant_orders", "session_id"},
};

#endif
