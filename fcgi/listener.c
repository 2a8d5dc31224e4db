/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "listener.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"

static bool is_path(const char *address)
{
    return strchr(address, '/') != NULL;
}

bool listener_is_inherited(void)
{
    int listening = 0;
    socklen_t length = sizeof listening;

    return getsockopt(LISTENER_INHERITED, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0 &&
           listening;
}

/* Removes a socket that was left behind; one that is in use stays, and makes bind() fail. */
static void remove_stale(const struct sockaddr_un *name)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)name, sizeof *name) != 0 && errno == ECONNREFUSED)
        unlink(name->sun_path);
    close(fd);
}

static int open_path(const char *path, mode_t mode)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    mode_t mask;
    int fd, bound;

    if (strlen(path) >= sizeof name.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(name.sun_path, path, strlen(path));
    remove_stale(&name);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* Nobody may connect before the mode is what was asked for. */
    mask = umask(0777);
    bound = bind(fd, (const struct sockaddr *)&name, sizeof name);
    umask(mask);
    if (bound == 0 && chmod(path, mode) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    close(fd);
    return -1;
}

static int open_address(const struct addrinfo *address)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    close(fd);
    return -1;
}

static int open_host(const char *address)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    const char *colon = strrchr(address, ':');
    size_t length = (size_t)(colon - address);
    struct addrinfo *found;
    char host[256];
    int fd;

    if (length >= 2 && address[0] == '[' && colon[-1] == ']') {
        address++;
        length -= 2;
    }
    snprintf(host, sizeof host, "%.*s", (int)length, address);
    if (getaddrinfo(length ? host : NULL, colon + 1, &hints, &found) != 0) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    fd = open_address(found);
    freeaddrinfo(found);
    return fd;
}

int listener_open(const char *address, mode_t mode)
{
    int fd = is_path(address) ? open_path(address, mode) : open_host(address);

    if (fd < 0)
        log_error("cannot listen on %s: %s", address, strerror(errno));
    return fd;
}

void listener_close(int fd, const char *address)
{
    close(fd);
    if (is_path(address))
        unlink(address);
}
