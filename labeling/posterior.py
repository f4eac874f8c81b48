"""P(A is better) of every pair and the reliability of every annotator, from all votes together.

Why this model. A majority counts a careless vote like a careful one, can't say how sure it is, and has nothing to say
of a pair with one vote: and one vote a pair, with a shared part of 10 to 20 %, is what this field collects. Dawid and
Skene (1979) let the truth of each pair be unknown and judge the annotators by each other. Their full table of errors an
annotator is more than a few votes can fill, so an annotator here is two numbers (``labeling.logistic_annotator``):
ability, and the pull of the left side, which is measurable because sides are shuffled and matters because it is the
commonest bias. Both are drawn to the project's mean as long as votes are few. Difficulty of a pair is left out on
purpose: with one to three votes it cannot be told from chance. Votes on hard pairs are then taken for less able people,
and p on them is a little too sure; the benchmark ``label_model`` shows how much.

What moves p. Votes for A or B, by the annotator's ability and side. A tie's probability is the annotator's tie rate
whichever response is better, so a tie moves nothing: it is kept, and counted, as evidence for neither. It does say that
there is little to choose, so whoever makes a label of p has to count it in. Both-bad judges the pair and not the
difference; it moves nothing. A reviewer's decision for A or B enters as one more vote that is wrong with probability
``ADJUDICATION_ERROR``, and the known answer of a gold pair as one that is wrong with ``GOLD_ERROR``: what people
answered there is held against it, as against a further person of known reliability. "Tie" or "both bad" closes the
pair: p = 1/2, and its votes say nothing of those who cast them. A strong vote ("much better") has c times the ability
of its annotator, 1 <= c <= 3, c learned over the project and 1 where strong votes are no better than others: WebGPT
(Nakano et al. 2021, C) merged the degrees before training, Llama 2 (Touvron et al. 2023, 3.2.2) found them useful; here
the votes decide. Several votes of one annotator on one pair are not independent; together they count as one vote, each
with the same part.

What it can't know. Ability shows only where pairs are shared (``Annotator.shared``), adjudicated or gold. Without,
every annotator has the prior's reliability, 0.78, and p of a single vote says no more than that.

EM is maximum a posteriori, in blocks (Meng and Rubin 1993), with leaps along the way it has gone (SQUAREM, Varadhan and
Roland 2008) that are taken only where they do not lose: with most pairs judged once, plain EM creeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from labeling import credible, logistic_annotator
from labeling.logistic_annotator import Parameters
from labeling.votes import TIE, Bools, Choice, Floats, Ints, Vote, VoteColumns, as_columns

__all__ = ["Adjudication", "Annotator", "Fit", "Parameters", "Posterior", "Vote", "fit", "update"]

# Researchers who talk a pair over reach about 95 % (Stiennon et al. 2020, C.2); a reviewer sees votes and reasons
# besides. At 1 in 100 the decision stands against three ordinary votes, and falls to no small crowd.
ADJUDICATION_ERROR = 0.01
# Known answers were agreed on beforehand, without votes and reasons to look at.
GOLD_ERROR = 0.05
TOLERANCE = 1e-5  # logits, of every parameter in one EM step
MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Adjudication:
    """A reviewer's decision on a pair, or its known answer; ``error``: with what probability it is wrong."""

    pair_id: int
    choice: Choice
    error: float = ADJUDICATION_ERROR


@dataclass(frozen=True)
class Posterior:
    """``p``: P(A is better | votes) of each pair, with the decided votes and ties behind it; ``pair_ids`` sorted."""

    pair_ids: Ints
    p: Floats
    decided: Ints
    ties: Ints

    def of(self, pair_id: int) -> float:
        """p of one pair. Raises ``KeyError`` where it has no vote."""
        place = int(np.searchsorted(self.pair_ids, pair_id))
        if place == len(self.pair_ids) or self.pair_ids[place] != pair_id:
            raise KeyError(f"Pair {pair_id} has no judgement in this posterior.")
        return float(self.p[place])


