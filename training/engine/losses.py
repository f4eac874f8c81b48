"""Preference losses of a batch of pairs, each pair with its own weight and label noise.

Every loss here is a function l(y_w, y_l) of a pair in one order. With probability epsilon the label is the wrong way
round, so a pair costs (1 - epsilon) l(y_w, y_l) + epsilon l(y_l, y_w), its expected loss. What that means:

* ``dpo``: conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"). The optimum is finite,
  z = log((1 - epsilon) / epsilon), and lies at z = 0 for a tie.
* ``ipo``: the squared loss around (1 - 2 epsilon) / (2 beta): the population loss of Azar et al. 2023 for a preference
  probability of 1 - epsilon.
* ``hinge``: the optimum stays at z = 1 for epsilon < 1/2, with a smaller slope; a tie is free while abs(z) < 1.
* ``apo_zero``: the clean loss times 1 - 2 epsilon, up to a constant. A tie teaches nothing.
* ``apo_down``: a tie pushes both responses down, as this loss does with every response.

``robust`` is the exception: it corrects for the noise in place of expecting it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.engine.errors import EngineError
from training.jobspec import LossName, TrainJob

TIE = 0.5

# The robust loss multiplies a pair's gradient by 1 / (1 - 2 epsilon): above this, by more than five hundred.
ROBUST_NOISE = 0.499


@dataclass(frozen=True)
class PairLogps:
    """Per-token log-probabilities in nats, (pairs, tokens) float32, zero where padded.

    The lengths are (pairs,) int64. Chosen and rejected may be padded to different widths.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    def to(self, device: torch.device | str) -> PairLogps:
        return PairLogps(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class LossSettings:
    name: LossName
    beta: float
    sft_weight: float = 0.0
    ld_alpha: float = 1.0

    @classmethod
    def of(cls, job: TrainJob) -> LossSettings:
        return cls(job.loss, job.beta, job.sft_weight, job.ld_alpha)


@dataclass(frozen=True)
class LogRatios:
    """log pi(y | x) - log pi_ref(y | x) of both responses in nats, and their lengths in tokens; all (pairs,)."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def difference(self) -> Tensor:
        return self.chosen - self.rejected

    def swapped(self) -> LogRatios:
        return LogRatios(self.rejected, self.chosen, self.rejected_tokens, self.chosen_tokens)


def pair_losses(logps: PairLogps, weight: Tensor, label_noise: Tensor, settings: LossSettings) -> Tensor:
    """The loss of each pair, (pairs,), in nats but for ``ipo`` and the bounded losses. The caller averages.

    ``weight`` (pairs,) is finite and not negative; ``label_noise`` (pairs,) is epsilon in [0, 1/2]. ``check`` refuses
    others, once and before training; here nothing is looked at, as that would wait for the GPU.
    """
    ratios = log_ratios(logps, settings.ld_alpha)
    loss = noisy_loss(ratios, label_noise, settings)
    if settings.sft_weight:
        loss = loss + settings.sft_weight * sft_losses(logps, label_noise)
    return weight * loss


def rewards(logps: PairLogps, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Implicit rewards beta log(pi / pi_ref) of y_w and of y_l, (pairs,) each (Rafailov et al. 2023, eq. 5)."""
    ratios = log_ratios(logps, settings.ld_alpha)
    return settings.beta * ratios.chosen.detach(), settings.beta * ratios.rejected.detach()


def disagreement(logps: PairLogps) -> tuple[float, float]:
    """Root mean square of log pi - log pi_ref over the tokens of all chosen and of all rejected responses, in nats."""
    chosen = (logps.policy_chosen - logps.reference_chosen).detach().double().square().sum()
    rejected = (logps.policy_rejected - logps.reference_rejected).detach().double().square().sum()
    tokens = logps.chosen_tokens.sum().clamp(min=1), logps.rejected_tokens.sum().clamp(min=1)
    return float((chosen / tokens[0]).sqrt()), float((rejected / tokens[1]).sqrt())


def log_ratios(logps: PairLogps, ld_alpha: float) -> LogRatios:
    """Sums over tokens; those beyond the shorter response's length count ``ld_alpha`` (LD-DPO, Liu et al. 2024).

    As in TRL the weight is on policy and reference alike, so that equal models have ratio zero.
    """
    chosen = logps.policy_chosen - logps.reference_chosen
    rejected = logps.policy_rejected - logps.reference_rejected
    if ld_alpha != 1.0:
        shorter = torch.minimum(logps.chosen_tokens, logps.rejected_tokens)
        chosen, rejected = (values * tail_weights(values, shorter, ld_alpha) for values in (chosen, rejected))
    return LogRatios(chosen.sum(dim=1), rejected.sum(dim=1), logps.chosen_tokens, logps.rejected_tokens)


def tail_weights(values: Tensor, shared: Tensor, ld_alpha: float) -> Tensor:
    """1 for a row's first ``shared`` columns, ``ld_alpha`` for the others; (pairs, tokens)."""
    is_tail = torch.arange(values.shape[1], device=values.device) >= shared[:, None]
    return torch.where(is_tail, ld_alpha, 1.0)


def noisy_loss(ratios: LogRatios, label_noise: Tensor, settings: LossSettings) -> Tensor:
    """(pairs,): see the module's docstring."""
    if settings.name == "robust":
        return robust(ratios, label_noise, settings.beta)
    loss = LOSSES[settings.name]
    as_labelled, other_way = loss(ratios, settings.beta), loss(ratios.swapped(), settings.beta)
    return (1 - label_noise) * as_labelled + label_noise * other_way


def logistic(ratios: LogRatios, beta: float) -> Tensor:
    """-log sigma(z), z = beta (Delta - Delta_ref) (Rafailov et al. 2023, eq. 7)."""
    return -logsigmoid(beta * ratios.difference)


def hinge(ratios: LogRatios, beta: float) -> Tensor:
    """max(0, 1 - z) (SLiC, Zhao et al. 2023; with a reference as in Liu et al. 2023, "Statistical rejection")."""
    return torch.relu(1 - beta * ratios.difference)


def ipo(ratios: LogRatios, beta: float) -> Tensor:
    """(Delta_per_token - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17).

    Averages over tokens where the paper has sums, as TRL does by the authors' advice: else the squared loss grows with
    the length of the responses. Under ``ld_alpha`` the whole length is still the divisor.
    """
    chosen = ratios.chosen / ratios.chosen_tokens.clamp(min=1)
    rejected = ratios.rejected / ratios.rejected_tokens.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def apo_zero(ratios: LogRatios, beta: float) -> Tensor:
    """1 - sigma(r_w) + sigma(r_l): y_w up, y_l down (D'Oosterlinck et al. 2024, eq. 7).

    For responses better than what the policy writes.
    """
    return 1 - torch.sigmoid(beta * ratios.chosen) + torch.sigmoid(beta * ratios.rejected)


def apo_down(ratios: LogRatios, beta: float) -> Tensor:
    """sigma(r_w) + 1 - sigma(r_w - r_l): both down, y_l further (D'Oosterlinck et al. 2024, eq. 8).

    For responses worse than what the policy writes.
    """
    return torch.sigmoid(beta * ratios.chosen) + 1 - torch.sigmoid(beta * ratios.difference)


def robust(ratios: LogRatios, label_noise: Tensor, beta: float) -> Tensor:
    """((1 - epsilon) l(y_w, y_l) - epsilon l(y_l, y_w)) / (1 - 2 epsilon), l logistic (Chowdhury et al. 2024).

    Its mean over the noise is the loss of the clean label. A single pair's loss has no lower bound for epsilon > 0, so
    long training drives margins without end, and it divides by zero at epsilon = 1/2: ``check`` refuses what is more
    than ``ROBUST_NOISE``.
    """
    as_labelled, other_way = logistic(ratios, beta), logistic(ratios.swapped(), beta)
    return ((1 - label_noise) * as_labelled - label_noise * other_way) / (1 - 2 * label_noise)


def sft_losses(logps: PairLogps, label_noise: Tensor) -> Tensor:
    """-(1 - 2 epsilon) log pi(y_w | x) / |y_w| in nats a token, (pairs,) (RPO; Liu et al. 2024, Pang et al. 2024).

    The papers know no label noise. 1 - 2 epsilon is the mean of a label's sign: a sure label counts whole, and a tie,
    which has no winner to imitate, not at all, with no jump between. ``ld_alpha`` plays no part.
    """
    mean = logps.policy_chosen.sum(dim=1) / logps.chosen_tokens.clamp(min=1)
    return -(1 - 2 * label_noise) * mean


LOSSES: dict[str, Callable[[LogRatios, float], Tensor]] = {
    "dpo": logistic,
    "ipo": ipo,
    "hinge": hinge,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}


def check(
    settings: LossSettings, weights: Sequence[float], noises: Sequence[float], pair_ids: Sequence[str] = ()
) -> None:
    """Refuse what ``pair_losses`` gives no sensible number for. Errors name the pair, by its number without an id.

    Raises ``EngineError``: bad_job for the settings, bad_dataset for a pair.
    """
    check_settings(settings)
    names = pair_ids or [f"number {number}" for number in range(1, len(weights) + 1)]
    for name, weight, noise in zip(names, weights, noises, strict=True):
        if problem := pair_problem(settings, weight, noise):
            raise EngineError("bad_dataset", f"Pair {name} {problem[0]}", problem[1])
    if not any(weights):
        raise EngineError("bad_dataset", "All pairs have weight 0, so there is nothing to learn.", "Label more pairs.")


def check_settings(settings: LossSettings) -> None:
    if settings.name not in {*LOSSES, "robust"}:
        raise EngineError("bad_job", f"There is no loss {settings.name!r}.", f"Choose {', '.join(LOSSES)} or robust.")
    if not 0 < settings.beta < math.inf:
        raise EngineError("bad_job", f"beta is {settings.beta}.", "Choose a number above zero, such as 0.1.")
    if not 0 <= settings.sft_weight < math.inf:
        raise EngineError("bad_job", f"The SFT weight is {settings.sft_weight}.", "Choose zero or a number above it.")
    if not 0 <= settings.ld_alpha <= 1:
        raise EngineError("bad_job", f"ld_alpha is {settings.ld_alpha}.", "Choose a number from 0 to 1; 1 is plain.")


def pair_problem(settings: LossSettings, weight: float, noise: float) -> tuple[str, str] | None:
    """The end of a sentence that begins with the pair, and a hint; None if nothing is wrong."""
    again = "Make a new snapshot of the labels; if it happens again, report this."
    if not 0 <= weight < math.inf:
        return f"has weight {weight}; a weight is a finite number, zero or above.", again
    if not 0 <= noise <= TIE:
        return f"has label noise {noise}; it is a probability from 0 to 1/2.", again
    if settings.name == "robust" and noise > ROBUST_NOISE:
        what = "is a tie" if noise == TIE else "is nearly a tie"
        return f"{what} (label noise {noise}), which the robust loss cannot use.", "Choose another loss, such as dpo."
    return None
