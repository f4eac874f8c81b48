"""The recipe of a run and the decoding of a batch: their fields, bounds, and why each is there. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

from training.exceptions import Rejected
from training.jobspec import SampleJob, TrainJob

Method = Literal["lora", "full"]
METHODS: tuple[str, ...] = get_args(Method)
# Full fine-tuning moves every weight, so it takes a step about fifty times smaller (SmolLM2's own DPO recipe).
LEARNING_RATES = {"lora": TrainJob.learning_rate, "full": 1e-6}
# What people call the fields, on the form and on a run's page.
LABELS = {
    "method": "Method",
    "beta": "β",
    "learning_rate": "Learning rate",
    "epochs": "Epochs",
    "pairs_per_step": "Pairs per step",
    "micro_batch": "Micro-batch",
    "max_length": "Maximum length",
    "warmup_ratio": "Warm-up",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA α",
}


@dataclass(frozen=True)
class Bound:
    """The smallest and the largest value of a field."""

    low: float
    high: float


@dataclass(frozen=True)
class _Bounded:
    BOUNDS: ClassVar[dict[str, Bound]] = {}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the recipe with ``values`` over the defaults; ``Rejected`` for an unknown field or a bad value."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise Rejected(f"There is no field “{unknown[0]}”. Known: {', '.join(sorted(known))}.")
        try:
            recipe = cls(**values)
        except (TypeError, ValueError) as error:
            raise Rejected(str(error)) from error
        recipe.check()
        return recipe

    def check(self) -> None:
        for name, bound in self.BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise Rejected(f"{name} must be a number, not {value!r}.")
            if isinstance(getattr(type(self), name), int) and not isinstance(value, int):
                raise Rejected(f"{name} is {str(value)[:40]}; it must be a whole number.")
            if not bound.low <= value <= bound.high:
                raise Rejected(f"{name} is {str(value)[:40]}; it must lie between {bound.low:g} and {bound.high:g}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Recipe(_Bounded):
    """Hyperparameters of Direct Preference Optimization; the defaults are those of ``TrainJob``."""

    method: str = TrainJob.method
    beta: float = TrainJob.beta
    learning_rate: float = TrainJob.learning_rate
    epochs: float = TrainJob.epochs
    pairs_per_step: int = TrainJob.pairs_per_step
    micro_batch: int = TrainJob.micro_batch
    max_length: int = TrainJob.max_length
    warmup_ratio: float = TrainJob.warmup_ratio
    lora_rank: int = TrainJob.lora_rank
    lora_alpha: int = TrainJob.lora_alpha

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "beta": Bound(0.001, 10),
        "learning_rate": Bound(1e-9, 1e-2),
        "epochs": Bound(0.1, 50),
        "pairs_per_step": Bound(1, 1024),
        "micro_batch": Bound(1, 64),
        "max_length": Bound(32, 32_768),
        "warmup_ratio": Bound(0, 1),
        "lora_rank": Bound(1, 256),
        "lora_alpha": Bound(1, 1024),
    }

    def check(self) -> None:
        super().check()
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise Rejected(f"There is no method “{self.method}”; use {' or '.join(METHODS)}.")
        if self.pairs_per_step % self.micro_batch:
            raise Rejected(
                f"{self.pairs_per_step} pairs a step cannot be split into micro-batches of {self.micro_batch}; "
                "make one a multiple of the other."
            )


@dataclass(frozen=True)
class Decoding(_Bounded):
    """How responses are sampled; the defaults are those of ``SampleJob``."""

    temperature: float = SampleJob.temperature
    top_p: float = SampleJob.top_p
    max_new_tokens: int = SampleJob.max_new_tokens
    max_length: int = SampleJob.max_length

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "temperature": Bound(0.05, 5),
        "top_p": Bound(0.01, 1),
        "max_new_tokens": Bound(1, 8192),
        "max_length": Bound(32, 32_768),
    }