@dataclass(frozen=True)
class Annotator:
    """``reliability``: P(votes for the better response | it stands on a random side, decided). ``left``: P(votes left |
    sees no difference, decided). With 95 % intervals. ``ability`` and ``side`` are the logits behind them.
    """

    annotator_id: int
    reliability: float
    reliability_low: float
    reliability_high: float
    left: float
    left_low: float
    left_high: float
    votes: int
    decided: int
    shared: int  # decided votes on pairs that somebody else decided too, a reviewer did, or that are gold
    ability: float
    side: float


@dataclass(frozen=True)
class Fit:
    """``objective`` is the penalised log-likelihood before each step of EM and at the end; it never falls."""

    parameters: Parameters
    posterior: Posterior
    annotators: list[Annotator]
    log_likelihood: float
    objective: list[float]
    iterations: int
    has_converged: bool

    def annotator(self, annotator_id: int) -> Annotator:
        return self._by_id[annotator_id]

    @cached_property
    def _by_id(self) -> dict[int, Annotator]:
        return {annotator.annotator_id: annotator for annotator in self.annotators}


def fit(
    votes: VoteColumns | Iterable[Vote],
    *,
    adjudications: Iterable[Adjudication] = (),
    start: Fit | Parameters | None = None,
) -> Fit:
    """All pairs and annotators of one project. ``start``: an earlier fit, to begin from its parameters.

    Deterministic; the order of votes changes no more than rounding. Ends where no parameter moves by ``TOLERANCE`` in a
    step, or after ``MOST_STEPS``. Raises ``ValueError`` on votes that are none.
    """
    columns = as_columns(votes)
    evidence = _evidence(columns, adjudications)
    parameters = Parameters.before_votes(evidence.annotator_ids)
    if start is not None:
        parameters = _parameters(start).of(evidence.annotator_ids)
    climb = _climb(evidence, parameters)
    counts = evidence.counts(climb.p)
    covariance = credible.covariance(evidence.differences(climb.parameters), climb.parameters, counts, climb.p)
    return Fit(
        parameters=climb.parameters,
        posterior=_posterior(columns, evidence, climb.p),
        annotators=_annotators(columns, evidence, climb.parameters, covariance),
        log_likelihood=climb.objective[-1] - logistic_annotator.log_prior(climb.parameters),
        objective=climb.objective,
        iterations=climb.iterations,
        has_converged=climb.has_converged,
    )


def better(one: Fit, other: Fit) -> Fit:
    """The one whose parameters are likelier, priors and all; of equals ``one``. Both of the same votes and decisions.

    EM climbs to a top near its start, and there are several: that a few who agree are wrong together, for one.
    """
    return max(one, other, key=lambda fitted: fitted.objective[-1])


def update(
    fitted: Fit | Parameters,
    votes: VoteColumns | Iterable[Vote],
    *,
    adjudications: Iterable[Adjudication] = (),
) -> Posterior:
    """The E-step of some pairs, with the annotators as they were fitted; give *all* votes of each of these pairs.

    An annotator who was not in the fit has its mean ability and no pull to a side.
    """
    columns = as_columns(votes)
    evidence = _evidence(columns, adjudications)
    parameters = _parameters(fitted).of(evidence.annotator_ids)
    return _posterior(columns, evidence, evidence.expectation(parameters)[0])


def _parameters(fitted: Fit | Parameters) -> Parameters:
    return fitted.parameters if isinstance(fitted, Fit) else fitted


