/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "record.h"

#include <fastcgi.h>
#include <stdlib.h>
#include <string.h>

/* Before the parameters in the request that is written anew: BEGIN_REQUEST and the header of
 * PARAMS. */
#define PREFIX ((size_t)3 * FCGI_HEADER_LEN)
/* Behind them: the ends of PARAMS and of STDIN. */
#define SUFFIX ((size_t)2 * FCGI_HEADER_LEN)

static void put_header(unsigned char *at, uint8_t type, uint16_t request_id, size_t content)
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

static bool keep_bytes(struct record_reader *reader, const unsigned char *bytes, size_t length)
{
    if (reader->room - reader->length < length) {
        size_t room = reader->length + length;
        unsigned char *grown;

        /* Many small records must not mean many copies. */
        if (room < reader->room * 2)
            room = reader->room * 2;
        grown = realloc(reader->bytes, room);
        if (!grown)
            return false;
        reader->bytes = grown;
        reader->room = room;
    }
    memcpy(reader->bytes + reader->length, bytes, length);
    reader->length += length;
    return true;
}

/* Takes one length of a name-value pair (section 3.4) off the front; false if it is cut short. */
static bool take_length(const unsigned char **at, size_t *left, size_t *value)
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
static bool take_pair(const unsigned char **at, size_t *left, size_t *name, size_t *value)
{
    if (!take_length(at, left, name) || !take_length(at, left, value))
        return false;
    if (*name > *left || *value > *left - *name)
        return false;
    *at += *name + *value;
    *left -= *name + *value;
    return true;
}

/* Whole pairs only, and no NUL in them: they are meta-variables (RFC 3875, section 4.1). */
static bool pairs_are_sound(const unsigned char *at, size_t left)
{
    while (left > 0) {
        size_t name, value;

        if (!take_pair(&at, &left, &name, &value))
            return false;
        if (memchr(at - name - value, '\0', name + value))
            return false;
    }
    return true;
}

static enum record_event begin_ends(struct record_reader *reader, uint16_t id)
{
    static const unsigned char prefix[PREFIX];
    unsigned role = (unsigned)reader->begin[0] << 8 | reader->begin[1];

    reader->event_id = id;
    if (role != FCGI_RESPONDER)
        return RECORD_UNKNOWN_ROLE;
    reader->request_id = id;
    reader->keep = reader->begin[2] & FCGI_KEEP_CONN;
    reader->phase = RECORD_PHASE_PARAMS;
    reader->length = 0;
    return keep_bytes(reader, prefix, PREFIX) ? RECORD_MORE : RECORD_BROKEN;
}

/* The end of PARAMS: the request is written anew around them. */
static enum record_event params_end(struct record_reader *reader)
{
    unsigned char suffix[SUFFIX];
    size_t params = reader->length - PREFIX;

    if (!pairs_are_sound(reader->bytes + PREFIX, params))
        return RECORD_BROKEN;
    put_header(suffix, FCGI_PARAMS, reader->request_id, 0);
    put_header(suffix + FCGI_HEADER_LEN, FCGI_STDIN, reader->request_id, 0);
    put_header(reader->bytes, FCGI_BEGIN_REQUEST, reader->request_id, sizeof reader->begin);
    memcpy(reader->bytes + FCGI_HEADER_LEN, reader->begin, sizeof reader->begin);
    put_header(reader->bytes + 2 * FCGI_HEADER_LEN, FCGI_PARAMS, reader->request_id, params);
    reader->phase = RECORD_PHASE_STDIN;
    /* Without parameters the record before them is their end already. */
    return keep_bytes(reader, params ? suffix : suffix + FCGI_HEADER_LEN,
               params ? SUFFIX : SUFFIX - FCGI_HEADER_LEN)
               ? RECORD_MORE
               : RECORD_BROKEN;
}

static uint16_t header_id(const struct record_reader *reader)
{
    return (uint16_t)(reader->header[2] << 8 | reader->header[3]);
}

static size_t header_content(const struct record_reader *reader)
{
    return (size_t)reader->header[4] << 8 | reader->header[5];
}

