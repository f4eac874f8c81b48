"""Full weights from base and adapter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from training.engine import checkpoint, loading
from training.engine import compute as compute_module
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.jobspec import MergeJob

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def merge(run_dir: Path, job: MergeJob) -> dict[str, Any]:
    """W + (alpha / r) B A for every adapted matrix, summed in float32 and rounded once.

    Returns the details of the result. Raises ``EngineError``.
    """
    if job.dtype != "base" and job.dtype not in DTYPES:
        raise EngineError("bad_job", f"There is no dtype {job.dtype!r}.", "Choose base, float32 or bfloat16.")
    if job.model.adapter_dir is None:
        raise EngineError(
            "bad_job", "There is no adapter to merge.", "The full weights of this checkpoint are its own."
        )
    metrics, started = MetricsJournal(run_dir), time.monotonic()
    metrics.phase("loading model")
    compute = compute_module.choose("cpu", 0)
    tokenizer = loading.load_tokenizer(job.model.base_dir)
    model = loading.load_full_weights(job.model, torch.float32)
    # A merge that is stored more coarsely than its base answers differently from base and adapter.
    dtype = DTYPES[job.dtype] if job.dtype != "base" else stored_dtype(job.model.base_dir)
    model = model.to(dtype)
    loading.check_finite(model)
    metrics.phase("writing checkpoint")
    checkpoint.publish(run_dir, lambda directory: checkpoint.write_full(directory, model, tokenizer))
    return compute.describe() | {
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
        "seconds": round(time.monotonic() - started, 3),
    }


def stored_dtype(directory: str) -> torch.dtype:
    """The precision that a model's configuration names; float32 where it names none."""
    return AutoConfig.from_pretrained(directory, trust_remote_code=False).dtype or torch.float32
