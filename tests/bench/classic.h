/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CLASSIC_H
#define CLASSIC_H

#include <stdbool.h>

/* The textbook FastCGI responder, but for where the answer comes from: classic.c calls these, in
 * each process. */

struct session_query {
    char instance[128];
    char session[256];
    char url[1024];
};

struct order {
    bool paid;
    char id[128];
};

void lookup_open(const char *database, const char *statement_file);

bool lookup_order(const struct session_query *query, struct order *order);

#endif