/* Whether a record with this header may come now. */
static bool header_is_sound(const struct record_reader *reader)
{
    uint16_t id = header_id(reader);
    size_t content = header_content(reader);

    if (reader->header[0] != FCGI_VERSION_1)
        return false;
    if (id == FCGI_NULL_REQUEST_ID)
        return reader->phase == RECORD_PHASE_IDLE;
    if (reader->header[1] == FCGI_BEGIN_REQUEST)
        return content == sizeof reader->begin &&
               (reader->phase == RECORD_PHASE_IDLE || id != reader->request_id);
    if (reader->phase == RECORD_PHASE_IDLE || id != reader->request_id)
        return true;
    switch (reader->header[1]) {
    case FCGI_PARAMS:
        return reader->phase == RECORD_PHASE_PARAMS &&
               reader->length - PREFIX + content <= RECORD_PARAMS_MAX;
    case FCGI_STDIN:
        return reader->phase == RECORD_PHASE_STDIN;
    case FCGI_ABORT_REQUEST:
        return true;
    default:
        return false;
    }
}

/* Content of the present record: kept if it is wanted, else passed over. */
static bool read_content(struct record_reader *reader, const unsigned char *bytes, size_t length)
{
    uint16_t id = header_id(reader);

    if (id == FCGI_NULL_REQUEST_ID)
        return keep_bytes(reader, bytes, length);
    if (reader->header[1] == FCGI_BEGIN_REQUEST && reader->phase == RECORD_PHASE_IDLE) {
        memcpy(reader->begin + reader->begin_length, bytes, length);
        reader->begin_length = (uint8_t)(reader->begin_length + length);
        return true;
    }
    if (reader->header[1] == FCGI_PARAMS && reader->phase == RECORD_PHASE_PARAMS &&
        id == reader->request_id)
        return keep_bytes(reader, bytes, length);
    return true;
}

/* The present record is complete, padding and all. */
static enum record_event record_ends(struct record_reader *reader)
{
    uint16_t id = header_id(reader);

    if (id == FCGI_NULL_REQUEST_ID)
        return RECORD_MANAGEMENT;
    if (reader->header[1] == FCGI_BEGIN_REQUEST) {
        if (reader->phase == RECORD_PHASE_IDLE)
            return begin_ends(reader, id);
        reader->event_id = id;
        return RECORD_SECOND;
    }
    /* Records of a request that is not, or no longer, there are to be ignored (section 3.3). */
    if (reader->phase == RECORD_PHASE_IDLE || id != reader->request_id)
        return RECORD_MORE;
    if (reader->header[1] == FCGI_ABORT_REQUEST)
        return RECORD_ABORT;
    if (header_content(reader) > 0)
        return RECORD_MORE;
    if (reader->header[1] == FCGI_PARAMS)
        return params_end(reader);
    reader->phase = RECORD_PHASE_WHOLE;
    return RECORD_REQUEST;
}

static enum record_event read_header(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used)
{
    size_t missing = sizeof reader->header - reader->header_length;

    *used = length < missing ? length : missing;
    memcpy(reader->header + reader->header_length, bytes, *used);
    reader->header_length = (uint8_t)(reader->header_length + *used);
    if (reader->header_length < sizeof reader->header)
        return RECORD_MORE;
    if (!header_is_sound(reader))
        return RECORD_BROKEN;
    reader->in_body = true;
    reader->content_left = (uint16_t)header_content(reader);
    reader->padding_left = reader->header[6];
    if (reader->phase == RECORD_PHASE_IDLE) {
        reader->begin_length = 0;
        reader->length = 0;
    }
    return RECORD_MORE;
}

static enum record_event read_body(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used)
{
    size_t content = length < reader->content_left ? length : reader->content_left;
    size_t padding = length - content;

    if (padding > reader->padding_left)
        padding = reader->padding_left;
    *used = content + padding;
    if (content > 0 && !read_content(reader, bytes, content))
        return RECORD_BROKEN;
    reader->content_left = (uint16_t)(reader->content_left - content);
    reader->padding_left = (uint8_t)(reader->padding_left - padding);
    if (reader->content_left > 0 || reader->padding_left > 0)
        return RECORD_MORE;
    reader->in_body = false;
    reader->header_length = 0;
    return record_ends(reader);
}

