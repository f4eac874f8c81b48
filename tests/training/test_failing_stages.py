"""A run that fails, at each of its stages: nothing is released, somebody is told, and it can go on."""

from __future__ import annotations

import pytest

from training import loop, notices, services, supervision
from training.exceptions import JobFailed
from training.execution import Training
from training.jobspec import EXIT_FAILED, Result
from training.models import Checkpoint, Gate, Job, Notice, Promotion, TrainingRun
from training.recipe import Recipe
from training.supervision import Ending


def _refuse(*args: object, **values: object) -> None:
    raise JobFailed("broken", "It broke here.", "Mend it.")


def _full_disk(*args: object, **values: object) -> None:
    raise OSError(28, "No space left on device")


def _engine_that(status: int, result: Result | None):
    def supervise(job: Job, module: str, run_dir, tick) -> Ending:
        if result is not None:
            (run_dir.path / "result.json").write_text(result.to_json())
        return Ending(status, ran_out_of_memory=False)

    return supervise


FAILED = Result(ok=False, error_code="diverged", error="It diverged.", hint="Lower the learning rate.")
DONE = Result(ok=True)
STAGES = {
    "its inputs": ({"prepare": _refuse}, None, "It broke here."),
    "the disk, before the engine": ({"prepare": _full_disk}, None, "The file system refused"),
    "the engine": ({}, _engine_that(EXIT_FAILED, FAILED), "It diverged."),
    "the engine, killed each time": ({}, _engine_that(-9, None), "The engine ended with signal 9, 3 times."),
    "the engine, which leaves no checkpoint": ({}, _engine_that(0, DONE), "No such file"),
    "the disk, while publishing": ({"publish": _full_disk}, _engine_that(0, DONE), "The file system refused"),
    "Tiebreak itself": ({"publish": lambda *_: 1 / 0}, _engine_that(0, DONE), "Tiebreak itself failed"),
}


@pytest.fixture
def run(project, policy, label, make_pair, project_admin) -> TrainingRun:
    services.change_rule(project=project, retrains=True, min_new_triples=1, min_minutes_between=0, open_pairs_wanted=0)
    label(10)
    make_pair()  # or the empty queue would be told of as well
    return services.request_run(project=project, recipe=Recipe())


@pytest.fixture
def fail(run, monkeypatch):
    def fail(stage: str) -> TrainingRun:
        methods, supervise, _ = STAGES[stage]
        for name, method in methods.items():
            monkeypatch.setattr(Training, name, method)
        if supervise:
            monkeypatch.setattr(supervision, "supervise", supervise)
        for _ in range(3):  # attempts
            TrainingRun.objects.update(not_before=None)
            supervision.execute(TrainingRun.objects.get(), Training)
        return TrainingRun.objects.get()

    return fail


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_released_and_the_reason_is_told(fail, stage, policy, project):
    failed = fail(stage)
    assert failed.state == Job.State.FAILED
    assert STAGES[stage][2] in failed.error
    assert failed.checkpoint is None
    assert not Checkpoint.objects.filter(kind=Checkpoint.Kind.DPO).exists()
    loop.evaluate_rules()
    assert services.current_policy(project) == policy
    assert (Gate.objects.count(), Promotion.objects.count()) == (0, 1)
    notices.notice_what_happened()
    assert Notice.objects.get().body.startswith(failed.error)


@pytest.mark.parametrize("stage", STAGES)
def test_the_rule_does_not_run_into_it_again_at_once(fail, stage, label, project):
    fail(stage)
    label(10)
    loop.evaluate_rules()
    assert TrainingRun.objects.count() == 1
    assert "Run 1 failed, so the rule waits" in services.loop_rule(project).verdict


@pytest.mark.parametrize("stage", STAGES)
def test_it_can_be_resumed_with_what_it_began_with(fail, stage, label):
    failed = fail(stage)
    label(5)
    services.resume_job(job=failed)
    failed.refresh_from_db()
    assert (failed.state, failed.attempt, failed.error) == (Job.State.QUEUED, 0, "")
    assert failed.snapshot.train_triples == 10
