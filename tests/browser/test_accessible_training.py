"""Pages of training and release with something to show: in light and dark, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Preference, Project
from tests.browser.test_accessible_pages import _is_well
from tests.training.gates.conftest import ask, candidate, prompts, vote  # noqa: F401  (fixtures)
from tests.training.gates.steps import turned
from tests.training.test_label_effects import measured, promote  # noqa: F401
from tests.training.test_outcome import DETAILS
from tests.training.test_sweeps import _runs, finish, request_sweep  # noqa: F401
from training import gates, notices, withdrawing
from training.models import Checkpoint, Gate, TrainingRun

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]


@pytest.fixture
def better(policy: Checkpoint, make_checkpoint: Callable[..., Checkpoint], project: Project) -> Checkpoint:
    return make_checkpoint("better", kind="dpo", project=project, parent=policy, base=policy, details=DETAILS)


@pytest.fixture
def swept(request_sweep: Callable[..., object], finish: Callable[..., Checkpoint]) -> list[TrainingRun]:  # noqa: F811
    """A sweep of three points, which trade accuracy for distance."""
    runs = _runs(request_sweep((0.05, 0.1, 0.5)))  # type: ignore[arg-type]
    for run, accuracy, kl in zip(runs, (0.8, 0.7, 0.6), (9.0, 4.0, 1.0), strict=True):
        finish(run, accuracy, kl)
    return runs


def test_the_rule_the_runs_and_the_frontier(
    visit: Visit, project_admin: User, project: Project, policy: Checkpoint, swept: list[TrainingRun]
) -> None:
    notices.notice_what_happened()
    run = swept[0]
    run.refresh_from_db()
    judged = Preference.objects.filter(project=project).latest("pk")
    paths = ["training/", "train/", "sweep/", "sweeps/1/", f"runs/{run.number}/", f"lineage/pairs/{judged.pair_id}/"]
    assert run.checkpoint is not None
    paths += [f"checkpoints/{run.checkpoint.uuid}/", f"checkpoints/{run.checkpoint.uuid}/lineage/"]
    paths += ["checkpoints/retention/", f"withdrawals/judgements/{judged.pk}/", "/notices/"]
    for path in paths:
        _is_well(visit(project_admin, path), path)
    withdrawing.withdraw(project=project, target=judged, by=project_admin, reason="Not meant so.")
    for path in ("withdrawals/", f"runs/{run.number}/"):
        _is_well(visit(project_admin, path), f"{path} after a withdrawal")


def test_a_gate_while_people_vote_and_once_it_is_decided(
    visit: Visit,
    project_admin: User,
    ask: Callable[..., Gate],  # noqa: F811
    vote: Callable[..., None],  # noqa: F811
) -> None:
    page = visit(project_admin, "gates/")
    _is_well(page, "no gate yet")
    gate = ask(asks_people=True, most_votes=20)
    vote(gate, 12, "candidate")
    turned(gate)
    page = visit(project_admin, f"gates/{gate.number}/")
    expect(page.locator("svg").first).to_be_visible()
    _is_well(page, "people vote")
    gates.admin_decides(gate=gate, verdict="hold", by=project_admin, reason="Let us wait.")
    _is_well(visit(project_admin, f"gates/{gate.number}/"), "decided")
    _is_well(visit(project_admin, "gates/"), "all gates")


def test_what_somebodys_judgements_changed(
    visit: Visit,
    annotator: User,
    label: Callable[..., list[object]],
    measured: Callable[..., object],  # noqa: F811
) -> None:
    towards, away, hardly = (label(1)[0] for _ in range(3))
    page = visit(annotator, "what-changed/")
    _is_well(page, "nothing yet")
    measured({towards: (-5.0, 5.0), away: (5.0, -5.0), hardly: (1.0, 1.01)})
    page = visit(annotator, "what-changed/")
    page.get_by_text("What it answers to this").first.click()
    _is_well(page, "three moves")
