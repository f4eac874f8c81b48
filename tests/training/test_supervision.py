"""How a worker judges what happens to its engine, its database and its machine."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from labeling.models import Pair
from training import services, store, supervision
from training.execution import Sampling, Training, runs, sampling
from training.jobspec import Result, SampledPair, SampledResponse
from training.models import Checkpoint, Job, SampleBatch, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir
from training.supervision import _judge, recover_expired


@pytest.fixture
def batch(project, policy, make_prompt) -> SampleBatch:
    for _ in range(3):
        make_prompt()
    batch = services.request_samples(project=project, pairs=3)
    assert batch.claim("worker")
    return batch


@pytest.fixture
def run(project, policy, label) -> TrainingRun:
    label(10)
    run = services.request_run(project=project, recipe=Recipe())
    assert run.claim("worker")
    RunDir.of(run.uuid).make()
    return run


def _expire(job: Job) -> None:
    type(job).objects.filter(pk=job.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def _write_samples(batch: SampleBatch) -> RunDir:
    run_dir = RunDir.of(batch.uuid)
    run_dir.make()
    lines = []
    for prompt_id in batch.prompt_ids:
        responses = [SampledResponse(f"{side} {prompt_id}", [1, 2], "stop", 7) for side in ("One", "Two")]
        lines.append(SampledPair(str(prompt_id), responses=responses).to_json() + "\n")
    run_dir.samples.write_text("".join(lines))
    return run_dir


def test_a_pair_is_not_lost_when_the_database_fails_in_its_middle(batch, monkeypatch):
    work = Sampling(batch, _write_samples(batch))
    work.prepare()
    add_pair, calls = sampling.add_pair, []

    def failing_once(**values: object) -> Pair:
        calls.append(values)
        if len(calls) == 2:
            raise OperationalError("database is locked")
        return add_pair(**values)

    monkeypatch.setattr(sampling, "add_pair", failing_once)
    with pytest.raises(OperationalError):
        work.tick()
    assert Pair.objects.count() == 1
    assert work.tick()["done"] == 3
    assert Pair.objects.count() == 3


@pytest.mark.parametrize("status", [-9, -15, 1])
def test_however_an_engine_ends_while_its_worker_stops_the_attempt_does_not_count(batch, monkeypatch, status):
    monkeypatch.setattr(supervision, "is_stopping", lambda: True)
    assert _judge(batch, status, None) is None
    batch.refresh_from_db()
    assert (batch.state, batch.attempt) == ("queued", 0)


def test_an_engine_that_dies_counts(batch):
    assert _judge(batch, -9, None) is None
    batch.refresh_from_db()
    assert (batch.state, batch.attempt) == ("queued", 1)


def test_a_machine_that_slept_takes_its_job_back(batch):
    _expire(batch)
    assert recover_expired() == 1
    assert batch.renew({"done": 1})
    batch.refresh_from_db()
    assert (batch.state, batch.attempt, batch.progress) == ("running", 1, {"done": 1})


def test_a_job_that_was_cancelled_meanwhile_is_not_taken_back(batch):
    _expire(batch)
    recover_expired()
    services.cancel_job(job=SampleBatch.objects.get(pk=batch.pk))
    assert not batch.renew()


@pytest.mark.django_db(transaction=True)
def test_a_database_that_fails_while_publishing_costs_an_attempt_and_no_run(project, policy, label, monkeypatch):
    label(10)
    run = services.request_run(project=project, recipe=Recipe())

    def fail(self: Training, result: Result) -> None:
        raise OperationalError("the connection was closed")

    monkeypatch.setattr(Training, "prepare", lambda self: False)
    monkeypatch.setattr(Training, "publish", fail)
    supervision.execute(run, Training)
    run.refresh_from_db()
    assert (run.state, run.attempt) == ("queued", 1)
    for _ in range(2):
        TrainingRun.objects.update(not_before=None)
        supervision.execute(TrainingRun.objects.get(), Training)
    run.refresh_from_db()
    assert (run.state, run.error_code, run.hint) == ("failed", "database", "When it does, press Resume.")


def test_the_checkpoint_of_a_worker_that_died_before_its_commit_is_removed_by_the_next_attempt(run, policy):
    leftover = store.checkpoint_dir(runs._checkpoint_uuid(run, run.fence))
    leftover.mkdir()
    _expire(run)
    recover_expired()
    again = TrainingRun.objects.get()
    assert again.claim("another")
    Training(again, RunDir.of(again.uuid)).prepare()
    assert not leftover.exists()
    assert store.checkpoint_dir(policy.uuid).exists()


def test_a_database_that_knows_no_checkpoint_costs_no_weights(policy, monkeypatch):
    """The address of a fresh database, or an old backup, beside the old data directory."""
    directory = store.checkpoint_dir(policy.uuid)
    os.utime(directory, (0, 0))
    for patience in ("STAGING_PATIENCE_SECONDS", "HALF_ARCHIVE_PATIENCE_SECONDS"):
        monkeypatch.setattr(store, patience, -1)
    services.Promotion.objects.all().delete()
    Checkpoint.objects.all().delete()
    supervision.clean_staging()
    assert (directory / "model.safetensors").exists()


def test_saved_steps_of_a_run_that_nobody_resumes_are_forgotten_and_its_record_is_kept(run):
    run_dir = RunDir.of(run.uuid)
    (run_dir.path / "trainer").mkdir()
    run_dir.metrics.write_text("")
    services.cancel_job(job=run)
    run.finish(Job.State.CANCELLED)
    supervision.forget_ended_jobs()
    assert (run_dir.path / "trainer").exists()
    TrainingRun.objects.update(finished_at=timezone.now() - timedelta(days=15))
    supervision.forget_ended_jobs()
    assert not (run_dir.path / "trainer").exists()
    assert run_dir.metrics.exists()


@pytest.fixture
def killed_in(run, monkeypatch):
    """The kernel ends the run's engine in a phase."""

    def killed_in(phase: str, *, by_kernel: bool = True) -> None:
        def supervise(job: Job, module: str, run_dir: RunDir, tick) -> supervision.Ending:
            (run_dir.path / "trainer").mkdir(exist_ok=True)
            with run_dir.metrics.open("a") as metrics:
                metrics.write(f'{{"phase": "{phase}"}}\n')
            tick()
            return supervision.Ending(-9, ran_out_of_memory=by_kernel)

        monkeypatch.setattr(supervision, "supervise", supervise)
        TrainingRun.objects.filter(pk=run.pk).update(not_before=None)
        supervision.execute(run, Training)
        run.refresh_from_db()

    TrainingRun.objects.filter(pk=run.pk).update(state="queued", attempt=0, lease_until=None)
    return killed_in


