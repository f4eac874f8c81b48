"""From the probability that A is better to a label with its uncertainty. Pure, and numpy-free: any process may ask.

Two ways to carry the doubt, and never both. Let h be the margin that a learner gives the better response and
l(h) = -log σ(h) the loss of a certain label (Bradley and Terry's likelihood; DPO's with h = β times the difference of
log ratios). Let p >= 1/2 be the probability that this response is better, ε = 1 - p.

*Soft*: the expected loss under the posterior, L(h) = (1 - ε) l(h) + ε l(-h) (Mitchell 2023, "A note on DPO with noisy
preferences and relationship to IPO", the conservative loss). Its weight is 1: a pair is one comparison however many
people judged it, and all their doubt is in ε already. L'(h) = σ(h) - (1 - ε), so at h = 0 the slope is -(1 - 2ε)/2, and
it ends at h = log((1 - ε)/ε): a doubtful label cannot be learned by heart.

*Hard*: w l(h), with slope -w σ(-h), which is -w/2 at h = 0. The same first step as the soft label therefore needs
w = 1 - 2ε = |2p - 1|. It has no finite optimum: late in training the hard label goes on where the soft one has ended.

With ε and w = |2p - 1| together the slope at 0 would be (1 - 2ε)²/2: the doubt counted twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# The logit of what is taken of an annotator before any vote. Two hot samples of one policy: two labelers agree on 65 %
# (Stiennon et al. 2020, Learning to summarize from human feedback, C.2). r² + (1 - r)² = 0.65 gives a reliability of
# 0.774, logit 1.23.
PRIOR_MEAN = 1.25
# Nearer to 1/2 than this, no response is called better. At p = 0.55 the slope is a tenth of a certain label's, and
# a loss that divides by 1 - 2ε would give the pair ten times its weight.
RESOLUTION = 0.05


@dataclass(frozen=True)
class Label:
    """``better``: "a", "b", ``None`` where neither is; ``epsilon``: P(the label is wrong); ``weight``: of the pair."""

    better: Literal["a", "b"] | None
    epsilon: float
    weight: float


def doubt_of_strangers(lead: int) -> float:
    """P(the majority is wrong) where it leads by so many votes and nothing is known of those who cast them.

    What ``labeling.posterior`` finds before it has learnt anything: each vote is right with the prior's reliability.
    """
    against = math.exp(-PRIOR_MEAN * abs(lead))
    return against / (1 + against)


def soft_label(p: float) -> Label:
    """The label whose ε carries the uncertainty, with weight 1. ``p`` is P(A is better).

    Within ``RESOLUTION`` of 1/2 there is no better response; ε is told all the same, for those who use such a pair as a
    symmetric one. Raises ``ValueError`` where ``p`` is no probability.
    """
    _check(p)
    return Label(_better(p), 1 - max(p, 1 - p), 1.0)


def hard_label(p: float) -> Label:
    """The label that is taken as certain and weighs |2p - 1|: the same gradient at margin 0 as ``soft_label``.

    Raises ``ValueError`` where ``p`` is no probability.
    """
    _check(p)
    return Label(_better(p), 0.0, abs(2 * p - 1))


def _better(p: float) -> Literal["a", "b"] | None:
    if abs(p - 0.5) < RESOLUTION:
        return None
    return "a" if p > 0.5 else "b"


def _check(p: float) -> None:
    if math.isnan(p) or not 0 <= p <= 1:
        raise ValueError(f"P(A is better) is between 0 and 1, not {p}.")
