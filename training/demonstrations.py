"""Rewrites as demonstrations for supervised fine-tuning: a prompt, and the answer that a person would have liked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from django.db.models import QuerySet

from labeling.models import Preference, Project
from labeling.withdrawals import without_unfinished
from training.jobspec import Message, Split
from training.snapshots import CHUNK, write_lines
from training.triples import AS_JSON


@dataclass(frozen=True)
class Demonstration:
    """(x, y): ``messages`` are the prompt's, then the rewrite as the assistant's turn.

    The form that TRL's SFTTrainer reads as a conversation, with what it passes over beside it. Prompts of the split
    "held_out" serve evaluation: leave them out of training here as elsewhere.
    """

    messages: list[Message]
    split: Split
    prompt_id: str
    pair_id: str
    preference_id: int


@dataclass(frozen=True)
class DemonstrationPage:
    """Some demonstrations, and the preference to go on after; ``None`` at the end."""

    demonstrations: list[Demonstration]
    next_after: int | None


def stream(project: Project) -> Iterator[Demonstration]:
    """One for each rewrite of a preference that counts, oldest first."""
    return map(_demonstration, _rewritten(project).iterator(chunk_size=CHUNK))


def page(project: Project, after_preference_id: int, size: int) -> DemonstrationPage:
    """The next ``size`` demonstrations after a preference."""
    found = [_demonstration(each) for each in _rewritten(project).filter(pk__gt=after_preference_id)[:size]]
    return DemonstrationPage(found, found[-1].preference_id if len(found) == size else None)


def write(*, project: Project, path: Path) -> dict[str, int]:
    """Write the project's demonstrations as JSONL, one a line; returns how many there are of each split."""
    counts = Counter({"train": 0, "held_out": 0})

    def lines() -> Iterator[str]:
        for demonstration in stream(project):
            counts[demonstration.split] += 1
            yield json.dumps(asdict(demonstration), **AS_JSON)

    write_lines(path, lines())
    return dict(counts)


def _rewritten(project: Project) -> QuerySet[Preference]:
    rewritten = Preference.objects.counted().filter(project=project, rewrite__isnull=False)
    counted = without_unfinished(project, rewritten)
    return counted.select_related("rewrite__response", "pair__prompt").order_by("pk")


def _demonstration(preference: Preference) -> Demonstration:
    prompt = preference.pair.prompt
    answer: dict[str, Any] = {"role": "assistant", "content": preference.rewrite.response.text}
    return Demonstration(
        messages=[*prompt.messages, answer],
        split="held_out" if prompt.is_held_out else "train",
        prompt_id=str(prompt.pk),
        pair_id=str(preference.pair_id),
        preference_id=preference.pk,
    )
