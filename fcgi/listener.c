/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

/* The descriptor that a parent process passes the socket on: see listener_inherit(). */
#define FASTCGI_SOCKET       0
#define SYSTEMD_FIRST_SOCKET 3

/* Attempts to take the lock of a directory, and the pause between them: 1 s in all. */
#define LOCK_TRIES    100
#define LOCK_PAUSE_NS (10 * 1000 * 1000)

static bool listener_is_listening(int fd)
{
    int listening = 0;
    socklen_t length = sizeof listening;

    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0 && listening;
}

/* The number of sockets that systemd has passed to this process, as text; NULL if none. The
 * variables may have been left by a parent to which they were passed. */
static const char *listener_systemd_sockets(void)
{
    const char *pid = getenv("LISTEN_PID");
    char own[32];

    snprintf(own, sizeof own, "%ld", (long)getpid());
    return pid && strcmp(pid, own) == 0 ? getenv("LISTEN_FDS") : NULL;
}

const char *listener_inherit(int *fd)
{
    const char *sockets = listener_systemd_sockets();

    *fd = sockets ? SYSTEMD_FIRST_SOCKET : FASTCGI_SOCKET;
    if (sockets && strcmp(sockets, "1") != 0)
        return "LISTEN_FDS is not 1: one listening socket is served, no more";
    if (listener_is_listening(*fd))
        return NULL;
    return sockets ? "LISTEN_FDS: descriptor 3 is not a listening socket"
                   : "no listening socket on descriptor 0, and no --listen";
}

/* The functions below return NULL, or the reason of a failure. */

static bool listener_is_path(const char *address)
{
    return strchr(address, '/') != NULL;
}

/* Locks the directory of a path against other processes of this program. Without the lock two of
 * them could find the same stale socket, and the slower one would remove the new socket of the
 * faster one. Returns the descriptor whose closing ends the lock, or -1 with errno. */
static int listener_lock(const char *path)
{
    static const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    char directory[sizeof((struct sockaddr_un *)NULL)->sun_path];
    const char *slash = strrchr(path, '/');
    int fd;

    /* Includes the slash, so that it is "/" for a file in the root directory. */
    snprintf(directory, sizeof directory, "%.*s", (int)(slash - path) + 1, path);
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return fd;
        nanosleep(&pause, NULL);
    }
    close(fd);
    errno = EWOULDBLOCK;
    return -1;
}

static const char *listener_lock_failure(void)
{
    return errno == EWOULDBLOCK ? "its directory is locked by another process" : strerror(errno);
}

/* The reason why a file that is no socket is not replaced. */
static const char *listener_file_kind(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "it is a regular file";
    case S_IFDIR:
        return "it is a directory";
    case S_IFLNK:
        return "it is a symbolic link";
    case S_IFIFO:
        return "it is a FIFO";
    default:
        return "it is a device";
    }
}

/* Whether nobody listens on a socket: ECONNREFUSED. After any other error there may be a server
 * that has no room for a connection now, or that does not let us in. */
static bool listener_is_stale(const struct sockaddr_un *name)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool stale;

    if (fd < 0)
        return false;
    stale = connect(fd, (const struct sockaddr *)name, sizeof *name) != 0 && errno == ECONNREFUSED;
    close(fd);
    return stale;
}

/* Removes a stale socket. Checks the type first: connect() refuses a regular file in the same
 * way as a socket on which nobody listens. */
static const char *listener_remove_stale(const struct sockaddr_un *name)
{
    struct stat file;

    if (lstat(name->sun_path, &file) != 0)
        return strerror(errno);
    if (!S_ISSOCK(file.st_mode))
        return listener_file_kind(file.st_mode);
    if (!listener_is_stale(name))
        return "it is a socket in use";
    return unlink(name->sun_path) == 0 ? NULL : strerror(errno);
}

/* Makes the socket's file, with its permissions from the first moment on. bind() never replaces
 * a file. */
static bool listener_bind(int fd, const struct sockaddr_un *name, mode_t mode)
{
    mode_t mask = umask(~mode & 0777);
    bool bound = bind(fd, (const struct sockaddr *)name, sizeof *name) == 0;

    umask(mask);
    return bound;
}

static const char *listener_bind_path(int fd, const struct sockaddr_un *name, mode_t mode)
{
    const char *reason;

    if (listener_bind(fd, name, mode))
        return NULL;
    if (errno != EADDRINUSE)
        return strerror(errno);
    reason = listener_remove_stale(name);
    if (reason)
        return reason;
    return listener_bind(fd, name, mode) ? NULL : strerror(errno);
}

