# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether something has grown: medians of an early and a late part of a run are compared.

Memory is what a process shares with no other, in KiB. A worker of the steady pool serves about a quarter of all
requests, and half of these lie between the middles of the two parts: 1.25 million of ten. So a leak of half a byte in
each comes to more than 512 KiB. What glibc keeps of a busy moment is less.
"""

import dataclasses
import math
import statistics


@dataclasses.dataclass(frozen=True)
class Bound:
    """By how much the median of a column may grow. `calm`: in that part of the run in which no backend is ended."""
    column: str
    growth: float
    calm: bool = False


def bounds(workers):
    """No check needs more than these. See the top of the file for memory; everything else is constant by design."""
    numbers = range(1, workers + 1)
    return [
        *(Bound(f"steady_worker{n}_own", 512) for n in numbers),
        Bound("steady_supervisor_own", 128),
        # It starts a worker for each that is killed or replaced.
        Bound("replaced_supervisor_own", 128),
        Bound("steady_supervisor_descriptors", 0),
        Bound("replaced_supervisor_descriptors", 0),
        # Sampled while connections come and go.
        Bound("steady_descriptors_of_no_client", 2),
        Bound("replaced_descriptors_of_no_client", 2),
        # One a worker.
        Bound("database_connections", 0),
        Bound("database_prepared_max", 0, calm=True),
        # A backend's caches grow for a while: more relations and plans are loaded.
        Bound("database_backend_own_max", 1024, calm=True),
        # Shown only: these follow what else the machine does.
        *(Bound(column, math.inf)
          for column in ("steady_waiting", "quick_p50", "quick_p99", "payment_p50", "payment_p99")),
    ]


@dataclasses.dataclass(frozen=True)
class Growth:
    bound: Bound
    early: float | None
    late: float | None

    @property
    def excessive(self):
        """A column without values has not been checked, which is no better."""
        return self.bound.growth < math.inf and self._exceeds()

    def _exceeds(self):
        return self.early is None or self.late is None or self.late - self.early > self.bound.growth

    def __str__(self):
        early, late = ("none" if value is None else f"{value:g}" for value in (self.early, self.late))
        bound = "any" if self.bound.growth == math.inf else f"{self.bound.growth:g}"
        return f"{self.bound.column:36} {early:>10} {late:>10} {bound:>8}  {'GROWS' if self.excessive else ''}".rstrip()


def growths(rows, seconds, calm_from, workers):
    """The second quarter of the run and its last one; for what ends with a backend, those of the calm part."""
    return [_growth(rows, bound, *((calm_from, seconds) if bound.calm else (0, seconds))) for bound in bounds(workers)]


def _growth(rows, bound, begin, end):
    quarter = (end - begin) / 4
    return Growth(bound, _median(rows, bound.column, begin + quarter, begin + 2 * quarter),
                  _median(rows, bound.column, end - quarter, end))


def _median(rows, column, begin, end):
    values = [row[column] for row in rows if begin <= row["seconds"] <= end and row.get(column) is not None]
    return statistics.median(values) if values else None
