"""Gates as they go: asked for, put to people blind, decided once, acted on, and overtaken by other promotions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from labeling.models import Pair, Preference, Prompt, Response, Slot, Withdrawal
from labeling.prompts import Message, content_hash, is_held_out, parse_prompt
from labeling.review import adjudicate
from labeling.services import NewResponse, add_prompts
from tests.threads import at_once
from tests.training.test_gate import BETTER_WINS, report
from training import gate_pairs, gates, loop, services, store, tasks
from training.exceptions import Rejected
from training.execution import Comparing
from training.models import (
    Checkpoint,
    DatasetSnapshot,
    Gate,
    GatePair,
    Job,
    LoopRule,
    PairOrigin,
    Promotion,
    SampleBatch,
    Taint,
    TrainingRun,
)
from training.recipe import Recipe
from training.rundir import RunDir

LONG, SHORT = "An answer in some more words than the other has.", "An answer in a few words."


@pytest.fixture(autouse=True)
def nobody_measures(monkeypatch) -> None:
    class Message:
        def apply_async(self, **values: Any) -> None: ...

    monkeypatch.setitem(tasks.TASKS, Gate, Message())


@pytest.fixture
def candidate(project, policy, make_checkpoint) -> Checkpoint:
    LoopRule.objects.update_or_create(project=project, defaults={"open_pairs_wanted": 0})
    return make_checkpoint("candidate", kind=Checkpoint.Kind.DPO, project=project)


@cache
def _held_out_chats() -> list[list[Message]]:
    chats = (parse_prompt(f"What is known of number {number}?") for number in itertools.count())
    return list(itertools.islice((chat for chat in chats if is_held_out(content_hash(chat))), 32))


@pytest.fixture
def prompts(project) -> list[Prompt]:
    add_prompts(project=project, prompts=_held_out_chats())
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


def measure(gate: Gate, told: dict[str, Any]) -> None:
    """What the work of an engine leaves behind."""
    if gate_pairs.wants_people(gate, told):
        for number, prompt in enumerate(Prompt.objects.filter(pk__in=gate.prompt_ids)):
            new, old = NewResponse(f"{SHORT} New {number}."), NewResponse(f"{SHORT} Old {number}.")
            gate_pairs.add_gate_pair(gate, prompt, new, old)
    Gate.objects.filter(pk=gate.pk).update(state=Job.State.SUCCEEDED, report=told, finished_at=timezone.now())
    gate.refresh_from_db()


@pytest.fixture
def vote(judge, annotator) -> Callable[..., None]:
    """Let somebody vote on so many pairs of the gate: for the candidate or against it, or for neither."""

    def vote(gate: Gate, count: int, outcome: str) -> None:
        for one in GatePair.objects.filter(gate=gate, pair__judgements_count=0).order_by("pk")[:count]:
            other = "b" if one.candidate_side == "a" else "a"
            choice = {"candidate": one.candidate_side, "current": other}.get(outcome, outcome)
            judge(one.pair, annotator, choice)

    return vote


def turned(gate: Gate) -> Gate:
    gates.turn_gates()
    gate.refresh_from_db()
    return gate


def open_places(gate: Gate) -> int:
    return Slot.objects.filter(pair__in=gate.pairs.values("pair"), state=Slot.State.OPEN).count()


# Asking for one


def test_a_gate_freezes_the_rule_the_budget_and_held_out_prompts(project, ask, prompts, make_prompt):
    for prompt in prompts[:3]:
        Prompt.objects.filter(pk=prompt.pk).update(withdrawn_at=timezone.now())
    make_prompt(held_out=False)
    LoopRule.objects.update(kl_first_budget=7.5)
    gate = ask(asks_people=True, most_votes=30)
    assert sorted(gate.prompt_ids) == sorted(prompt.pk for prompt in prompts[3:])
    assert (gate.number, gate.setting("kl_first_budget"), gate.setting("asks_people")) == (1, 7.5, True)
    gates.change_release_rule(project=project, asks_people=False, most_votes=500)
    LoopRule.objects.update(kl_first_budget=40)
    gate.refresh_from_db()
    assert (gate.setting("kl_first_budget"), gate.setting("most_votes")) == (7.5, 30)


def test_a_prompt_that_is_withdrawn_before_its_pair_is_asked_gets_none(project, candidate, prompts):
    gates.change_release_rule(project=project, asks_people=True)
    gate = gates.request_gate(project=project, candidate=candidate)
    withdrawn = Prompt.objects.get(pk=gate.prompt_ids[0])
    Prompt.objects.filter(pk=withdrawn.pk).update(withdrawn_at=timezone.now())
    measure(gate, report())
    assert GatePair.objects.filter(gate=gate).count() == len(gate.prompt_ids) - 1
    assert not GatePair.objects.filter(prompt=withdrawn).exists()
    assert str(withdrawn.pk) not in {line.prompt_id for line in Comparing(gate, RunDir(Path("unused")))._probes()}


def test_what_makes_no_sense_is_refused_with_the_reason(project, candidate, policy, make_prompt, make_checkpoint):
    with pytest.raises(Rejected, match="held-out prompts"):
        gates.request_gate(project=project, candidate=candidate)
    for _ in range(10):
        make_prompt(held_out=True)
    with pytest.raises(Rejected, match="is the policy already"):
        gates.request_gate(project=project, candidate=policy)
    gates.request_gate(project=project, candidate=candidate)
    with pytest.raises(Rejected, match="being compared"):
        gates.request_gate(project=project, candidate=candidate)
    removed = make_checkpoint("removed", project=project)
    Checkpoint.objects.filter(pk=removed.pk).update(removed_at=timezone.now())
    removed.refresh_from_db()
    with pytest.raises(Rejected, match="were deleted"):
        gates.request_gate(project=project, candidate=removed)
    assert Gate.objects.count() == 1


def test_without_a_policy_there_is_nothing_to_compare_with(project, make_checkpoint):
    with pytest.raises(Rejected, match="no policy yet"):
        gates.request_gate(project=project, candidate=make_checkpoint("candidate"))


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


def test_a_finished_run_is_compared_by_itself_and_once(finished_run, candidate):
    loop.evaluate_rules()
    loop.evaluate_rules()
    gate = Gate.objects.get()
    assert (gate.run, gate.candidate) == (finished_run, candidate)


def test_a_run_is_not_compared_where_the_rule_does_not_want_it_or_it_is_long_ago(project, finished_run):
    gates.change_release_rule(project=project, compares=False)
    gates.turn_gates()
    gates.change_release_rule(project=project, compares=True)
    TrainingRun.objects.update(finished_at=timezone.now() - timedelta(days=2))
    gates.turn_gates()
    assert not Gate.objects.exists()


# By figures alone


def test_the_gate_promotes_by_itself_and_says_why(project, ask, candidate):
    gate = turned(ask(report(**BETTER_WINS), decides="gate"))
    promotion = Promotion.objects.get(gate=gate)
    assert services.current_policy(project) == candidate
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert promotion.reason.startswith("Gate 1: The candidate is better")
    turned(gate)
    assert Promotion.objects.count() == 2, "once"


def test_an_admin_is_waited_for_and_decides(project, ask, candidate, project_admin):
    gate = turned(ask(report(**BETTER_WINS)))
    assert (gate.stage, gate.outcome) == ("waiting", "promote")
    assert services.current_policy(project) != candidate
    promotion = gates.admin_decides(gate=gate, verdict="promote", by=project_admin, reason="It reads well.")
    assert promotion.gate == gate
    assert (promotion.promoted_by, promotion.reason) == (project_admin, "It reads well.")
    gate.refresh_from_db()
    assert (gate.stage, gate.decided_by) == ("decided", project_admin)
    with pytest.raises(Rejected, match="decided already"):
        gates.admin_decides(gate=gate, verdict="reject", by=project_admin)


def test_an_admin_may_say_no_to_what_the_gate_would_promote(project, ask, candidate, project_admin):
    gate = turned(ask(report(**BETTER_WINS)))
    assert gates.admin_decides(gate=gate, verdict="reject", by=project_admin, reason="Too flowery.") is None
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome) == ("decided", "reject")
    assert gate.reasons[0] == "boss decided: reject. Too flowery."
    assert services.current_policy(project) != candidate


def test_an_admin_waits_for_the_figures(project, candidate, prompts, project_admin):
    gate = gates.request_gate(project=project, candidate=candidate)
    with pytest.raises(Rejected, match="still being measured"):
        gates.admin_decides(gate=gate, verdict="promote", by=project_admin)
    with pytest.raises(Rejected, match="and not with"):
        gates.admin_decides(gate=gate, verdict="", by=project_admin)


def test_what_is_worse_is_rejected_before_anybody_is_asked(ask):
    worse = report(**{"canaries.must_refuse.change": -0.5, "canaries.must_refuse.change_interval": [-0.7, -0.3]})
    gate = turned(ask(worse, asks_people=True))
    assert (gate.stage, gate.outcome) == ("decided", "reject")
    assert not gate.pairs.exists()


def test_withdrawn_labels_hold_a_candidate(project, ask, candidate, annotator):
    withdrawal = Withdrawal.objects.create(project=project, kind="annotator", annotator=annotator)
    Taint.objects.create(checkpoint=candidate, withdrawal=withdrawal, preferences=3)
    gate = turned(ask(report(**BETTER_WINS), decides="gate"))
    assert (gate.stage, gate.outcome) == ("decided", "hold")
    assert any("withdrawn" in reason for reason in gate.reasons)


def test_a_damaged_candidate_is_never_promoted(project, ask, candidate, policy):
    gate = ask(report(**BETTER_WINS), decides="gate")
    (store.checkpoint_dir(candidate.uuid) / "model.safetensors").write_bytes(b"other bytes")
    turned(gate)
    assert services.current_policy(project) == policy
    assert (gate.stage, gate.outcome) == ("decided", "hold")
    assert gate.reasons[0].startswith("It was not promoted")
    assert gate.checks, "what was found stays on the page"


def test_an_admin_is_told_of_damage_and_the_gate_waits_on(ask, candidate, project_admin):
    gate = turned(ask(report(**BETTER_WINS)))
    (store.checkpoint_dir(candidate.uuid) / "model.safetensors").unlink()
    with pytest.raises(Rejected):
        gates.admin_decides(gate=gate, verdict="promote", by=project_admin)
    gate.refresh_from_db()
    assert gate.stage == "waiting"


@pytest.mark.parametrize(("state", "said"), [("failed", "failed: Out of luck."), ("cancelled", "was cancelled")])
def test_a_failed_measurement_holds_and_can_be_started_again(project, candidate, prompts, state, said):
    gate = gates.request_gate(project=project, candidate=candidate)
    Gate.objects.update(state=state, error="Out of luck.", hint="Buy memory.", finished_at=timezone.now())
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "hold")
    assert said in gate.reasons[0]
    gates.start_again(gate=gate)
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome, gate.state, gate.reasons) == ("measuring", "", "queued", [])
    with pytest.raises(Rejected, match="cancelled or has failed"):
        gates.start_again(gate=gate)
    gate.refresh_from_db()
    assert gate.stage == "measuring"


# People


def test_people_promote_by_their_votes_and_are_asked_no_more(project, ask, vote, candidate):
    gate = turned(ask(asks_people=True, decides="gate"))
    assert (gate.stage, gate.votes["asked"]) == ("asking", 32)
    vote(gate, 8, "candidate")
    vote(gate, 1, "current")
    vote(gate, 1, "both_bad")
    turned(gate)
    assert (gate.stage, gate.votes["for_candidate"], gate.votes["for_current"], gate.votes["ties"]) == (
        "asking",
        8,
        1,
        1,
    )
    assert gate.votes["both_bad"] == 1
    assert open_places(gate) == 22
    vote(gate, 20, "candidate")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert services.current_policy(project) == candidate
    assert open_places(gate) == 0
    assert gate.votes["better"] == "candidate"
    assert gate.votes["series"][-1]["votes"] == 30


def test_people_reject_by_their_votes(project, ask, vote, policy):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "current")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "reject")
    assert services.current_policy(project) == policy


def test_when_everybody_was_asked_it_is_held(ask, vote):
    gate = turned(ask(asks_people=True, most_votes=20))
    vote(gate, 9, "candidate")
    vote(gate, 9, "current")
    assert turned(gate).stage == "asking"
    vote(gate, 2, "tie")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("waiting", "hold")


def test_only_the_first_judgement_of_a_pair_counts(ask, judge, annotator, other_annotator, project):
    project.judgements_per_pair = 2
    project.save()
    gate = turned(ask(asks_people=True))
    one = gate.pairs.first()
    other = "b" if one.candidate_side == "a" else "a"
    judge(one.pair, annotator, one.candidate_side)
    judge(one.pair, other_annotator, other)
    assert gate_pairs.votes_of(gate).outcomes == [1.0]
    Preference.objects.filter(annotator=annotator).update(is_current=False)
    assert gate_pairs.votes_of(gate).outcomes == [0.0], "withdrawn"


def test_votes_that_are_taken_back_count_no_more(ask, vote, reviewer):
    gate = turned(ask(asks_people=True))
    vote(gate, 5, "candidate")
    assert turned(gate).votes["votes"] == 5
    Preference.objects.filter(pk=Preference.objects.order_by("-pk")[0].pk).update(is_current=False)
    assert turned(gate).votes["votes"] == 4
    adjudicate(pair=gate.pairs.get(pair=Preference.objects.first().pair).pair, reviewer=reviewer, verdict="retire")
    assert turned(gate).votes["votes"] == 3


def test_a_change_of_mind_counts_in_the_place_of_what_was_said(ask, vote, judge, annotator):
    gate = turned(ask(asks_people=True))
    vote(gate, 3, "candidate")
    one = GatePair.objects.get(pair=Preference.objects.first().pair)
    judge(one.pair, annotator, "tie")
    turned(gate)
    assert (gate.votes["votes"], gate.votes["ties"]) in {(3, 1), (3, 0)}
    assert gate.votes["votes"] == Preference.objects.counted().count()


def test_a_decision_stands_that_a_worker_died_before_acting_on(ask, vote, monkeypatch, project, candidate):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")
    with monkeypatch.context() as patched:
        patched.setattr(gates, "_conclude", lambda *args: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            gates.turn_gates()
    assert turned(gate).outcome == "promote"
    assert services.current_policy(project) == candidate


def test_places_that_a_worker_died_before_closing_are_closed(ask, vote, monkeypatch):
    gate = turned(ask(asks_people=True))
    vote(gate, 21, "current")
    with monkeypatch.context() as patched:
        patched.setattr(gate_pairs, "close_pairs", lambda gate_id: 0)
        turned(gate)
    assert (gate.stage, open_places(gate)) == ("decided", 11)
    gates.turn_gates()
    assert open_places(gate) == 0


def test_an_admin_may_end_the_asking(ask, vote, project_admin):
    gate = turned(ask(asks_people=True))
    vote(gate, 3, "candidate")
    gates.admin_decides(gate=gate, verdict="hold", by=project_admin)
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome, open_places(gate)) == ("decided", "hold", 0)


def test_length_is_learnt_from_pairs_that_one_policy_wrote(
    project, policy, make_pair, judge, annotator, ask, make_prompt
):
    gate = turned(ask(asks_people=True))
    batch = SampleBatch.objects.create(project=project, policy=policy, prompt_ids=[], decoding={})
    for number in range(4):
        pair = make_pair(LONG, SHORT)
        judge(pair, annotator, "a" if number < 3 else "both_bad")
        if number:
            PairOrigin.objects.create(pair=pair, batch=batch, policy=policy, prompt=pair.prompt, seed_a=1, seed_b=2)
    found = gate_pairs.ordinary_votes(project)
    assert [(vote.outcome, vote.is_compared) for vote in found] == [(1.0, False)] * 2
    assert all(vote.doublings > 0.5 for vote in found)
    assert gate_pairs.votes_of(gate).outcomes == []


def test_a_longer_candidate_is_longer_on_whichever_side_it_stands(project, candidate, prompts, vote):
    gates.change_release_rule(project=project, asks_people=True)
    gate = gates.request_gate(project=project, candidate=candidate)
    for prompt in prompts[:20]:
        gate_pairs.add_gate_pair(gate, prompt, NewResponse(LONG), NewResponse(SHORT))
    vote(gate, 20, "candidate")
    assert {one.candidate_side for one in gate.pairs.all()} == {"a", "b"}
    votes = gate_pairs.votes_of(gate)
    assert votes.outcomes == [1.0] * 20
    assert all(one.doublings > 0.5 for one in votes.lengths)


# Blind


def test_a_pair_of_a_gate_is_a_pair_like_any_other(project, ask, make_pair, prompts):
    """Its rows in labeling have no value that those of an ordinary pair could not have."""
    ordinary = make_pair(LONG, SHORT, prompt=prompts[0], priority=1.5)
    gate = turned(ask(asks_people=True))
    special = gate.pairs.first().pair
    for model, of in ((Pair, lambda pair: pair), (Slot, lambda pair: pair.slots.get())):
        names = [field.attname for field in model._meta.concrete_fields]
        own = {"id", "pair_id", "prompt_id", "response_a_id", "response_b_id", "priority", "random_key", "created_at"}
        for name in set(names) - own:
            assert getattr(of(special), name) == getattr(of(ordinary), name), name
    assert not [field.name for field in Response._meta.get_fields() if "gate" in field.name]


def test_its_place_in_the_queue_is_among_the_pairs_of_the_newest_round(ask, make_pair):
    gate = turned(ask(asks_people=True))
    places = sorted(Slot.objects.filter(pair__in=gate.pairs.values("pair")).values_list("priority", flat=True))
    rounds = Promotion.objects.count()
    assert all(rounds <= place < rounds + 1 for place in places)
    assert places[3] < rounds + 0.5 < places[28], "spread over it"


def test_asking_twice_for_a_pair_makes_one_and_no_more_than_the_rule_wants(project, candidate, prompts):
    gates.change_release_rule(project=project, asks_people=True, most_votes=20)
    gate = gates.request_gate(project=project, candidate=candidate)
    new, old = NewResponse("New."), NewResponse("Old.")
    assert gate_pairs.add_gate_pair(gate, prompts[0], new, NewResponse("New.")) is None, "nothing to compare"
    assert gate_pairs.add_gate_pair(gate, prompts[0], new, old) is not None
    assert gate_pairs.add_gate_pair(gate, prompts[0], new, old) is None
    Prompt.objects.filter(pk=prompts[1].pk).update(withdrawn_at=timezone.now())
    assert gate_pairs.add_gate_pair(gate, prompts[1], new, old) is None
    made = [gate_pairs.add_gate_pair(gate, prompt, new, old) for prompt in prompts[2:30]]
    assert sum(pair is not None for pair in made) == 19


# Other promotions


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
    project, policy, finished_run, make_checkpoint, candidate
):
    another = make_checkpoint("another", project=project)
    services.promote_checkpoint(project=project, checkpoint=another)
    TrainingRun.objects.update(state=Job.State.RUNNING, checkpoint=None, finished_at=None)
    services.roll_back(project=project)
    finished_run.refresh_from_db()
    assert (finished_run.state, finished_run.cancel_requested_at) == (Job.State.RUNNING, None)
    TrainingRun.objects.update(state=Job.State.SUCCEEDED, checkpoint=candidate, finished_at=timezone.now())
    gates.turn_gates()
    assert Gate.objects.get().current == policy


def test_a_promotion_during_sampling_ends_the_old_batch_and_asks_the_new_policy(project, ask, candidate, policy):
    batch = services.request_samples(project=project, pairs=3)
    gate = ask(report(**BETTER_WINS), decides="gate")
    LoopRule.objects.update(open_pairs_wanted=4)
    turned(gate)
    batch.refresh_from_db()
    assert batch.state == Job.State.CANCELLED
    assert SampleBatch.objects.active().get().policy == candidate


def test_a_gate_that_waits_when_another_policy_comes_is_not_acted_on(project, ask, make_checkpoint, project_admin):
    gate = turned(ask(report(**BETTER_WINS)))
    stale = Gate.objects.get(pk=gate.pk)
    another = make_checkpoint("another", project=project)
    services.promote_checkpoint(project=project, checkpoint=another)
    with pytest.raises(Rejected, match="decided already"):
        gates.admin_decides(gate=stale, verdict="promote", by=project_admin)
    assert services.current_policy(project) == another


def test_a_scheduler_that_has_read_a_gate_before_another_decided_does_nothing(ask, project):
    gate = ask(report(**BETTER_WINS), decides="gate")
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


# After a promotion


@pytest.fixture
def watch(project, candidate, policy, prompts) -> Callable[..., Gate]:
    def watch(**rule: Any) -> Gate:
        gates.change_release_rule(project=project, watches=True, watch_votes=32, **rule)
        services.promote_checkpoint(project=project, checkpoint=candidate)
        gates.turn_gates()
        gate = Gate.objects.get()
        measure(gate, {})
        return turned(gate)

    return watch


def test_a_promotion_is_watched_once(watch, candidate, policy):
    gate = watch()
    assert (gate.kind, gate.candidate, gate.current, gate.stage) == ("watch", candidate, policy, "asking")
    assert gate.pairs.count() == 32
    gates.turn_gates()
    assert Gate.objects.count() == 1


def test_a_regression_is_rolled_back_by_itself(project, watch, vote, policy):
    gate = watch(rolls_back=True)
    vote(gate, 21, "current")
    turned(gate)
    promotion = Promotion.objects.get(gate=gate)
    assert (gate.stage, gate.outcome) == ("decided", "reject")
    assert promotion.is_rollback
    assert services.current_policy(project) == policy
    assert open_places(gate) == 0
    gates.turn_gates()
    assert Gate.objects.count() == 1, "a rollback is not watched"


def test_a_regression_waits_for_an_admin_who_rolls_back(project, watch, vote, policy, project_admin, candidate):
    gate = watch()
    vote(gate, 21, "current")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("waiting", "reject")
    assert services.current_policy(project) == candidate
    assert gates.admin_decides(gate=gate, verdict="reject", by=project_admin).is_rollback
    assert services.current_policy(project) == policy


def test_a_watch_without_a_finding_leaves_the_policy(project, watch, vote, candidate):
    gate = watch(rolls_back=True)
    for side in ("current", "candidate") * 4:
        vote(gate, 4, side)
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "hold")
    assert services.current_policy(project) == candidate


def test_a_damaged_former_policy_is_not_rolled_back_to(project, watch, vote, candidate, policy):
    gate = watch(rolls_back=True)
    (store.checkpoint_dir(policy.uuid) / "model.safetensors").write_bytes(b"other bytes")
    vote(gate, 21, "current")
    turned(gate)
    assert services.current_policy(project) == candidate
    assert gate.reasons[0].startswith("It was not rolled back")


def test_a_rollback_by_hand_ends_the_watch(project, watch):
    gate = watch()
    services.roll_back(project=project)
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome) == ("decided", "hold")
    assert "was watched as the policy" in gate.reasons[0]


def test_the_first_policy_is_not_watched(project, policy, prompts):
    gates.change_release_rule(project=project, watches=True)
    gates.turn_gates()
    assert not Gate.objects.exists()
    with pytest.raises(Rejected, match="none to watch"):
        gates.request_watch(project=project)
