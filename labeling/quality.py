"""Pure statistics of annotation quality."""

from __future__ import annotations

from collections.abc import Sequence

GROWTH = (3, 5)


def has_majority(choices: Sequence[str]) -> bool:
    """Whether one choice has more than half of the judgements."""
    return any(2 * choices.count(choice) > len(choices) for choice in set(choices))


def judgements_needed(choices: Sequence[str], wanted: int, most: int) -> int:
    """How many judgements a pair should have: as wanted, but 3, then 5, while its filled places have no majority."""
    if len(choices) < wanted or has_majority(choices):
        return wanted
    return max(wanted, next((step for step in GROWTH if len(choices) < step <= most), wanted))
