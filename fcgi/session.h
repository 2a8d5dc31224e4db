/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef SESSION_H
#define SESSION_H

/* Which session a request is about. UTF-8 strings. */
struct session_key {
    const char *session;  /* never "" */
    const char *url;      /* fulfillment_url */
    const char *instance; /* "" for the instance of the un-prefixed path */
};

/* What the database knows of a session. */
enum session_status {
    SESSION_NO_INSTANCE, /* there is no such instance */
    SESSION_UNKNOWN,     /* no order matches */
    SESSION_UNPAID,      /* an order matches, none that was paid */
    SESSION_PAID,        /* an order that matches was paid, if perhaps refunded later */
};

#endif
