/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CHECK_H
#define CHECK_H

#include "options.h"

/*
 * Checks the set-up as a worker uses it: enters the sandbox, connects to the database, reads layout
 * and rights, runs each statement once, and has the server explain how it finds orders, each step
 * within --db-timeout. Says on standard output what it finds, a line each, which begins with `ok`,
 * `note` or `not ok`. No line holds a password. The log is muted meanwhile and after.
 *
 * Returns EXIT_FAILURE if a line is `not ok`: requests would be answered with 500, or lookups read
 * merchant_contract_terms as a whole. Else EXIT_SUCCESS: a note, such as that of the index on
 * merchant_orders, which is optional, does not count.
 */
int check_run(const struct options *options);

#endif
