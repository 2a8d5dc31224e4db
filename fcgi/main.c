/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sysexits.h>
#include <unistd.h>

#include "check.h"
#include "listener.h"
#include "log.h"
#include "metrics.h"
#include "options.h"
#include "pool.h"
#include "worker.h"

/* A web server that starts a FastCGI application leaves only descriptor 0 open (FastCGI 1.0,
 * section 2.2). What is opened later must not become standard error, where lines are written. */
static bool main_open_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return false;
    return true;
}

/* A process without a pool, on an inherited socket, is one of many that a manager (mod_fcgid)
 * starts and ends on demand. Logging each start would fill the web server's log. */
static enum log_level main_log_level(const struct options *options)
{
    if (options->verbose)
        return LOG_DEBUG;
    return options->workers == 0 && !options->listen ? LOG_WARNING : LOG_INFO;
}

/* Each waiting request takes a descriptor. */
static void main_raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        log_warning("cannot raise the limit on open files");
}

/* A pool without processes: this process is its only slot. */
static int main_serve_alone(const struct options *options, int listen_fd)
{
    struct metrics *metrics = metrics_new(1);
    int status;

    if (!metrics) {
        log_error("out of memory");
        return EXIT_FAILURE;
    }
    metrics_enter(metrics, 0);
    status = worker_run(options, listen_fd, metrics);
    metrics_free(metrics);
    return status;
}

static int main_serve(const struct options *options, int listen_fd)
{
    /* Writing to a web server that is gone fails with EPIPE instead of killing the process. */
    signal(SIGPIPE, SIG_IGN);
    main_raise_descriptor_limit();
    return options->workers > 0 ? pool_run(options, listen_fd)
                                : main_serve_alone(options, listen_fd);
}

static int main_listen_and_serve(const struct options *options)
{
    struct listener listener;
    int status;

    if (!listener_open(&listener, options->listen, options->socket_mode))
        return EXIT_FAILURE;
    status = main_serve(options, listener.fd);
    listener_close(&listener);
    return status;
}

static int main_inherit_and_serve(const struct options *options)
{
    int fd;
    const char *reason = listener_inherit(&fd);

    if (!reason)
        return main_serve(options, fd);
    fprintf(stderr, "merchant-sessions: %s\n", reason);
    return EX_USAGE;
}

/* A flaw could do whatever root may. */
static int main_refuse_root(void)
{
    fputs(
        "merchant-sessions: root is more than this program needs: run it as another user, or with "
        "--allow-root\n",
        stderr);
    return EX_NOPERM;
}

int main(int argc, char *argv[])
{
    struct options options;

    /* Writing beyond the limit on a file's size (ulimit -f) is like writing to a full disk. */
    signal(SIGXFSZ, SIG_IGN);
    if (!main_open_standard_descriptors()) {
        perror("merchant-sessions: /dev/null");
        return EXIT_FAILURE;
    }
    options = options_read(argc, argv);
    log_open();
    log_set_level(main_log_level(&options));
    if (options.check)
        return check_run(&options);
    if (geteuid() == 0 && !options.allow_root)
        return main_refuse_root();
    worker_block_signals();
    return options.listen ? main_listen_and_serve(&options) : main_inherit_and_serve(&options);
}
