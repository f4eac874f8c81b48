"""Which reference a run is given, and the sentence that says why."""

from __future__ import annotations

from typing import Any

import pytest

from labeling.models import Withdrawal
from training import execution, reference_choice, services
from training.models import Checkpoint, Gate, LoopRule, Promotion, Taint, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir


def _measured(value: float, low: float, high: float) -> dict[str, Any]:
    return {"on_policy": {"after": {"kl_first": value, "kl_first_interval": [low, high]}}}


@pytest.fixture
def make_policy(project, policy, make_checkpoint):
    """Promote a new checkpoint that descends from the first policy; ``outcome``: of the gate that it went through."""
    parents = [policy]

    def make(
        name: str, *, outcome: str | None = "promote", details: dict[str, Any] | None = None, report: Any = None
    ) -> Checkpoint:
        made = _measured(4.2, 3.1, 5.6) if details is None else details
        current = parents[-1]
        checkpoint = make_checkpoint(name, project=project, kind="dpo", base=policy, parent=current, details=made)
        parents.append(checkpoint)
        promotion = services.promote_checkpoint(project=project, checkpoint=checkpoint)
        if outcome is not None:
            number = Gate.objects.count() + 1
            gate = Gate.objects.create(
                project=project,
                number=number,
                candidate=checkpoint,
                current=current,
                rule={},
                outcome=outcome,
                advice=outcome,
                stage="decided",
                report=report or {},
            )
            Promotion.objects.filter(pk=promotion.pk).update(gate=gate)
        return checkpoint

    return make


@pytest.fixture
def follows(project) -> None:
    """The rule takes promoted policies."""
    services.change_rule(project=project, reference="promoted")


def _chosen(project) -> tuple[Checkpoint, str]:
    choice = reference_choice.choose(project)
    assert choice is not None
    assert services.default_reference(project) == choice.checkpoint
    return choice


def test_without_a_policy_there_is_none(project):
    assert reference_choice.choose(project) is None
    assert services.default_reference(project) is None


def test_the_first_policy_is_the_reference_whatever_is_promoted(project, policy, make_policy):
    make_policy("second")
    checkpoint, reason = _chosen(project)
    assert checkpoint == policy
    assert reason == "The project’s first policy, as its rule says: distances stay comparable from run to run."


def test_a_policy_that_a_gate_passed_within_the_budget_becomes_the_reference(project, follows, policy, make_policy):
    assert _chosen(project) == (policy, "The promoted policy, which is the project’s first one.")
    second = make_policy("second")
    checkpoint, reason = _chosen(project)
    assert checkpoint == second
    assert reason == (
        "The promoted policy: Gate 1 passed it, and its KL from the first policy, 4.2 nats a response "
        "(95\u202f% interval 3.1 to 5.6), is within the budget of 40."
    )


def test_the_gates_measurement_counts_before_that_of_the_run(project, follows, policy, make_policy):
    report = {"on_policy": {"candidate": {"kl_first": 45.0, "kl_first_interval": [41.0, 49.0]}}}
    make_policy("far", report=report)
    checkpoint, reason = _chosen(project)
    assert checkpoint == policy
    assert "45.0 nats a response" in reason


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"outcome": None}, "The policy third was promoted by hand without a gate"),
        ({"outcome": "hold"}, "The policy third was promoted although Gate 2 had not passed it"),
        ({"outcome": "reject"}, "The policy third was promoted although Gate 2 had not passed it"),
        ({"details": {}}, "Nothing says how far the policy third is from the first one"),
        (
            {"details": {"on_policy": {"after": {"kl_first": 3.0}}}},
            "Nothing says how far the policy third is from the first one",
        ),
        (
            {"details": _measured(38.0, 33.0, 44.0)},
            "The policy third is 38.0 nats a response (95\u202f% interval 33.0 to 44.0) from the first one, not surely "
            "within the budget of 40",
        ),
    ],
)
def test_a_policy_that_does_not_qualify_leaves_the_reference_where_it_was(project, follows, make_policy, values, words):
    second = make_policy("second")
    make_policy("third", **values)
    assert _chosen(project) == (second, f"{words}, so the reference stays second, the newest that Gate 1 passed.")


def test_with_none_that_qualifies_it_stays_the_first_policy(project, follows, policy, make_policy):
    make_policy("second", outcome=None)
    words = "The policy second was promoted by hand without a gate, so the reference stays the first policy."
    assert _chosen(project) == (policy, words)


