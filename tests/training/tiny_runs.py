"""Runs on the tiny model, from labels to a published checkpoint; and runs whose engine is left out."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is

import shutil
from pathlib import Path
from unittest.mock import patch

from tests.engine.runs import entry
from training import registry, services
from training.engine import process
from training.engine.journal import MetricsJournal
from training.execution import Training
from training.jobspec import EXIT_INTERRUPTED, Result, StepMetrics, TrainJob, read_result
from training.models import Checkpoint, Job, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir

# Long enough to be stopped in the middle of.
RECIPE = Recipe(epochs=8.0, pairs_per_step=2, learning_rate=1e-2, lora_rank=4, max_length=128)


# What an engine tells of a run that is over.
DETAILS = {
    "device": "cpu", "device_name": "a CPU", "dtype": "float32", "arithmetic": "cpu float32", "cpu": "AVX2",
    "threads": 3, "python": "3.11.0", "versions": {"torch": "0.1"}, "memory": {"limit_bytes": 7 * 2**30},
}  # fmt: skip


def tiny_policy(project, tiny_model: Path, data_dir: Path) -> Checkpoint:
    """The tiny model, registered and promoted."""
    source = Path(shutil.copytree(tiny_model, data_dir / "tiny-source"))
    checkpoint = registry.register(staging_name="tiny", source=source, kind=Checkpoint.Kind.BASE, name="tiny")
    checkpoint.save()
    services.promote_checkpoint(project=project, checkpoint=checkpoint)
    return checkpoint


def carry_out(run: TrainingRun, *, stop_at_step: int = 0) -> Checkpoint:
    """Train and publish. ``stop_at_step``: the engine is told to stop after that step, and started again."""
    work = begin(run)
    if stop_at_step:
        assert train(work.run_dir, stop_at_step) == EXIT_INTERRUPTED
        assert work.prepare()  # as the next attempt does
    assert train(work.run_dir) == 0
    result = read_result(work.run_dir.path)
    assert result is not None
    assert result.ok, result
    assert run.update_held(state=Job.State.PUBLISHING)
    work.publish(result)
    run.refresh_from_db()
    assert run.checkpoint is not None
    return run.checkpoint


def train(run_dir: RunDir, stop_at_step: int = 0) -> int:
    """The engine's work inside the test process, which saves a start of torch. Returns its exit status."""
    told = MetricsJournal.step

    def tell(journal: MetricsJournal, metrics: StepMetrics) -> None:
        told(journal, metrics)
        process.stop.requested = metrics.step == stop_at_step

    with patch.object(MetricsJournal, "step", tell):
        try:
            return process.execute(entry("train_dpo"), TrainJob, run_dir.path)
        finally:
            process.stop.requested = False


class EngineHere:
    """``EngineProcess`` without a process."""

    def __init__(self, module: str, run_dir: RunDir) -> None:
        self.run_dir = run_dir

    def wait(self, timeout: float) -> int:
        return train(self.run_dir)

    def close(self) -> None:
        pass


def begin(run: TrainingRun) -> Training:
    """As far as the engine, which is not started."""
    assert run.claim("worker")
    work = Training(run, RunDir.of(run.uuid))
    work.run_dir.make()
    assert work.prepare()
    return work


def end(work: Training) -> Checkpoint:
    """Publish an adapter of no weights worth the name."""
    work.run_dir.checkpoint.mkdir()
    (work.run_dir.checkpoint / "adapter_model.safetensors").write_bytes(f"adapter {work.job.uuid}".encode())
    work.publish(Result(ok=True, details=DETAILS))
    work.job.refresh_from_db()
    assert work.job.checkpoint is not None
    return work.job.checkpoint
