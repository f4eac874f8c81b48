"""Real processes, really killed: whatever dies, the run ends once, with one checkpoint and no process left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from tests.installation import Installation, installed, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LABEL = """
from django.contrib.auth.models import User
from labeling import queue
from labeling.models import Project
from training.models import LoopRule, ReleaseRule
LoopRule.objects.update(open_pairs_wanted=0)  # no sampling beside the runs
project, ada = Project.objects.get(), User.objects.get(username="ada")
ReleaseRule.objects.update_or_create(project=project, defaults={"compares": False})  # and no gate
while lease := queue.lease_next(project, ada.pk):
    queue.submit(project, lease.token, ada.pk, "a")
"""


@pytest.fixture(scope="module")
def installation(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    model = {"TIEBREAK_DEFAULT_MODEL": str(tiny_model), "TIEBREAK_MODEL_DIRECTORIES": str(tiny_model.parent)}
    with installed(tmp_path_factory.mktemp("recovery") / "var", TIEBREAK_ENGINE_THREADS="1", **model) as installation:
        succeeded = "SELECT count(*) FROM training_samplebatch WHERE state = 'succeeded'"
        wait_until(lambda: installation.query(succeeded), 180, "pairs")
        installation.manage("shell", "--no-imports", "-c", LABEL)
        yield installation


@dataclass
class Run:
    """The newest run of an installation, seen from outside."""

    installation: Installation

    def column(self, name: str) -> object:
        return self.installation.query(f"SELECT {name} FROM training_trainingrun ORDER BY id DESC")

    def steps(self) -> list[int]:
        path = self.installation.data_dir / "jobs" / str(UUID(str(self.column("uuid")))) / "metrics.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [line["step"] for line in lines if "loss" in line]

    def step(self) -> int:
        return max(self.steps(), default=0)

    def engine(self) -> int:
        (pid,) = self.installation.engines()
        return pid

    def trainer(self) -> int:
        def is_trainer(pid: int) -> bool:
            return b"trainer@tiebreak" in Path(f"/proc/{pid}/cmdline").read_bytes()

        (pid,) = filter(is_trainer, self.installation.processes())
        return pid

    def check_the_end(self, *, attempts: int) -> None:
        wait_until(lambda: self.column("state") not in ("queued", "running", "publishing"), 300, "the end of the run")
        assert (self.column("state"), self.column("attempt")) == ("succeeded", attempts), self.column("error")
        runs = self.installation.query("SELECT count(*) FROM training_trainingrun")
        assert self.installation.query("SELECT count(*) FROM training_checkpoint WHERE kind = 'dpo'") == runs
        folders = list((self.installation.data_dir / "checkpoints").iterdir())
        assert len(folders) == runs + 1, "the base, and one for each run"
        assert list((self.installation.data_dir / "staging").iterdir()) == []
        assert self.steps() == list(range(1, self.step() + 1)), "every step once"
        wait_until(lambda: not self.installation.engines(), 30, "no engine left")


@pytest.fixture
def run(installation: Installation) -> Run:
    """A run in its middle."""
    installation.manage("train", "helpful-answers", "--epochs", "30", "--pairs-per-step", "2", "--seed", "1")
    run = Run(installation)
    wait_until(lambda: run.step() >= 12, 150, "the twelfth step")
    return run


def test_the_engine_is_killed(run: Run) -> None:
    engine = run.engine()
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: run.installation.engines() not in ([], [engine]), 60, "another engine within a minute")
    wait_until(lambda: run.column("attempt") == 2, 30, "a second attempt")
    run.check_the_end(attempts=2)
    log = run.installation.data_dir / "jobs" / str(UUID(str(run.column("uuid")))) / "train.log"
    assert "Traceback" not in log.read_text()


def test_the_worker_is_killed(run: Run) -> None:
    engine = run.engine()
    os.kill(run.trainer(), signal.SIGKILL)
    wait_until(lambda: engine not in run.installation.engines(), 30, "the engine sees that its worker is gone")
    wait_until(run.installation.engines, 60, "another engine within a minute")
    assert len(run.installation.engines()) == 1
    run.check_the_end(attempts=2)


def test_cancel_and_resume(run: Run) -> None:
    number = str(run.column("number"))
    act = (
        "from training.services import {0}; from training.models import *; {0}(job=TrainingRun.objects.get(number={1}))"
    )
    run.installation.manage("shell", "--no-imports", "-c", act.format("cancel_job", number))
    wait_until(lambda: run.column("state") == "cancelled", 60, "cancelled")
    assert run.installation.engines() == []
    stopped_at = run.step()
    run.installation.manage("shell", "--no-imports", "-c", act.format("resume_job", number))
    wait_until(lambda: run.step() > stopped_at, 60, "it goes on")
    run.check_the_end(attempts=1)


def test_a_worker_that_is_told_to_stop_lets_its_engine_save(run: Run) -> None:
    os.kill(run.trainer(), signal.SIGTERM)
    wait_until(lambda: run.installation.engines() == [], 60, "the engine saved and stopped")
    stopped_at = run.step()
    wait_until(lambda: run.step() > stopped_at, 60, "the restarted worker goes on")
    run.check_the_end(attempts=1)
