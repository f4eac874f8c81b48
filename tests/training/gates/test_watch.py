"""After a promotion: the new policy is watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.urls import reverse

from tests.training.gates.steps import measure, open_places, turned
from training import gates, notices, services, store
from training.exceptions import Rejected
from training.models import (
    Gate,
    Notice,
    Promotion,
)

pytestmark = pytest.mark.usefixtures("nobody_measures")


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


def test_a_policy_that_is_not_the_one_before_any_more_is_not_rolled_back_to(
    project, watch, vote, candidate, policy, make_checkpoint
):
    gate = watch(rolls_back=True)
    for checkpoint in (make_checkpoint("between", project=project), candidate):
        Promotion.objects.create(project=project, checkpoint=checkpoint)
    vote(gate, 21, "current")
    turned(gate)
    assert services.current_policy(project) == candidate
    assert f"The policy before {candidate} is between and not {policy}" in gate.reasons[0]


def test_a_rollback_that_fails_waits_for_an_admin_who_is_told_why(
    project, watch, vote, candidate, policy, project_admin
):
    gate = watch(rolls_back=True)
    (store.checkpoint_dir(policy.uuid) / "model.safetensors").write_bytes(b"other bytes")
    vote(gate, 21, "current")
    turned(gate)
    assert services.current_policy(project) == candidate
    assert (gate.stage, gate.outcome, gate.advice) == ("waiting", "reject", "reject")
    assert gate.reasons[0].startswith("It was not rolled back")
    assert open_places(gate) == 0
    notices.notice_what_happened()
    notice = Notice.objects.get(kind=Notice.Kind.GATE_WAITING)
    assert notice.title == f"Gate 1: the new policy {candidate} does worse; roll back to {policy}?"
    assert notice.body.startswith("It was not rolled back, although the gate would have it so: ")
    with pytest.raises(Rejected):
        gates.admin_decides(gate=gate, verdict="reject", by=project_admin)
    gates.admin_decides(gate=gate, verdict="hold", by=project_admin)


def test_a_policy_that_cannot_be_watched_is_told_once_and_watched_when_it_can(
    project, candidate, policy, project_admin, make_prompt, sign_in, caplog
):
    caplog.set_level("INFO")
    gates.change_release_rule(project=project, watches=True)
    services.promote_checkpoint(project=project, checkpoint=candidate, by=project_admin)
    for _ in range(3):
        gates.turn_gates()
        notices.notice_what_happened()
    notice = Notice.objects.get()
    assert notice.title == f"The policy {candidate} is not watched"
    assert "has 0 held-out prompts" in notice.body
    assert caplog.text.count("is not watched") == 1
    page = sign_in(project_admin).get(reverse("training:gates", args=[project.slug])).content.decode()
    assert "has 0 held-out prompts" in page
    for _ in range(gates.LEAST_PROMPTS):
        make_prompt(held_out=True)
    gates.turn_gates()
    assert Gate.objects.get().kind == "watch"
    assert not Promotion.objects.exclude(not_watched="").exists()


def test_of_a_policy_that_is_not_watched_nobody_is_told_once_it_has_gone_or_no_watch_is_wanted(
    project, candidate, policy, make_checkpoint, project_admin
):
    gates.change_release_rule(project=project, watches=True)
    services.promote_checkpoint(project=project, checkpoint=candidate)
    gates.turn_gates()
    told = Notice.objects.filter(title=f"The policy {candidate} is not watched")
    gates.change_release_rule(project=project, watches=False)
    notices.notice_what_happened()
    assert not told.exists()
    gates.change_release_rule(project=project, watches=True)
    services.promote_checkpoint(project=project, checkpoint=make_checkpoint("another", project=project))
    notices.notice_what_happened()
    assert not told.exists()


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
