"""When a run must stop, and what a person should know about one that ended. Pure: figures in, words out.

A stop is an ``EngineError``. A flag is ``{"code", "message", "hint"}``: the run has a result, and somebody should read
the flag before promoting it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

from training.engine.errors import EngineError
from training.jobspec import LossName, StepMetrics, TrainJob

Flag = dict[str, str]

# Root mean square of log pi - log pi_ref over the tokens of the first step, in nats: zero when the reference is the
# right one, but for rounding. Two ways of computing the same number differ by some 1e-5 in float32 and 0.03 in
# bfloat16. Another model differs by about the root of twice the KL a token: 0.14 for one nat in a hundred tokens.
# A mean would not do, as it can be near zero for two different models.
REFERENCE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}

# Chosen responses usually get less likely under DPO, by hundredths or tenths of a nat a token, which may be harmless
# (likelihood displacement, Razin et al. 2024). Half a nat, a token at 60% of its probability, is worth a look at what
# became likelier instead. At two nats a token has a seventh of its probability, and a response of ten tokens a
# five-hundred-millionth: what people chose is no longer what the policy writes, and no later step brings it back.
DISPLACED = 0.5
DISPLACED_STOP = 2.0
# Steps that the stop looks back on: a few odd pairs in one step end no run.
DISPLACED_STEPS = 5
# Losses whose work it is to make both responses less likely. The flag still tells how far they fell.
PUSHING_DOWN: frozenset[LossName] = frozenset({"apo_down"})

# Each of these is a change that a reader notices; how sure it is, the intervals of the paired changes say. Length is
# what DPO drifts in first (Park et al. 2024), and since responses are cut, the little that can be seen of it counts.
LENGTH_DRIFT = 0.10
FINISH_DROP = 0.10
# More text has a smaller share of different n-grams anyway: answers to AlpacaEval, 32 to 256 of them, lose 5 to 8% of
# distinct-2 when 100 words are read instead of 50. A fifth is repetition, not length.
DISTINCT_DROP = 0.20
# Nats a response. The frontier of reward against KL in Rafailov et al. 2023, fig. 2, is flat well before 20, and the
# best of 128 samples is only 3.9 away from the policy that wrote them.
KL_BUDGET = 20.0
# With fewer, a percentile bootstrap over prompts is too narrow to be believed.
FEW_PROMPTS = 20
# Of the last step's pairs, as a share: all of them, but for rounding of a mean.
ALL_LEARNED = 1 - 1e-6

LEARN_SLOWER = "Lower the learning rate, or raise beta, and start a new run."
HOLD_CHOSEN = "Lower the learning rate, raise beta, or add the SFT term, and start a new run."
READ_FIRST = "Read a few of its responses before you promote it."


class TrainingGuard:
    """Watches the optimiser steps of one process; one that goes on from a saved step starts with an empty memory."""

    def __init__(self, dtype: str = "float32", loss: LossName = "dpo") -> None:
        self.reference_tolerance = REFERENCE_TOLERANCE[dtype]
        self.stops_displaced = loss not in PUSHING_DOWN
        self.shifts: deque[float] = deque(maxlen=DISPLACED_STEPS)

    @classmethod
    def of(cls, dtype: object, loss: LossName = "dpo") -> TrainingGuard:
        """``dtype``: what the policy computes in, as torch names it or as a string."""
        return cls(str(dtype).removeprefix("torch."), loss)

    def check_reference(self, chosen: float, rejected: float) -> None:
        """Before the first update policy and reference must agree on both responses, not only on the difference.

        The arguments are root mean squares of log pi - log pi_ref over tokens, in nats (``losses.disagreement``).
        Raises ``EngineError`` wrong_reference.
        """
        for name, difference in (("chosen", chosen), ("rejected", rejected)):
            if not difference <= self.reference_tolerance:  # so that NaN is no agreement either
                message = (
                    f"Before the first step policy and reference differ by {difference:.3g} nats a token on the {name} "
                    "responses; they must be the same model."
                )
                hint = "Report this: the run would have trained against a wrong model."
                raise EngineError("wrong_reference", message, hint)

    def check_step(self, loss: float, grad_norm: float, step: int) -> None:
        """Raises ``EngineError`` diverged."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise diverged(step)

    def watch(self, metrics: StepMetrics, chosen_shift: float) -> None:
        """Remember log pi(y_w | x) - log pi_ref(y_w | x), in nats a token, a mean over the pairs of one step.

        Raises ``EngineError`` displaced.
        """
        self.shifts.append(chosen_shift)
        fallen = len(self.shifts) == DISPLACED_STEPS and self.chosen_shift < -DISPLACED_STOP
        if fallen and self.stops_displaced:
            raise displaced(metrics.step, -self.chosen_shift)

    @property
    def chosen_shift(self) -> float:
        """Mean of what ``watch`` remembers; 0 before the first step."""
        return sum(self.shifts) / len(self.shifts) if self.shifts else 0.0


