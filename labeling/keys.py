"""The keys of the annotate page: what they do, which ones people may choose."""

from __future__ import annotations

from django.contrib.auth.models import User

DEFAULT_KEYS: dict[str, list[str]] = {
    "left": ["1", "ArrowLeft"],
    "right": ["2", "ArrowRight"],
    "tie": ["3"],
    "both_bad": ["4"],
    "skip": ["s"],
    "comment": ["c"],
    "rewrite": ["e"],
    "difference": ["d"],
    "raw": ["r"],
    "focus": ["Space"],
    "undo": ["u"],
    "guidelines": ["g"],
    "help": ["?"],
}


def keys_of(user: User) -> dict[str, list[str]]:
    """The keys of this person by action."""
    return DEFAULT_KEYS
