/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "record.h"

#include <fastcgi.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

static const struct {
    const char *name;
    size_t length;
} record_wanted[RECORD_WANTED_MAX] = {
    {"REQUEST_METHOD", 14},
    {"REQUEST_URI", 11},
    {"SCRIPT_NAME", 11},
    {"PATH_INFO", 9},
    {"QUERY_STRING", 12},
    {"MERCHANT_SESSIONS_METRICS", 25},
};

/* One name-value pair (section 3.4) within PARAMS. */
struct record_pair {
    const unsigned char *start, *name, *value;
    size_t name_length, value_length;
};

static void record_put_header(unsigned char *at, uint8_t type, uint16_t request_id, size_t content)
{
    FCGI_Header header = {
        .version = FCGI_VERSION_1,
        .type = type,
        .requestIdB1 = (unsigned char)(request_id >> 8),
        .requestIdB0 = (unsigned char)(request_id & 0xff),
        .contentLengthB1 = (unsigned char)(content >> 8),
        .contentLengthB0 = (unsigned char)(content & 0xff),
    };

    memcpy(at, &header, sizeof header);
}

static bool record_collect(struct record_bytes *to, const unsigned char *bytes, size_t length)
{
    if (to->room - to->length < length) {
        size_t room = to->length + length;
        unsigned char *grown;

        /* Grows by doubling, so that many small records do not mean many copies. */
        if (room < to->room * 2)
            room = to->room * 2;
        grown = realloc(to->at, room);
        if (!grown)
            return false;
        to->at = grown;
        to->room = room;
    }
    memcpy(to->at + to->length, bytes, length);
    to->length += length;
    return true;
}

static void record_free_bytes(struct record_bytes *bytes)
{
    free(bytes->at);
    *bytes = (struct record_bytes){0};
}

/* Takes one length of a name-value pair off the front; false if it is cut short. */
static bool record_take_length(const unsigned char **at, size_t *left, size_t *value)
{
    const unsigned char *p = *at;
    size_t size = *left > 0 && p[0] & 0x80 ? 4 : 1;

    if (*left < size)
        return false;
    *value = size == 1 ? p[0]
                       : ((size_t)(p[0] & 0x7f) << 24) | ((size_t)p[1] << 16) |
                             ((size_t)p[2] << 8) | (size_t)p[3];
    *at += size;
    *left -= size;
    return true;
}

/* Takes one name-value pair off the front; false if there is no whole one. */
static bool record_take_pair(const unsigned char **at, size_t *left, struct record_pair *pair)
{
    pair->start = *at;
    if (!record_take_length(at, left, &pair->name_length) ||
        !record_take_length(at, left, &pair->value_length))
        return false;
    if (pair->name_length > *left || pair->value_length > *left - pair->name_length)
        return false;
    pair->name = *at;
    pair->value = pair->name + pair->name_length;
    *at = pair->value + pair->value_length;
    *left -= pair->name_length + pair->value_length;
    return true;
}

static bool record_pair_is_named(const struct record_pair *pair, const char *name, size_t length)
{
    return pair->name_length == length && memcmp(pair->name, name, length) == 0;
}

/* Whether this is the first pair with a wanted name; found has a bit for each of these. */
static bool record_pair_is_wanted(const struct record_pair *pair, unsigned *found)
{
    for (unsigned i = 0; i < RECORD_WANTED_MAX; i++) {
        if (!record_pair_is_named(pair, record_wanted[i].name, record_wanted[i].length))
            continue;
        if (*found & 1u << i)
            return false;
        *found |= 1u << i;
        return true;
    }
    return false;
}

/* Checks all pairs, and moves those that are wanted to the front. False if one is cut short, or
 * has a NUL in it: they are meta-variables (RFC 3875, section 4.1). */
static bool record_keep_wanted(struct record_bytes *params)
{
    const unsigned char *at = params->at;
    size_t left = params->length, kept = 0;
    unsigned found = 0;

    while (left > 0) {
        struct record_pair pair;

        if (!record_take_pair(&at, &left, &pair) ||
            memchr(pair.name, '\0', pair.name_length + pair.value_length))
            return false;
        if (!record_pair_is_wanted(&pair, &found))
            continue;
        memmove(params->at + kept, pair.start, (size_t)(at - pair.start));
        kept += (size_t)(at - pair.start);
    }
    params->length = kept;
    return true;
}

