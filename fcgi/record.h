/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef RECORD_H
#define RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * Reads FastCGI 1.0 records as they arrive, in pieces of any size, and checks them before libfcgi
 * sees any: libfcgi trusts lengths and record types more than a public program can. No I/O.
 *
 * One request at a time, as web servers send them (section 3.3: no multiplexing), and management
 * records (section 4) at any time. What has passed is written again, in records of our own making,
 * with the few parameters that are wanted, so that libfcgi meets nothing else and needs little
 * memory.
 */

/* Limit of the content of a record (section 3.3). */
#define RECORD_CONTENT_MAX 65535

/* Limit of the parameters that are kept of a request, with their names and lengths: they are
 * written again as one record. The others are passed over as they come, however long they are. */
#define RECORD_PARAMS_MAX RECORD_CONTENT_MAX

/* Room for the reply to a management record. */
#define RECORD_REPLY_MAX 32

/* Parameters that are kept of a request; each name once. */
#define RECORD_WANTED_MAX 6

/* The result of record_read(). */
enum record_event {
    RECORD_EVENT_MORE,       /* all bytes are read, nothing is complete */
    RECORD_EVENT_REQUEST,    /* a request is complete, to the end of STDIN: see record_request() */
    RECORD_EVENT_MANAGEMENT, /* a management record is complete: see record_management_reply() */
    RECORD_EVENT_SECOND,     /* another request begins while one is not done: FCGI_CANT_MPX_CONN */
    RECORD_EVENT_UNKNOWN_ROLE, /* a request for another role than RESPONDER: FCGI_UNKNOWN_ROLE */
    RECORD_EVENT_ABORT,        /* the peer has lost interest in the request (section 5.4) */
    RECORD_EVENT_BROKEN, /* not FastCGI, or beyond the bounds: nothing after it can be understood */
    RECORD_EVENT_NO_MEMORY, /* as RECORD_EVENT_BROKEN: there is no memory for a management record */
};

/* How much of the record in progress has been read. */
enum record_part {
    RECORD_PART_HEADER,  /* nothing, or a part of its header */
    RECORD_PART_CONTENT, /* its header, and not all of its content */
    RECORD_PART_PADDING, /* its header and content, and not all of its padding */
};

/* How much of the present request has been read. */
enum record_phase {
    RECORD_PHASE_IDLE,   /* there is no request */
    RECORD_PHASE_PARAMS, /* BEGIN_REQUEST, and not all PARAMS */
    RECORD_PHASE_STDIN,  /* BEGIN_REQUEST and PARAMS, and not all of STDIN */
    RECORD_PHASE_WHOLE,  /* all of it; it has not been answered yet */
};

/* Bytes that are collected; allocated. */
struct record_bytes {
    unsigned char *at;
    size_t length, room;
};

/* The name-value pairs of PARAMS (section 3.4), as far as they have been read. */
struct record_pairs {
    size_t kept; /* length of the wanted pairs, which are at the front of the collected bytes */
    uint64_t passing; /* bytes to come of a pair that is passed over */
    unsigned found;   /* a bit for each wanted name that there was */
    bool unsound;     /* there was a NUL, or the wanted pairs are longer than RECORD_PARAMS_MAX */
    bool lost;        /* there was no memory for them */
};

/*
 * All zero is the start of a connection. The record in progress and the present request are apart:
 * record_next() and record_forget() may come at any moment, and change nothing of the record.
 */
struct record_reader {
    /* The record in progress. All but the header is set when its header is complete. */
    enum record_part part;
    uint8_t header[8];
    uint8_t header_length;      /* bytes of the header that have been read */
    uint16_t content_left;      /* bytes of the content that have not been read */
    uint8_t padding_left;       /* bytes of the padding that have not been read */
    uint8_t begin[8];           /* content of a BEGIN_REQUEST, as far as it has been read */
    uint8_t begin_length;       /* bytes in it */
    struct record_bytes values; /* content of an FCGI_GET_VALUES, as far as it has been read */

    /* The present request. */
    enum record_phase phase;
    uint16_t request_id;
    bool keep;                  /* FCGI_KEEP_CONN: the peer wants to go on with the connection */
    struct record_bytes params; /* the wanted pairs, and the beginning of the next pair */
    struct record_pairs pairs;

    /* The request id that RECORD_EVENT_SECOND, RECORD_EVENT_UNKNOWN_ROLE or RECORD_EVENT_ABORT is
     * about. */
    uint16_t event_id;
};

/* A request in records of our own making; to be sent in the order of the parts. */
struct record_request {
    unsigned char head[24]; /* BEGIN_REQUEST, and the header of PARAMS where there are any */
    unsigned char tail[16]; /* the ends of PARAMS and STDIN */
    struct iovec parts[3];
    size_t length; /* of all parts */
};

/*
 * Reads up to the first event. *used is how many of the length bytes it took; call again with the
 * rest until RECORD_EVENT_MORE. After RECORD_EVENT_BROKEN and RECORD_EVENT_NO_MEMORY the connection
 * has to be closed.
 */
enum record_event record_read(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used);

/*
 * Writes the request that is complete: BEGIN_REQUEST, the wanted PARAMS in one record, and the ends
 * of PARAMS and STDIN. Wanted are REQUEST_METHOD, REQUEST_URI, SCRIPT_NAME, PATH_INFO, QUERY_STRING
 * and MERCHANT_SESSIONS_METRICS, the first of each name. The body of the request is dropped. Points
 * into the reader: valid until record_forget(), after which the request has no parameters, which is
 * all that it takes to answer it.
 */
void record_request(const struct record_reader *reader, struct record_request *request);

/*
 * Writes the answer to the management record that was read last (sections 4.1 and 4.2):
 * FCGI_GET_VALUES_RESULT or FCGI_UNKNOWN_TYPE. Returns its length. To be called upon
 * RECORD_EVENT_MANAGEMENT, before more is read.
 */
size_t record_management_reply(struct record_reader *reader, unsigned char reply[RECORD_REPLY_MAX]);

/* Writes an FCGI_END_REQUEST of 16 bytes (section 5.5). */
void record_end_request(uint16_t request_id, uint8_t protocol_status, unsigned char bytes[16]);

/*
 * Writes what stands around an answer that is one FCGI_STDOUT record: the header before its content
 * of at most RECORD_CONTENT_MAX bytes, and after it the end of the stream (section 5.3) and
 * FCGI_END_REQUEST.
 */
void record_answer(const struct record_reader *reader, size_t content, unsigned char head[8],
    unsigned char tail[24]);

/* Frees the parameters of the request; its id and whether to keep the connection stay. */
void record_forget(struct record_reader *reader);

/* Whether there was no memory for the parameters of the request that is complete. They have been
 * dropped, as by record_forget(): the request can only be refused. */
bool record_has_lost_params(const struct record_reader *reader);

/* The request has been answered: the next one may begin. Frees what record_forget() frees. */
void record_next(struct record_reader *reader);

/* Frees all that the reader holds. Nothing can be read after it. */
void record_close(struct record_reader *reader);

/* Whether nothing of a request, nor of any record, has been read since the last one was complete.
 */
bool record_is_between(const struct record_reader *reader);

#endif
