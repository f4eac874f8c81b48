"""How an annotator votes, given which response is better: a logistic model, its priors and its best parameters.

logit P(j votes left | z, decided) = ± c a_j + b_j, with + where the better response stands left. a_j is the annotator's
discrimination, b_j the pull of the left side, c what a vote marked as strong counts (1 for every other vote).

A vote's probability depends on four things alone: who, strong or not, which side was voted for, on which side the
better response stood. Everything here therefore works on tables of 8 cells an annotator, however many votes there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from labeling.strangers import PRIOR_MEAN
from labeling.votes import Floats, Ints

PRIOR_MEAN_SD = 0.5
MEAN_FLOOR = 0.25  # reliability 0.56: below it "better" and "worse" could change names for all at once
ABILITY_SD = 0.75  # two thirds of annotators between 0.62 and 0.88
SIDE_SD = 1.0  # two thirds between 27 and 73 % left where they see no difference
STRENGTH_SD, MOST_STRENGTH = 0.5, 3.0
NEWTON_STEPS, HALVINGS = 8, 12

BETTER_SIDE = np.array([-1.0, 1.0])  # right, left: the last axis of every table


@dataclass(frozen=True)
class Parameters:
    """Ability and side pull of every annotator (logits), the mean ability and what a strong vote counts.

    ``annotator_ids`` are sorted. Plain data through ``as_json`` and ``from_json``.
    """

    annotator_ids: Ints
    ability: Floats
    side: Floats
    mean: float = PRIOR_MEAN
    strength: float = 1.0

    @classmethod
    def before_votes(cls, annotator_ids: Ints) -> Parameters:
        zeros = np.zeros(len(annotator_ids))
        return cls(annotator_ids, zeros + PRIOR_MEAN, zeros)

    def of(self, annotator_ids: Ints) -> Parameters:
        """The same for these annotators, sorted ids; who is not known has the mean ability and no side."""
        known = np.isin(annotator_ids, self.annotator_ids)
        places = np.searchsorted(self.annotator_ids, annotator_ids[known])
        ability, side = np.full(len(annotator_ids), self.mean), np.zeros(len(annotator_ids))
        ability[known], side[known] = self.ability[places], self.side[places]
        return replace(self, annotator_ids=annotator_ids, ability=ability, side=side)

    def as_json(self) -> dict[str, Any]:
        columns = {name: getattr(self, name).tolist() for name in ("annotator_ids", "ability", "side")}
        return columns | {"mean": self.mean, "strength": self.strength}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Parameters:
        return cls(
            np.asarray(data["annotator_ids"], np.int64),
            np.asarray(data["ability"], np.float64),
            np.asarray(data["side"], np.float64),
            float(data["mean"]),
            float(data["strength"]),
        )


def log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0.0, -x)


def sigmoid(x: Floats) -> Floats:
    return np.exp(log_sigmoid(x))


def logits(parameters: Parameters) -> Floats:
    """logit P(left), shape (annotators, strong or not, side of the better response)."""
    factors = np.array([1.0, parameters.strength])
    pull = parameters.ability[:, None, None] * factors[:, None] * BETTER_SIDE
    return np.asarray(pull + parameters.side[:, None, None])


def log_probabilities(parameters: Parameters) -> Floats:
    """log P(vote), shape (annotators, strong or not, right or left voted for, side of the better response)."""
    eta = logits(parameters)
    return np.stack([log_sigmoid(-eta), log_sigmoid(eta)], axis=2)


def log_prior(parameters: Parameters) -> float:
    """Up to a constant. Gaussians: abilities round their mean, the mean, sides round 0, strength round 1."""
    squares = (
        np.square((parameters.ability - parameters.mean) / ABILITY_SD).sum()
        + np.square(parameters.side / SIDE_SD).sum()
        + ((parameters.mean - PRIOR_MEAN) / PRIOR_MEAN_SD) ** 2
        + ((parameters.strength - 1) / STRENGTH_SD) ** 2
    )
    return -0.5 * float(squares)


def maximised(parameters: Parameters, counts: Floats) -> Parameters:
    """The M-step: parameters under which ``counts``, shaped as ``log_probabilities``, are more likely, and never less.

    Blocks after one another (Meng and Rubin 1993, ECM): annotators by Newton's method, then the mean in closed form,
    then the strength of strong votes if there are any.
    """
    parameters = _annotators(parameters, counts)
    parameters = replace(parameters, mean=_mean(parameters.ability))
    return replace(parameters, strength=_strength(parameters, counts)) if counts[:, 1].any() else parameters


def within_bounds(parameters: Parameters) -> Parameters:
    return replace(
        parameters,
        mean=max(parameters.mean, MEAN_FLOOR),
        strength=float(np.clip(parameters.strength, 1.0, MOST_STRENGTH)),
    )


def expected_information(parameters: Parameters, counts: Floats) -> Floats:
    """Minus the second derivatives of votes and priors in (ability, side), shape (annotators, 2, 2)."""
    _, curvature = _slopes(parameters, counts)
    factors = np.array([1.0, parameters.strength])[:, None]
    mixed = (curvature * factors * BETTER_SIDE).sum(axis=(1, 2))
    ability = (curvature * factors**2).sum(axis=(1, 2)) + ABILITY_SD**-2
    side = curvature.sum(axis=(1, 2)) + SIDE_SD**-2
    return np.stack([np.stack([ability, mixed], axis=1), np.stack([mixed, side], axis=1)], axis=1)


def _slopes(parameters: Parameters, counts: Floats) -> tuple[Floats, Floats]:
    """First and minus second derivative of the votes in each logit, shape (annotators, strong or not, side)."""
    left = sigmoid(logits(parameters))
    total = counts.sum(axis=2)
    return counts[:, :, 1] - total * left, total * left * (1 - left)


def _annotators(parameters: Parameters, counts: Floats) -> Parameters:
    """Newton's method for all annotators at once; a step that would lose is halved until it does not."""
    for _ in range(NEWTON_STEPS):
        step = _newton_step(parameters, counts)
        before, scale = _value(parameters, counts), np.ones(len(step))
        for _ in range(HALVINGS):
            moved = _moved(parameters, step * scale[:, None])
            worse = _value(moved, counts) < before
            if not worse.any():
                break
            scale = np.where(worse, scale / 2, scale)
        else:
            moved = _moved(parameters, step * np.where(worse, 0, scale)[:, None])
        parameters = moved
        if not len(step) or np.abs(step).max() < 1e-9:
            break
    return parameters