static uint16_t record_id(const struct record_reader *reader)
{
    return (uint16_t)(reader->header[2] << 8 | reader->header[3]);
}

static size_t record_content(const struct record_reader *reader)
{
    return (size_t)reader->header[4] << 8 | reader->header[5];
}

/* Whether the record in progress belongs to the present request. */
static bool record_is_of_request(const struct record_reader *reader)
{
    return reader->phase != RECORD_PHASE_IDLE && record_id(reader) == reader->request_id;
}

/* All transitions of record_phase. */
static void record_set_phase(struct record_reader *reader, enum record_phase phase)
{
    static const unsigned sources[] = {
        /* record_next(), which may come at any moment */
        [RECORD_PHASE_IDLE] = STATE_SET(RECORD_PHASE_IDLE) | STATE_SET(RECORD_PHASE_PARAMS) |
                              STATE_SET(RECORD_PHASE_STDIN) | STATE_SET(RECORD_PHASE_WHOLE),
        [RECORD_PHASE_PARAMS] = STATE_SET(RECORD_PHASE_IDLE),
        [RECORD_PHASE_STDIN] = STATE_SET(RECORD_PHASE_PARAMS),
        [RECORD_PHASE_WHOLE] = STATE_SET(RECORD_PHASE_STDIN),
    };

    state_check(sources, reader->phase, phase);
    reader->phase = phase;
    switch (phase) {
    case RECORD_PHASE_IDLE:
        record_free_bytes(&reader->params);
        break;
    case RECORD_PHASE_PARAMS:
        reader->request_id = record_id(reader);
        reader->keep = reader->begin[2] & FCGI_KEEP_CONN;
        break;
    case RECORD_PHASE_STDIN:
    case RECORD_PHASE_WHOLE:
        break;
    }
}

/* All transitions of record_part: to the next part of the record, or to the next record. */
static void record_set_part(struct record_reader *reader, enum record_part part)
{
    static const unsigned sources[] = {
        [RECORD_PART_HEADER] = STATE_SET(RECORD_PART_PADDING),
        [RECORD_PART_CONTENT] = STATE_SET(RECORD_PART_HEADER),
        [RECORD_PART_PADDING] = STATE_SET(RECORD_PART_CONTENT),
    };

    state_check(sources, reader->part, part);
    reader->part = part;
    switch (part) {
    case RECORD_PART_HEADER:
        reader->header_length = 0;
        break;
    case RECORD_PART_CONTENT:
        reader->content_left = (uint16_t)record_content(reader);
        reader->padding_left = reader->header[6];
        reader->begin_length = 0;
        reader->values.length = 0;
        break;
    case RECORD_PART_PADDING:
        break;
    }
}

/* Whether a record with this header may come now. */
static bool record_header_is_sound(const struct record_reader *reader)
{
    size_t content = record_content(reader);

    if (reader->header[0] != FCGI_VERSION_1)
        return false;
    if (record_id(reader) == FCGI_NULL_REQUEST_ID)
        return true;
    if (reader->header[1] == FCGI_BEGIN_REQUEST)
        return content == sizeof reader->begin && !record_is_of_request(reader);
    if (!record_is_of_request(reader))
        return true;
    switch (reader->header[1]) {
    case FCGI_PARAMS:
        return reader->phase == RECORD_PHASE_PARAMS &&
               reader->params.length + content <= RECORD_PARAMS_MAX;
    case FCGI_STDIN:
        return reader->phase == RECORD_PHASE_STDIN;
    case FCGI_ABORT_REQUEST:
        return true;
    default:
        return false;
    }
}

/* Content of the record in progress: kept if it is wanted, else passed over. */
static bool record_keep_content(
    struct record_reader *reader, const unsigned char *bytes, size_t length)
{
    if (record_id(reader) == FCGI_NULL_REQUEST_ID)
        return reader->header[1] != FCGI_GET_VALUES ||
               record_collect(&reader->values, bytes, length);
    if (reader->header[1] == FCGI_BEGIN_REQUEST) {
        memcpy(reader->begin + reader->begin_length, bytes, length);
        reader->begin_length = (uint8_t)(reader->begin_length + length);
        return true;
    }
    if (reader->header[1] == FCGI_PARAMS && record_is_of_request(reader))
        return record_collect(&reader->params, bytes, length);
    return true;
}

