"""How sure the label model is of its annotators: 95 % intervals from the curvature at its optimum (Laplace).

The curvature is that of the votes as observed (Louis 1982): what the truth would tell if it were known, less what not
knowing it takes away. On a pair with one vote that is nearly everything; intervals from known truths would be far too
narrow. The learned mean of the abilities is uncertain with them; the strength of strong votes is taken as given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labeling import logistic_annotator
from labeling.logistic_annotator import ABILITY_SD, PRIOR_MEAN_SD, Parameters, sigmoid
from labeling.votes import Floats, Ints

Z = 1.959964
# With more annotators than this a matrix of all against all would take seconds and gigabytes; each is then taken by
# herself, which makes intervals a little too narrow.
MOST_TOGETHER = 600
LEAST_PRECISION = 0.05  # where the votes leave a direction open; a standard deviation of 4.5 logits
KNOWN = 1e-9  # a pair with less doubt than this takes nothing away


@dataclass(frozen=True)
class Differences:
    """Of each decided vote: its pair and annotator (places), and the score in (ability, side) if A is better less that
    if B is, shape (votes, 2).
    """

    pair: Ints
    annotator: Ints
    scores: Floats


def covariance(differences: Differences, parameters: Parameters, counts: Floats, p: Floats) -> Floats:
    """Of (ability, side), shape (annotators, 2, 2). ``counts``: expected votes at the optimum; ``p``: of the pairs."""
    blocks = logistic_annotator.expected_information(parameters, counts)
    people = len(blocks)
    if people > MOST_TOGETHER:
        return _inverse(blocks - _doubt_alone(differences, p, people))
    information = np.zeros((2 * people + 1, 2 * people + 1))
    own = 2 * np.arange(people)
    for row in range(2):
        for column in range(2):
            information[own + row, own + column] = blocks[:, row, column]
    _take_doubt(information, differences, p)
    information[own, -1] = information[-1, own] = -(ABILITY_SD**-2)
    information[-1, -1] = people * ABILITY_SD**-2 + PRIOR_MEAN_SD**-2
    inverse = _inverse(information)
    return np.stack([np.stack([inverse[own + row, own + column] for column in (0, 1)], 1) for row in (0, 1)], 1)


def reliability(parameters: Parameters, covariances: Floats) -> Floats:
    """P(votes for the better response | random side, decided) with its interval, shape (annotators, 3).

    (σ(a + b) + σ(a - b)) / 2; the interval by the delta method on its logit.
    """
    with_side = sigmoid(parameters.ability + parameters.side)
    against_side = sigmoid(parameters.ability - parameters.side)
    value = (with_side + against_side) / 2
    steep, less_steep = with_side * (1 - with_side), against_side * (1 - against_side)
    gradient = np.stack([steep + less_steep, steep - less_steep], axis=1) / 2
    variance = np.einsum("ji,jik,jk->j", gradient, covariances, gradient)
    return _interval(np.log(value / (1 - value)), np.sqrt(variance) / (value * (1 - value)))


def left_when_indifferent(parameters: Parameters, covariances: Floats) -> Floats:
    """P(votes left | sees no difference, decided), σ(b), with its interval, shape (annotators, 3)."""
    return _interval(parameters.side, np.sqrt(covariances[:, 1, 1]))


def _interval(logit: Floats, error: Floats) -> Floats:
    return np.stack([sigmoid(logit), sigmoid(logit - Z * error), sigmoid(logit + Z * error)], axis=1)


def _doubt_alone(differences: Differences, p: Floats, people: int) -> Floats:
    doubt = (p * (1 - p))[differences.pair]
    products = differences.scores[:, :, None] * differences.scores[:, None, :] * doubt[:, None, None]
    taken = np.zeros((people, 2, 2))
    np.add.at(taken, differences.annotator, products)
    return taken


def _take_doubt(information: Floats, differences: Differences, p: Floats) -> None:
    """Subtract, pair by pair, the doubt times the outer product of its votes' summed differences.

    Votes stand sorted by pair, and each is met with itself and those that follow it on the same pair.
    """
    order = np.argsort(differences.pair, kind="stable")
    order = order[(p * (1 - p))[differences.pair[order]] > KNOWN]
    pair, annotator, scores = differences.pair[order], differences.annotator[order], differences.scores[order]
    here = np.arange(len(pair))
    lag = 0
    while len(here):
        there = here + lag
        doubt = (p * (1 - p))[pair[here]]
        for row in range(2):
            for column in range(2):
                taken = scores[here, row] * scores[there, column] * doubt
                places = 2 * annotator[here] + row, 2 * annotator[there] + column
                np.subtract.at(information, places, taken)
                if lag:
                    np.subtract.at(information, places[::-1], taken)
        lag += 1
        here = here[here + lag < len(pair)]
        here = here[pair[here] == pair[here + lag]]


def _inverse(information: Floats) -> Floats:
    """Of one matrix or a stack of them, each made symmetric and positive."""
    values, vectors = np.linalg.eigh(information)
    return np.asarray((vectors / np.maximum(values, LEAST_PRECISION)[..., None, :]) @ np.swapaxes(vectors, -1, -2))
