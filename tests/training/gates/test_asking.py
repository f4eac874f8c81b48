"""A gate is asked for, and decided by figures alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from labeling.models import Prompt, Withdrawal
from tests.training.gates.steps import measure, turned
from tests.training.gates.test_decision import BETTER_HELD_OUT, report
from training import card_figures, current_card, gates, loop, notices, reference_choice, services, store
from training.exceptions import Rejected
from training.execution import Comparing
from training.models import (
    Checkpoint,
    Gate,
    GatePair,
    LoopRule,
    Notice,
    Promotion,
    Taint,
    TrainingRun,
)
from training.rundir import RunDir

pytestmark = pytest.mark.usefixtures("nobody_measures")


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


def test_a_finished_run_is_compared_by_itself_and_once(finished_run, candidate):
    loop.evaluate_rules()
    loop.evaluate_rules()
    gate = Gate.objects.get()
    assert (gate.run, gate.candidate) == (finished_run, candidate)


def test_a_run_that_cannot_be_compared_says_why_and_is_told_once(
    finished_run, candidate, project_admin, make_prompt, caplog
):
    caplog.set_level("INFO")
    Prompt.objects.update(withdrawn_at=timezone.now())
    make_prompt(held_out=True)
    for _ in range(3):
        gates.turn_gates()
        notices.notice_what_happened()
    finished_run.refresh_from_db()
    assert finished_run.not_compared.startswith("The project has 1 held-out prompt, and a comparison needs 10")
    notice = Notice.objects.exclude(kind=Notice.Kind.RUN_FINISHED).get()
    assert (notice.user, notice.title) == (project_admin, f"{candidate} was not compared with the policy")
    assert (notice.body, notice.url) == (finished_run.not_compared, finished_run.get_absolute_url())
    assert caplog.text.count("is not compared") == 1
    for _ in range(9):
        make_prompt(held_out=True)
    gates.turn_gates()
    assert Gate.objects.get().run == finished_run


def test_a_scheduler_that_comes_second_says_nothing_of_a_refusal(finished_run, monkeypatch):
    before = TrainingRun.objects.select_related("project", "checkpoint").get()
    gates.compare_finished_run(finished_run)
    monkeypatch.setattr(Gate.objects, "filter", lambda **_: Gate.objects.none())  # as it was a moment ago
    with pytest.raises(Rejected, match="being compared"):
        gates.compare_finished_run(before)
    assert not TrainingRun.objects.exclude(not_compared="").exists()


def test_a_run_is_not_compared_where_the_rule_does_not_want_it_or_it_is_long_ago(project, finished_run):
    gates.change_release_rule(project=project, compares=False)
    gates.turn_gates()
    gates.change_release_rule(project=project, compares=True)
    TrainingRun.objects.update(finished_at=timezone.now() - timedelta(days=2))
    gates.turn_gates()
    assert not Gate.objects.exists()


def test_the_gate_promotes_by_itself_and_says_why(project, ask, candidate):
    gate = turned(ask(report(**BETTER_HELD_OUT), decides="gate"))
    promotion = Promotion.objects.get(gate=gate)
    assert services.current_policy(project) == candidate
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert promotion.reason.startswith("Gate 1: The candidate is better")
    turned(gate)
    assert Promotion.objects.count() == 2, "once"


def test_an_admin_is_waited_for_and_decides(project, ask, candidate, project_admin):
    gate = turned(ask(report(**BETTER_HELD_OUT)))
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
    gate = turned(ask(report(**BETTER_HELD_OUT)))
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
    gate = turned(ask(report(**BETTER_HELD_OUT), decides="gate"))
    assert (gate.stage, gate.outcome) == ("decided", "hold")
    assert any("withdrawn" in reason for reason in gate.reasons)


def test_a_damaged_candidate_is_never_promoted(project, ask, candidate, policy):
    gate = ask(report(**BETTER_HELD_OUT), decides="gate")
    (store.checkpoint_dir(candidate.uuid) / "model.safetensors").write_bytes(b"other bytes")
    turned(gate)
    assert services.current_policy(project) == policy
    assert (gate.stage, gate.outcome, gate.advice) == ("waiting", "promote", "promote")
    assert gate.reasons[0].startswith("It was not promoted")
    assert gate.checks, "what was found stays on the page"


def test_an_admin_is_told_of_damage_and_the_gate_waits_on(ask, candidate, project_admin):
    gate = turned(ask(report(**BETTER_HELD_OUT)))
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


def test_what_a_person_promotes_against_the_gate_is_no_pass_of_the_gate(project, ask, candidate, project_admin):
    gate = turned(ask(report(**BETTER_HELD_OUT, canaries=None)))
    assert (gate.stage, gate.outcome, gate.advice) == ("waiting", "hold", "hold")
    gates.admin_decides(gate=gate, verdict="promote", by=project_admin)
    gate.refresh_from_db()
    assert (gate.outcome, gate.advice) == ("promote", "hold")
    LoopRule.objects.filter(project=project).update(reference=LoopRule.Reference.PROMOTED)
    assert "promoted although Gate 1 had not passed it" in reference_choice.choose(project).reason
    said = card_figures.gate_section({"gate": current_card.gate_of(candidate)})
    assert "was **promote**. A person decided that; figures and votes alone came to **hold**." in said


def test_what_a_person_promotes_with_the_gate_is_one(project, ask, candidate, project_admin):
    gate = turned(ask(report(**BETTER_HELD_OUT)))
    gates.admin_decides(gate=gate, verdict="promote", by=project_admin)
    LoopRule.objects.filter(project=project).update(reference=LoopRule.Reference.PROMOTED)
    assert "Gate 1 passed it" in reference_choice.choose(project).reason
