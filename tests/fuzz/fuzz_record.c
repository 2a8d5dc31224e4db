/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * record.c. The input is a script: bytes and records to be read, cut at any place, and what a
 * caller may do at any moment in between. The oracle is a decoder of its own, which takes one byte
 * at a time: each event must come at the same byte, and what is written of a request, and in reply
 * to a management record, must be the same bytes.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Room for content: an FCGI_GET_VALUES is one record, PARAMS are many. Of PARAMS so much is kept.
 */
#define MODEL_ROOM   70000
#define MODEL_PARAMS 1000000
#define MODEL_KEPT   65535
/* Parameters that are wanted. */
#define WANTED 6

enum model_stage { MODEL_NONE, MODEL_IN_PARAMS, MODEL_IN_STDIN, MODEL_DONE };

/* What the reader should have understood. */
struct model {
    unsigned char record[8 + 8]; /* header of the record, and content of a BEGIN_REQUEST */
    size_t got;                  /* bytes of the record */
    enum model_stage stage;
    unsigned id, keep, event_id;
    unsigned char params[MODEL_PARAMS], values[MODEL_ROOM];
    size_t params_length, values_length;
};

struct script {
    const uint8_t *at;
    size_t left;
};

static struct model model;
static struct record_reader reader;

static void require(int condition)
{
    if (!condition)
        abort();
}

static unsigned script_byte(struct script *script)
{
    if (script->left == 0)
        return 0;
    script->left--;
    return *script->at++;
}

static unsigned model_type(void)
{
    return model.record[1];
}

static unsigned model_id(void)
{
    return model.record[2] * 256u + model.record[3];
}

static size_t model_content(void)
{
    return model.record[4] * 256u + model.record[5];
}

static int model_is_mine(void)
{
    return model.stage != MODEL_NONE && model_id() == model.id;
}

/* Whether a record with this header is against the rules. */
static int model_header_is_bad(void)
{
    int mine = model_is_mine(), type = (int)model_type();

    if (model.record[0] != 1)
        return 1;
    if (model_id() == 0)
        return 0;
    if (type == 1)
        return mine || model_content() != 8;
    if (!mine || type == 2)
        return 0;
    if (type == 4)
        return model.stage != MODEL_IN_PARAMS;
    return type != 5 || model.stage != MODEL_IN_STDIN;
}

/* The length at p, and how many bytes it takes; 0: it is cut short. */
static size_t model_length(const unsigned char *p, const unsigned char *end, uint64_t *length)
{
    if (p == end)
        return 0;
    if (*p < 128) {
        *length = *p;
        return 1;
    }
    if (end - p < 4)
        return 0;
    *length = (*p - 128u) * UINT64_C(16777216) + p[1] * 65536u + p[2] * 256u + p[3];
    return 4;
}

/* The length of the pair at p, 0 if it is cut short. */
static size_t model_pair(const unsigned char *p, const unsigned char *end,
    const unsigned char **name, uint64_t *name_length, uint64_t *value_length)
{
    size_t first = model_length(p, end, name_length);
    size_t second = first ? model_length(p + first, end, value_length) : 0;

    if (second == 0 || first + second + *name_length + *value_length > (uint64_t)(end - p))
        return 0;
    *name = p + first + second;
    return (size_t)(first + second + *name_length + *value_length);
}

static int model_is_wanted(const unsigned char *name, uint64_t length, int seen[WANTED])
{
    static const char *const names[] = {"QUERY_STRING", "PATH_INFO", "SCRIPT_NAME", "REQUEST_URI",
        "REQUEST_METHOD", "MERCHANT_SESSIONS_METRICS"};

    for (int i = 0; i < WANTED; i++)
        if (strlen(names[i]) == length && memcmp(names[i], name, length) == 0)
            return seen[i]++ == 0;
    return 0;
}

/* Writes the wanted pairs to kept. -1 if there is an unsound one. */
static long model_filter(unsigned char *kept)
{
    const unsigned char *p = model.params, *end = p + model.params_length, *name;
    int seen[WANTED] = {0};
    uint64_t n, v;
    long length = 0;

    while (p < end) {
        size_t pair = model_pair(p, end, &name, &n, &v);

        if (pair == 0)
            return -1;
        for (uint64_t i = 0; i < n + v; i++)
            if (name[i] == 0)
                return -1;
        if (model_is_wanted(name, n, seen)) {
            if ((size_t)length + pair > MODEL_KEPT)
                return -1;
            memcpy(kept + length, p, pair);
            length += (long)pair;
        }
        p += pair;
    }
    return length;
}

static enum record_event model_end_of_params(void)
{
    static unsigned char kept[MODEL_ROOM];
    long length = model_filter(kept);

    if (length < 0)
        return RECORD_EVENT_BROKEN;
    memcpy(model.params, kept, (size_t)length);
    model.params_length = (size_t)length;
    model.stage = MODEL_IN_STDIN;
    return RECORD_EVENT_MORE;
}

