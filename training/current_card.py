"""The model card as it is to be read now: what was published, and what a gate has decided since.

The manifest is written before any gate and never changes, so that the card beside it knows of none. Who decided, and
what people wrote about it, stays here: a card may go to everybody.
"""

from __future__ import annotations

from typing import Any

from training import registry, store
from training.model_card import render_card
from training.models import Checkpoint, Gate


def card_of(checkpoint: Checkpoint) -> bytes:
    """Raises ``CheckpointDamaged``, and ``FileNotFoundError`` where there is no card."""
    published = (store.checkpoint_dir(checkpoint.uuid) / store.MODEL_CARD).read_bytes()
    decided = gate_of(checkpoint)
    return render_card(registry.manifest_of(checkpoint) | {"gate": decided}).encode() if decided else published


def gate_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The newest decision in the checkpoint's own project that came of figures, in the words of its checks."""
    decided = Gate.objects.filter(
        candidate=checkpoint,
        project=checkpoint.project_id,
        kind=Gate.Kind.RELEASE,
        stage=Gate.Stage.DECIDED,
    )
    gate = next((gate for gate in decided if gate.checks and gate.outcome), None)
    if gate is None:
        return None
    by_a_person = {"advice": gate.advice} if gate.decided_by_id else {}
    return {"outcome": gate.outcome, "reasons": [check["words"] for check in gate.checks]} | by_a_person
