/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef LISTENER_H
#define LISTENER_H

#include <stdbool.h>
#include <sys/types.h>

/* Where FastCGI has the listening socket (FastCGI 1.0, section 2.2). */
#define LISTENER_INHERITED 0

/* Whether descriptor 0 is a listening socket. */
bool listener_is_inherited(void);

/*
 * Opens a listening socket. address is a path (it has a slash) or HOST:PORT ([HOST]:PORT for IPv6;
 * no host: all addresses). A socket that nobody listens on any more is removed from the path first;
 * mode is that of the new one. Returns the descriptor, -1 with a line in the log if that can't be
 * done.
 */
int listener_open(const char *address, mode_t mode);

/* Closes it, and removes the path. */
void listener_close(int fd, const char *address);

#endif
