"""Run directories for the engine: what goes in, starting it, what comes out."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from training import jobspec
from training.engine import process
from training.jobspec import (
    CompareJob,
    Completion,
    EffectsJob,
    ImportJob,
    MergeJob,
    PromptLine,
    Result,
    SampleJob,
    SideBySideJob,
    TrainJob,
    TripleLine,
)

ROOT = Path(__file__).parents[2]
JOB_TYPES: dict[str, Any] = {
    job.kind: job for job in (SampleJob, SideBySideJob, TrainJob, CompareJob, MergeJob, ImportJob, EffectsJob)
}
QUESTIONS = ("Why is the sky blue?", "Name a bird.", "Tell me about rain.", "What is a good book?", "Who reads to you?")


def question(number: int, text: str = "") -> PromptLine:
    return PromptLine(f"prompt-{number}", [{"role": "user", "content": text or f"{number}: {QUESTIONS[number % 5]}"}])


def triple(number: int, split: str = "train", **fields: Any) -> TripleLine:
    defaults: dict[str, Any] = {
        "pair_id": f"pair-{number}",
        "prompt_id": f"prompt-{number}",
        "split": split,
        "messages": question(number).messages,
        "chosen": Completion(f" good bird book number{' on' * (number % 3)}"),
        "rejected": Completion(f" hard night rain{' off' * (number % 4)}."),
        "preference_ids": [number],
    }
    return TripleLine(**(defaults | fields))


def write_lines(run_dir: Path, lines: list[Any]) -> None:
    (run_dir / "dataset.jsonl").write_text("".join(line.to_json() + "\n" for line in lines), encoding="utf-8")


def read_lines(run_dir: Path, name: str) -> list[dict[str, Any]]:
    whole = (run_dir / name).read_text(encoding="utf-8").rpartition("\n")[0]  # an engine may be writing the next line
    return [json.loads(line) for line in whole.splitlines()]


def steps(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run_dir, "metrics.jsonl") if "step" in line]


def do(name: str, run_dir: Path) -> Result:
    """Run an engine module on ``run_dir`` in this process and return its result."""
    code = process.execute(entry(name), JOB_TYPES[name], run_dir)
    result = jobspec.read_result(run_dir)
    assert result is not None
    assert code == (0 if result.ok else jobspec.EXIT_FAILED)
    return result


def succeed(name: str, run_dir: Path) -> dict[str, Any]:
    result = do(name, run_dir)
    assert result.ok, result
    return result.details


def entry(name: str) -> Any:
    return importlib.import_module(f"training.engine.{name}").main


def start(name: str, run_dir: Path, **options: Any) -> subprocess.Popen[bytes]:
    """The engine as a process of its own."""
    command = [sys.executable, "-m", f"training.engine.{name}", str(run_dir)]
    return subprocess.Popen(command, cwd=ROOT, **options)


def adapter_bytes(run_dir: Path) -> bytes:
    return (run_dir / "checkpoint" / "adapter_model.safetensors").read_bytes()