/* The directory stays locked until the new socket listens: before that it looks stale. */
static const char *listener_make_socket(
    struct listener *listener, const struct sockaddr_un *name, mode_t mode)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stat file = {0};
    const char *reason;

    if (fd < 0)
        return strerror(errno);
    reason = listener_bind_path(fd, name, mode);
    if (!reason && (lstat(name->sun_path, &file) != 0 || listen(fd, SOMAXCONN) != 0))
        reason = strerror(errno);
    if (reason)
        close(fd);
    else
        *listener = (struct listener){.fd = fd, .device = file.st_dev, .inode = file.st_ino};
    return reason;
}

static const char *listener_open_path(struct listener *listener, const char *path, mode_t mode)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    const char *reason;
    int lock;

    if (strlen(path) >= sizeof name.sun_path)
        return strerror(ENAMETOOLONG);
    memcpy(name.sun_path, path, strlen(path));
    lock = listener_lock(path);
    if (lock < 0)
        return listener_lock_failure();
    reason = listener_make_socket(listener, &name, mode);
    close(lock);
    listener->path = path;
    return reason;
}

/* Returns the descriptor, or -1 with errno. */
static int listener_open_address(const struct addrinfo *address, bool both_families)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, off = 0;
    int saved;

    if (fd < 0)
        return -1;
    /* Without it a restart fails while connections of the last run are in TIME_WAIT. */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (both_families)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* Opens the first address that can be opened. host NULL: any address of the family. */
static const char *listener_open_family(
    struct listener *listener, const char *host, const char *port, int family)
{
    const struct addrinfo hints = {
        .ai_family = family, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found;
    int error = getaddrinfo(host, port, &hints, &found), fd = -1;

    if (error == EAI_SYSTEM)
        return strerror(errno);
    if (error)
        return gai_strerror(error);
    for (const struct addrinfo *address = found; address && fd < 0; address = address->ai_next)
        fd = listener_open_address(address, !host && family == AF_INET6);
    error = errno;
    freeaddrinfo(found);
    errno = error;
    if (fd < 0)
        return strerror(errno);
    *listener = (struct listener){.fd = fd};
    return NULL;
}

/* An IPv6 socket serves IPv4 too, if there is IPv6 at all. A port that is taken is no reason to
 * serve IPv4 alone. */
static const char *listener_open_any(struct listener *listener, const char *port)
{
    const char *reason = listener_open_family(listener, NULL, port, AF_INET6);

    if (reason && (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL))
        reason = listener_open_family(listener, NULL, port, AF_INET);
    return reason;
}

static const char *listener_open_host(struct listener *listener, const char *address)
{
    const char *colon = strrchr(address, ':');
    size_t length = (size_t)(colon - address);
    char host[256];

    if (length == 0)
        return listener_open_any(listener, colon + 1);
    if (length >= 2 && address[0] == '[' && colon[-1] == ']') {
        address++;
        length -= 2;
    }
    snprintf(host, sizeof host, "%.*s", (int)length, address);
    return listener_open_family(listener, host, colon + 1, AF_UNSPEC);
}

bool listener_open(struct listener *listener, const char *address, mode_t mode)
{
    const char *reason = listener_is_path(address) ? listener_open_path(listener, address, mode)
                                                   : listener_open_host(listener, address);

    if (reason)
        log_error("cannot listen on %s: %s", address, reason);
    return !reason;
}

void listener_refuse(int fd)
{
    int domain;
    socklen_t length = sizeof domain;

    /* On TCP it would reset the connections that wait to be accepted. */
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX)
        shutdown(fd, SHUT_RD);
}

bool listener_refuses(int fd)
{
    struct pollfd listener = {.fd = fd, .events = POLLRDHUP};

    return poll(&listener, 1, 0) == 1 && (listener.revents & POLLRDHUP) != 0;
}

/* The inode number cannot belong to another file: the open socket keeps the inode. */
static void listener_remove_own(const struct listener *listener)
{
    struct stat file;
    int lock = listener_lock(listener->path);

    if (lock < 0)
        return;
    if (lstat(listener->path, &file) == 0 && file.st_dev == listener->device &&
        file.st_ino == listener->inode)
        unlink(listener->path);
    close(lock);
}

void listener_close(const struct listener *listener)
{
    if (listener->path)
        listener_remove_own(listener);
    close(listener->fd);
}
