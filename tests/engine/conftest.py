"""A tiny model, and run directories around it. These tests run the engine's work inside the test process."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.runs import question, triple, write_lines
from training import jobspec
from training.engine import process
from training.jobspec import ModelRef, PromptLine, SampleJob, TrainJob, TripleLine


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training.engine import tiny_model

    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.build(directory, seed=3)
    return directory


@pytest.fixture(autouse=True)
def no_stop_requested() -> Iterator[None]:
    process.stop.requested = False
    yield
    process.stop.requested = False


@pytest.fixture
def copied_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copied"))


@pytest.fixture
def reference(tiny_model_dir: Path) -> ModelRef:
    return ModelRef(str(tiny_model_dir), "hash-of-base")


@pytest.fixture
def sample_run(tmp_path: Path, reference: ModelRef) -> Callable[..., Path]:
    """A run directory with a sampling job: ``sample_run(prompts, **fields)``."""

    def make(prompts: int | list[PromptLine] = 5, name: str = "sample", **fields: Any) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        if isinstance(prompts, int):
            prompts = [question(number) for number in range(prompts)]
        defaults = {"model": reference, "seed": 7, "max_new_tokens": 48, "max_length": 256, "threads": 1}
        jobspec.write_job(run_dir, SampleJob(**(defaults | fields)))
        write_lines(run_dir, prompts)
        return run_dir

    return make


@pytest.fixture
def train_run(tmp_path: Path, reference: ModelRef) -> Callable[..., Path]:
    """A run directory with a training job: ``train_run(triples, **fields)``."""

    def make(triples: int | list[TripleLine] = 6, name: str = "train", **fields: Any) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        if isinstance(triples, int):
            triples = [triple(number) for number in range(triples)]
        defaults = {
            "reference": reference,
            "seed": 5,
            "learning_rate": 1e-2,
            "epochs": 2.0,
            "pairs_per_step": 2,
            "micro_batch": 1,
            "max_length": 128,
            "lora_rank": 4,
            "save_every_steps": 2,
            "threads": 1,
            "base_name": "example/tiny",
            # Whatever this CPU is good at; a GPU computes in what it would.
            "precision": "auto" if fields.get("device") == "cuda" else "float32",
        }
        jobspec.write_job(run_dir, TrainJob(**(defaults | fields)))
        write_lines(run_dir, triples)
        return run_dir

    return make
