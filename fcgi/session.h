/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef SESSION_H
#define SESSION_H

#include <stdbool.h>

/* The session that a request is about. UTF-8 strings. */
struct session_key {
    const char *session;  /* never "" */
    const char *url;      /* fulfillment_url */
    const char *instance; /* "" for the instance of the un-prefixed path */
};

/* The status of a session in the database. */
enum session_status {
    SESSION_NO_INSTANCE, /* there is no such instance */
    SESSION_UNKNOWN,     /* no order matches */
    SESSION_UNPAID,      /* an order matches, none that was paid */
    SESSION_PAID,        /* an order that matches was paid, if perhaps refunded later */
    SESSION_FAILED,      /* no answer: this instance cannot be asked now, but others can */
    SESSION_NOT_ASKED,   /* no answer: there was no room in this batch, but is in a later one */
};

/*
 * What the database is asked about a session. An order is unclaimed, and in merchant_orders alone,
 * until a wallet claims it. From then on it is claimed, and in merchant_contract_terms. Only
 * claimed orders can be paid.
 */
enum session_question {
    QUESTION_EVERYTHING, /* all that is known of it, unclaimed orders too */
    QUESTION_PAYMENT,    /* claimed orders alone: all that matters while a request waits, at half
                          * the cost */
};

/* The answer to a question about one session. */
struct session_answer {
    /* For QUESTION_PAYMENT: SESSION_PAID; SESSION_UNPAID (an order is claimed and not paid);
     * SESSION_NO_INSTANCE, if that is known without a lookup; SESSION_UNKNOWN for all else. */
    enum session_status status;
    bool claimed;         /* a wallet has claimed an order that is not paid: a payment is near */
    const char *order_id; /* of SESSION_UNPAID and SESSION_PAID, else NULL */
};

/* How many sessions the database is asked about at once. */
#define SESSION_BATCH_MAX 256

#endif
