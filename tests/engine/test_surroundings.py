"""An engine as its worker starts it: polite to its neighbours, without secrets, and gone when it is told to be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.runs import steps
from tests.engine.test_distributed import TWO, ranks_of, rows
from training import process as supervising
from training.engine import process
from training.jobspec import EXIT_INTERRUPTED
from training.process import EngineProcess
from training.rundir import RunDir

MakeRun = Callable[..., Path]
SECRETS = ("TIEBREAK_SECRET_KEY", "DATABASE_URL", "CELERY_BROKER_URL", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], EngineProcess]]:
    """Start engines as a worker does, with secrets in the worker's own environment."""
    for name in SECRETS:
        monkeypatch.setenv(name, "a-secret")
    engines: list[EngineProcess] = []

    def begin(run_dir: Path) -> EngineProcess:
        engines.append(EngineProcess("train_dpo", RunDir(run_dir)))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()


def wait_for(condition: Callable[[], Any], engine: EngineProcess, run_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert engine.wait(0.01) is None, (run_dir / "train.log").read_text()
        assert time.monotonic() < deadline


def has_begun(run_dir: Path) -> bool:
    return (run_dir / "metrics.jsonl").exists() and bool(steps(run_dir))


def test_an_engine_is_nice_offline_and_without_secrets_and_its_log_is_bounded(
    train_run: MakeRun, supervised: Callable[[Path], EngineProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "MAX_LOG_BYTES", 4096)
    monkeypatch.setattr(supervising, "CHUNK_BYTES", 512)
    run_dir = train_run(6, epochs=1000.0)
    engine = supervised(run_dir)
    wait_for(lambda: has_begun(run_dir) and steps(run_dir)[-1]["step"] > 60, engine, run_dir)

    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, engine.pid) == min(own + process.NICENESS, 19)
    assert Path(f"/proc/{engine.pid}/oom_score_adj").read_text().strip() == str(process.OOM_SCORE)
    environment = Path(f"/proc/{engine.pid}/environ").read_bytes()
    assert b"a-secret" not in environment
    assert b"TRANSFORMERS_OFFLINE=1" in environment
    assert b"HF_HUB_OFFLINE=1" in environment
    log = (run_dir / "train.log").read_bytes()
    assert log.startswith(b"[earlier output dropped]")
    assert len(log) < 4096 + 2 * 512

    engine.ask_to_stop()
    engine.ask_to_stop()
    deadline = time.monotonic() + supervising.GRACE_SECONDS
    while (code := engine.wait(0.1)) is None:
        assert time.monotonic() < deadline
    assert code == EXIT_INTERRUPTED


@pytest.mark.slow
def test_an_engine_of_several_processes_is_closed_with_all_of_them(
    train_run: MakeRun, supervised: Callable[[Path], EngineProcess]
) -> None:
    run_dir = train_run(rows(), **TWO | {"epochs": 2000.0})
    engine = supervised(run_dir)
    wait_for(lambda: has_begun(run_dir), engine, run_dir)
    ranks = ranks_of(engine.pid)
    assert sorted(ranks) == [0, 1]
    for pid in ranks.values():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"a-secret" not in environment
        assert b"TRANSFORMERS_OFFLINE=1" in environment
    engine.kill()
    deadline = time.monotonic() + 20
    while ranks_of(engine.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