static enum record_event model_end_of_begin(void)
{
    model.event_id = model_id();
    if (model.stage != MODEL_NONE)
        return RECORD_EVENT_SECOND;
    if (model.record[8] != 0 || model.record[9] != 1)
        return RECORD_EVENT_UNKNOWN_ROLE;
    model.id = model_id();
    model.keep = model.record[10] & 1;
    model.stage = MODEL_IN_PARAMS;
    return RECORD_EVENT_MORE;
}

static enum record_event model_end_of_record(void)
{
    if (model_id() == 0)
        return RECORD_EVENT_MANAGEMENT;
    if (model_type() == 1)
        return model_end_of_begin();
    if (!model_is_mine())
        return RECORD_EVENT_MORE;
    if (model_type() == 2) {
        model.event_id = model_id();
        return RECORD_EVENT_ABORT;
    }
    if (model_content() > 0)
        return RECORD_EVENT_MORE;
    if (model_type() == 4)
        return model_end_of_params();
    model.stage = MODEL_DONE;
    return RECORD_EVENT_REQUEST;
}

static void model_content_byte(unsigned char byte)
{
    if (model_id() == 0 && model_type() == 9)
        model.values[model.values_length++] = byte;
    else if (model_type() == 1 && model_id() != 0)
        model.record[model.got] = byte;
    else if (model_type() == 4 && model_is_mine())
        model.params[model.params_length++] = byte;
}

static enum record_event model_byte(unsigned char byte)
{
    if (model.got < 8) {
        model.record[model.got++] = byte;
        if (model.got < 8)
            return RECORD_EVENT_MORE;
        if (model_header_is_bad())
            return RECORD_EVENT_BROKEN;
        model.values_length = 0;
    } else {
        if (model.got < 8 + model_content())
            model_content_byte(byte);
        model.got++;
    }
    if (model.got < 8 + model_content() + model.record[6])
        return RECORD_EVENT_MORE;
    model.got = 0;
    return model_end_of_record();
}

static void check_request(void)
{
    static unsigned char written[MODEL_ROOM + 64], expected[MODEL_ROOM + 64];
    unsigned char high = (unsigned char)(model.id >> 8), low = (unsigned char)model.id;
    unsigned char begin[] = {1, 1, high, low, 0, 8, 0, 0, 0, 1, (unsigned char)model.keep, 0, 0, 0,
        0, 0, 1, 4, high, low, (unsigned char)(model.params_length >> 8),
        (unsigned char)model.params_length, 0, 0};
    unsigned char end[] = {1, 4, high, low, 0, 0, 0, 0, 1, 5, high, low, 0, 0, 0, 0};
    size_t head = model.params_length ? 24 : 16, at = 0;
    struct record_request request;

    record_request(&reader, &request);
    for (int i = 0; i < 3; i++) {
        if (request.parts[i].iov_len)
            memcpy(written + at, request.parts[i].iov_base, request.parts[i].iov_len);
        at += request.parts[i].iov_len;
    }
    memcpy(expected, begin, head);
    memcpy(expected + head, model.params, model.params_length);
    memcpy(expected + head + model.params_length, end, sizeof end);
    require(at == request.length && at == head + model.params_length + sizeof end);
    require(memcmp(written, expected, at) == 0);
}

/* Whether FCGI_GET_VALUES asks for FCGI_MPXS_CONNS, before its first unsound pair. */
static int model_asks_for_mpxs(void)
{
    const unsigned char *p = model.values, *end = p + model.values_length, *name;
    uint64_t n, v;
    size_t pair;

    while (p < end && (pair = model_pair(p, end, &name, &n, &v)) > 0) {
        if (n == 15 && memcmp(name, "FCGI_MPXS_CONNS", 15) == 0)
            return 1;
        p += pair;
    }
    return 0;
}

