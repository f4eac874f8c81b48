"""Promotions, rollbacks, schedulers and admins that come between."""

from __future__ import annotations

from typing import Any

import pytest

from labeling.models import Withdrawal
from tests.threads import at_once
from tests.training.gates.steps import open_places, turned
from tests.training.gates.test_decision import BETTER_HELD_OUT, report
from tests.training.tiny_runs import begin, end
from training import gates, services
from training.exceptions import Rejected
from training.execution import Comparing
from training.jobspec import ComparedAnswers, Completion, Result
from training.models import (
    Gate,
    GatePair,
    Job,
    LoopRule,
    Promotion,
    SampleBatch,
    Taint,
)
from training.recipe import Recipe
from training.rundir import RunDir

pytestmark = pytest.mark.usefixtures("nobody_measures")


def test_a_promotion_during_the_measurement_ends_the_gate_and_its_job(project, candidate, prompts, make_checkpoint):
    gate = gates.request_gate(project=project, candidate=candidate)
    services.promote_checkpoint(project=project, checkpoint=make_checkpoint("another", project=project))
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome, gate.state) == ("decided", "hold", "cancelled")
    assert "the policy is now another" in gate.reasons[0]
    with pytest.raises(Rejected, match="Compare again"):
        gates.start_again(gate=gate)


def test_a_promotion_while_people_are_asked_closes_the_pairs(
    project, ask, vote, make_checkpoint, django_capture_on_commit_callbacks
):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 20, "candidate")
    with django_capture_on_commit_callbacks(execute=True):
        services.promote_checkpoint(project=project, checkpoint=make_checkpoint("another", project=project))
    turned(gate)
    assert (gate.stage, gate.outcome, open_places(gate)) == ("decided", "hold", 0)
    assert Promotion.objects.filter(gate=gate).count() == 0


def test_a_rollback_during_a_run_leaves_the_run_and_its_gate_compares_with_what_is_the_policy_then(
    project, policy, label, prompts, make_checkpoint
):
    label(10)
    services.change_rule(project=project, open_pairs_wanted=0)
    services.promote_checkpoint(project=project, checkpoint=make_checkpoint("another", project=project))
    run = services.request_run(project=project, recipe=Recipe())
    work = begin(run)
    services.roll_back(project=project)
    run.refresh_from_db()
    assert (run.state, run.cancel_requested_at) == (Job.State.RUNNING, None)
    made = end(work)
    assert made.run == run
    gates.turn_gates()
    gate = Gate.objects.get()
    assert (gate.candidate, gate.current) == (made, policy)


def test_a_promotion_during_sampling_ends_the_old_batch_and_asks_the_new_policy(project, ask, candidate, policy):
    batch = services.request_samples(project=project, pairs=3)
    gate = ask(report(**BETTER_HELD_OUT), decides="gate")
    LoopRule.objects.update(open_pairs_wanted=4)
    turned(gate)
    batch.refresh_from_db()
    assert batch.state == Job.State.CANCELLED
    assert SampleBatch.objects.active().get().policy == candidate


def test_a_gate_that_waits_when_another_policy_comes_is_not_acted_on(project, ask, make_checkpoint, project_admin):
    gate = turned(ask(report(**BETTER_HELD_OUT)))
    stale = Gate.objects.get(pk=gate.pk)
    another = make_checkpoint("another", project=project)
    services.promote_checkpoint(project=project, checkpoint=another)
    with pytest.raises(Rejected, match="decided already"):
        gates.admin_decides(gate=stale, verdict="promote", by=project_admin)
    assert services.current_policy(project) == another


