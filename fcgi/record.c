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

/* The length of the longest wanted name. */
#define RECORD_NAME_MAX 25

/* PARAMS are looked through in pieces of this size at most, which bounds the memory for pairs that
 * are not wanted. Most requests fit into one. */
#define RECORD_PIECE 4096

/* A name-value pair (section 3.4), of which at least the lengths have been read. */
struct record_pair {
    const unsigned char *name;
    size_t name_length;
    uint64_t length; /* of all of it */
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

/* How much of something there is, where there is room for so much of it. */
static size_t record_smaller(uint64_t amount, size_t room)
{
    return amount < room ? (size_t)amount : room;
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

/* Reads one length of a name-value pair, and moves on; false if it is cut short. */
static bool record_read_length(const unsigned char **at, const unsigned char *end, size_t *length)
{
    const unsigned char *p = *at;
    ptrdiff_t size = p < end && p[0] & 0x80 ? 4 : 1;

    if (end - p < size)
        return false;
    *length = size == 1 ? p[0]
                        : ((size_t)(p[0] & 0x7f) << 24) | ((size_t)p[1] << 16) |
                              ((size_t)p[2] << 8) | (size_t)p[3];
    *at += size;
    return true;
}

/* Reads the lengths of the pair that begins here; false if they are cut short. */
static bool record_read_pair(
    const unsigned char *start, const unsigned char *end, struct record_pair *pair)
{
    size_t value_length;

    pair->name = start;
    if (!record_read_length(&pair->name, end, &pair->name_length) ||
        !record_read_length(&pair->name, end, &value_length))
        return false;
    pair->length = (uint64_t)(pair->name - start) + pair->name_length + value_length;
    return true;
}

static bool record_pair_is_named(const struct record_pair *pair, const char *name, size_t length)
{
    return pair->name_length == length && memcmp(pair->name, name, length) == 0;
}

/* The bit of the pair's name, which has been read; 0: it is not wanted, or not the first one. */
static unsigned record_pair_bit(const struct record_pair *pair, unsigned found)
{
    for (unsigned i = 0; i < RECORD_WANTED_MAX; i++)
        if (record_pair_is_named(pair, record_wanted[i].name, record_wanted[i].length))
            return ~found & 1u << i;
    return 0;
}

/* Handles the pair that begins here: keeps it, or passes it over. Returns how many bytes that were;
 * 0: first more of the pair has to come. */
static size_t record_filter_pair(
    struct record_reader *reader, const unsigned char *start, const unsigned char *end)
{
    struct record_pairs *pairs = &reader->pairs;
    struct record_pair pair;
    bool named;
    size_t length;
    unsigned bit;

    if (!record_read_pair(start, end, &pair))
        return 0;
    named = pair.name_length <= (size_t)(end - pair.name);
    if (!named && pair.name_length <= RECORD_NAME_MAX)
        return 0;
    bit = named ? record_pair_bit(&pair, pairs->found) : 0;
    if (bit && pair.length > RECORD_PARAMS_MAX - pairs->kept)
        pairs->unsound = true;
    else if (bit && pair.length > (size_t)(end - start))
        return 0;
    length = record_smaller(pair.length, (size_t)(end - start));
    /* They are meta-variables (RFC 3875, section 4.1). */
    if (memchr(pair.name, '\0', length - (size_t)(pair.name - start)))
        pairs->unsound = true;
    pairs->passing = pair.length - length;
    if (bit && !pairs->unsound) {
        memmove(reader->params.at + pairs->kept, start, length);
        pairs->kept += length;
        pairs->found |= bit;
    }
    return length;
}

/* Handles the pairs that have been collected, so that only what is wanted stays, and the beginning
 * of one that is, or may be. */
static void record_filter(struct record_reader *reader)
{
    struct record_bytes *params = &reader->params;
    const unsigned char *at = params->at + reader->pairs.kept, *end = params->at + params->length;
    size_t length;

    while ((length = record_filter_pair(reader, at, end)) > 0)
        at += length;
    /* A long value that arrives in many small records is not moved with each of them. */
    if (at == params->at + reader->pairs.kept)
        return;
    memmove(params->at + reader->pairs.kept, at, (size_t)(end - at));
    params->length = reader->pairs.kept + (size_t)(end - at);
}

/* Drops the pairs: there is no memory for them. */
static void record_lose_params(struct record_reader *reader)
{
    record_forget(reader);
    reader->pairs.lost = true;
}

/* Content of PARAMS. */
static void record_keep_params(
    struct record_reader *reader, const unsigned char *bytes, size_t length)
{
    struct record_pairs *pairs = &reader->pairs;

    while (length > 0 && !pairs->unsound && !pairs->lost) {
        size_t used = record_smaller(pairs->passing > 0 ? pairs->passing : RECORD_PIECE, length);

        if (pairs->passing > 0) {
            pairs->unsound = memchr(bytes, '\0', used);
            pairs->passing -= used;
        } else if (record_collect(&reader->params, bytes, used)) {
            record_filter(reader);
        } else {
            record_lose_params(reader);
        }
        bytes += used;
        length -= used;
    }
}

/* Whether PARAMS may end here: between two pairs. */
static bool record_params_are_sound(const struct record_reader *reader)
{
    return !reader->pairs.unsound && reader->pairs.passing == 0 &&
           reader->params.length == reader->pairs.kept;
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
        record_forget(reader);
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
    if (reader->header[0] != FCGI_VERSION_1)
        return false;
    if (record_id(reader) == FCGI_NULL_REQUEST_ID)
        return true;
    if (reader->header[1] == FCGI_BEGIN_REQUEST)
        return record_content(reader) == sizeof reader->begin && !record_is_of_request(reader);
    if (!record_is_of_request(reader))
        return true;
    switch (reader->header[1]) {
    case FCGI_PARAMS:
        return reader->phase == RECORD_PHASE_PARAMS;
    case FCGI_STDIN:
        return reader->phase == RECORD_PHASE_STDIN;
    case FCGI_ABORT_REQUEST:
        return true;
    default:
        return false;
    }
}

/* Content of the record in progress: kept if it is wanted, else passed over. False if there is no
 * memory for it. */
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
        record_keep_params(reader, bytes, length);
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
    if (!record_params_are_sound(reader))
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

/* Whether there is a pair of this name, before the first that is cut short. */
static bool record_has_pair(const struct record_bytes *bytes, const char *name, size_t length)
{
    size_t at = 0;
    struct record_pair pair;

    while (at < bytes->length &&
           record_read_pair(bytes->at + at, bytes->at + bytes->length, &pair) &&
           pair.length <= bytes->length - at) {
        if (record_pair_is_named(&pair, name, length))
            return true;
        at += (size_t)pair.length;
    }
    return false;
}

/* The only value that FCGI_GET_VALUES is told: no multiplexing. The numbers of connections and
 * requests follow from the operator's limit on descriptors. */
static size_t record_values_reply(const struct record_bytes *values, unsigned char *reply)
{
    static const char name[] = FCGI_MPXS_CONNS;
    unsigned char *content = reply + FCGI_HEADER_LEN;
    size_t length = 0;

    if (record_has_pair(values, name, sizeof name - 1)) {
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
    reader->pairs = (struct record_pairs){0};
}

bool record_has_lost_params(const struct record_reader *reader)
{
    return reader->pairs.lost;
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
