/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "fuzz.h"

#include <regex.h>
#include <stdbool.h>

#include "query.h"

/*
 * Oracle: a second reader of requests, written from the contract. It is slow and copies everything:
 * it splits texts from the front, decodes UTF-8 to numbers, and matches URIs with a regular
 * expression. Verdict, parameter and values must be the same.
 *
 * An input is a byte of flags, then the length of the filler, then strings. The bytes 1 of a string
 * are replaced by filler: so a short input makes a large request.
 */

#define PARAMS_MAX   65535
#define SEGMENTS_MAX 66000

enum {
    FLAG_REQUEST_URI = 1,
    FLAG_SCRIPT_NAME = 2,
    FLAG_PATH_INFO = 4,
    FLAG_QUERY_STRING = 8,
    FLAG_METHOD = 16, /* from the input; without it GET */
    FLAG_METRICS = 32,
    FLAG_METRICS_EMPTY = 64,
};

/* What the second reader says. */
struct model {
    enum query_verdict verdict;
    const char *parameter;
    char *instance, *session, *url;
    char *timeout; /* its digits; NULL: absent */
};

/* Splits text in place; returns how many parts there are, and at least 1. */
static size_t model_split(char *text, const char *separator, char *parts[SEGMENTS_MAX])
{
    size_t count = 0;

    while (text)
        parts[count++] = strsep(&text, separator);
    return count;
}

/* The number that a UTF-8 sequence stands for, and its length; -1 if it is none. */
static long model_code_point(const unsigned char *at, size_t left, size_t *length)
{
    static const long least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t ones = 0;
    long number;

    while (ones < 8 && (at[0] & (0x80 >> ones)))
        ones++;
    *length = ones == 0 ? 1 : ones;
    if (ones == 1 || ones > 4 || *length > left)
        return -1;
    number = at[0] & (0xff >> (ones + 1));
    for (size_t i = 1; i < *length; i++) {
        if (at[i] / 64 != 2)
            return -1;
        number = number * 64 + at[i] % 64;
    }
    if (number < least[ones] || number > 0x10ffff || number / 0x800 == 0xd800 / 0x800)
        return -1;
    return number;
}

static bool model_is_text(const char *bytes, size_t length)
{
    size_t step;

    for (size_t i = 0; i < length; i += step)
        if (model_code_point((const unsigned char *)bytes + i, length - i, &step) <= 0)
            return false;
    return true;
}

/* Decodes percent escapes, and + where it is a space. A copy; NULL if it is malformed. */
static char *model_decode(const char *text, bool escapes, bool form)
{
    char *copy = strdup(text);
    size_t length = 0;

    CHECK(copy);
    for (const char *p = text; *p; p++) {
        char digits[3] = {0};

        copy[length++] = form && *p == '+' ? ' ' : *p;
        if (*p != '%' || !escapes)
            continue;
        memcpy(digits, p + 1, strnlen(p + 1, 2));
        if (strspn(digits, "0123456789abcdefABCDEF") != 2) {
            free(copy);
            return NULL;
        }
        copy[length - 1] = (char)strtol(digits, NULL, 16);
        p += 2;
    }
    copy[length] = '\0';
    if (model_is_text(copy, length))
        return copy;
    free(copy);
    return NULL;
}

static bool model_is_uri(const char *text)
{
    static regex_t regex;
    static bool compiled;

    if (!compiled)
        CHECK(regcomp(&regex, "^[A-Za-z][A-Za-z0-9+.-]*:[^\001-\040\177]+$",
                  REG_EXTENDED | REG_NOSUB) == 0);
    compiled = true;
    return regexec(&regex, text, 0, NULL, 0) == 0;
}

static enum query_verdict model_fault(
    struct model *model, const char *parameter, enum query_verdict verdict)
{
    model->parameter = parameter;
    return verdict;
}

/* The only value of a parameter, decoded. NULL if it is missing, malformed or given twice. */
static char *model_parameter(const char *query, const char *wanted, size_t *count)
{
    static char *pairs[SEGMENTS_MAX];
    char *copy = strdup(query), *value = NULL;
    size_t n;

    CHECK(copy);
    n = model_split(copy, "&", pairs);
    *count = 0;
    for (size_t i = 0; i < n; i++) {
        char *rest = pairs[i], *name = strsep(&rest, "=");
        char *plain = model_decode(name, true, true);

        if (plain && strcmp(plain, wanted) == 0 && (*count)++ == 0)
            value = model_decode(rest ? rest : "", true, true);
        free(plain);
    }
    free(copy);
    if (*count == 1)
        return value;
    free(value);
    return NULL;
}

static enum query_verdict model_read_query(const char *query, struct model *model)
{
    size_t count;

    model->url = model_parameter(query, "fulfillment_url", &count);
    if (count == 0)
        return model_fault(model, "fulfillment_url", QUERY_PARAMETER_MISSING);
    if (!model->url || !model_is_uri(model->url))
        return model_fault(model, "fulfillment_url", QUERY_PARAMETER_MALFORMED);
    model->timeout = model_parameter(query, "timeout_ms", &count);
    if (count == 0)
        return QUERY_LOOKUP;
    if (!model->timeout || !*model->timeout ||
        strspn(model->timeout, "0123456789") != strlen(model->timeout))
        return model_fault(model, "timeout_ms", QUERY_PARAMETER_MALFORMED);
    return QUERY_LOOKUP;
}

