"""Which device computes, in which precision, and how a result says so."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, get_args

import torch

from training.engine.errors import EngineError
from training.jobspec import Precision

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VERSIONS = tuple(f"{library} {version(library)}" for library in ("torch", "transformers"))  # others may round otherwise
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Compute:
    """``dtype`` is the precision of frozen weights; weights that are trained are always float32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """Of the arithmetic, by which what was computed is kept: another device rounds otherwise."""
        native = " native" if self.dtype is torch.bfloat16 and not self.on_cuda and has_bfloat16() else ""
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}{native}"

    def autocast(self) -> torch.autocast:
        """The precision a trainer computes in, so that a score is what training saw."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    def describe(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.on_cuda else platform.processor() or platform.machine()
        return {
            "device": self.device.type,
            "device_name": name,
            "arithmetic": self.name,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {library: version(library) for library in LIBRARIES},
        }


def choose(device: str, threads: int, precision: str = "auto") -> Compute:
    """``device`` is "auto", "cpu" or "cuda"; ``threads`` 0 leaves the choice to torch.

    The processes of a run share the threads. ``precision`` is "float32", "bfloat16" or "auto", which is bfloat16 on a
    GPU and float32 on a CPU: most CPUs emulate bfloat16, and slowly (``has_bfloat16``).
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise EngineError("bad_job", f"There is no device {device!r}.", "Choose auto, cpu or cuda.")
    if precision not in get_args(Precision):
        hint = f"Choose one of {', '.join(get_args(Precision))}."
        raise EngineError("bad_job", f"There is no precision {precision!r}.", hint)
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise EngineError("no_gpu", "The run asks for a GPU and this machine has none.", "Choose auto or cpu.")
    if threads > 0:
        torch.set_num_threads(max(1, threads // processes()))
    # A few CUDA kernels have no deterministic form; on a CPU this makes the same job give the same bytes.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    on_cuda = available and device != "cpu"
    dtype = PRECISIONS.get(precision, torch.bfloat16 if on_cuda else torch.float32)
    where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_cuda else torch.device("cpu")
    return Compute(where, dtype)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 by itself (AVX512-BF16, AMX) rather than emulating it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def processes() -> int:
    """How many processes share this run; ``accelerate launch`` says so in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))
