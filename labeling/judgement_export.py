"""Judgements as CSV or JSONL, line by line, for reviewers. No line is held longer than it takes to write it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

from labeling.desk import side_of
from labeling.models import Preference

# What a spreadsheet would run as a formula when the file is opened.
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class _Line:
    """What ``csv.writer`` writes to: it hands the line back."""

    def write(self, line: str) -> str:
        return line


def as_dict(judgement: Preference) -> dict[str, Any]:
    """One judgement in words; nobody's but its own author's, and no origin of a response."""
    return {
        "id": judgement.pk,
        "at": judgement.created_at.isoformat(),
        "person": judgement.annotator.get_username(),
        "pair": judgement.pair_id,
        "choice": judgement.choice,
        "side": side_of(judgement.choice, judgement.shown_left),
        "is_strong": judgement.is_strong,
        "shown_left": judgement.shown_left,
        "seconds": round(judgement.seconds, 1),
        "criteria": judgement.criteria,
        "reasons": judgement.reasons,
        "comment": judgement.comment,
        "rewrite": judgement.rewritten,
        "version": judgement.version,
        "is_repeat": judgement.is_repeat,
        "guidelines_version": judgement.guidelines_version,
        "prompt": judgement.pair.prompt.messages,
    }


def jsonl_lines(judgements: Iterable[Preference]) -> Iterator[str]:
    for judgement in judgements:
        yield json.dumps(as_dict(judgement), ensure_ascii=False) + "\n"


def csv_lines(judgements: Iterable[Preference]) -> Iterator[str]:
    """With a first line of names; lists and objects as JSON, the prompt as its last message."""
    writer = csv.writer(_Line())
    is_first = True
    for judgement in judgements:
        row = as_dict(judgement) | {"prompt": judgement.pair.prompt.last_message["content"]}
        if is_first:
            yield writer.writerow(row)
            is_first = False
        yield writer.writerow(_cell(value) for value in row.values())


def _cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(FORMULAS):
        return f"'{value}"
    return value
