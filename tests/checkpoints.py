"""Fixtures: checkpoints without weights worth the name, and labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.utils import timezone

from labeling import leases, queue
from labeling.models import Pair
from labeling.tokens import make_token
from training import registry
from training.models import Checkpoint
from training.services import promote_checkpoint


@pytest.fixture
def make_checkpoint(db, data_dir: Path):
    def make(name: str = "base", **values) -> Checkpoint:
        source = data_dir / f"source-{name}"
        source.mkdir()
        (source / "config.json").write_text(json.dumps({"name": name}))
        (source / "model.safetensors").write_bytes(b"weights of " + name.encode())
        kind = values.pop("kind", Checkpoint.Kind.BASE)
        checkpoint = registry.register(staging_name=name, source=source, kind=kind, name=name, **values)
        checkpoint.save()
        return checkpoint

    return make


@pytest.fixture
def base(make_checkpoint) -> Checkpoint:
    return make_checkpoint("base", licence="Apache-2.0", public_name="somebody/base")


@pytest.fixture
def policy(project, base) -> Checkpoint:
    promote_checkpoint(project=project, checkpoint=base)
    return base


@pytest.fixture
def judge(project):
    """Let somebody judge one pair, whichever is next in line."""

    def judge(pair: Pair, user, choice: str) -> None:
        slot = pair.slots.filter(state="open").first() or pair.slots.get(annotator=user)
        if slot.state == "open":
            leases.take(slot, user.pk, "a", pair.created_at, timezone.now())
        queue.submit(project, make_token(slot), user.pk, choice)

    return judge


@pytest.fixture
def label(make_pair, judge, annotator):
    """Make ``count`` pairs on prompts of their own and judge them all."""

    def label(count: int, choice: str = "a", *, held_out: bool = False, prompt=None) -> list[Pair]:
        pairs = []
        for number in range(count):
            pair = make_pair(f"Good {number}", f"Poor {number}", held_out=None if prompt else held_out, prompt=prompt)
            judge(pair, annotator, choice)
            pairs.append(pair)
        return pairs

    return label
