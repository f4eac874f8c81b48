"""Append-only JSON-lines files that a crash can cut short in the last line and nowhere else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.jobspec import JsonRecord, StepMetrics

TICK = 8  # pairs or responses between two lines of progress


class Journal:
    """One file of JSON objects, one a line. Opening it drops a last line that was cut short by a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        drop_torn_line(path)

    def append(self, record: dict[str, Any] | JsonRecord, *, durable: bool = False) -> None:
        """Add a line that readers see at once; ``durable`` also waits until it is on the disk."""
        data = record.to_dict() if isinstance(record, JsonRecord) else record
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n") if line]


class MetricsJournal(Journal):
    """``metrics.jsonl``: phases, progress of sampling, and steps of training."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / "metrics.jsonl")
        self.last_phase = ""

    def phase(self, name: str, **figures: int | float) -> None:
        if name != self.last_phase:
            say(name)
        self.last_phase = name
        self.append({"phase": name, "at": round(time.time(), 3)} | figures)

    def tick(self, phase: str) -> Callable[[int, int], None]:
        """Tells how far ``phase`` has come, now and then."""

        def told(done: int, total: int) -> None:
            if done % TICK == 0 or done == total:
                self.phase(phase, done=done, total=total)

        return told

    def progress(self, done: int, total: int, tokens: int, seconds: float) -> None:
        """A batch of samples is finished: prompts done of all, tokens sampled and seconds spent since this start."""
        rate = round(tokens / seconds, 1) if seconds > 0 else 0.0
        say(f"{done} of {total} prompts, {rate} tokens/s")
        self.append({"done": done, "total": total, "tokens": tokens, "tokens_per_s": rate})

    def step(self, metrics: StepMetrics) -> None:
        figures = (
            f"loss {metrics.loss:.4f}, margin {metrics.reward_margin:+.4f}, accuracy {metrics.reward_accuracy:.2f}"
        )
        say(f"step {metrics.step} of {metrics.steps}: {figures}, gradient norm {metrics.grad_norm:.3g}")
        self.append(metrics)

    def rewind(self, step: int) -> list[StepMetrics]:
        """Forget the steps after ``step``, which will be made again. Returns those that are kept."""
        kept = [line for line in self.read() if line.get("step", 0) <= step]
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in kept)
        staging = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        staging.write_text(text, encoding="utf-8")
        staging.replace(self.path)
        return [StepMetrics.from_dict(line) for line in kept if "step" in line]


def say(line: str) -> None:
    """A line for people; the supervisor keeps what an engine prints in the job's log."""
    print(time.strftime("%H:%M:%S"), line, flush=True)  # noqa: T201


def drop_torn_line(path: Path) -> None:
    """Cut ``path`` after its last newline. A missing file stays missing."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
