/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CHECK_H
#define CHECK_H

#include "options.h"

/*
 * Looks whether the program could serve: connects to the database, reads its layout, rights and
 * indexes, runs the lookup once, and says on standard output what it finds, a line each. Returns
 * EXIT_SUCCESS, or EXIT_FAILURE if requests would be answered with 500.
 */
int check_run(const struct options *options);

#endif
