/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef RECORD_H
#define RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Reads FastCGI 1.0 records as they come in, in pieces of any size, and checks them, before libfcgi
 * sees any: libfcgi trusts lengths and record types more than a public program can. No I/O.
 *
 * One request at a time, as web servers send them (section 3.3: no multiplexing), with management
 * records (section 4) between requests only. What has passed is written down anew, in records of
 * our own making, so that whoever reads them meets nothing else.
 */

/* PARAMS of one request, in all their records together: what fits into one record. */
#define RECORD_PARAMS_MAX 65535

/* Room for the reply to a management record. */
#define RECORD_REPLY_MAX 32

/* The length of a request without parameters. */
#define RECORD_BARE_REQUEST 32

/* What the bytes read so far amount to. */
enum record_event {
    RECORD_MORE,         /* all bytes are read, nothing is complete */
    RECORD_REQUEST,      /* a request is complete, to the end of STDIN: see record_request() */
    RECORD_MANAGEMENT,   /* a management record is complete: see record_management_reply() */
    RECORD_SECOND,       /* another request begins while one is not done: FCGI_CANT_MPX_CONN */
    RECORD_UNKNOWN_ROLE, /* a request for another role than RESPONDER: FCGI_UNKNOWN_ROLE */
    RECORD_ABORT,        /* the peer has lost interest in the request (section 5.4) */
    RECORD_BROKEN,       /* not FastCGI, or beyond the bounds: nothing after it can be understood */
};

/* Where a connection stands between two requests. */
enum record_phase {
    RECORD_PHASE_IDLE,   /* no request */
    RECORD_PHASE_PARAMS, /* BEGIN has been read */
    RECORD_PHASE_STDIN,  /* PARAMS have been read to their end */
    RECORD_PHASE_WHOLE,  /* the request is complete and not yet answered */
};

/* All zero is the start of a connection. */
struct record_reader {
    enum record_phase phase;
    uint16_t request_id;   /* of the present request */
    bool keep;             /* FCGI_KEEP_CONN: the peer wants to go on with the connection */
    uint16_t event_id;     /* the request id that RECORD_SECOND or RECORD_UNKNOWN_ROLE is about */
    uint8_t header[8];     /* of the present record */
    uint8_t header_length; /* bytes of it read */
    bool in_body;          /* the header is complete */
    uint16_t content_left; /* of the present record */
    uint8_t padding_left;  /* of the present record */
    uint8_t begin[8];      /* content of the last BEGIN_REQUEST */
    uint8_t begin_length;  /* bytes of it read */
    unsigned char *bytes;  /* the request in records of our own, or a management record's content */
    size_t length, room;   /* of bytes */
};

/*
 * Reads up to the first event. *used is how many of the length bytes it took; call again with the
 * rest until RECORD_MORE. After RECORD_BROKEN the connection has to be closed. RECORD_BROKEN also
 * if memory is short.
 */
enum record_event record_read(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used);

/*
 * The complete request: BEGIN_REQUEST, PARAMS in one record, and the ends of PARAMS and STDIN. The
 * body of the request is not in it: nothing here wants one. Valid until record_forget().
 */
const unsigned char *record_request(const struct record_reader *reader, size_t *length);

/*
 * The same request without its parameters: all that it takes to answer it.
 */
void record_bare_request(
    const struct record_reader *reader, unsigned char bytes[RECORD_BARE_REQUEST]);

/*
 * Writes the answer to the management record that was read (sections 4.1 and 4.2):
 * FCGI_GET_VALUES_RESULT or FCGI_UNKNOWN_TYPE. Returns its length.
 */
size_t record_management_reply(struct record_reader *reader, unsigned char reply[RECORD_REPLY_MAX]);

/* Writes an FCGI_END_REQUEST of 16 bytes (section 5.5). */
void record_end_request(uint16_t request_id, uint8_t protocol_status, unsigned char bytes[16]);

/* Frees what was kept of the request; its id and whether to keep the connection stay. */
void record_forget(struct record_reader *reader);

/* Whether nothing of a request, nor of any record, has been read since the last one was complete.
 */
bool record_is_between(const struct record_reader *reader);

/* The request has been answered: the next one may begin. */
void record_next(struct record_reader *reader);

#endif