/* Reads a request whose path has been split. */
static enum query_verdict model_read_segments(
    const struct query_source *source, char *segments[], size_t n, struct model *model)
{
    const char *method = source->method ? source->method : "", *instance = "";
    bool raw = source->request_uri && *source->request_uri;

    if (n < 3 || !*segments[n - 1] || strcmp(segments[n - 2], "sessions") != 0)
        return QUERY_ENDPOINT_UNKNOWN;
    if (n >= 5 && strcmp(segments[n - 4], "instances") == 0) {
        instance = segments[n - 3];
        if (!*instance)
            return QUERY_ENDPOINT_UNKNOWN;
    }
    if (strcmp(method, "OPTIONS") == 0)
        return QUERY_OPTIONS;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return QUERY_METHOD_INVALID;
    model->instance = model_decode(instance, raw, false);
    if (!model->instance)
        return model_fault(model, "instance", QUERY_PARAMETER_MALFORMED);
    model->session = model_decode(segments[n - 1], raw, false);
    if (!model->session)
        return model_fault(model, "session_id", QUERY_PARAMETER_MALFORMED);
    return model_read_query(source->query_string ? source->query_string : "", model);
}

static void model_read(const struct query_source *source, struct model *model)
{
    static char *segments[SEGMENTS_MAX];
    char *path;
    size_t n;

    if (source->request_uri && *source->request_uri) {
        path = strdup(source->request_uri);
        CHECK(path);
        path[strcspn(path, "?#")] = '\0';
    } else {
        CHECK(asprintf(&path, "%s%s", source->script_name ? source->script_name : "",
                  source->path_info ? source->path_info : "") >= 0);
    }
    n = model_split(path, "/", segments);
    /* One slash at the end does not count. */
    if (n > 1 && !*segments[n - 1])
        n--;
    model->verdict = model_read_segments(source, segments, n, model);
    free(path);
}

static void check_timeout(const char *digits, int64_t timeout_ms)
{
    static const int64_t exact_to = 90000000000000000;
    uint64_t wanted = digits ? strtoull(digits, NULL, 10) : 0; /* UINT64_MAX if it is larger */

    if (wanted < exact_to)
        CHECK(timeout_ms == (int64_t)wanted);
    else
        CHECK(timeout_ms >= exact_to);
}

static void check_source(const struct query_source *source)
{
    static char space[QUERY_SPACE];
    struct model model = {0};
    struct query query;

    if (source->metrics && *source->metrics)
        model.verdict = QUERY_METRICS;
    else
        model_read(source, &model);
    CHECK(query_read(source, space, &query) == model.verdict);
    if (model.parameter)
        CHECK(strcmp(query.parameter, model.parameter) == 0);
    if (model.verdict == QUERY_LOOKUP) {
        CHECK(strcmp(query.key.instance, model.instance) == 0);
        CHECK(strcmp(query.key.session, model.session) == 0);
        CHECK(strcmp(query.key.url, model.url) == 0);
        check_timeout(model.timeout, query.timeout_ms);
    }
    free(model.instance);
    free(model.session);
    free(model.url);
    free(model.timeout);
}

/* The next string of the input with its filler, or NULL without the flag. The caller frees it. */
static char *take_variable(struct fuzz_input *input, bool present, size_t filler, size_t *total)
{
    char *text, *copy, *to;
    size_t length = 0;

    if (!present)
        return NULL;
    text = fuzz_string(input);
    for (const char *p = text; *p; p++)
        length += *p == 1 ? filler : 1;
    *total += length;
    copy = to = malloc(length + 1);
    CHECK(copy);
    for (const char *p = text; *p; p++) {
        size_t n = *p == 1 ? filler : 1;

        memset(to, *p == 1 ? 'f' : *p, n);
        to += n;
    }
    *to = '\0';
    free(text);
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    unsigned flags = fuzz_byte(&input);
    size_t filler = fuzz_byte(&input) * 256u, total = 0;
    char *uri = take_variable(&input, flags & FLAG_REQUEST_URI, filler, &total);
    char *script = take_variable(&input, flags & FLAG_SCRIPT_NAME, filler, &total);
    char *info = take_variable(&input, flags & FLAG_PATH_INFO, filler, &total);
    char *query = take_variable(&input, flags & FLAG_QUERY_STRING, filler, &total);
    char *method = take_variable(&input, flags & FLAG_METHOD, filler, &total);
    const char *metrics = flags & FLAG_METRICS ? "1" : flags & FLAG_METRICS_EMPTY ? "" : NULL;
    struct query_source source = {method ? method : "GET", uri, script, info, query, metrics};

    if (total <= PARAMS_MAX)
        check_source(&source);
    free(uri);
    free(script);
    free(info);
    free(query);
    free(method);
    return 0;
}
