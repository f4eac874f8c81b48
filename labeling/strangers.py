"""What is taken of annotators of whom nothing is known yet. Numpy-free: any process may ask."""

from __future__ import annotations

import math

# The logit of what is taken of an annotator before any vote. Two hot samples of one policy: two labelers agree on 65 %
# (Stiennon et al. 2020, Learning to summarize from human feedback, C.2). r² + (1 - r)² = 0.65 gives a reliability of
# 0.774, logit 1.23.
PRIOR_MEAN = 1.25


def probability_by_strangers(lead: int) -> float:
    """P(A is better) where it leads by so many votes, B where that is negative, and nobody who voted is known.

    What ``labeling.posterior`` finds before it has learnt anything: each vote is right with the prior's reliability.
    """
    for_majority = 1 / (1 + math.exp(-PRIOR_MEAN * abs(lead)))
    return for_majority if lead >= 0 else 1 - for_majority
