/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef QUERY_H
#define QUERY_H

#include <stddef.h>
#include <stdint.h>

#include "session.h"

/* Reads the question from the meta-variables of a request. No I/O and no allocation. */

/*
 * Room for the decoded values of any request whose meta-variables fit into RECORD_PARAMS_MAX bytes.
 * Without REQUEST_URI the path is in it twice: joined, and decoded. The rest is for NULs.
 */
#define QUERY_SPACE (2 * 65535 + 16)

/* The meta-variables that matter (RFC 3875, section 4.1). Any of them may be NULL. */
struct query_source {
    const char *method;      /* REQUEST_METHOD */
    const char *request_uri; /* REQUEST_URI, as the client sent it; not in the RFC, but common */
    const char *script_name; /* SCRIPT_NAME and PATH_INFO stand in for it, decoded */
    const char *path_info;
    const char *query_string; /* QUERY_STRING */
    /* MERCHANT_SESSIONS_METRICS, which only the web server's configuration can set: what a client
     * sends in header fields has names that begin with HTTP_ (section 4.1.18). */
    const char *metrics;
};

/* The result of query_read(). */
enum query_verdict {
    QUERY_LOOKUP,              /* to be looked up; the query is filled in */
    QUERY_OPTIONS,             /* a preflight */
    QUERY_METRICS,             /* the web server asks for the metrics; nothing else is read */
    QUERY_ENDPOINT_UNKNOWN,    /* the path is not this endpoint's */
    QUERY_METHOD_INVALID,      /* neither GET, HEAD nor OPTIONS */
    QUERY_PARAMETER_MISSING,   /* see query.parameter */
    QUERY_PARAMETER_MALFORMED, /* see query.parameter */
};

struct query {
    struct session_key key;
    int64_t timeout_ms; /* at least 0; numbers beyond 9e16 may be cut short, to no less than that */
    const char *parameter; /* the name of the one that is missing or malformed */
};

/*
 * Reads the request into *query, whose strings stand in space and are UTF-8 without NUL.
 *
 * The path ends in /sessions/SESSION or /instances/INSTANCE/sessions/SESSION, with or without one
 * more slash; what stands before is where the program is mounted, and ignored. The query string is
 * application/x-www-form-urlencoded (WHATWG URL); of its parameters fulfillment_url must be an
 * absolute URI (RFC 3986, section 3) and timeout_ms a decimal number.
 *
 * Where source->metrics is not empty, it is QUERY_METRICS, whatever the path and the method.
 */
enum query_verdict query_read(
    const struct query_source *source, char space[QUERY_SPACE], struct query *query);

#endif
