"""A judge that knows the project's labels and nothing of the candidate: who would be preferred, length apart.

A linear reward r(x, y) = w . phi(x, y) under Bradley and Terry's model, with a length term beside it:

    P(a preferred to b) = sigma(w . [phi(a) - phi(b)] + gamma * tanh([tokens(a) - tokens(b)] / s))

phi is a response's mean last hidden state in the project's first policy, so the judge is a linear probe. The length
term is that of length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475): people, and what is fitted to them,
prefer longer answers for being longer (Singhal et al. 2023, arXiv 2310.03716). What the states say about length is
taken out of them before the fit and left to that term (Frisch and Waugh 1933), or it would come back through w. With
the term at zero the judge says who would be preferred if both answers were equally long.

Pairs have no order, so nothing here has an intercept, and features are scaled about zero. Only the leading directions
in which pairs differ are kept; w is held small by an L2 penalty that is chosen by cross-validation over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.engine.evaluation import CONFIDENCE, intervals, wins

COMPONENTS = 128  # directions of the states that are kept
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of pairs whose squared differences average one
LENGTH_PENALTY = 1e-3  # so that a length that tells all labels does not become infinite
FOLDS = 5
LEAST_PAIRS = 20  # to fit on, and to be believed on
LEAST_PROMPTS = 5
NEWTON_STEPS = 25
CONVERGED = 1e-8
RESAMPLES = 200
RESAMPLE_STEPS = 2  # from the fit to all pairs; more hardly move a resampled fit (Davidson and MacKinnon 1999)
SEED = 0


@dataclass(frozen=True)
class Pairs:
    """The first response of each pair less the second: ``states`` (pairs, width), ``tokens`` (pairs,)."""

    states: np.ndarray
    tokens: np.ndarray
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Labelled(Pairs):
    """Pairs whose first response was preferred, each with its weight and the chance that it was not."""

    weight: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class View:
    """How pairs become columns: ``COMPONENTS`` of the states without length, then the length term."""

    scale: np.ndarray  # (width,)
    by_length: np.ndarray  # (width,): what of the scaled states goes with the length term
    axes: np.ndarray  # (width, components)
    tokens: float

    def columns(self, pairs: Pairs) -> np.ndarray:
        """(pairs, components + 1) float64."""
        length = np.tanh(pairs.tokens / self.tokens)
        states = pairs.states / self.scale - np.outer(length, self.by_length)
        return np.column_stack([states @ self.axes, length])

    @classmethod
    def of(cls, pairs: Pairs) -> View:
        tokens = root_mean_square(pairs.tokens) or 1.0
        length = np.tanh(pairs.tokens / tokens)
        scale = np.sqrt((pairs.states.astype(float) ** 2).mean(axis=0))
        scale[scale == 0] = 1.0
        states = pairs.states / scale
        by_length = length @ states / max(float(length @ length), 1e-12)
        states = states - np.outer(length, by_length)
        _, _, directions = np.linalg.svd(states, full_matrices=False)
        axes = directions[:COMPONENTS].T
        spread = root_mean_square(np.linalg.norm(states @ axes, axis=1)) or 1.0
        return cls(scale, by_length, axes / spread, tokens)


@dataclass(frozen=True)
class Judge:
    """A fit, with what it was fitted to: that is drawn again for the interval of what it says."""

    view: View
    weights: np.ndarray  # (components + 1,); the last is gamma
    penalty: float
    columns: np.ndarray
    pairs: Labelled


def fit(pairs: Labelled) -> Judge | None:
    """``None`` where there is too little to learn from."""
    if len(pairs) < LEAST_PAIRS or len(set(pairs.prompts)) < LEAST_PROMPTS:
        return None
    view = View.of(pairs)
    columns = view.columns(pairs)
    penalty = chosen_penalty(columns, pairs)
    weights = fitted(columns, pairs.weight, pairs.noise, penalty)
    return Judge(view, weights, penalty, columns, pairs)


def chosen_penalty(columns: np.ndarray, pairs: Labelled) -> float:
    """The penalty with the least loss on prompts that were not fitted to; of equals the greatest."""
    folds = folds_of(pairs.prompts)
    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for fold in range(folds.max() + 1):
            seen, unseen = folds != fold, folds == fold
            weights = fitted(columns[seen], pairs.weight[seen], pairs.noise[seen], penalty)
            total += loss(columns[unseen] @ weights, pairs.weight[unseen], pairs.noise[unseen])
        losses.append(total)
    return PENALTIES[int(np.argmin(losses))]


def folds_of(prompts: Sequence[str]) -> np.ndarray:
    """The fold of each pair; all pairs of a prompt are in one."""
    _, group = np.unique(np.array(prompts), return_inverse=True)
    order = np.random.default_rng(SEED).permutation(group.max() + 1)
    return order[group] % min(FOLDS, group.max() + 1)


def fitted(
    columns: np.ndarray,
    weight: np.ndarray,
    noise: np.ndarray,
    penalty: float,
    start: np.ndarray | None = None,
    steps: int = NEWTON_STEPS,
) -> np.ndarray:
    """Minimises the weighted mean loss plus the penalty by Newton's method, with steps halved where it rises."""
    ridge = np.full(columns.shape[1], penalty)
    ridge[-1] = LENGTH_PENALTY
    weight = weight / max(float(weight.sum()), 1e-12)

    def objective(theta: np.ndarray) -> float:
        return loss(columns @ theta, weight, noise) + float(ridge @ theta**2) / 2

    theta = np.zeros(columns.shape[1]) if start is None else start
    value = objective(theta)
    for _ in range(steps):
        chance = sigmoid(columns @ theta)
        slope = columns.T @ (weight * (chance - (1 - noise))) + ridge * theta
        curvature = (columns * (weight * chance * (1 - chance))[:, None]).T @ columns + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        while (lower := objective(theta - step)) > value and np.abs(step).max() > CONVERGED:
            step = step / 2
        theta, gained, value = theta - step, value - lower, lower
        if gained < CONVERGED:
            break
    return theta


