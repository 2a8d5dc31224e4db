/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Where waiters.c sends its requests: a web server by HTTP, or a pool by FastCGI. */
#ifndef TARGET_H
#define TARGET_H

#include <stddef.h>

/* The longest path with its query. */
#define TARGET_PATH_MAX 4096

/* Sends a GET for path on a connection of its own. The target is a path with a slash, a Unix socket
 * that is spoken to by FastCGI, or a port of 127.0.0.1, which is spoken to by HTTP. Returns the
 * socket, which the caller closes. Ends the process on an error. */
int target_request(const char *target, const char *path);

/* The status in the first bytes of an answer from this target; 0 where there is none. */
int target_status(const char *target, const char *answer, size_t length);

#endif
