/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "conninfo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct conninfo_params conninfo_params(const char *conninfo, const struct conninfo_hosts *hosts)
{
    /* Of two values the later one holds, if it is not NULL; dbname is expanded where it stands. */
    return (struct conninfo_params){
        .keywords = {"dbname", "host", "hostaddr", "port", "client_encoding",
            "fallback_application_name", NULL},
        .values = {conninfo, hosts->host, hosts->hostaddr, hosts->port, "UTF8", "merchant-sessions",
            NULL},
    };
}

static size_t conninfo_count(const char *list)
{
    size_t count = list && *list ? 1 : 0;

    for (; count > 0 && (list = strchr(list, ',')); list++)
        count++;
    return count;
}

/* The n-th element of a list, counted from 0; the list has it. */
static const char *conninfo_element(const char *list, size_t n)
{
    for (; n > 0; n--)
        list = strchr(list, ',') + 1;
    return list;
}

static bool conninfo_element_is(const char *list, size_t n, const char *text)
{
    size_t length = strlen(text);
    const char *element;

    if (n >= conninfo_count(list))
        return false;
    element = conninfo_element(list, n);
    return strncmp(element, text, length) == 0 && (element[length] == ',' || !element[length]);
}

/* Whether the connection is one to the n-th host. */
static bool conninfo_is_host(const struct conninfo_hosts *hosts, size_t n, const PGconn *connection)
{
    const char *host = PQhost(connection), *port = PQport(connection);

    if (!host || (!conninfo_element_is(hosts->host, n, host) &&
                     !conninfo_element_is(hosts->hostaddr, n, host)))
        return false;
    return conninfo_count(hosts->port) < 2 || !port || conninfo_element_is(hosts->port, n, port);
}

/* The lists that the connection was made with, wherever they come from: conninfo, the environment
 * or a service file. The strings belong to the options. */
static struct conninfo_hosts conninfo_find_hosts(PQconninfoOption *options)
{
    struct conninfo_hosts hosts = {0};

    for (PQconninfoOption *option = options; option->keyword; option++)
        if (strcmp(option->keyword, "host") == 0)
            hosts.host = option->val;
        else if (strcmp(option->keyword, "hostaddr") == 0)
            hosts.hostaddr = option->val;
        else if (strcmp(option->keyword, "port") == 0)
            hosts.port = option->val;
    return hosts;
}

/* A copy of a list that begins with its n-th element, followed by those after it and then by those
 * before it. *ok is set to false if out of memory. */
static char *conninfo_rotate(const char *list, size_t n, bool *ok)
{
    size_t count = conninfo_count(list);
    const char *head;
    char *rotated;

    if (count == 0)
        return NULL;
    head = conninfo_element(list, count > 1 ? n : 0);
    if (asprintf(&rotated, "%s%s%.*s", head, head > list ? "," : "",
            head > list ? (int)(head - list - 1) : 0, list) >= 0)
        return rotated;
    *ok = false;
    return NULL;
}

static bool conninfo_rotate_hosts(
    struct conninfo_hosts *hosts, const struct conninfo_hosts *from, size_t n)
{
    bool ok = true;

    hosts->host = conninfo_rotate(from->host, n, &ok);
    hosts->hostaddr = conninfo_rotate(from->hostaddr, n, &ok);
    hosts->port = conninfo_rotate(from->port, n, &ok);
    if (!ok)
        conninfo_free_hosts(hosts);
    return ok;
}

void conninfo_skip_host(struct conninfo_hosts *hosts, PGconn *connection)
{
    PQconninfoOption *options = PQconninfo(connection);
    struct conninfo_hosts current, rotated;
    size_t count, n = 0;

    if (!options)
        return;
    current = conninfo_find_hosts(options);
    count = conninfo_count(current.host ? current.host : current.hostaddr);
    while (n < count && !conninfo_is_host(&current, n, connection))
        n++;
    if (count > 1 && conninfo_rotate_hosts(&rotated, &current, (n + 1) % count)) {
        conninfo_free_hosts(hosts);
        *hosts = rotated;
    }
    PQconninfoFree(options);
}

void conninfo_free_hosts(struct conninfo_hosts *hosts)
{
    free(hosts->host);
    free(hosts->hostaddr);
    free(hosts->port);
    *hosts = (struct conninfo_hosts){0};
}

/* libpq leaves the message NULL where there is no memory even for one, and else says so in it. */
static bool conninfo_lacks_memory(const char *message)
{
    static const char text[] = "out of memory";

    return !message || strncmp(message, text, strlen(text)) == 0;
}

enum conninfo_verdict conninfo_judge(const char *conninfo)
{
    char *message = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &message);
    enum conninfo_verdict verdict = CONNINFO_SOUND;

    if (!options)
        verdict = conninfo_lacks_memory(message) ? CONNINFO_NO_MEMORY : CONNINFO_MALFORMED;
    PQfreemem(message);
    PQconninfoFree(options);
    return verdict;
}
