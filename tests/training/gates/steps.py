"""What the tests of gates do by hand where an engine or the scheduler would."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

from django.utils import timezone

from labeling.models import Prompt, Slot
from labeling.prompts import Message, content_hash, is_held_out, parse_prompt
from labeling.services import NewResponse
from training import gate_pairs, gates
from training.models import (
    Gate,
    Job,
)

LONG, SHORT = "An answer in some more words than the other has.", "An answer in a few words."


@cache
def held_out_chats() -> list[list[Message]]:
    chats = (parse_prompt(f"What is known of number {number}?") for number in itertools.count())
    return list(itertools.islice((chat for chat in chats if is_held_out(content_hash(chat))), 32))


def measure(gate: Gate, told: dict[str, Any]) -> None:
    """What the work of an engine leaves behind."""
    if gate_pairs.wants_people(gate, told):
        for number, prompt in enumerate(Prompt.objects.filter(pk__in=gate.prompt_ids)):
            new, old = NewResponse(f"{SHORT} New {number}."), NewResponse(f"{SHORT} Old {number}.")
            gate_pairs.add_gate_pair(gate, prompt, new, old)
    Gate.objects.filter(pk=gate.pk).update(state=Job.State.SUCCEEDED, report=told, finished_at=timezone.now())
    gate.refresh_from_db()


def turned(gate: Gate) -> Gate:
    gates.turn_gates()
    gate.refresh_from_db()
    return gate


def open_places(gate: Gate) -> int:
    return Slot.objects.filter(pair__in=gate.pairs.values("pair"), state=Slot.State.OPEN).count()
