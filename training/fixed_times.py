"""Times of day on a clock that is put forward and back. Pure.

A time that a day does not have, because the clock is put forward over it, is that much later on that day. One that
comes twice counts the first time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from training.exceptions import Rejected

MOST_TIMES = 24
# ASCII: in other scripts there are digits that ``time.fromisoformat`` does not read.
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)


def parse_times(words: Sequence[str]) -> list[str]:
    """As ``HH:MM``, in order, each once. ``Rejected`` for what is no time of day."""
    times = set()
    for word in words:
        found = _TIME.fullmatch(word.strip()) if isinstance(word, str) else None
        if found is None:
            raise Rejected(
                f"“{str(word)[:40]}” is no time of day. Write hours and minutes from 00:00 to 23:59, such as 03:00."
            )
        times.add(f"{int(found[1]):02}:{found[2]}")
    if len(times) > MOST_TIMES:
        raise Rejected(f"{len(times)} fixed times are too many; {MOST_TIMES} are the most. For more, leave them empty.")
    return sorted(times)


def newest(times: Sequence[str], zone: ZoneInfo, now: datetime) -> datetime | None:
    """The last of the times that has come."""
    return max((moment for moment in _around(times, zone, now) if moment <= now), default=None)


def following(times: Sequence[str], zone: ZoneInfo, now: datetime) -> datetime | None:
    """The first of the times that has not come yet."""
    return min((moment for moment in _around(times, zone, now) if moment > now), default=None)


def midnight_before(zone: ZoneInfo, now: datetime) -> datetime:
    """When the day of ``now`` began."""
    return _moment(now.astimezone(zone).date(), time(), zone)


def midnight_after(zone: ZoneInfo, now: datetime) -> datetime:
    return _moment(now.astimezone(zone).date() + timedelta(days=1), time(), zone)


def _around(times: Sequence[str], zone: ZoneInfo, now: datetime) -> Iterator[datetime]:
    today = now.astimezone(zone).date()
    for days in (-1, 0, 1, 2):  # a day too many on either side, for a clock that has skipped one
        for word in times:
            yield _moment(today + timedelta(days=days), time.fromisoformat(word), zone)


def _moment(day: date, at: time, zone: ZoneInfo) -> datetime:
    # Without a fold Python takes the first of two, and counts a time in a gap by the clock before it (PEP 495).
    return datetime.combine(day, at, tzinfo=zone).astimezone(UTC)