def test_a_scheduler_that_has_read_a_gate_before_another_decided_does_nothing(ask, project):
    gate = ask(report(**BETTER_HELD_OUT), decides="gate")
    first = Gate.objects.select_related("project").get(pk=gate.pk)
    second = Gate.objects.select_related("project").get(pk=gate.pk)
    gates.settle(first)
    decided = Gate.objects.get(pk=gate.pk)
    gates.settle(second)
    after = Gate.objects.get(pk=gate.pk)
    assert (after.decided_at, after.outcome, after.reasons) == (decided.decided_at, "promote", decided.reasons)
    assert Promotion.objects.filter(gate=gate).count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_schedulers_at_once_promote_once(ask, vote, project, candidate):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")
    assert at_once(gates.turn_gates, gates.turn_gates, gates.turn_gates) == []
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert Promotion.objects.filter(gate=gate).count() == 1
    assert Promotion.objects.filter(project=project).count() == 2
    assert services.current_policy(project) == candidate
    assert open_places(gate) == 0


@pytest.mark.django_db(transaction=True)
def test_an_admin_and_a_scheduler_at_once_decide_once(ask, vote, project_admin):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")
    mine = Gate.objects.get(pk=gate.pk)
    errors = at_once(gates.turn_gates, lambda: gates.admin_decides(gate=mine, verdict="reject", by=project_admin))
    gate.refresh_from_db()
    assert all(isinstance(error, Rejected) for error in errors)
    assert gate.stage == "decided"
    assert Promotion.objects.filter(gate=gate).count() == (gate.outcome == "promote")
    assert bool(errors) == (gate.outcome == "promote")


def test_labels_that_are_withdrawn_before_the_act_hold_the_candidate(
    project, ask, candidate, policy, annotator, monkeypatch
):
    """Every byte of the weights is hashed between the decision and the act, which takes minutes of a large model."""

    def withdraw(*_: Any) -> None:
        withdrawal = Withdrawal.objects.create(project=project, kind="annotator", annotator=annotator)
        Taint.objects.create(checkpoint=candidate, withdrawal=withdrawal, preferences=1)

    monkeypatch.setattr(services.registry, "weights_of", withdraw)
    gate = turned(ask(report(**BETTER_HELD_OUT), decides="gate"))
    assert services.current_policy(project) == policy
    assert (gate.stage, gate.outcome) == ("decided", "hold")
    assert "withdrawn meanwhile" in gate.reasons[0]


def test_a_comparison_that_was_started_again_is_not_ended_by_who_read_it_before(project, candidate, prompts):
    gate = gates.request_gate(project=project, candidate=candidate)
    Gate.objects.filter(pk=gate.pk).update(state=Job.State.FAILED, error="It broke.")
    as_read = Gate.objects.select_related("project").get()
    gates.start_again(gate=Gate.objects.get())
    gates.settle(as_read)
    gate.refresh_from_db()
    assert (gate.stage, gate.state, gate.outcome) == ("measuring", "queued", "")


def test_what_was_promoted_and_rolled_back_is_not_compared_by_itself(project, finished_run, candidate, policy):
    services.promote_checkpoint(project=project, checkpoint=candidate)
    services.roll_back(project=project)
    assert services.current_policy(project) == policy
    gates.turn_gates()
    assert not Gate.objects.exists()


def test_pairs_of_a_gate_that_ended_meanwhile_are_not_asked(project, candidate, prompts, data_dir):
    gates.change_release_rule(project=project, asks_people=True)
    gate = gates.request_gate(project=project, candidate=candidate)
    assert gate.claim("worker")
    run_dir = RunDir.of(gate.uuid)
    run_dir.make()
    lines = [
        ComparedAnswers(str(prompt.pk), Completion(f"New {prompt.pk}."), Completion(f"Old {prompt.pk}.")).to_json()
        for prompt in prompts
    ]
    run_dir.responses.write_text("".join(line + "\n" for line in lines))
    Gate.objects.filter(pk=gate.pk).update(stage=Gate.Stage.DECIDED, outcome="hold")
    Comparing(gate, run_dir).publish(Result(ok=True, details=report()))
    assert not GatePair.objects.exists()
    gate.refresh_from_db()
    assert (gate.state, gate.outcome) == ("succeeded", "hold")
