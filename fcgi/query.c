/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "query.h"

#include <stdbool.h>
#include <string.h>

/* A part of a text. */
struct query_part {
    const char *at;
    size_t length;
};

/* Free space for decoded values. */
struct query_space {
    char *at;
    size_t left;
};

/* The encoding of a value in the request. */
enum query_coding {
    QUERY_CODING_NONE,    /* as it is */
    QUERY_CODING_PERCENT, /* RFC 3986, section 2.1 */
    QUERY_CODING_FORM,    /* the same, and + is a space */
};

struct query_path {
    enum query_coding coding;
    struct query_part instance, session;
};

static bool query_part_is(struct query_part part, const char *text)
{
    return part.length == strlen(text) && memcmp(part.at, text, part.length) == 0;
}

static int query_hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* The length of the UTF-8 sequence at the front, which is not ASCII (RFC 3629, section 4); 0 if it
 * is none. */
static size_t query_utf8_sequence(const unsigned char *at, size_t left)
{
    static const struct {
        unsigned char first_low, first_high, second_low, second_high;
        size_t length;
    } forms[] = {
        {0xc2, 0xdf, 0x80, 0xbf, 2},
        {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3},
        {0xed, 0xed, 0x80, 0x9f, 3},
        {0xee, 0xef, 0x80, 0xbf, 3},
        {0xf0, 0xf0, 0x90, 0xbf, 4},
        {0xf1, 0xf3, 0x80, 0xbf, 4},
        {0xf4, 0xf4, 0x80, 0x8f, 4},
    };

    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (at[0] < forms[i].first_low || at[0] > forms[i].first_high)
            continue;
        if (left < forms[i].length || at[1] < forms[i].second_low || at[1] > forms[i].second_high)
            return 0;
        for (size_t k = 2; k < forms[i].length; k++)
            if ((at[k] & 0xc0) != 0x80)
                return 0;
        return forms[i].length;
    }
    return 0;
}

/* Whether PostgreSQL takes these bytes for text: UTF-8 without NUL. */
static bool query_is_text(const char *bytes, size_t length)
{
    const unsigned char *at = (const unsigned char *)bytes;

    while (length > 0) {
        size_t n = at[0] < 0x80 ? 1 : query_utf8_sequence(at, length);

        if (n == 0 || at[0] == '\0')
            return false;
        at += n;
        length -= n;
    }
    return true;
}

/* Decodes a value into space, NUL-terminated. NULL if it is not well-formed, or not text. */
static const char *query_decode(
    struct query_space *space, struct query_part part, enum query_coding coding)
{
    char *start = space->at, *to = start;

    if (part.length >= space->left)
        return NULL;
    for (size_t i = 0; i < part.length; i++) {
        char c = part.at[i];

        if (c == '%' && coding != QUERY_CODING_NONE) {
            int high = i + 2 < part.length ? query_hex_value(part.at[i + 1]) : -1;
            int low = high >= 0 ? query_hex_value(part.at[i + 2]) : -1;

            if (low < 0)
                return NULL;
            c = (char)(high << 4 | low);
            i += 2;
        } else if (c == '+' && coding == QUERY_CODING_FORM) {
            c = ' ';
        }
        *to++ = c;
    }
    if (!query_is_text(start, (size_t)(to - start)))
        return NULL;
    *to++ = '\0';
    space->left -= (size_t)(to - start);
    space->at = to;
    return start;
}

/* Takes the last segment off a path; false if there is no slash left. */
static bool query_take_segment(struct query_part *path, struct query_part *segment)
{
    const char *slash = memrchr(path->at, '/', path->length);

    if (!slash)
        return false;
    segment->at = slash + 1;
    segment->length = (size_t)(path->at + path->length - segment->at);
    path->length = (size_t)(slash - path->at);
    return true;
}

/* Finds the session and the instance in a path, from its end. */
static bool query_split_path(struct query_part whole, struct query_path *path)
{
    struct query_part word;

    if (whole.length > 0 && whole.at[whole.length - 1] == '/')
        whole.length--;
    if (!query_take_segment(&whole, &path->session) || path->session.length == 0)
        return false;
    if (!query_take_segment(&whole, &word) || !query_part_is(word, "sessions"))
        return false;
    path->instance = (struct query_part){"", 0};
    if (query_take_segment(&whole, &word)) {
        struct query_part instance = word;

        if (query_take_segment(&whole, &word) && query_part_is(word, "instances")) {
            path->instance = instance;
            return instance.length > 0;
        }
    }
    return true;
}

