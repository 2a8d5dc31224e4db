/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef CLASSIC_H
#define CLASSIC_H

#include <stdbool.h>

/*
 * The textbook FastCGI responder, but for where the answer comes from. classic.c is the responder;
 * the file that it is linked with defines the functions here.
 */

/* What a request asks for, decoded. */
struct session_query {
    char instance[128];
    char session[256];
    char url[1024];
};

struct order {
    bool paid;
    char id[128];
};

/* Called once in each process, before the first lookup. Ends the process if it fails. */
void lookup_open(const char *database, const char *statement_file);

/* Finds the order of a session. False if there is none. Ends the process on any other failure. */
bool lookup_order(const struct session_query *query, struct order *order);

#endif
