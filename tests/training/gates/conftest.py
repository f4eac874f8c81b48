"""A candidate, held-out prompts, gates and votes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from labeling.models import Prompt
from labeling.services import add_prompts
from tests.training.gates.steps import held_out_chats, measure
from tests.training.gates.test_decision import report
from training import gates, tasks
from training.models import (
    Checkpoint,
    DatasetSnapshot,
    Gate,
    GatePair,
    Job,
    LoopRule,
    TrainingRun,
)
from training.recipe import Recipe


@pytest.fixture
def nobody_measures(monkeypatch) -> None:
    class Message:
        def apply_async(self, **values: Any) -> None: ...

    monkeypatch.setitem(tasks.TASKS, Gate, Message())


@pytest.fixture
def candidate(project, policy, make_checkpoint) -> Checkpoint:
    LoopRule.objects.update_or_create(project=project, defaults={"open_pairs_wanted": 0})
    return make_checkpoint("candidate", kind=Checkpoint.Kind.DPO, project=project)


@pytest.fixture
def prompts(project) -> list[Prompt]:
    add_prompts(project=project, prompts=held_out_chats())
    return list(project.prompts.order_by("pk"))


@pytest.fixture
def ask(project, candidate, prompts) -> Callable[..., Gate]:
    """A gate with this rule, measured, with its pairs in the queue if people are asked."""

    def ask(told: dict[str, Any] | None = None, **rule: Any) -> Gate:
        gates.change_release_rule(project=project, **rule)
        gate = gates.request_gate(project=project, candidate=candidate)
        measure(gate, report() if told is None else told)
        return gate

    return ask


@pytest.fixture
def vote(judge, annotator) -> Callable[..., None]:
    """Let somebody vote on so many pairs of the gate: for the candidate or against it, or for neither."""

    def vote(gate: Gate, count: int, outcome: str) -> None:
        for one in GatePair.objects.filter(gate=gate, pair__judgements_count=0).order_by("pk")[:count]:
            other = "b" if one.candidate_side == "a" else "a"
            choice = {"candidate": one.candidate_side, "current": other}.get(outcome, outcome)
            judge(one.pair, annotator, choice)

    return vote


@pytest.fixture
def finished_run(project, policy, candidate, prompts) -> TrainingRun:
    snapshot = DatasetSnapshot.objects.create(
        project=project, sha256="0" * 64, train_triples=8, held_out_triples=0, ties=0, both_bad=0, last_preference_id=0
    )
    return TrainingRun.objects.create(
        project=project,
        number=1,
        snapshot=snapshot,
        reference=policy,
        checkpoint=candidate,
        recipe=Recipe().to_dict(),
        state=Job.State.SUCCEEDED,
        finished_at=timezone.now(),
    )
