/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "fuzz.h"

#include <stdbool.h>

#include "conninfo.h"

/*
 * Oracle: the lists of hosts and ports are kept apart, as arrays, and what conninfo_other_hosts()
 * returns is put together from them. The hosts are Unix sockets in the abstract namespace on which
 * nobody listens, so that libpq tries one after the other and stands at one of them. The input is
 * also judged as a connection string of its own.
 */

#define HOSTS_MAX 5

struct list {
    char names[HOSTS_MAX][8];
    size_t count;
};

static void list_read(struct list *list, struct fuzz_input *input, size_t count, bool ports)
{
    list->count = count;
    for (size_t i = 0; i < count; i++) {
        unsigned byte = fuzz_byte(input);

        /* Few different ones, so that some are listed twice. */
        snprintf(list->names[i], sizeof list->names[i], ports ? "%u" : "@f%u",
            byte % (ports ? 3 : 6) + 1);
    }
}

/* Writes the elements from the first up to, but not including, the end. Returns where the text
 * ends. */
static char *list_join(const struct list *list, size_t first, size_t end, char *text)
{
    for (size_t i = first; i < end; i++)
        text = stpcpy(stpcpy(text, i > first ? "," : ""), list->names[i]);
    return text;
}

/* What has to be left of a list at whose n-th element libpq stands. */
static void list_expect(const struct list *list, size_t n, char *text)
{
    char *start = text;

    *text = '\0';
    if (list->count == 1) {
        strcpy(text, list->names[0]);
        return;
    }
    text = list_join(list, n + 1, list->count, text);
    if (text > start && n > 0)
        text = stpcpy(text, ",");
    list_join(list, 0, n, text);
}

static size_t conninfo_place(const struct list *hosts, const struct list *ports, PGconn *connection)
{
    for (size_t i = 0; i < hosts->count; i++)
        if (strcmp(PQhost(connection), hosts->names[i]) == 0 &&
            (ports->count < 2 || strcmp(PQport(connection), ports->names[i]) == 0))
            return i;
    return 0;
}

static void check_list(const struct list *list, size_t n, const char *found)
{
    char expected[HOSTS_MAX * 8 + 1];

    if (list->count == 0) {
        CHECK(!found);
        return;
    }
    list_expect(list, n, expected);
    CHECK(found && strcmp(found, expected) == 0);
}

/* What has to be found of a keyword; the last one counts, as in libpq. */
static const char *params_value(const struct conninfo_params *params, const char *keyword)
{
    const char *value = NULL;

    for (size_t i = 0; params->keywords[i]; i++)
        if (strcmp(params->keywords[i], keyword) == 0)
            value = params->values[i];
    return value;
}

/* The operator's string, with the hosts that are left, which go before those in the string. */
static void check_params(const char *conninfo, const struct conninfo_hosts *hosts)
{
    struct conninfo_params params = conninfo_params(conninfo, hosts);

    CHECK(params_value(&params, "dbname") == conninfo);
    CHECK(params_value(&params, "host") == hosts->host);
    CHECK(params_value(&params, "port") == hosts->port);
    CHECK(strcmp(params_value(&params, "client_encoding"), "UTF8") == 0);
}

static void check_other_hosts(struct fuzz_input *input)
{
    struct list hosts, ports;
    char conninfo[256] = "dbname=x user=x connect_timeout=2 host=", *end = strchr(conninfo, '\0');
    struct conninfo_hosts others;
    PGconn *connection;
    size_t kind;

    list_read(&hosts, input, 1 + fuzz_byte(input) % HOSTS_MAX, false);
    kind = fuzz_byte(input) % 3;
    list_read(&ports, input, kind == 2 ? hosts.count : kind, true);
    end = list_join(&hosts, 0, hosts.count, end);
    if (ports.count > 0)
        list_join(&ports, 0, ports.count, stpcpy(end, " port="));
    connection = PQconnectStart(conninfo);
    CHECK(connection);
    for (int i = 0; i < 20 && PQstatus(connection) != CONNECTION_BAD; i++)
        PQconnectPoll(connection);
    others = conninfo_other_hosts(connection);
    if (hosts.count == 1) {
        CHECK(!others.host && !others.hostaddr && !others.port);
    } else {
        size_t n = conninfo_place(&hosts, &ports, connection);

        check_list(&hosts, n, others.host);
        CHECK(!others.hostaddr);
        if (ports.count > 0)
            check_list(&ports, n, others.port);
    }
    check_params(conninfo, &others);
    conninfo_free_hosts(&others);
    CHECK(!others.host && !others.port);
    PQfinish(connection);
}

static void check_judgement(struct fuzz_input *input)
{
    char *text = fuzz_string(input), *message = NULL;
    PQconninfoOption *options = PQconninfoParse(text, &message);

    CHECK(conninfo_judge(text) == (options ? CONNINFO_SOUND : CONNINFO_MALFORMED));
    PQconninfoFree(options);
    PQfreemem(message);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};

    check_other_hosts(&input);
    check_judgement(&input);
    return 0;
}
