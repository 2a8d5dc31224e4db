/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifndef STATE_H
#define STATE_H

#include <assert.h>

/*
 * Tables of the transitions of a state machine. For each state such a table has the set of the
 * states from which it may be entered. The function x_set_state() of each machine makes all of its
 * transitions and checks each one in a build without NDEBUG.
 */

/* A set with one state. Sets are joined by |. */
#define STATE_SET(state) (1u << (state))

/* Checks a transition. A violation is a bug: the process aborts. */
static inline void state_check(const unsigned sources[], unsigned from, unsigned to)
{
    (void)sources;
    (void)from;
    (void)to;
    assert(sources[to] & STATE_SET(from));
}

#endif
