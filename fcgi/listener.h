/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LISTENER_H
#define LISTENER_H

#include <stdbool.h>
#include <sys/types.h>

/* A listening socket that listener_open() has made. */
struct listener {
    int fd;
    const char *path; /* NULL: it has none, it is a TCP socket */
    dev_t device;     /* of the file at the path, when it was made */
    ino_t inode;
};

/*
 * Finds the listening socket that this process was started with. That is descriptor 3 if LISTEN_PID
 * names this process and LISTEN_FDS is set, which is how systemd passes sockets (sd_listen_fds(3)).
 * Else it is descriptor 0, where FastCGI has it (FastCGI 1.0, section 2.2). Returns NULL with *fd
 * set, or the reason why there is none to serve.
 */
const char *listener_inherit(int *fd);

/*
 * Opens a listening socket. The address must outlive the listener. It is one of
 *   a path (it has a slash, and is shorter than a socket's path may be). The file gets exactly the
 *     permissions in mode (0 to 0777). A socket that is there and on which nobody listens is
 *     removed first. One that is in use, and a file of any other kind, stay and are an error.
 *   HOST:PORT, or [HOST]:PORT for an IPv6 address: the first address of the host that can be had.
 *   :PORT: all addresses of this machine, IPv6 and IPv4.
 * Several processes may do this at the same time in one directory; they wait for each other, at
 * most a second. Returns false, with one line in the log, if it cannot be done.
 */
bool listener_open(struct listener *listener, const char *address, mode_t mode);

/*
 * Refuses new connections on a Unix socket that listener_open() has made, for all processes that
 * have it. Those that wait to be accepted can still be accepted. TCP has nothing like it; there
 * nothing happens. Never for an inherited socket: it may be another pool's, too.
 */
void listener_refuse(int fd);

/* Whether listener_refuse() was called for this socket, by any process that has it. */
bool listener_refuses(int fd);

/* Closes it. Removes the file at its path, unless the path has become another file since. */
void listener_close(const struct listener *listener);

#endif