def _newton_step(parameters: Parameters, counts: Floats) -> Floats:
    slope, _ = _slopes(parameters, counts)
    factors = np.array([1.0, parameters.strength])[:, None]
    ability = (slope * factors * BETTER_SIDE).sum(axis=(1, 2)) - (parameters.ability - parameters.mean) / ABILITY_SD**2
    side = slope.sum(axis=(1, 2)) - parameters.side / SIDE_SD**2
    gradient = np.stack([ability, side], axis=1)
    return np.asarray(np.linalg.solve(expected_information(parameters, counts), gradient[:, :, None])[:, :, 0])


def _moved(parameters: Parameters, step: Floats) -> Parameters:
    return replace(parameters, ability=parameters.ability + step[:, 0], side=parameters.side + step[:, 1])


def _value(parameters: Parameters, counts: Floats) -> Floats:
    """What the M-step raises, an annotator each."""
    votes = (counts * log_probabilities(parameters)).sum(axis=(1, 2, 3))
    ability = np.square((parameters.ability - parameters.mean) / ABILITY_SD)
    return np.asarray(votes - 0.5 * (ability + np.square(parameters.side / SIDE_SD)))


def _mean(ability: Floats) -> float:
    precision = len(ability) * ABILITY_SD**-2 + PRIOR_MEAN_SD**-2
    mean = (float(ability.sum()) * ABILITY_SD**-2 + PRIOR_MEAN * PRIOR_MEAN_SD**-2) / precision
    return max(mean, MEAN_FLOOR)


def _strength(parameters: Parameters, counts: Floats) -> float:
    """One Newton step between 1 and ``MOST_STRENGTH``, halved while it would lose."""
    slope, curvature = _slopes(parameters, counts)
    ability = parameters.ability[:, None]
    gradient = float((slope[:, 1] * ability * BETTER_SIDE).sum()) - (parameters.strength - 1) / STRENGTH_SD**2
    step = gradient / (float((curvature[:, 1] * ability**2).sum()) + STRENGTH_SD**-2)
    before = _strength_value(parameters, counts, parameters.strength)
    for _ in range(HALVINGS):
        moved = float(np.clip(parameters.strength + step, 1.0, MOST_STRENGTH))
        if _strength_value(parameters, counts, moved) >= before:
            return moved
        step /= 2
    return parameters.strength


def _strength_value(parameters: Parameters, counts: Floats, strength: float) -> float:
    strong = log_probabilities(replace(parameters, strength=strength))[:, 1]
    return float((counts[:, 1] * strong).sum()) - 0.5 * ((strength - 1) / STRENGTH_SD) ** 2
