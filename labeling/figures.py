"""Figures with their interval, and signals as sentences, as pages show them. Read from a report, computed no more.

Every figure says of how many judgements or pairs it is, and one that could not be computed says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling.models import Choice, Project, QualityReport
from labeling.templatetags.formatting import in_the_language

BANDS = {
    "too few": _("not known yet"),
    "in line": _("in line with the others"),
    "a little apart": _("a little apart from the others"),
    "often apart": _("often apart from the others"),
}
SIDES = {
    "too few": _("not known yet"),
    "even": _("even"),
    "left": _("more often left"),
    "right": _("more often right"),
}
KINDS = {
    "side": _("Sides"),
    "speed": _("Reading time"),
    "pace": _("Pace"),
    "streak": _("Streak"),
    "gold": _("Gold"),
    "reliability": _("Reliability"),
    "length": _("Length"),
}
# What a streak was of: a side or a choice.
VALUES = {"left": _("left"), "right": _("right")} | dict(Choice.choices)
FIELD = re.compile(r"%\((\w+)\)(\.\d[fg]|[ds])")


@dataclass(frozen=True)
class Figure:
    """A share or a coefficient with its 95 % interval; all 0 to 1. ``value`` is ``None`` with the ``reason``."""

    value: float | None
    low: float | None
    high: float | None
    of: int
    reason: str = ""

    @property
    def left(self) -> float:
        """Where its interval begins on a strip from 0 to 100."""
        return _on_strip(self.low)

    @property
    def middle(self) -> float:
        return _on_strip(self.value)

    @property
    def right(self) -> float:
        return _on_strip(self.high)


@dataclass(frozen=True)
class Note:
    """A signal for a person to look at. ``asks_to_look``: more than worth knowing."""

    kind: str
    sentence: str
    asks_to_look: bool


def figure(stored: Mapping[str, Any] | None) -> Figure:
    """Of a share (``hits`` of ``of``), an estimate (over ``pairs``), or neither."""
    if not stored or stored.get("value") is None:
        return Figure(None, None, None, 0, _reason(stored))
    of = stored.get("of", stored.get("pairs", 0))
    return Figure(stored["value"], stored["low"], stored["high"], int(of))


def notes(stored: list[dict[str, Any]]) -> list[Note]:
    return [
        Note(
            kind=str(KINDS.get(signal["kind"], signal["kind"])),
            sentence=told(signal["template"], signal["figures"]),
            asks_to_look=signal["severity"] == "look",
        )
        for signal in stored
    ]


def told(template: str, figures: Mapping[str, Any]) -> str:
    """A sentence of a report in the language of the page, its numbers as well."""
    return FIELD.sub(lambda field: _written(figures[field[1]], field[2]), gettext(template)).replace("%%", "%")


def newest_report(project: Project) -> QualityReport | None:
    return QualityReport.objects.filter(project=project).first()


def _reason(stored: Mapping[str, Any] | None) -> str:
    template = (stored or {}).get("template")
    if not template:
        return gettext("nothing to count yet")
    return told(template, (stored or {})["figures"])


def _written(value: Any, form: str) -> str:
    if form == "s":
        return str(VALUES.get(value, value))
    return in_the_language(f"%{form}" % value)


def _on_strip(share: float | None) -> float:
    return round(100 * min(1.0, max(0.0, share or 0.0)), 1)
