/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef REPLY_H
#define REPLY_H

#include <stdbool.h>
#include <stddef.h>

/* Every answer that the endpoint gives (Taler merchant API, protocol v25). */
enum reply_kind {
    REPLY_PAID,                /* 200, text: order id */
    REPLY_UNPAID,              /* 202, text: order id */
    REPLY_OPTIONS,             /* 204 */
    REPLY_PARAMETER_MISSING,   /* 400, text: name of the parameter */
    REPLY_PARAMETER_MALFORMED, /* 400, text: name of the parameter */
    REPLY_ENDPOINT_UNKNOWN,    /* 404 */
    REPLY_INSTANCE_UNKNOWN,    /* 404 */
    REPLY_SESSION_UNKNOWN,     /* 404 */
    REPLY_METHOD_INVALID,      /* 405 */
    REPLY_DATABASE_FAILED,     /* 500 */
};

#define REPLY_KINDS (REPLY_DATABASE_FAILED + 1)

/* The HTTP status of a kind. */
int reply_status(enum reply_kind kind);

/* Its code in GANA's registry of Taler error codes; 0 where the answer is no error. */
int reply_code(enum reply_kind kind);

/*
 * Makes the response as a FastCGI responder sends it (RFC 3875, section 6): header fields and body.
 * text is UTF-8, NULL where the kind has none. With head the body is left out, and the fields are
 * those that it would have had. The caller frees what is returned; NULL if out of memory.
 */
char *reply_make(enum reply_kind kind, const char *text, bool head, size_t *length);

/* The same for the metrics, whose text is the body. Pages of other origins may not read it. */
char *reply_make_metrics(const char *text, bool head, size_t *length);

#endif
