"""Runs of a real engine on the tiny model, from labels to a published checkpoint, with a moment to kill them at."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from training import registry, services
from training.execution import Training
from training.jobspec import read_result
from training.models import Checkpoint, Job, TrainingRun
from training.process import EngineProcess
from training.recipe import Recipe
from training.rundir import RunDir

# Long enough to be killed in the middle of, and a second or two all the same.
RECIPE = Recipe(epochs=8.0, pairs_per_step=2, learning_rate=1e-2, lora_rank=4, max_length=128)


def tiny_policy(project, tiny_model: Path, data_dir: Path) -> Checkpoint:
    """The tiny model, registered and promoted."""
    source = Path(shutil.copytree(tiny_model, data_dir / "tiny-source"))
    checkpoint = registry.register(staging_name="tiny", source=source, kind=Checkpoint.Kind.BASE, name="tiny")
    checkpoint.save()
    services.promote_checkpoint(project=project, checkpoint=checkpoint)
    return checkpoint


def carry_out(run: TrainingRun, *, kill_at_step: int = 0) -> Checkpoint:
    """Train and publish. ``kill_at_step``: the engine is killed once that step is logged, and started again."""
    assert run.claim("worker")
    work = Training(run, RunDir.of(run.uuid))
    work.run_dir.make()
    assert work.prepare()
    if kill_at_step:
        _engine(work.run_dir, f'"step":{kill_at_step},')
        assert read_result(work.run_dir.path) is None
        assert work.prepare()  # as the next attempt does
    _engine(work.run_dir)
    result = read_result(work.run_dir.path)
    assert result is not None, work.run_dir.log.read_text()
    assert result.ok, result
    assert run.update_held(state=Job.State.PUBLISHING)
    work.publish(result)
    run.refresh_from_db()
    assert run.checkpoint is not None
    return run.checkpoint


def _engine(run_dir: RunDir, until: str = "") -> None:
    engine = EngineProcess("train_dpo", run_dir)
    deadline = time.monotonic() + 120
    try:
        while engine.wait(0.01) is None:
            assert time.monotonic() < deadline, run_dir.log.read_text()
            if until and run_dir.metrics.exists() and until in run_dir.metrics.read_text():
                return
    finally:
        engine.close()
