"""Promotions, rollbacks, schedulers and admins that come between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from labeling.models import Preference, Project, Withdrawal
from labeling.review import adjudicate
from labeling.withdrawals import begin, carry_out
from tests.threads import at_once
from tests.training import tiny_runs
from tests.training.gates.steps import open_places, turned
from tests.training.gates.test_decision import BETTER_HELD_OUT, report
from training import gates, reference_choice, services
from training.exceptions import Rejected
from training.execution import Comparing
from training.jobspec import ComparedAnswers, Completion, Result
from training.models import (
    Checkpoint,
    Gate,
    GatePair,
    Job,
    LoopRule,
    PairOrigin,
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
    work = tiny_runs.begin(run)
    services.roll_back(project=project)
    run.refresh_from_db()
    assert (run.state, run.cancel_requested_at) == (Job.State.RUNNING, None)
    made = tiny_runs.end(work)
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


def test_a_scheduler_that_read_a_gate_before_another_decided_it_leaves_it_to_that_one(
    project, ask, vote, candidate, while_weights_are_read, monkeypatch
):
    """It has counted more votes since, by which the gate would be asked on or held."""
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")
    stale = Gate.objects.select_related("project").get(pk=gate.pk)
    monkeypatch.setattr(stale, "refresh_from_db", lambda *args, **values: None)

    def meanwhile() -> None:
        vote(gate, 11, "current")
        gates._read_votes(stale)

    while_weights_are_read(meanwhile)
    turned(gate)
    assert (gate.stage, gate.outcome, gate.votes["votes"]) == ("decided", "promote", 21)
    assert services.current_policy(project) == candidate


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
    assert any(reason.startswith("Labels that were withdrawn since") for reason in gate.reasons)
    assert not any("was not promoted" in reason for reason in gate.reasons)


@pytest.fixture
def while_weights_are_read(monkeypatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen once between a decision and the act."""

    def meanwhile(act: Callable[[], None]) -> None:
        weights_of = services.registry.weights_of
        left = [act]

        def read(checkpoint: Checkpoint) -> object:
            if left:
                left.pop()()
            return weights_of(checkpoint)

        monkeypatch.setattr(services.registry, "weights_of", read)

    return meanwhile


def _take_back(project: Project, preference: Preference) -> None:
    carry_out(begin(Withdrawal(project=project, kind="preference", preference=preference)))


def test_votes_that_come_before_the_act_change_nothing(project, ask, vote, candidate, while_weights_are_read):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")
    while_weights_are_read(lambda: vote(gate, 11, "current"))
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert (gate.votes["votes"], Preference.objects.counted().count()) == (21, 32)
    assert services.current_policy(project) == candidate


def test_votes_that_come_before_the_act_change_nothing_for_another_scheduler_either(
    project, ask, vote, candidate, while_weights_are_read
):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")

    def meanwhile() -> None:
        vote(gate, 11, "current")  # these are all that there are, so it would be held
        gates.turn_gates()

    while_weights_are_read(meanwhile)
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert Promotion.objects.filter(gate=gate).count() == 1
    assert services.current_policy(project) == candidate


def test_ordinary_votes_that_come_before_the_act_change_nothing(
    project, ask, vote, make_pair, judge, annotator, policy, candidate, while_weights_are_read, monkeypatch
):
    """They say what length is worth, and would say something else of the votes that were decided on."""
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")
    seen = []
    controlled = gates.controlled
    monkeypatch.setattr(gates, "controlled", lambda votes: seen.append(len(votes)) or controlled(votes))

    def label() -> None:
        batch = SampleBatch.objects.create(project=project, policy=policy, prompt_ids=[], decoding={})
        pair = make_pair("An answer.", "A longer answer.")
        PairOrigin.objects.create(pair=pair, batch=batch, policy=policy, prompt=pair.prompt, seed_a=1, seed_b=2)
        judge(pair, annotator, "a")

    while_weights_are_read(label)
    turned(gate)
    assert seen == [21, 21]
    assert services.current_policy(project) == candidate