static enum record_event record_end_of_begin(struct record_reader *reader)
{
    unsigned role = (unsigned)reader->begin[0] << 8 | reader->begin[1];

    if (reader->phase != RECORD_PHASE_IDLE)
        return RECORD_EVENT_SECOND;
    if (role != FCGI_RESPONDER)
        return RECORD_EVENT_UNKNOWN_ROLE;
    record_set_phase(reader, RECORD_PHASE_PARAMS);
    return RECORD_EVENT_MORE;
}

static enum record_event record_end_of_params(struct record_reader *reader)
{
    if (!record_keep_wanted(&reader->params))
        return RECORD_EVENT_BROKEN;
    record_set_phase(reader, RECORD_PHASE_STDIN);
    return RECORD_EVENT_MORE;
}

static enum record_event record_end_of_stdin(struct record_reader *reader)
{
    record_set_phase(reader, RECORD_PHASE_WHOLE);
    return RECORD_EVENT_REQUEST;
}

/* The record in progress is complete, padding and all. */
static enum record_event record_complete(struct record_reader *reader)
{
    reader->event_id = record_id(reader);
    if (record_id(reader) == FCGI_NULL_REQUEST_ID)
        return RECORD_EVENT_MANAGEMENT;
    if (reader->header[1] == FCGI_BEGIN_REQUEST)
        return record_end_of_begin(reader);
    /* Records of a request that is not, or no longer, there are to be ignored (section 3.3). */
    if (!record_is_of_request(reader))
        return RECORD_EVENT_MORE;
    if (reader->header[1] == FCGI_ABORT_REQUEST)
        return RECORD_EVENT_ABORT;
    if (record_content(reader) > 0)
        return RECORD_EVENT_MORE;
    return reader->header[1] == FCGI_PARAMS ? record_end_of_params(reader)
                                            : record_end_of_stdin(reader);
}

static size_t record_smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static enum record_event record_read_header(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used)
{
    *used = record_smaller(length, sizeof reader->header - reader->header_length);
    memcpy(reader->header + reader->header_length, bytes, *used);
    reader->header_length = (uint8_t)(reader->header_length + *used);
    if (reader->header_length < sizeof reader->header)
        return RECORD_EVENT_MORE;
    if (!record_header_is_sound(reader))
        return RECORD_EVENT_BROKEN;
    record_set_part(reader, RECORD_PART_CONTENT);
    return RECORD_EVENT_MORE;
}

static enum record_event record_read_content(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used)
{
    *used = record_smaller(length, reader->content_left);
    if (*used > 0 && !record_keep_content(reader, bytes, *used))
        return RECORD_EVENT_NO_MEMORY;
    reader->content_left = (uint16_t)(reader->content_left - *used);
    if (reader->content_left == 0)
        record_set_part(reader, RECORD_PART_PADDING);
    return RECORD_EVENT_MORE;
}

static enum record_event record_read_padding(
    struct record_reader *reader, size_t length, size_t *used)
{
    *used = record_smaller(length, reader->padding_left);
    reader->padding_left = (uint8_t)(reader->padding_left - *used);
    if (reader->padding_left > 0)
        return RECORD_EVENT_MORE;
    record_set_part(reader, RECORD_PART_HEADER);
    return record_complete(reader);
}

static enum record_event record_read_part(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used)
{
    switch (reader->part) {
    case RECORD_PART_HEADER:
        return record_read_header(reader, bytes, length, used);
    case RECORD_PART_CONTENT:
        return record_read_content(reader, bytes, length, used);
    case RECORD_PART_PADDING:
        break;
    }
    return record_read_padding(reader, length, used);
}

/* Whether the present part needs no more bytes: a record without content, or without padding. */
static bool record_part_is_empty(const struct record_reader *reader)
{
    return (reader->part == RECORD_PART_CONTENT && reader->content_left == 0) ||
           (reader->part == RECORD_PART_PADDING && reader->padding_left == 0);
}

enum record_event record_read(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used)
{
    enum record_event event = RECORD_EVENT_MORE;

    *used = 0;
    while (event == RECORD_EVENT_MORE && (*used < length || record_part_is_empty(reader))) {
        size_t n;

        event = record_read_part(reader, bytes + *used, length - *used, &n);
        *used += n;
    }
    return event;
}

