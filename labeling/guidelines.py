"""The versions of a project's guidelines: what is different between two, and with which one somebody judged last."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from labeling.models import Guidelines, Preference, Project
from labeling.rendering import show_controls

WORD = re.compile(r"\s+|\w+|[^\w\s]")
# Comparing costs more than linear time: longer texts are compared line by line.
MAX_WORDS = 6_000


@dataclass(frozen=True)
class Comparison:
    """Two texts with what the other has not: ``<del>`` in the older one, ``<ins>`` in the newer one."""

    older_html: SafeString
    newer_html: SafeString


def version_last_judged_with(project: Project, annotator_id: int) -> int | None:
    """Which version of the guidelines this person had at their newest judgement; ``None`` before their first.

    One look into the index by person and time.
    """
    mine = Preference.objects.filter(project=project, annotator_id=annotator_id).order_by("-created_at")
    return mine.values_list("guidelines_version", flat=True).first()


def newer_version_for(project: Project, annotator_id: int) -> int | None:
    """The current version, if this person has judged with an older one and with none since."""
    last = version_last_judged_with(project, annotator_id)
    return project.guidelines_version if last is not None and last < project.guidelines_version else None


def compare(older: Guidelines, newer: Guidelines) -> Comparison:
    """What is different between two versions, word by word, on their source."""
    before, after = WORD.findall(older.text), WORD.findall(newer.text)
    if max(len(before), len(after)) > MAX_WORDS:
        before, after = older.text.splitlines(keepends=True), newer.text.splitlines(keepends=True)
    steps = SequenceMatcher(None, before, after).get_opcodes()
    return Comparison(
        _marked([("del" if kind != "equal" else "", before[start:end]) for kind, start, end, _, _ in steps]),
        _marked([("ins" if kind != "equal" else "", after[start:end]) for kind, _, _, start, end in steps]),
    )


def _marked(parts: list[tuple[str, list[str]]]) -> SafeString:
    texts = ((element, show_controls("".join(words))) for element, words in parts if words)
    marked = (format_html("<{0}>{1}</{0}>", element, text) if element else text for element, text in texts)
    return format_html_join("", "{}", ((part,) for part in marked))
