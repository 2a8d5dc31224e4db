/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CHECK_H
#define CHECK_H

#include "options.h"

/*
 * Checks the set-up as a worker uses it: connects to the database, reads layout, rights and
 * indexes, and runs each prepared statement once, all within multiples of --db-timeout. Says on
 * standard output what it finds, a line each. The log is muted meanwhile and after.
 *
 * Returns EXIT_SUCCESS, or EXIT_FAILURE if requests would be answered with 500 or if
 * merchant_contract_terms has no index for the lookup. The index on merchant_orders is optional: it
 * is reported, and not counted.
 */
int check_run(const struct options *options);

#endif
