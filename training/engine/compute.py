"""Which device computes, in which precision, and how a result says so."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from training.engine.errors import EngineError

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Compute:
    """``dtype`` is the precision of frozen weights; weights that are trained are always float32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """The precision a trainer computes in, so that a score is what training saw."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.on_cuda)

    def describe(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.on_cuda else platform.processor() or platform.machine()
        return {
            "device": self.device.type,
            "device_name": name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {library: version(library) for library in LIBRARIES},
        }


def choose(device: str, threads: int) -> Compute:
    """``device`` is "auto", "cpu" or "cuda"; ``threads`` 0 leaves the choice to torch.

    The processes of a run share the threads.

    On a CPU everything is float32: without AMX or AVX512-BF16 bfloat16 is emulated there and slower than float32.
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise EngineError("bad_job", f"There is no device {device!r}.", "Choose auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise EngineError("no_gpu", "The run asks for a GPU and this machine has none.", "Choose auto or cpu.")
    if threads > 0:
        torch.set_num_threads(max(1, threads // processes()))
    # A few CUDA kernels have no deterministic form; on a CPU this makes the same job give the same bytes.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    if available and device != "cpu":
        return Compute(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), torch.bfloat16)
    return Compute(torch.device("cpu"), torch.float32)


def processes() -> int:
    """How many processes share this run; ``accelerate launch`` says so in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))
