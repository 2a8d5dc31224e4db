/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "reply.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANY_ORIGIN "Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: *\r\n"

/* TALER_EC_… in GANA's registry of error codes; 0 where the answer is no error. */
static const struct {
    const char *status;
    int code;
    const char *hint;
} reply_kinds[] = {
    [REPLY_PAID] = {"200 OK", 0, NULL},
    [REPLY_UNPAID] = {"202 Accepted", 0, NULL},
    [REPLY_OPTIONS] = {"204 No Content", 0, NULL},
    [REPLY_PARAMETER_MISSING] = {"400 Bad Request", 25, "A required parameter is missing."},
    [REPLY_PARAMETER_MALFORMED] = {"400 Bad Request", 26, "A parameter is malformed."},
    [REPLY_ENDPOINT_UNKNOWN] = {"404 Not Found", 21, "There is no such endpoint here."},
    [REPLY_INSTANCE_UNKNOWN] = {"404 Not Found", 2000, "There is no such merchant instance."},
    [REPLY_SESSION_UNKNOWN] = {"404 Not Found", 2038, "No order is known for this session."},
    [REPLY_METHOD_INVALID] = {"405 Method Not Allowed", 20, "This method is not supported here."},
    [REPLY_DATABASE_FAILED] = {"500 Internal Server Error", 53, "The database did not answer."},
};

int reply_status(enum reply_kind kind)
{
    return atoi(reply_kinds[kind].status);
}

int reply_code(enum reply_kind kind)
{
    return reply_kinds[kind].code;
}

static cJSON *reply_make_object(enum reply_kind kind, const char *text)
{
    cJSON *object = cJSON_CreateObject();
    bool ok = object;

    if (reply_kinds[kind].code == 0) {
        ok = ok && cJSON_AddStringToObject(object, "order_id", text);
    } else {
        ok = ok && cJSON_AddNumberToObject(object, "code", reply_kinds[kind].code);
        ok = ok && cJSON_AddStringToObject(object, "hint", reply_kinds[kind].hint);
        ok = ok && (!text || cJSON_AddStringToObject(object, "detail", text));
    }
    if (ok)
        return object;
    cJSON_Delete(object);
    return NULL;
}

static char *reply_make_body(enum reply_kind kind, const char *text)
{
    cJSON *object = reply_make_object(kind, text);
    char *body = object ? cJSON_PrintUnformatted(object) : NULL;

    cJSON_Delete(object);
    return body;
}

static char *reply_print_options(size_t *length)
{
    char *reply =
        strdup("Status: 204 No Content\r\n" ANY_ORIGIN "Access-Control-Allow-Headers: *\r\n"
               "Access-Control-Allow-Methods: *\r\n\r\n");

    *length = reply ? strlen(reply) : 0;
    return reply;
}

char *reply_make(enum reply_kind kind, const char *text, bool head, size_t *length)
{
    const char *allow = kind == REPLY_METHOD_INVALID ? "Allow: GET, HEAD, OPTIONS\r\n" : "";
    char *body, *reply;
    int n;

    if (kind == REPLY_OPTIONS)
        return reply_print_options(length);
    body = reply_make_body(kind, text);
    if (!body)
        return NULL;
    n = asprintf(&reply,
        "Status: %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
        "Cache-Control: no-store\r\n" ANY_ORIGIN "%s\r\n%s",
        reply_kinds[kind].status, strlen(body), allow, head ? "" : body);
    cJSON_free(body);
    if (n < 0)
        return NULL;
    *length = (size_t)n;
    return reply;
}

char *reply_make_metrics(const char *text, bool head, size_t *length)
{
    char *reply;
    int n = asprintf(&reply,
        "Status: 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        "Content-Length: %zu\r\nCache-Control: no-store\r\n\r\n%s",
        strlen(text), head ? "" : text);

    if (n < 0)
        return NULL;
    *length = (size_t)n;
    return reply;
}