def diverged(step: int) -> EngineError:
    return EngineError("diverged", f"The loss stopped being a number at step {step}.", LEARN_SLOWER)


def displaced(step: int, fall: float) -> EngineError:
    message = (
        f"By step {step} the chosen responses had become {fall:.1f} nats a token less likely than under the reference: "
        "the policy was unlearning what people chose."
    )
    return EngineError("displaced", message, HOLD_CHOSEN)


def flags(
    held_out: dict[str, Any],
    on_policy: dict[str, Any],
    final: StepMetrics | None,
    chosen_shift: float = 0.0,
    kl_first_budget: float = TrainJob.kl_first_budget,
) -> list[Flag]:
    """What a person should know about a finished run, the most telling first.

    ``held_out`` is what ``evaluation.summarise`` returns, ``on_policy`` what ``comparison.after`` does: ``before`` and
    ``after`` of ``on_policy.measure`` and ``change`` of ``on_policy.change``, each empty where it was not measured.
    ``final`` is the last step, ``chosen_shift`` that of the ``TrainingGuard``, ``kl_first_budget`` what the project
    allows.
    """
    before, after = on_policy.get("before") or {}, on_policy.get("after") or {}
    return [
        *learning_flags(held_out, final),
        *displacement_flags(held_out, chosen_shift),
        *(writing_flags(before, after, on_policy.get("change") or {}) if before.get("prompts") and after else ()),
        *few_compared(held_out, on_policy.get("change") or {}),
        *drift_flags(after, kl_first_budget),
    ]


def learning_flags(held_out: dict[str, Any], final: StepMetrics | None) -> Iterator[Flag]:
    prompts = held_out.get("prompts", 0)
    if prompts < FEW_PROMPTS:
        yield few_held_out(prompts)
        return
    accuracy, low = held_out["after"]["accuracy"], held_out["accuracy_interval"][0]
    baseline = held_out["length_baseline"]
    no_better_than_length = baseline["advantage_interval"][0] <= 0
    if final and final.reward_accuracy >= ALL_LEARNED and (low <= 0.5 or no_better_than_length):
        yield nothing_learned(accuracy, baseline)
    elif no_better_than_length:
        yield length_only(accuracy, baseline)


def few_held_out(prompts: int) -> Flag:
    message = f"The held-out figures stand on {prompts} prompt{'' if prompts == 1 else 's'}: too few to rely on."
    if not prompts:
        message = "There are no held-out pairs, so nothing says whether the policy is better than its reference."
    hint = f"Label pairs of at least {FEW_PROMPTS} held-out prompts before the next run."
    return flag("few_held_out", message, hint)


def nothing_learned(accuracy: float, baseline: dict[str, Any]) -> Flag:
    message = (
        f"The policy gets every pair of the last step right, but {percent(accuracy)} of the held-out ones. That is not "
        f"surely more than chance, or than {rule_words(baseline)}: it may know its training pairs by heart."
    )
    hint = "Train for fewer epochs or with a higher beta, or label more pairs on more prompts."
    return flag("nothing_learned", message, hint)


def length_only(accuracy: float, baseline: dict[str, Any]) -> Flag:
    message = (
        f"On held-out pairs the policy is right in {percent(accuracy)}, not surely more often than "
        f"{rule_words(baseline)}: it may have learned nothing but length."
    )
    hint = "Compare responses of similar length by hand, set ld_alpha below 1, or label more held-out pairs."
    return flag("length_only", message, hint)