@dataclass(frozen=True)
class _Evidence:
    """Decided votes on open pairs as places in tables. ``cell``: of the probability if the better response stood right;
    the next one is that if it stood left. ``prior``: log odds of A before votes, by a reviewer's decision.
    """

    pair_ids: Ints
    annotator_ids: Ints
    pair: Ints
    annotator: Ints
    cell: Ints
    a_left: Ints
    weight: Floats
    prior: Floats
    shared: Bools

    def expectation(self, parameters: Parameters) -> tuple[Floats, float, float]:
        """The E-step: P(A is better) a pair, the penalised log-likelihood, and the latter alone without priors."""
        table = logistic_annotator.log_probabilities(parameters).ravel()
        if_a = self._sum(table[self.cell + self.a_left])
        if_b = self._sum(table[self.cell + 1 - self.a_left])
        odds = if_a - if_b + self.prior
        prior_b = logistic_annotator.log_sigmoid(-self.prior)
        likelihood = float((np.logaddexp(0.0, odds) + if_b + prior_b).sum())
        p = logistic_annotator.sigmoid(odds)
        return p, likelihood + logistic_annotator.log_prior(parameters), likelihood

    def counts(self, p: Floats) -> Floats:
        """Expected votes in every cell of ``logistic_annotator.log_probabilities``."""
        if_a = p[self.pair] * self.weight
        size = len(self.annotator_ids) * 8
        as_a = np.bincount(self.cell + self.a_left, if_a, size)
        as_b = np.bincount(self.cell + 1 - self.a_left, self.weight - if_a, size)
        return np.asarray((as_a + as_b).reshape(-1, 2, 2, 2))

    def differences(self, parameters: Parameters) -> credible.Differences:
        """Of each vote, the score in (ability, side) if A is better less that if B is."""
        left = logistic_annotator.sigmoid(logistic_annotator.logits(parameters))
        strong, voted_left = self.cell // 4 % 2, self.cell // 2 % 2
        if_a = voted_left - left[self.annotator, strong, self.a_left]
        if_b = voted_left - left[self.annotator, strong, 1 - self.a_left]
        sign = 2.0 * self.a_left - 1
        factor = np.where(strong, parameters.strength, 1.0)
        scores = np.stack([sign * factor * (if_a + if_b), if_a - if_b], axis=1) * self.weight[:, None]
        return credible.Differences(self.pair, self.annotator, scores)

    def _sum(self, values: Floats) -> Floats:
        return np.bincount(self.pair, values * self.weight, len(self.pair_ids)).astype(np.float64)  # of none: integers


def _evidence(columns: VoteColumns, adjudications: Iterable[Adjudication]) -> _Evidence:
    decisions = {decision.pair_id: decision for decision in adjudications}
    decided_ids = np.asarray(sorted(decisions), np.int64)
    pair_ids = np.union1d(columns.pair_id, decided_ids)
    annotator_ids = np.unique(columns.annotator_id)
    prior, closed = np.zeros(len(pair_ids)), np.zeros(len(pair_ids), np.bool_)
    for place, pair_id in zip(np.searchsorted(pair_ids, decided_ids), decided_ids.tolist(), strict=True):
        decision = decisions[pair_id]
        sign = {"a": 1, "b": -1}.get(decision.choice, 0)
        prior[place] = sign * math.log((1 - decision.error) / decision.error)
        closed[place] = not sign
    open_ = columns.decided & ~closed[np.searchsorted(pair_ids, columns.pair_id)]
    used = columns.take(open_)
    pair = np.searchsorted(pair_ids, used.pair_id)
    annotator = np.searchsorted(annotator_ids, used.annotator_id)
    people, weight = _one_vote_each(pair, annotator, len(pair_ids), len(annotator_ids))
    return _Evidence(
        pair_ids=pair_ids,
        annotator_ids=annotator_ids,
        pair=pair,
        annotator=annotator,
        cell=((annotator * 2 + used.is_strong) * 2 + used.voted_left) * 2,
        a_left=used.a_left.astype(np.int64),
        weight=weight,
        prior=prior,
        shared=(people > 1) | ((people == 1) & (prior != 0)),
    )