static void check_management(void)
{
    static const unsigned char values[] = "\1\n\0\0\0\x12\0\0\x0f\1"
                                          "FCGI_MPXS_CONNS0";
    static const unsigned char no_values[] = "\1\n\0\0\0\0\0";
    unsigned char unknown[] = {1, 11, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    unsigned char reply[RECORD_REPLY_MAX];
    size_t length = record_management_reply(&reader, reply);

    unknown[8] = (unsigned char)model_type();
    if (model_type() != 9)
        require(length == 16 && memcmp(reply, unknown, 16) == 0);
    else if (model_asks_for_mpxs())
        require(length == 26 && memcmp(reply, values, 26) == 0);
    else
        require(length == 8 && memcmp(reply, no_values, 8) == 0);
}

static void check_event(enum record_event event)
{
    if (event == RECORD_EVENT_REQUEST)
        check_request();
    if (event == RECORD_EVENT_MANAGEMENT)
        check_management();
    if (event == RECORD_EVENT_SECOND || event == RECORD_EVENT_UNKNOWN_ROLE ||
        event == RECORD_EVENT_ABORT)
        require(reader.event_id == model.event_id);
    require(record_is_between(&reader) == (model.got == 0 && model.stage == MODEL_NONE));
}

/* Both read the bytes. False when nothing can be read any more, or the model has no room. */
static bool feed(const unsigned char *bytes, size_t length)
{
    if (model.params_length + length > MODEL_PARAMS)
        return false;
    while (length > 0) {
        enum record_event expected = RECORD_EVENT_MORE, event;
        size_t n = 0, used;

        while (n < length && expected == RECORD_EVENT_MORE)
            expected = model_byte(bytes[n++]);
        event = record_read(&reader, bytes, length, &used);
        require(event == expected && used == n);
        if (event == RECORD_EVENT_BROKEN)
            return false;
        check_event(event);
        bytes += n;
        length -= n;
    }
    return true;
}

/* What a caller may do at any moment. */
static void act(unsigned what)
{
    switch (what % 4) {
    case 0:
        record_next(&reader);
        model.stage = MODEL_NONE;
        model.params_length = 0;
        break;
    case 1:
        record_forget(&reader);
        model.params_length = 0;
        break;
    case 2:
        if (model.stage == MODEL_DONE)
            check_request();
        break;
    default:
        break;
    }
}

/* Feeds some bytes in two pieces, and acts in between. */
static bool feed_cut(struct script *script, const unsigned char *bytes, size_t length)
{
    size_t cut = script_byte(script);

    if (cut > length)
        cut = length;
    if (!feed(bytes, cut))
        return false;
    act(script_byte(script));
    return feed(bytes + cut, length - cut);
}

static bool feed_raw(struct script *script)
{
    const unsigned char *bytes;
    size_t length = script_byte(script);

    if (length > script->left)
        length = script->left;
    bytes = script->at;
    script->at += length;
    script->left -= length;
    return feed(bytes, length);
}

/* A record whose header is true. Its content comes from the script; it can be long. */
static bool feed_record(struct script *script, unsigned type, unsigned id)
{
    static unsigned char bytes[8 + 65535 + 255];
    size_t length = script_byte(script), padding = script_byte(script) % 16, from = 8;

    if (length == 255)
        length = 65535 - script_byte(script);
    if (type == 1)
        length = 8;
    memset(bytes, script_byte(script) & 1 ? 'x' : 0, 8 + length + padding);
    memcpy(bytes,
        (unsigned char[]){1, (unsigned char)type, 0, (unsigned char)id,
            (unsigned char)(length >> 8), (unsigned char)length, (unsigned char)padding, 0},
        8);
    while (from < 8 + length && from < 8 + 255 && script->left > 0)
        bytes[from++] = (unsigned char)script_byte(script);
    return feed_cut(script, bytes, 8 + length + padding);
}

/* A parameter in a record of its own. Its value can be long: two wanted ones can be too much. */
static bool feed_text(const char *name, struct script *script, unsigned id)
{
    static unsigned char bytes[8 + 5 + 300 + 60000];
    size_t n = strlen(name), value = script_byte(script) % 100, length;

    if (value == 99)
        value = 30000 + 100 * script_byte(script);
    length = 5 + n + value;
    memset(bytes, 'v', 8 + length);
    memcpy(bytes,
        (unsigned char[]){1, 4, 0, (unsigned char)id, (unsigned char)(length >> 8),
            (unsigned char)length, 0, 0, (unsigned char)n, 128, 0, (unsigned char)(value >> 8),
            (unsigned char)value},
        13);
    memcpy(bytes + 13, name, n);
    return feed_cut(script, bytes, 8 + length);
}

static bool step(struct script *script)
{
    static const char *const names[] = {"REQUEST_METHOD", "REQUEST_URI", "SCRIPT_NAME", "PATH_INFO",
        "QUERY_STRING", "PATH_INFP", "MERCHANT_SESSIONS_METRICS", ""};
    unsigned what = script_byte(script), id = (what >> 4) % 4;

    switch (what % 8) {
    case 0:
        return feed_raw(script);
    case 1:
        return feed_record(script, script_byte(script), id);
    case 2:
        act(what >> 4);
        return true;
    case 3:
        return feed_cut(script, (unsigned char[]){1, 1, 0, (unsigned char)id, 0, 8, 0, 0, 0, 1, 1},
                   16 - 5) &&
               feed((unsigned char[5]){0}, 5);
    case 4:
        return feed_text(names[script_byte(script) % 8], script, id);
    case 5:
        return feed_cut(script, (unsigned char[]){1, 4, 0, (unsigned char)id, 0, 0, 0, 0}, 8);
    case 6:
        return feed_cut(script, (unsigned char[]){1, 5, 0, (unsigned char)id, 0, 0, 0, 0}, 8);
    default:
        return feed_record(script, 9, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script script = {data, size};
    bool going = true;

    memset(&model, 0, offsetof(struct model, params));
    model.params_length = model.values_length = 0;
    reader = (struct record_reader){0};
    while (script.left > 0 && going)
        going = step(&script);
    record_close(&reader);
    return 0;
}
