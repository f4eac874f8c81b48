"""The run directory seen from the web side: its paths, what a job's engine has reported so far, the end of its log."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings

from training.jobspec import MEMORY_RAN_OUT, StepMetrics

LOG_TAIL_BYTES = 8_000
MAX_CHART_POINTS = 400


@dataclass(frozen=True)
class RunDir:
    """Paths of one job's directory."""

    path: Path

    @classmethod
    def of(cls, job_uuid: Any) -> RunDir:
        return cls(Path(settings.DATA_DIR) / "jobs" / str(job_uuid))

    def make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def dataset(self) -> Path:
        return self.path / "dataset.jsonl"

    @property
    def probes(self) -> Path:
        return self.path / "probes.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def answers(self) -> Path:
        return self.path / "answers.json"

    @property
    def training_pairs(self) -> Path:
        return self.path / "training_pairs.jsonl"

    @property
    def code(self) -> Path:
        return self.path / "code.json"

    @property
    def held_out(self) -> Path:
        return self.path / "held_out.jsonl"

    @property
    def effects(self) -> Path:
        return self.path / "effects.jsonl"

    @property
    def canaries(self) -> Path:
        return self.path / "canaries.jsonl"

    @property
    def responses(self) -> Path:
        return self.path / "responses.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def memory_ran_out(self) -> Path:
        return self.path / MEMORY_RAN_OUT

    def forget_outcome(self) -> None:
        """Remove what an earlier attempt concluded, and keep what the next one can go on from."""
        (self.path / "result.json").unlink(missing_ok=True)
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def drop_resume_state(self) -> None:
        shutil.rmtree(self.path / "trainer", ignore_errors=True)

    def drop_inputs(self) -> None:
        """Remove what only a run that goes on would need, and keep its record: metrics, scores and log."""
        self.drop_resume_state()
        for path in (self.dataset, self.probes, self.canaries, self.responses):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass
class LineReader:
    """Reads the complete lines that were appended to a file since the last look.

    An engine that goes on from a saved step replaces the file by one without the later steps; a replaced file is read
    from its start.
    """

    path: Path
    offset: int = 0
    inode: int = 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        try:
            file: BinaryIO = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            if (inode := os.fstat(file.fileno()).st_ino) != self.inode:
                self.inode, self.offset = inode, 0
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                yield json.loads(line)
                self.offset += len(line)  # not before: a reader that fails on a line is given it again


def read_steps(run_dir: RunDir) -> list[StepMetrics]:
    """The logged optimiser steps, thinned evenly to what a chart can show; the last one is always there."""
    steps = [StepMetrics.from_dict(line) for line in LineReader(run_dir.metrics).new_lines() if "loss" in line]
    stride = -(-len(steps) // MAX_CHART_POINTS) or 1
    return [step for index, step in enumerate(steps) if index % stride == 0 or index == len(steps) - 1]


def log_tail(run_dir: RunDir, size: int = LOG_TAIL_BYTES) -> str:
    """The end of the engine's log, from the start of a line."""
    try:
        with run_dir.log.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - size))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return text.split("\n", 1)[-1] if length > size else text