def _one_vote_each(pair: Ints, annotator: Ints, pairs: int, annotators: int) -> tuple[Ints, Floats]:
    """How many people decided each pair, and the part of one vote that each vote is."""
    keys, inverse, times = np.unique(pair * max(annotators, 1) + annotator, return_inverse=True, return_counts=True)
    return np.bincount(keys // max(annotators, 1), minlength=pairs), 1.0 / times[inverse]


@dataclass(frozen=True)
class _Climb:
    parameters: Parameters
    p: Floats
    objective: list[float]
    iterations: int
    has_converged: bool


def _climb(evidence: _Evidence, parameters: Parameters) -> _Climb:
    p, value, _ = evidence.expectation(parameters)
    path = [value]
    steps, converged = 0, False
    while not converged and steps < MOST_STEPS:
        first = logistic_annotator.maximised(parameters, evidence.counts(p))
        p_first, value_first, _ = evidence.expectation(first)
        second = logistic_annotator.maximised(first, evidence.counts(p_first))
        p, value, _ = evidence.expectation(second)
        converged = _distance(first, second) < TOLERANCE
        leap = _leap(parameters, first, second)
        p_leap, value_leap, _ = evidence.expectation(leap)
        parameters = second
        if value_leap > value:
            parameters, p, value = leap, p_leap, value_leap
        path += [value_first, value]
        steps += 2
    return _Climb(parameters, p, path, steps, converged)


def _vector(parameters: Parameters) -> Floats:
    return np.concatenate([parameters.ability, parameters.side, [parameters.mean, parameters.strength]])


def _distance(one: Parameters, other: Parameters) -> float:
    return float(np.abs(_vector(one) - _vector(other)).max())


def _leap(start: Parameters, first: Parameters, second: Parameters) -> Parameters:
    """Where two steps of EM point (Varadhan and Roland 2008, scheme S3), within the bounds of the parameters."""
    zero, one, two = _vector(start), _vector(first), _vector(second)
    step, bend = one - zero, two - 2 * one + zero
    length = float(np.linalg.norm(bend))
    if length < 1e-12:
        return second
    far = max(1.0, float(np.linalg.norm(step)) / length)
    landed = zero + 2 * far * step + far**2 * bend
    people = len(start.ability)
    return logistic_annotator.within_bounds(
        replace(
            start,
            ability=landed[:people],
            side=landed[people:-2],
            mean=float(landed[-2]),
            strength=float(landed[-1]),
        )
    )


def _posterior(columns: VoteColumns, evidence: _Evidence, p: Floats) -> Posterior:
    pair = np.searchsorted(evidence.pair_ids, columns.pair_id)
    size = len(evidence.pair_ids)
    return Posterior(
        pair_ids=evidence.pair_ids,
        p=p,
        decided=np.bincount(pair[columns.decided], minlength=size),
        ties=np.bincount(pair[columns.choice == TIE], minlength=size),
    )


def _annotators(
    columns: VoteColumns, evidence: _Evidence, parameters: Parameters, covariance: Floats
) -> list[Annotator]:
    size = len(evidence.annotator_ids)
    person = np.searchsorted(evidence.annotator_ids, columns.annotator_id)
    votes, decided = (np.bincount(people, minlength=size) for people in (person, person[columns.decided]))
    shared = np.bincount(evidence.annotator[evidence.shared[evidence.pair]], minlength=size)
    reliability = credible.reliability(parameters, covariance)
    left = credible.left_when_indifferent(parameters, covariance)
    columns_of_annotators = {
        "annotator_id": evidence.annotator_ids,
        "reliability": reliability[:, 0],
        "reliability_low": reliability[:, 1],
        "reliability_high": reliability[:, 2],
        "left": left[:, 0],
        "left_low": left[:, 1],
        "left_high": left[:, 2],
        "votes": votes,
        "decided": decided,
        "shared": shared,
        "ability": parameters.ability,
        "side": parameters.side,
    }
    rows = zip(*(column.tolist() for column in columns_of_annotators.values()), strict=True)
    return [Annotator(**dict(zip(columns_of_annotators, row, strict=True))) for row in rows]
