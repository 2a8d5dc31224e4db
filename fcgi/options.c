/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

#include "conninfo.h"
#include "version.h"

#define ENVIRONMENT "MERCHANT_SESSIONS_"

/* Values for getopt_long() where there is no letter. */
enum { SOCKET_MODE = UCHAR_MAX + 1, POLL_INTERVAL, MAX_WAIT, MAX_WAITING, DB_TIMEOUT, CHECK };

static const char usage[] =
    "Usage: merchant-sessions.fcgi [options]\n"
    "Tells Web shops over FastCGI whether sessions of a Taler merchant are paid.\n"
    "\n"
    "  -d, --database CONNINFO  libpq connection string or URI (libpq's variables)\n"
    "  -w, --workers N          worker processes, 0: this one only (processors)\n"
    "  -l, --listen ADDRESS     a path, or HOST:PORT (socket on descriptor 0)\n"
    "      --socket-mode MODE   of a --listen path, octal (0660)\n"
    "      --poll-interval MS   how often a waiting request is looked up (250)\n"
    "      --max-wait MS        longest wait, whatever timeout_ms asks (50000)\n"
    "      --max-waiting N      requests that may wait in each worker (8192)\n"
    "      --db-timeout MS      patience with a database that is away (2000)\n"
    "      --check              say what is found of the database, and end\n"
    "  -v, --verbose            log more\n"
    "  -V, --version            tell the version, and end\n"
    "  -h, --help               this\n"
    "\n"
    "In brackets what holds without the option. Each can be given in the environment\n"
    "too, as MERCHANT_SESSIONS_POLL_INTERVAL and so on; the command line wins.\n";

static const struct option long_options[] = {
    {"database", required_argument, NULL, 'd'},
    {"workers", required_argument, NULL, 'w'},
    {"listen", required_argument, NULL, 'l'},
    {"socket-mode", required_argument, NULL, SOCKET_MODE},
    {"poll-interval", required_argument, NULL, POLL_INTERVAL},
    {"max-wait", required_argument, NULL, MAX_WAIT},
    {"max-waiting", required_argument, NULL, MAX_WAITING},
    {"db-timeout", required_argument, NULL, DB_TIMEOUT},
    {"check", no_argument, NULL, CHECK},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {0},
};

static _Noreturn void refuse(const char *name, const char *value, const char *wanted)
{
    fprintf(stderr, "merchant-sessions: %s: '%s' is not %s\n", name, value, wanted);
    exit(EX_USAGE);
}

static long read_number(const char *name, const char *text, int base, long low, long high)
{
    char *end, wanted[80];
    long value;

    errno = 0;
    value = strtol(text, &end, base);
    if (errno == 0 && end != text && *end == '\0' && value >= low && value <= high &&
        strspn(text, "0123456789") == strlen(text))
        return value;
    snprintf(wanted, sizeof wanted,
        base == 8 ? "an octal number from 0%lo to 0%lo" : "a number from %ld to %ld", low, high);
    refuse(name, text, wanted);
}

static int read_int(const char *name, const char *text, long low, long high)
{
    return (int)read_number(name, text, 10, low, high);
}

static bool read_flag(const char *name, const char *text)
{
    /* An option without argument has none; a variable says 1 or 0. */
    return text ? read_int(name, text, 0, 1) : true;
}

static const char *read_conninfo(const char *name, const char *text)
{
    /* Not repeated: there may be a password in it. */
    if (!conninfo_is_sound(text)) {
        fprintf(stderr, "merchant-sessions: %s: not a libpq connection string or URI\n", name);
        exit(EX_USAGE);
    }
    return text;
}

/* A path is told by its slash. */
static const char *read_address(const char *name, const char *text)
{
    const char *colon = strrchr(text, ':');

    if (strlen(text) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
        refuse(name, text, "as short as a socket's path has to be");
    if (strchr(text, '/'))
        return text;
    if (!colon)
        refuse(name, text, "a path with a slash, or HOST:PORT");
    read_number(name, colon + 1, 10, 1, 65535);
    return text;
}

/* Takes over one option; name is what the operator wrote it as. */
static void set(struct options *options, int option, const char *name, const char *value)
{
    switch (option) {
    case 'd':
        options->database = read_conninfo(name, value);
        break;
    case 'w':
        options->workers = read_int(name, value, 0, 1024);
        break;
    case 'l':
        options->listen = read_address(name, value);
        break;
    case SOCKET_MODE:
        options->socket_mode = (mode_t)read_number(name, value, 8, 0, 0777);
        break;
    case POLL_INTERVAL:
        options->poll_interval_ms = read_int(name, value, 10, 60 * 1000);
        break;
    case MAX_WAIT:
        options->max_wait_ms = read_int(name, value, 0, 24 * 60 * 60 * 1000);
        break;
    case MAX_WAITING:
        options->max_waiting = read_int(name, value, 0, 1000 * 1000);
        break;
    case DB_TIMEOUT:
        options->db_timeout_ms = read_int(name, value, 10, 60 * 1000);
        break;
    case CHECK:
        options->check = read_flag(name, value);
        break;
    default:
        options->verbose = read_flag(name, value);
        break;
    }
}

/* MERCHANT_SESSIONS_POLL_INTERVAL for poll-interval. */
static void make_variable_name(const char *option, char *name, size_t size)
{
    snprintf(name, size, ENVIRONMENT "%s", option);
    for (char *c = name; *c; c++)
        if (*c == '-')
            *c = '_';
        else if (*c >= 'a' && *c <= 'z')
            *c = (char)(*c - 'a' + 'A');
}

static void read_environment(struct options *options)
{
    for (const struct option *option = long_options; option->name; option++) {
        char name[64];
        const char *value;

        if (option->val == 'V' || option->val == 'h')
            continue;
        make_variable_name(option->name, name, sizeof name);
        value = getenv(name);
        if (value && *value)
            set(options, option->val, name, value);
    }
}

static const char *option_name(int letter, char name[32])
{
    const struct option *option = long_options;

    while (option->val != letter)
        option++;
    snprintf(name, 32, "--%s", option->name);
    return name;
}

static void read_command_line(struct options *options, int argc, char *argv[])
{
    char name[32];
    int letter;

    while ((letter = getopt_long(argc, argv, "d:w:l:vVh", long_options, NULL)) != -1) {
        switch (letter) {
        case 'V':
            puts("merchant-sessions " VERSION);
            exit(EXIT_SUCCESS);
        case 'h':
            fputs(usage, stdout);
            exit(EXIT_SUCCESS);
        case '?':
            exit(EX_USAGE);
        default:
            set(options, letter, option_name(letter, name), optarg);
        }
    }
    if (optind < argc)
        refuse("command line", argv[optind], "an option");
}

struct options options_read(int argc, char *argv[])
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct options options = {
        .workers = processors > 0 ? (int)processors : 1,
        .socket_mode = 0660,
        .poll_interval_ms = 250,
        .max_wait_ms = 50000,
        .max_waiting = 8192,
        .db_timeout_ms = 2000,
    };

    read_environment(&options);
    read_command_line(&options, argc, argv);
    return options;
}