def test_a_vote_that_is_taken_back_before_the_act_and_decided_it_has_the_gate_ask_on(
    project, ask, vote, policy, candidate, while_weights_are_read
):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 20, "candidate")  # with fewer there is no interval at equal length
    while_weights_are_read(lambda: _take_back(project, Preference.objects.first()))
    turned(gate)
    assert (gate.stage, gate.outcome, gate.votes["votes"]) == ("asking", "", 19)
    assert "wins 19 of 19 votes" in gate.reasons[0]
    assert services.current_policy(project) == policy
    assert open_places(gate) == 13
    vote(gate, 1, "candidate")
    assert turned(gate).outcome == "promote"
    assert services.current_policy(project) == candidate


def test_what_is_left_of_the_votes_may_decide_as_they_did_whoever_votes_meanwhile(
    project, ask, vote, candidate, while_weights_are_read
):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")

    def meanwhile() -> None:
        _take_back(project, Preference.objects.first())
        vote(gate, 11, "current")

    while_weights_are_read(meanwhile)
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert services.current_policy(project) == candidate


def test_votes_that_are_taken_out_before_the_act_when_nobody_is_asked_on_are_decided_without(
    project, ask, vote, policy, reviewer, while_weights_are_read
):
    gate = turned(ask(asks_people=True, decides="gate", most_votes=20))
    vote(gate, 20, "candidate")
    while_weights_are_read(
        lambda: adjudicate(pair=gate.pairs.order_by("pk")[0].pair, reviewer=reviewer, verdict="retire")
    )
    turned(gate)
    assert (gate.stage, gate.outcome, gate.votes["votes"]) == ("decided", "hold", 19)
    assert "Too few votes to take the length out of them." in gate.reasons
    assert services.current_policy(project) == policy


def test_who_promotes_a_candidate_that_waits_from_its_own_page_has_decided_its_gate(
    project, ask, candidate, project_admin
):
    gate = turned(ask(report(**BETTER_HELD_OUT)))
    promotion = services.promote_checkpoint(project=project, checkpoint=candidate, by=project_admin, reason="Good.")
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome, gate.advice, gate.decided_by) == ("decided", "promote", "promote", project_admin)
    assert gate.reasons[0] == "boss decided: promote. Good."
    assert gate.reasons[1].startswith("The candidate is better")
    assert promotion.gate == gate
    LoopRule.objects.filter(project=project).update(reference=LoopRule.Reference.PROMOTED)
    assert "Gate 1 passed it" in reference_choice.choose(project).reason


def test_who_promotes_a_candidate_while_people_are_asked_about_it_has_decided_its_gate(
    project, ask, vote, candidate, project_admin, django_capture_on_commit_callbacks
):
    gate = turned(ask(asks_people=True))
    vote(gate, 3, "candidate")
    with django_capture_on_commit_callbacks(execute=True):
        promotion = services.promote_checkpoint(project=project, checkpoint=candidate, by=project_admin)
    turned(gate)
    assert (gate.stage, gate.outcome, gate.advice, gate.decided_by) == ("decided", "promote", "", project_admin)
    assert (promotion.gate, open_places(gate)) == (gate, 0)
    LoopRule.objects.filter(project=project).update(reference=LoopRule.Reference.PROMOTED)
    assert "although Gate 1 had not passed it" in reference_choice.choose(project).reason


@pytest.mark.parametrize("person", ["boss", None])
def test_a_candidate_that_is_promoted_before_it_is_measured_leaves_its_gate_undecided(
    project, candidate, prompts, project_admin, person
):
    gate = gates.request_gate(project=project, candidate=candidate)
    by = project_admin if person else None
    promotion = services.promote_checkpoint(project=project, checkpoint=candidate, by=by)
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome, gate.state) == ("decided", "hold", "cancelled")
    assert gate.reasons == ["candidate became the policy meanwhile, before this was decided."]
    assert promotion.gate is None


def test_a_candidate_that_is_promoted_on_the_command_line_is_decided_on_by_nobody(project, ask, candidate):
    gate = turned(ask(report(**BETTER_HELD_OUT)))
    promotion = services.promote_checkpoint(project=project, checkpoint=candidate)
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome, gate.decided_by, promotion.gate) == ("decided", "hold", None, None)
    assert gate.reasons == ["candidate became the policy meanwhile, before this was decided."]


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
