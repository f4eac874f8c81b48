"""After a promotion: the new policy is watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.training.gates.steps import measure, open_places, turned
from training import gates, services, store
from training.exceptions import Rejected
from training.models import (
    Gate,
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
