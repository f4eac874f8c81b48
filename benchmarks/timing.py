"""Percentiles of times, and how busy the cores are."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PERCENTILES = (50, 95, 99)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 by nearest rank; empty if there are no values."""
    ordered = sorted(values)
    ranks = {f"p{percent}": math.ceil(len(ordered) * percent / 100) - 1 for percent in PERCENTILES}
    return {name: round(ordered[rank], 3) for name, rank in ranks.items()} if ordered else {}


def milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


@dataclass(frozen=True)
class Cores:
    """What the cores of the machine had done at a moment, in seconds since it started; zeros where it does not say."""

    busy: float
    idle: float

    def busy_since(self, before: Cores) -> float | None:
        """The share of all cores' time that was worked, by anybody."""
        whole = self.busy + self.idle - before.busy - before.idle
        return round((self.busy - before.busy) / whole, 3) if whole else None


def read_cores() -> Cores:
    stat = Path("/proc/stat")
    if not stat.exists():
        return Cores(0.0, 0.0)
    user, nice, system, idle, waiting, *more = map(int, stat.read_text(encoding="ascii").splitlines()[0].split()[1:])
    ticks = os.sysconf("SC_CLK_TCK")
    return Cores((user + nice + system + sum(more[:2])) / ticks, (idle + waiting) / ticks)
