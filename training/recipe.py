"""The recipe of a run and the decoding of a batch: their fields, bounds, and why each is there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, cast, get_args

from training.exceptions import Rejected
from training.jobspec import LossName, Precision, SampleJob, SideBySideJob, TrainJob
from training.learning_rate import steps_of, usual_learning_rate
from training.triples import LabelRule, Noise, Ties, Weight

Method = Literal["lora", "full"]
METHODS: tuple[str, ...] = get_args(Method)
# What people call the fields, on the form and on a run's page.
LABELS = {
    "method": "Method",
    "mode": "Mode",
    "beta": "β",
    "epochs": "Epochs",
    "loss": "Loss",
    "sft_weight": "SFT weight",
    "ld_alpha": "Length α",
    "ties": "Ties",
    "label_noise": "Label noise",
    "pair_weight": "Weight of a pair",
    "learning_rate": "Learning rate",
    "warmup_ratio": "Warm-up",
    "pairs_per_step": "Pairs per step",
    "max_length": "Maximum length",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA α",
    "fast_layers": "Layers of the fast mode",
    "micro_batch": "Micro-batch",
    "precision": "Precision",
    "processes": "GPUs",
    "sharding": "Several GPUs",
}
# The values of a choice, in the order of the form, as people call them.
CHOICES: dict[str, dict[str, str]] = {
    "method": {"lora": "LoRA adapter", "full": "Full fine-tuning"},
    "mode": {"exact": "Exact", "fast": "Fast"},
    "loss": {
        "dpo": "DPO",
        "ipo": "IPO",
        "hinge": "Hinge",
        "robust": "Robust DPO",
        "apo_zero": "APO-zero",
        "apo_down": "APO-down",
    },
    "ties": {"drop": "Left out", "half": "Triples with label noise ½"},
    "label_noise": {
        "none": "None: a majority is certain",
        "votes": "From the votes of each pair",
        "posterior": "From the posterior of each pair",
    },
    "pair_weight": {
        "equal": "Every pair the same",
        "votes": "Every judgement the same",
        "posterior": "As sure as the posterior is",
    },
    "precision": {"auto": "As the machine does best", "float32": "float32", "bfloat16": "bfloat16"},
    "sharding": {"ddp": "DDP: the whole model on each", "fsdp": "FSDP: the model shared out"},
}

# What is meant by a recipe without these fields: before there were rules for labels every majority was certain.
MEANT_EARLIER: dict[str, Any] = {"ties": "drop", "label_noise": "none", "pair_weight": "equal"}

# Losses that a tie, with label noise 1/2, does not fit.
WITHOUT_TIES = {
    "robust": "The robust loss divides by 1 − 2ε, and ties have label noise ε = 1/2, so it cannot take them.",
    "apo_zero": "Under APO-zero a tie has no gradient: it teaches nothing and takes the place of a pair that would.",
    "apo_down": "Under APO-down a tie makes both of its responses less likely, which is not what a tie says.",
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
    """Hyperparameters of Direct Preference Optimization; the defaults are those of ``TrainJob``.

    ``ties``, ``label_noise`` and ``pair_weight`` say how triples come of preferences; the others go to the engine.
    ``learning_rate`` 0 is the usual one for the number of steps, which is known once the triples are (``settled``).
    """

    method: str = TrainJob.method
    mode: str = TrainJob.mode
    beta: float = TrainJob.beta
    epochs: float = TrainJob.epochs
    loss: str = TrainJob.loss
    sft_weight: float = TrainJob.sft_weight
    ld_alpha: float = TrainJob.ld_alpha
    ties: str = LabelRule.ties
    label_noise: str = LabelRule.noise
    pair_weight: str = LabelRule.weight
    learning_rate: float = 0.0
    warmup_ratio: float = TrainJob.warmup_ratio
    pairs_per_step: int = TrainJob.pairs_per_step
    max_length: int = TrainJob.max_length
    lora_rank: int = TrainJob.lora_rank
    lora_alpha: int = TrainJob.lora_alpha
    fast_layers: int = TrainJob.fast_layers
    micro_batch: int = TrainJob.micro_batch
    precision: str = TrainJob.precision
    processes: int = TrainJob.processes
    sharding: str = TrainJob.sharding

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "beta": Bound(0.001, 10),
        "epochs": Bound(0.1, 50),
        "sft_weight": Bound(0, 10),
        "ld_alpha": Bound(0, 1),
        "learning_rate": Bound(0, 1e-2),
        "warmup_ratio": Bound(0, 1),
        "pairs_per_step": Bound(1, 1024),
        "max_length": Bound(32, 32_768),
        "lora_rank": Bound(1, 256),
        "lora_alpha": Bound(1, 1024),
        "fast_layers": Bound(0, 512),
        "micro_batch": Bound(0, 1024),
        "processes": Bound(0, 64),
    }
    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {
        "method": METHODS,
        "mode": ("exact", "fast"),
        "loss": get_args(LossName),
        "ties": get_args(Ties),
        "label_noise": get_args(Noise),
        "pair_weight": get_args(Weight),
        "precision": get_args(Precision),
        "sharding": ("ddp", "fsdp"),
    }
    ABOUT_DATA: ClassVar[tuple[str, ...]] = ("ties", "label_noise", "pair_weight")

    def check(self) -> None:
        super().check()
        for name, values in self.VALUES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in values:
                called = name.replace("_", " ")
                raise Rejected(f"There is no {called} “{str(value)[:40]}”; use {_either(values)}.")
        if self.ties == "half" and (reason := WITHOUT_TIES.get(self.loss)):
            raise Rejected(f"{reason} Leave ties out, or choose another loss.")
        self._check_weights()
        if self.loss == "robust" and self.label_noise == "none":
            raise Rejected(
                "The robust loss corrects for label noise, and without any it is plain DPO. Take label noise from the "
                "votes or the posterior, or choose DPO."
            )

    def _check_weights(self) -> None:
        if (self.pair_weight, self.label_noise) == ("votes", "none"):
            raise Rejected(
                "Weights from the votes without label noise from them would weigh a pair most on which people disagree "
                "most. Take label noise from the votes as well, or weigh every pair the same."
            )
        if (self.pair_weight, self.label_noise) == ("votes", "posterior"):
            raise Rejected(
                "The posterior becomes surer with every judgement of a pair, so weighing by their number as well would "
                "count each twice. Take label noise from the votes, or weigh every pair the same."
            )
        if self.pair_weight == "posterior" and self.label_noise != "none":
            raise Rejected(
                f"Weights from the posterior and label noise from the {self.label_noise} say the same doubt, which "
                "would count twice. Take label noise none with these weights, or weigh every pair the same."
            )

    def settled(self, train_triples: int) -> Recipe:
        """As a run on so many triples is computed: with a learning rate."""
        if self.learning_rate:
            return self
        steps = steps_of(train_triples, self.epochs, self.pairs_per_step)
        return replace(self, learning_rate=usual_learning_rate(self.method, self.mode, steps))

    @property
    def label_rule(self) -> LabelRule:
        return LabelRule(cast(Ties, self.ties), cast(Noise, self.label_noise), cast(Weight, self.pair_weight))


def for_engine(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a run's recipe is said to ``TrainJob``. A recipe of an earlier version has fewer fields."""
    return {name: value for name, value in recipe.items() if name not in Recipe.ABOUT_DATA}


def _either(values: Sequence[str]) -> str:
    return " or ".join([", ".join(values[:-1]), values[-1]])


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


@dataclass(frozen=True)
class AnswerDecoding(_Bounded):
    """How two policies answer side by side; the defaults are those of ``SideBySideJob``. Temperature 0 is greedy."""

    temperature: float = SideBySideJob.temperature
    top_p: float = SideBySideJob.top_p
    max_new_tokens: int = SideBySideJob.max_new_tokens

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "temperature": Bound(0, 5),
        "top_p": Bound(0.01, 1),
        "max_new_tokens": Bound(1, 1024),
    }
