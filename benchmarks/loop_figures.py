"""How good a policy is by a known taste, with intervals over prompts. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.taste import plainness

RESAMPLES = 2000
TAIL = 0.025


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int


# The answers of a policy by prompt.
Answers = dict[str, list[Answer]]


def reward(answers: Answers) -> float:
    """The mean over prompts of the taste's own score."""
    return fmean(fmean(plainness(answer.text) for answer in each) for each in answers.values())


def mean_length(answers: Answers) -> float:
    return fmean(answer.tokens for each in answers.values() for answer in each)


def wins(answers: Answers, others: Answers) -> list[float]:
    """By prompt that both have answered, how often an answer is better than the other policy's; equals count half."""
    return [_won(answers[prompt], others[prompt]) for prompt in sorted(answers.keys() & others.keys())]


def _won(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    differences = [plainness(one.text) - plainness(other.text) for one in ours for other in theirs]
    return fmean(1.0 if difference > 0 else 0.5 if difference == 0 else 0.0 for difference in differences)


def interval(values: Sequence[float]) -> list[float]:
    """Of the mean, 95 %, by bootstrap over ``values``, one a prompt."""
    chance = random.Random(0)
    means = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return [round(means[int(RESAMPLES * TAIL)], 4), round(means[int(RESAMPLES * (1 - TAIL)) - 1], 4)]


def compared(answers: Answers, sft: Answers) -> dict[str, Any]:
    won = wins(answers, sft)
    return {
        "true_win_rate": round(fmean(won), 4),
        "ci": interval(won),
        "true_reward": round(reward(answers), 4),
        "mean_length": round(mean_length(answers), 1),
    }


def difference(ours: Answers, theirs: Answers) -> dict[str, Any]:
    """How often the one policy is better than the other on the same prompts."""
    won = wins(ours, theirs)
    return {"win_rate": round(fmean(won), 4), "ci": interval(won)}


def table(arms: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"{'arm':34} {'round':>5} {'labels':>6} {'right':>6} {'true win rate':>21} {'reward':>7} {'KL':>6} "
        f"{'tokens':>6} {'held-out accuracy':>20}"
    ]
    lines += [_line(name, row) for name, rows in arms.items() for row in rows]
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:34} {row['round']:5} {row['labels']:6} {row['label_accuracy']:6.0%} "
        f"{share(row['true_win_rate'], row['ci']):>21} {row['true_reward']:7.3f} {_number(row['kl']):>6} "
        f"{row['mean_length']:6.1f} {share(row['heldout_accuracy'], row['heldout_ci']):>20}"
    )


def share(value: float | None, ci: Sequence[float] | None) -> str:
    if value is None:
        return "none"
    return f"{value:.1%}" + (f" ({ci[0]:.0%} to {ci[1]:.0%})" if ci else "")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
