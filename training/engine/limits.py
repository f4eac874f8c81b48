"""What a training job may ask for, wider than what a recipe may: here is only refused what no run can be made of."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from training.engine.errors import EngineError
from training.jobspec import TrainJob

TINY, HUGE = sys.float_info.min, sys.float_info.max
MANY = 2**31 - 1


@dataclass(frozen=True)
class Limit:
    """``low`` and ``high`` may be taken themselves."""

    low: float
    high: float
    whole: bool = True

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        if self.low == TINY:
            return f"a {kind} above zero"
        return f"a {kind} from {self.low:g}" + (" on" if self.high == MANY else f" to {self.high:,.12g}")

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= self.high


LIMITS = {
    "learning_rate": Limit(TINY, HUGE, whole=False),
    "epochs": Limit(TINY, 100_000, whole=False),
    "warmup_ratio": Limit(0, 1, whole=False),
    "pairs_per_step": Limit(1, MANY),
    "micro_batch": Limit(0, MANY),
    "max_length": Limit(1, MANY),
    "lora_rank": Limit(1, MANY),
    "lora_alpha": Limit(1, MANY),
    "fast_layers": Limit(0, MANY),
    "save_every_steps": Limit(1, MANY),
    "cache_mb": Limit(0, MANY),
    "threads": Limit(0, 1024),  # OpenMP ends a process that asks for many more
    "seed": Limit(0, 2**32 - 1),  # what numpy takes
}


def check_numbers(job: TrainJob) -> None:
    """Raises ``EngineError`` bad_job for the first number of ``job`` that is out of its limits."""
    for name, limit in LIMITS.items():
        if not limit.holds(value := getattr(job, name)):
            called = name.replace("_", " ")
            raise EngineError("bad_job", f"The job says {value!r} for {called}.", f"Choose {limit}.")