/* The path as the client sent it, else as the web server decoded it (RFC 3875, section 4.1.5). */
static bool query_find_path(
    const struct query_source *source, struct query_space *space, struct query_path *path)
{
    const char *script = source->script_name ? source->script_name : "";
    const char *info = source->path_info ? source->path_info : "";
    struct query_part whole = {space->at, strlen(script) + strlen(info)};

    if (source->request_uri && source->request_uri[0] != '\0') {
        path->coding = QUERY_CODING_PERCENT;
        whole = (struct query_part){source->request_uri, strcspn(source->request_uri, "?#")};
        return query_split_path(whole, path);
    }
    if (whole.length >= space->left)
        return false;
    space->at = stpcpy(stpcpy(space->at, script), info) + 1;
    space->left -= whole.length + 1;
    path->coding = QUERY_CODING_NONE;
    return query_split_path(whole, path);
}

/* Takes the first name=value pair off a query string; false if there is none. */
static bool query_take_parameter(const char **at, struct query_part *name, struct query_part *value)
{
    size_t length, equals;

    if (**at == '\0')
        return false;
    length = strcspn(*at, "&");
    equals = strcspn(*at, "=&");
    *name = (struct query_part){*at, equals};
    *value = equals < length ? (struct query_part){*at + equals + 1, length - equals - 1}
                             : (struct query_part){*at + length, 0};
    *at += length + ((*at)[length] == '&');
    return true;
}

/* Counts how often a parameter is there, and gives its last value. Names are decoded too. */
static unsigned query_find_parameter(
    const char *query, struct query_space space, const char *wanted, struct query_part *found)
{
    struct query_part name, value;
    unsigned count = 0;

    while (query_take_parameter(&query, &name, &value)) {
        struct query_space scratch = space;
        const char *plain = query_decode(&scratch, name, QUERY_CODING_FORM);

        if (!plain || strcmp(plain, wanted) != 0)
            continue;
        *found = value;
        count++;
    }
    return count;
}

/* scheme ":" and at least one more character, none of them a control character or a space. */
static bool query_is_absolute_uri(const char *text)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char others[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.";
    size_t scheme = strspn(text, others);

    if (strspn(text, letters) == 0 || text[scheme] != ':' || text[scheme + 1] == '\0')
        return false;
    for (const char *p = text; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == 0x7f)
            return false;
    return true;
}

static bool query_read_number(const char *text, int64_t *number)
{
    if (*text == '\0')
        return false;
    *number = 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        /* Any number above this bound is too long a wait: further digits make no difference. */
        if (*number < INT64_MAX / 100)
            *number = *number * 10 + (*text - '0');
    }
    return true;
}

static enum query_verdict query_fault(
    struct query *query, const char *parameter, enum query_verdict verdict)
{
    query->parameter = parameter;
    return verdict;
}

static enum query_verdict query_read_parameters(
    const char *query_string, struct query_space *space, struct query *query)
{
    struct query_part value;
    const char *text;
    unsigned count = query_find_parameter(query_string, *space, "fulfillment_url", &value);

    if (count == 0)
        return query_fault(query, "fulfillment_url", QUERY_PARAMETER_MISSING);
    query->key.url = count == 1 ? query_decode(space, value, QUERY_CODING_FORM) : NULL;
    if (!query->key.url || !query_is_absolute_uri(query->key.url))
        return query_fault(query, "fulfillment_url", QUERY_PARAMETER_MALFORMED);
    query->timeout_ms = 0;
    count = query_find_parameter(query_string, *space, "timeout_ms", &value);
    if (count == 0)
        return QUERY_LOOKUP;
    text = count == 1 ? query_decode(space, value, QUERY_CODING_FORM) : NULL;
    if (!text || !query_read_number(text, &query->timeout_ms))
        return query_fault(query, "timeout_ms", QUERY_PARAMETER_MALFORMED);
    return QUERY_LOOKUP;
}

enum query_verdict query_read(
    const struct query_source *source, char space[QUERY_SPACE], struct query *query)
{
    struct query_space free_space = {space, QUERY_SPACE};
    const char *method = source->method ? source->method : "";
    struct query_path path;

    if (source->metrics && source->metrics[0] != '\0')
        return QUERY_METRICS;
    if (!query_find_path(source, &free_space, &path))
        return QUERY_ENDPOINT_UNKNOWN;
    if (strcmp(method, "OPTIONS") == 0)
        return QUERY_OPTIONS;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return QUERY_METHOD_INVALID;
    query->key.instance = query_decode(&free_space, path.instance, path.coding);
    if (!query->key.instance)
        return query_fault(query, "instance", QUERY_PARAMETER_MALFORMED);
    query->key.session = query_decode(&free_space, path.session, path.coding);
    if (!query->key.session)
        return query_fault(query, "session_id", QUERY_PARAMETER_MALFORMED);
    return query_read_parameters(
        source->query_string ? source->query_string : "", &free_space, query);
}