def loss(logits: np.ndarray, weight: np.ndarray, noise: np.ndarray) -> float:
    """-w [(1 - epsilon) log sigma(z) + epsilon log sigma(-z)], summed."""
    return float(weight @ ((1 - noise) * np.logaddexp(0, -logits) + noise * np.logaddexp(0, logits)))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt((values.astype(float) ** 2).mean()))


def describe(judge: Judge | None, pairs: Labelled, held_out: Pairs) -> dict[str, Any]:
    """How often the judge finds the preferred response of held-out pairs, and whether that makes it worth asking."""
    learnt = {"train_pairs": len(pairs), "train_prompts": len(set(pairs.prompts))}
    if judge is None or not len(held_out):
        return learnt | {"pairs": 0, "usable": False}
    won = wins(judge.view.columns(held_out) @ judge.weights)
    (interval,) = intervals(won[:, None], held_out.prompts)
    return learnt | {
        "pairs": len(held_out),
        "accuracy": float(won.mean()),
        "accuracy_interval": interval,
        "usable": len(held_out) >= LEAST_PAIRS and interval[0] > 0.5,
        "penalty": judge.penalty,
        "length_weight": float(judge.weights[-1]),
    }


def win_rate(judge: Judge | None, answers: Pairs) -> dict[str, Any]:
    """Mean chance that the first of two answers is preferred, as they are and with the length term at zero.

    The intervals cover both the choice of prompts and that of the labels the judge has learnt from: prompts of either
    are drawn anew, and the judge is fitted anew, at the same penalty.
    """
    if judge is None or not len(answers):
        return {"prompts": 0}
    columns = judge.view.columns(answers)
    raw, controlled = chances(columns, judge.weights)
    drawn = np.array(resampled(judge, columns))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0).tolist()
    return {
        "prompts": len(answers),
        "raw": float(raw.mean()),
        "raw_interval": [low[0], high[0]],
        "length_controlled": float(controlled.mean()),
        "length_controlled_interval": [low[1], high[1]],
    }


def chances(columns: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return sigmoid(columns @ weights), sigmoid(columns[:, :-1] @ weights[:-1])


def resampled(judge: Judge, columns: np.ndarray) -> list[list[float]]:
    generator = np.random.default_rng(SEED)
    _, group = np.unique(np.array(judge.pairs.prompts), return_inverse=True)
    prompts, answers = int(group.max()) + 1, len(columns)
    found = []
    for _ in range(RESAMPLES):
        times = generator.multinomial(prompts, np.full(prompts, 1 / prompts))[group]
        weight = judge.pairs.weight * times
        weights = fitted(judge.columns, weight, judge.pairs.noise, judge.penalty, judge.weights, RESAMPLE_STEPS)
        picked = columns[generator.integers(answers, size=answers)]
        found.append([float(values.mean()) for values in chances(picked, weights)])
    return found