enum record_event record_read(
    struct record_reader *reader, const unsigned char *bytes, size_t length, size_t *used)
{
    enum record_event event = RECORD_MORE;

    *used = 0;
    while (event == RECORD_MORE && *used < length) {
        size_t n;

        if (!reader->in_body)
            event = read_header(reader, bytes + *used, length - *used, &n);
        else
            event = read_body(reader, bytes + *used, length - *used, &n);
        *used += n;
        /* A record without content or padding ends with its header. */
        if (event == RECORD_MORE && reader->in_body && reader->content_left == 0 &&
            reader->padding_left == 0)
            event = read_body(reader, bytes, 0, &n);
    }
    return event;
}

const unsigned char *record_request(const struct record_reader *reader, size_t *length)
{
    *length = reader->length;
    return reader->bytes;
}

void record_bare_request(
    const struct record_reader *reader, unsigned char bytes[RECORD_BARE_REQUEST])
{
    put_header(bytes, FCGI_BEGIN_REQUEST, reader->request_id, sizeof reader->begin);
    memcpy(bytes + 8, reader->begin, sizeof reader->begin);
    put_header(bytes + 16, FCGI_PARAMS, reader->request_id, 0);
    put_header(bytes + 24, FCGI_STDIN, reader->request_id, 0);
}

static bool same(const unsigned char *at, size_t length, const char *name)
{
    return length == strlen(name) && memcmp(at, name, length) == 0;
}

/* The one value that FCGI_GET_VALUES can learn: no multiplexing. How many connections and requests
 * there may be is the operator's to say, by the limit on descriptors. */
static size_t values_reply(struct record_reader *reader, unsigned char *reply)
{
    static const char name[] = FCGI_MPXS_CONNS;
    const unsigned char *at = reader->bytes;
    size_t left = reader->length, n, v, length = 0;
    unsigned char *content = reply + FCGI_HEADER_LEN;

    while (length == 0 && left > 0 && take_pair(&at, &left, &n, &v)) {
        if (!same(at - n - v, n, name))
            continue;
        content[0] = sizeof name - 1;
        content[1] = 1;
        memcpy(content + 2, name, sizeof name - 1);
        content[2 + sizeof name - 1] = '0';
        length = 2 + sizeof name;
    }
    put_header(reply, FCGI_GET_VALUES_RESULT, FCGI_NULL_REQUEST_ID, length);
    return FCGI_HEADER_LEN + length;
}

size_t record_management_reply(struct record_reader *reader, unsigned char reply[RECORD_REPLY_MAX])
{
    FCGI_UnknownTypeBody body = {.type = reader->header[1]};
    size_t length;

    if (reader->header[1] == FCGI_GET_VALUES) {
        length = values_reply(reader, reply);
    } else {
        put_header(reply, FCGI_UNKNOWN_TYPE, FCGI_NULL_REQUEST_ID, sizeof body);
        memcpy(reply + FCGI_HEADER_LEN, &body, sizeof body);
        length = FCGI_HEADER_LEN + sizeof body;
    }
    record_forget(reader);
    return length;
}

void record_end_request(uint16_t request_id, uint8_t protocol_status, unsigned char bytes[16])
{
    FCGI_EndRequestBody body = {.protocolStatus = protocol_status};

    put_header(bytes, FCGI_END_REQUEST, request_id, sizeof body);
    memcpy(bytes + FCGI_HEADER_LEN, &body, sizeof body);
}

void record_forget(struct record_reader *reader)
{
    free(reader->bytes);
    reader->bytes = NULL;
    reader->length = reader->room = 0;
}

bool record_is_between(const struct record_reader *reader)
{
    return reader->phase == RECORD_PHASE_IDLE && reader->header_length == 0;
}

void record_next(struct record_reader *reader)
{
    record_forget(reader);
    reader->phase = RECORD_PHASE_IDLE;
}
