/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "classic.h"

#include <err.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <fcgiapp.h>

struct options {
    const char *listen;
    const char *database;  /* conninfo */
    const char *statement; /* path of a file */
    int workers;           /* processes */
};

static struct options classic_parse_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"listen", required_argument, NULL, 'l'},
        {"database", required_argument, NULL, 'd'},
        {"statement", required_argument, NULL, 's'},
        {"workers", required_argument, NULL, 'w'},
        {0},
    };
    struct options options = {.workers = 1};

    for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (option) {
        case 'l':
            options.listen = optarg;
            break;
        case 'd':
            options.database = optarg;
            break;
        case 's':
            options.statement = optarg;
            break;
        case 'w':
            options.workers = atoi(optarg);
            break;
        default:
            exit(64);
        }
    }
    if (!options.listen)
        errx(64, "--listen is missing");
    return options;
}

/* The value of a hexadecimal digit, -1 for any other character. */
static int classic_hex_digit(char digit)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    const char *found = digit ? strchr(digits, digit) : NULL;

    return found ? (int)(found - digits) % 16 : -1;
}

/* Decodes percent escapes. False for a bad one, and for a text that is too long. */
static bool classic_decode(const char *from, size_t length, char *to, size_t size)
{
    const char *end = from + length;
    size_t written = 0;

    while (from < end && written < size - 1) {
        if (*from != '%') {
            to[written++] = *from++;
            continue;
        }
        if (end - from < 3 || classic_hex_digit(from[1]) < 0 || classic_hex_digit(from[2]) < 0)
            return false;
        to[written++] = (char)(classic_hex_digit(from[1]) * 16 + classic_hex_digit(from[2]));
        from += 3;
    }
    to[written] = '\0';
    return from == end;
}

/* Decodes what follows the name, up to one of the characters in ends. */
static bool classic_decode_after(
    const char *text, const char *name, const char *ends, char *to, size_t size)
{
    const char *found = text ? strstr(text, name) : NULL;

    if (!found)
        return false;
    found += strlen(name);
    return classic_decode(found, strcspn(found, ends), to, size);
}

static bool classic_read_query(const FCGX_Request *request, struct session_query *query)
{
    const char *path = FCGX_GetParam("REQUEST_URI", request->envp);
    const char *parameters = FCGX_GetParam("QUERY_STRING", request->envp);

    return classic_decode_after(
               path, "/instances/", "/?", query->instance, sizeof query->instance) &&
           classic_decode_after(path, "/sessions/", "/?", query->session, sizeof query->session) &&
           classic_decode_after(parameters, "fulfillment_url=", "&", query->url, sizeof query->url);
}

/* Takes the body over. */
static void classic_reply(FCGX_Request *request, const char *status, cJSON *body)
{
    char *json = cJSON_PrintUnformatted(body);

    FCGX_FPrintF(request->out,
        "Status: %s\r\n"
        "Content-Type: application/json\r\n"
        "Content-Length: %d\r\n"
        "Access-Control-Allow-Origin: *\r\n"
        "Access-Control-Expose-Headers: *\r\n"
        "Cache-Control: no-store\r\n"
        "\r\n"
        "%s",
        status, (int)strlen(json), json);
    cJSON_free(json);
    cJSON_Delete(body);
}

static void classic_reply_order(FCGX_Request *request, const struct order *order)
{
    cJSON *body = cJSON_CreateObject();

    cJSON_AddStringToObject(body, "order_id", order->id);
    classic_reply(request, order->paid ? "200 OK" : "202 Accepted", body);
}

static void classic_reply_error(FCGX_Request *request, const char *status, int code)
{
    cJSON *body = cJSON_CreateObject();

    cJSON_AddNumberToObject(body, "code", code);
    classic_reply(request, status, body);
}

static void classic_answer(FCGX_Request *request)
{
    struct session_query query;
    struct order order;

    if (!classic_read_query(request, &query))
        classic_reply_error(request, "400 Bad Request", 26);
    else if (!lookup_order(&query, &order))
        classic_reply_error(request, "404 Not Found", 2038);
    else
        classic_reply_order(request, &order);
}

/* The life of a process. It ends with its parent. */
static void classic_serve(int listener, const struct options *options)
{
    FCGX_Request request;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    lookup_open(options->database, options->statement);
    FCGX_InitRequest(&request, listener, 0);
    while (FCGX_Accept_r(&request) == 0) {
        classic_answer(&request);
        FCGX_Finish_r(&request);
    }
    exit(1);
}

int main(int argc, char **argv)
{
    struct options options = classic_parse_options(argc, argv);
    int listener;

    FCGX_Init();
    listener = FCGX_OpenSocket(options.listen, 1024);
    for (int i = 0; i < options.workers; i++)
        if (fork() == 0)
            classic_serve(listener, &options);
    while (wait(NULL) > 0) {
    }
    return 1;
}
