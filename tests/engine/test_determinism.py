"""The same job gives the same bytes: in another process, with a cache or without, however often it was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.runs import ROOT, adapter_bytes, read_lines, start, steps, triple
from training import jobspec
from training.engine import reference_logps
from training.jobspec import EXIT_INTERRUPTED

MakeRun = Callable[..., Path]

PAIRS, HELD_OUT, STEPS = 48, 4, 48
FIELDS: dict[str, Any] = {"epochs": 4.0, "pairs_per_step": 4, "micro_batch": 0, "save_every_steps": 5}
FAST = {"mode": "fast", "fast_layers": 1}
MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "fast": FAST,
    "exact bfloat16": {"precision": "bfloat16"},
    "fast bfloat16": FAST | {"precision": "bfloat16"},
}

# Imports what an engine needs, then forks a process for each run directory that it is told: a start takes a second
# less than it would, so that a test can afford many. Nothing is computed before the fork.
FORKING = """
import os, sys
from training.engine import process, train_dpo
from training.jobspec import TrainJob
from training.engine import dpo
from pathlib import Path
for line in sys.stdin:
    child = os.fork()
    if not child:
        log = os.open(line.strip() + "/train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        process.set_up_process()
        os._exit(process.execute(train_dpo.main, TrainJob, Path(line.strip())))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Engines:
    """Starts engine processes and kills them."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", FORKING]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, run_dir: Path, disturb: Callable[[int], None] | None = None) -> int:
        """The exit status of a run that ``disturb`` may kill; it gets the process id, at once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{run_dir}\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        try:
            if disturb:
                disturb(pid)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            self.process.stdout.readline()
            raise
        return int(self.process.stdout.readline())

    def finish(self, run_dir: Path) -> dict[str, Any]:
        assert self.run(run_dir) == 0, (run_dir / "train.log").read_text()
        result = jobspec.read_result(run_dir)
        assert result is not None
        return result.details

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    found = Engines()
    yield found
    found.close()


def rows() -> list[Any]:
    train = [triple(number) for number in range(PAIRS)]
    return train + [triple(100 + number, split="held_out") for number in range(HELD_OUT)]


def kill_at(run_dir: Path, words: str, after: float, number: signal.Signals) -> Callable[[int], None]:
    """Kill the process ``after`` seconds after a new line with ``words`` is in the journal."""
    journal = run_dir / "metrics.jsonl"
    before = journal.read_text().count(words) if journal.exists() else 0

    def disturb(pid: int) -> None:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_text().count(words) <= before:
            assert time.monotonic() < deadline, (run_dir / "train.log").read_text()
            time.sleep(0.001)
        time.sleep(after)
        os.kill(pid, number)

    return disturb


def figures(run_dir: Path) -> list[dict[str, Any]]:
    """All that is logged of the steps but the time that they took."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in steps(run_dir)]


def assert_same(one: Path, other: Path) -> None:
    assert adapter_bytes(one) == adapter_bytes(other)
    assert figures(one) == figures(other)
    assert (one / "held_out.jsonl").read_bytes() == (other / "held_out.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_fresh_processes_give_the_same_bytes(train_run: MakeRun, threads: int) -> None:
    runs = [train_run(rows(), name=name, threads=threads, **FIELDS | {"epochs": 1.0}) for name in ("first", "second")]
    for run_dir in runs:
        assert start("train_dpo", run_dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(timeout=120) == 0
    assert_same(*runs)


def test_neither_the_directory_nor_the_cache_shows_in_the_bytes(
    train_run: MakeRun, engines: Engines, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    first, second, third = (
        train_run(rows(), name="first", **FIELDS),
        train_run(rows(), name="second-elsewhere", cache_dir=cache, **FIELDS),
        train_run(rows(), name="third", cache_dir=cache, cache_mb=50, **FIELDS),
    )
    counts = [engines.finish(run_dir)["reference_logps"] for run_dir in (first, second, third)]
    assert [item["forwards"] for item in counts] == [PAIRS + HELD_OUT, PAIRS + HELD_OUT, 0]
    assert counts[2]["cached"] == PAIRS + HELD_OUT
    assert_same(first, second)
    assert_same(first, third)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast", "fast bfloat16"])
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    train_run: MakeRun, engines: Engines, tmp_path: Path, mode: str, cache: str
) -> None:
    """At any moment of a step, of its saving or of what follows; each start goes on from the last whole state."""
    draw = random.Random(f"{mode} {cache}")
    fields = FIELDS | MODES[mode]
    warm = {"cache_dir": str(tmp_path / "warm")}
    whole = train_run(rows(), name="whole", **fields | warm)
    engines.finish(whole)
    run_dir = train_run(rows(), name="killed", **fields | (warm if cache == "warm" else {}))
    kills = [signal.SIGKILL] * 5 + [signal.SIGTERM]
    draw.shuffle(kills)
    logged = 0
    for number, when in zip(kills, sorted(draw.sample(range(2, STEPS - 10), len(kills))), strict=True):
        when = max(when, logged + 1)
        code = engines.run(run_dir, kill_at(run_dir, f'"step":{when},', draw.random() * 0.03, number))
        assert code in {-signal.SIGKILL, EXIT_INTERRUPTED}, (run_dir / "train.log").read_text()
        assert (code == EXIT_INTERRUPTED) == (number == signal.SIGTERM)
        assert jobspec.read_result(run_dir) is None
        assert not (run_dir / "checkpoint").exists()
        logged = steps(run_dir)[-1]["step"]
        assert logged >= when
    counts = engines.finish(run_dir)["reference_logps"]
    assert counts["forwards"] == 0
    assert_same(whole, run_dir)
    assert [line["step"] for line in steps(run_dir)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("mode", ["exact", "fast", "exact bfloat16", "fast bfloat16"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_while_it_reads_the_reference_goes_on_reading(
    train_run: MakeRun, engines: Engines, mode: str, number: signal.Signals
) -> None:
    fields = FIELDS | MODES[mode] | {"epochs": 1.0}
    whole, cut = train_run(rows(), name="whole", **fields), train_run(rows(), name="cut", **fields)
    engines.finish(whole)
    code = engines.run(cut, kill_at(cut, '"reading reference","at"', 0.0, number))
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else EXIT_INTERRUPTED)
    code = engines.run(cut, kill_at(cut, '"done":40,', 0.0, number))
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else EXIT_INTERRUPTED)
    assert steps(cut) == []
    counts = engines.finish(cut)["reference_logps"]
    assert counts["cached"] >= reference_logps.SAVED_TOGETHER
    assert counts["forwards"] + counts["cached"] == PAIRS + HELD_OUT
    assert counts["damaged"] == 0
    assert_same(whole, cut)


@pytest.mark.parametrize("phase", ["loading model", "scoring held-out pairs", "writing checkpoint"])
def test_a_run_that_is_killed_between_its_phases_goes_on(train_run: MakeRun, engines: Engines, phase: str) -> None:
    fields = FIELDS | {"epochs": 1.0}
    whole, cut = train_run(rows(), name="whole", **fields), train_run(rows(), name="cut", **fields)
    engines.finish(whole)
    assert engines.run(cut, kill_at(cut, f'"phase":"{phase}"', 0.0, signal.SIGKILL)) == -signal.SIGKILL
    before = steps(cut) if phase != "loading model" else []
    engines.finish(cut)
    assert_same(whole, cut)
    assert steps(cut)[: len(before)] == before  # not trained once more
    phases = [line["phase"] for line in read_lines(cut, "metrics.jsonl") if "phase" in line]
    assert phases[-1] == "writing checkpoint"
    assert not (cut / ".checkpoint.partial").exists()
