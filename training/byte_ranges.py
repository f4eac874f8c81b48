"""What a Range header asks for, by RFC 9110, section 14. Pure.

One range of bytes is served. Several at once, another unit and what is not well-formed are ignored, as section 14.2
allows, and the whole file is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RANGE = re.compile(r"bytes=\s*(?:(?P<first>\d+)-(?P<last>\d*)|-(?P<suffix>\d+))\s*", re.ASCII | re.IGNORECASE)
MOST_DIGITS = 18  # no file is larger, and Python refuses to read thousands of digits
BEYOND = 10**MOST_DIGITS


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` up to but without ``end`` of a file of ``size``."""

    start: int
    end: int
    size: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


class Unsatisfiable(ValueError):
    """A well-formed range that begins behind the end of the file."""


def single_range(header: str, size: int) -> Span | None:
    """The part of a file of ``size`` bytes that is asked for; ``None`` for all of it. Raises ``Unsatisfiable``."""
    match = RANGE.fullmatch(header.strip())
    if match is None:
        return None
    if match["suffix"] is not None:
        start, end = max(0, size - _number(match["suffix"])), size
    else:
        start = _number(match["first"])
        end = min(size, _number(match["last"]) + 1) if match["last"] else size
        if match["last"] and _number(match["last"]) < start:
            return None  # not a range at all, by the grammar's prose
    if start >= size:
        raise Unsatisfiable(header)
    return Span(start, end, size)


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= MOST_DIGITS else BEYOND