def test_a_smaller_budget_takes_the_reference_back_and_says_so(project, follows, policy, make_policy):
    second = make_policy("second")
    make_policy("third", details=_measured(12.0, 10.0, 14.0))
    services.change_rule(project=project, kl_first_budget=13.0)
    checkpoint, reason = _chosen(project)
    assert checkpoint == second
    assert reason.startswith("The policy third is 12.0 nats")
    services.change_rule(project=project, kl_first_budget=5.0)
    checkpoint, reason = _chosen(project)
    assert checkpoint == policy
    assert "not surely within the budget of 5, so the reference stays the first policy." in reason


def test_a_policy_whose_files_were_removed_is_no_reference(project, follows, policy, make_policy):
    second = make_policy("second")
    Checkpoint.objects.filter(pk=second.pk).update(removed_at=second.created_at)
    assert _chosen(project)[0] == policy


def test_a_policy_of_labels_that_were_withdrawn_is_no_reference(project, follows, policy, make_policy):
    second = make_policy("second")
    withdrawal = Withdrawal.objects.create(project=project, kind=Withdrawal.Kind.ANNOTATOR)
    Taint.objects.create(checkpoint=second, withdrawal=withdrawal, preferences=1)
    checkpoint, reason = _chosen(project)
    assert checkpoint == policy
    assert "Labels that the policy second was made of were withdrawn since, so the reference stays" in reason


def test_what_was_rolled_back_counts_no_more(project, follows, policy, make_policy):
    second = make_policy("second")
    make_policy("third")
    services.roll_back(project=project)
    checkpoint, reason = _chosen(project)
    assert checkpoint == second
    assert reason.startswith("The promoted policy: Gate 1 passed it"), "its own promotion is in force again"
    services.roll_back(project=project)
    assert _chosen(project) == (policy, "The promoted policy, which is the project’s first one.")


# What a run remembers of it


def test_a_run_says_why_it_has_its_reference(project, follows, make_policy, label, project_admin):
    second = make_policy("second")
    label(10)
    run = services.request_run(project=project, recipe=Recipe(), by=project_admin)
    assert run.reference == second
    assert run.reference_reason.startswith("The promoted policy: Gate 1 passed it")


def test_a_person_who_chooses_another_is_named(project, policy, make_checkpoint, label, project_admin):
    label(10)
    other = make_checkpoint("other")
    run = services.request_run(project=project, recipe=Recipe(), reference=other, by=project_admin)
    assert run.reference_reason == f"Chosen by {project_admin.username}."
    TrainingRun.objects.update(state="succeeded")
    same = services.request_run(project=project, recipe=Recipe(), reference=policy, by=project_admin)
    assert same.reference_reason.startswith("The project’s first policy, as its rule says")
    TrainingRun.objects.update(state="succeeded")
    unnamed = services.request_run(project=project, recipe=Recipe(), reference=other)
    assert unnamed.reference_reason == "Named in the request."


def test_the_distance_to_the_first_policy_is_measured_against_the_projects_budget(
    project, follows, policy, make_policy, label
):
    second = make_policy("second")
    services.change_rule(project=project, kl_first_budget=25.0)
    label(10)
    run = services.request_run(project=project, recipe=Recipe())
    job = execution.Training(run, RunDir.of(run.uuid))._job()
    assert job.reference.adapter_hash == second.content_hash
    assert (job.first.base_hash, job.first_is_reference) == (policy.content_hash, False)
    assert job.kl_first_budget == 25.0


def test_the_page_of_a_checkpoint_says_whether_it_is_within_the_budget(project, make_policy, client, project_admin):
    second = make_policy("second")
    client.force_login(project_admin)
    run_of = {"project": project, "number": 1, "reference": second, "recipe": {"method": "lora"}}
    snapshot = _snapshot(project)
    TrainingRun.objects.create(**run_of, snapshot=snapshot, checkpoint=second, state="succeeded")

    def page() -> str:
        return " ".join(client.get(f"/p/{project.slug}/checkpoints/{second.uuid}/").content.decode().split())

    distance = "it is 4.2 nats a response (95 % interval 3.1 to 5.6) away"
    assert f"{distance}, within the budget of 40.0." in page()
    LoopRule.objects.update(kl_first_budget=5.0)
    assert f"{distance}, not surely within the budget of 5.0" in page()


def _snapshot(project) -> Any:
    return project.snapshots.create(
        sha256="0" * 64,
        train_triples=1,
        held_out_triples=0,
        ties=0,
        both_bad=0,
        last_preference_id=0,
    )


def test_the_manifest_says_why(project, policy, label, data_dir):
    from training.execution.runs import _lineage
    from training.jobspec import Result

    label(10)
    run = services.request_run(project=project, recipe=Recipe())
    reference = _lineage(run, Result(ok=True))["reference"]
    assert reference == {"name": "base", "content_hash": policy.content_hash, "reason": run.reference_reason}