void record_request(const struct record_reader *reader, struct record_request *request)
{
    const FCGI_BeginRequestBody begin = {
        .roleB0 = FCGI_RESPONDER, .flags = reader->keep ? FCGI_KEEP_CONN : 0};
    size_t params = reader->params.length;
    size_t head = FCGI_HEADER_LEN + sizeof begin;

    record_put_header(request->head, FCGI_BEGIN_REQUEST, reader->request_id, sizeof begin);
    memcpy(request->head + FCGI_HEADER_LEN, &begin, sizeof begin);
    if (params > 0) {
        record_put_header(request->head + head, FCGI_PARAMS, reader->request_id, params);
        head += FCGI_HEADER_LEN;
    }
    record_put_header(request->tail, FCGI_PARAMS, reader->request_id, 0);
    record_put_header(request->tail + FCGI_HEADER_LEN, FCGI_STDIN, reader->request_id, 0);
    request->parts[0] = (struct iovec){request->head, head};
    request->parts[1] = (struct iovec){reader->params.at, params};
    request->parts[2] = (struct iovec){request->tail, sizeof request->tail};
    request->length = head + params + sizeof request->tail;
}

/* The only value that FCGI_GET_VALUES is told: no multiplexing. The numbers of connections and
 * requests follow from the operator's limit on descriptors. */
static size_t record_values_reply(const struct record_bytes *values, unsigned char *reply)
{
    static const char name[] = FCGI_MPXS_CONNS;
    const unsigned char *at = values->at;
    size_t left = values->length, length = 0;
    unsigned char *content = reply + FCGI_HEADER_LEN;
    struct record_pair pair;

    while (length == 0 && left > 0 && record_take_pair(&at, &left, &pair)) {
        if (!record_pair_is_named(&pair, name, sizeof name - 1))
            continue;
        content[0] = sizeof name - 1;
        content[1] = 1;
        memcpy(content + 2, name, sizeof name - 1);
        content[2 + sizeof name - 1] = '0';
        length = 2 + sizeof name;
    }
    record_put_header(reply, FCGI_GET_VALUES_RESULT, FCGI_NULL_REQUEST_ID, length);
    return FCGI_HEADER_LEN + length;
}

size_t record_management_reply(struct record_reader *reader, unsigned char reply[RECORD_REPLY_MAX])
{
    FCGI_UnknownTypeBody body = {.type = reader->header[1]};
    size_t length;

    if (reader->header[1] == FCGI_GET_VALUES) {
        length = record_values_reply(&reader->values, reply);
    } else {
        record_put_header(reply, FCGI_UNKNOWN_TYPE, FCGI_NULL_REQUEST_ID, sizeof body);
        memcpy(reply + FCGI_HEADER_LEN, &body, sizeof body);
        length = FCGI_HEADER_LEN + sizeof body;
    }
    record_free_bytes(&reader->values);
    return length;
}

void record_end_request(uint16_t request_id, uint8_t protocol_status, unsigned char bytes[16])
{
    FCGI_EndRequestBody body = {.protocolStatus = protocol_status};

    record_put_header(bytes, FCGI_END_REQUEST, request_id, sizeof body);
    memcpy(bytes + FCGI_HEADER_LEN, &body, sizeof body);
}

void record_answer(const struct record_reader *reader, size_t content, unsigned char head[8],
    unsigned char tail[24])
{
    record_put_header(head, FCGI_STDOUT, reader->request_id, content);
    record_put_header(tail, FCGI_STDOUT, reader->request_id, 0);
    record_end_request(reader->request_id, FCGI_REQUEST_COMPLETE, tail + FCGI_HEADER_LEN);
}

void record_forget(struct record_reader *reader)
{
    record_free_bytes(&reader->params);
}

void record_next(struct record_reader *reader)
{
    record_set_phase(reader, RECORD_PHASE_IDLE);
}

void record_close(struct record_reader *reader)
{
    record_free_bytes(&reader->params);
    record_free_bytes(&reader->values);
}

bool record_is_between(const struct record_reader *reader)
{
    return reader->phase == RECORD_PHASE_IDLE && reader->part == RECORD_PART_HEADER &&
           reader->header_length == 0;
}