def test_a_run_whose_memory_ran_out_is_tried_once_more_with_half(run, killed_in):
    """And no third time: what it would need does not get smaller."""
    killed_in("training")
    assert (run.state, run.attempt) == ("queued", 1)
    assert RunDir.of(run.uuid).memory_ran_out.exists()
    killed_in("training")
    assert (run.state, run.attempt, run.error_code) == ("failed", 2, "out_of_memory")
    assert "half as much at once" in run.error
    assert "press Resume" in run.hint


def test_a_resumed_run_may_run_out_of_memory_once_again(run, killed_in):
    """Whoever has read that something else may have held the memory, and has ended it."""
    killed_in("training")
    killed_in("training")
    services.resume_job(job=run)
    killed_in("training")
    assert (run.state, run.attempt) == ("queued", 1)


@pytest.mark.parametrize(("phase", "by_kernel"), [("reading reference", True), ("training", False)])
def test_what_did_not_run_out_of_memory_in_a_step_does_not_take_less(run, killed_in, phase, by_kernel):
    for attempt in (1, 2):
        killed_in(phase, by_kernel=by_kernel)
        assert (run.state, run.attempt) == ("queued", attempt)
        assert not RunDir.of(run.uuid).memory_ran_out.exists()


def test_memory_that_runs_out_counts_while_the_worker_stops(run, killed_in, monkeypatch):
    """A service manager may stop the worker because the kernel has ended one of its processes."""
    killed_in("training")
    TrainingRun.objects.filter(pk=run.pk).update(not_before=None)
    assert run.claim("worker")
    monkeypatch.setattr(supervision, "is_stopping", lambda: True)
    assert _judge(run, -9, None, lambda: None) is None
    run.refresh_from_db()
    assert (run.state, run.attempt) == ("queued", 2)


def test_a_run_that_was_cancelled_when_its_memory_ran_out_is_cancelled(run, monkeypatch):
    TrainingRun.objects.filter(pk=run.pk).update(cancel_requested_at=timezone.now())
    monkeypatch.setattr(supervision, "supervise", lambda *args: supervision.Ending(-9, ran_out_of_memory=True))
    supervision._carry_out(run, Training(run, RunDir.of(run.uuid)))
    run.refresh_from_db()
    assert run.state == "cancelled"