def rule_words(baseline: dict[str, Any]) -> str:
    return f"always choosing the {baseline['rule']} response ({percent(baseline['accuracy'])})"


def displacement_flags(held_out: dict[str, Any], chosen_shift: float) -> Iterator[Flag]:
    """Of held-out pairs or training pairs, whichever fell further."""
    shifts = {"held-out": held_out.get("chosen_shift", 0.0), "training": chosen_shift}
    where = min(shifts, key=lambda name: shifts[name])
    if shifts[where] < -DISPLACED:
        message = (
            f"The chosen responses of the {where} pairs became {-shifts[where]:.2f} nats a token less likely: the "
            "policy moved away from both responses, and something else became likelier."
        )
        yield flag("displaced_chosen", message, f"{READ_FIRST} {HOLD_CHOSEN}")


def writing_flags(before: dict[str, Any], after: dict[str, Any], change: dict[str, Any]) -> Iterator[Flag]:
    """All are of the same prompts. A change must be large, and larger than the choice of prompts explains."""
    longer = change.get("mean_tokens", 0.0) / before["mean_tokens"]
    if abs(longer) > LENGTH_DRIFT and sure(change, "mean_tokens"):
        what = "longer" if longer > 0 else "shorter"
        message = (
            f"Responses became {what}: {before['mean_tokens']:.0f} tokens before, {after['mean_tokens']:.0f} after."
        )
        yield flag("length_drift", message, "Check that people chose for more than length; ld_alpha below 1 helps.")
    if change.get("finish_rate", 0.0) < -FINISH_DROP and sure(change, "finish_rate"):
        message = (
            f"Fewer responses come to an end: {percent(before['finish_rate'])} before, {percent(after['finish_rate'])} "
            "after."
        )
        yield flag("unfinished", message, f"{READ_FIRST} Responses cut at their greatest length may have been chosen.")
    if after["distinct_2"] < (1 - DISTINCT_DROP) * before["distinct_2"]:
        message = (
            f"The policy repeats itself: {percent(after['distinct_2'])} of its token pairs are different ones, "
            f"{percent(before['distinct_2'])} before."
        )
        yield flag("repetitive", message, f"{READ_FIRST} {LEARN_SLOWER}")


def few_compared(held_out: dict[str, Any], change: dict[str, Any]) -> Iterator[Flag]:
    """Where there are held-out prompts enough, but few of them could be answered."""
    compared = change.get("prompts", FEW_PROMPTS)
    if compared < FEW_PROMPTS <= held_out.get("prompts", 0):
        message = (
            f"Only {compared} held-out prompt{'' if compared == 1 else 's'} could be answered before and after, too "
            "few to say whether responses became longer or end less often."
        )
        hint = "Prompts that fill the context, or that the chat template refuses, are not among them."
        yield flag("few_compared", message, f"{READ_FIRST} {hint}")


def sure(change: dict[str, Any], name: str) -> bool:
    """Whether the interval of a change leaves zero out, and stands on enough prompts to be believed."""
    low, high = change[f"{name}_interval"]
    return bool(change["prompts"] >= FEW_PROMPTS and (low > 0 or high < 0))


def drift_flags(after: dict[str, Any], first_budget: float) -> Iterator[Flag]:
    reference, first = after.get("kl_reference", 0.0), after.get("kl_first", 0.0)
    if reference > KL_BUDGET:
        message = far_from("its reference", after, "kl_reference", KL_BUDGET)
        yield flag("far_from_reference", message, f"{READ_FIRST} {LEARN_SLOWER}")
    if first > first_budget and (first != reference or first <= KL_BUDGET):  # one distance is told once
        message = far_from("the first policy", after, "kl_first", first_budget)
        hint = LEARN_SLOWER if first == reference else "Train the next round from an earlier checkpoint."
        yield flag("far_from_first", message, f"{READ_FIRST} {hint}")


def far_from(other: str, after: dict[str, Any], name: str, budget: float) -> str:
    low, high = after[f"{name}_interval"]
    return (
        f"The policy is {after[name]:.0f} nats a response away from {other} (95% interval {low:.0f} to {high:.0f}). "
        f"Beyond {budget:g} it is seldom better for it."
    )


def flag(code: str, message: str, hint: str) -> Flag:
    return {"code": code, "message": message, "hint": hint}


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"
