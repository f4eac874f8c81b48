"""The learning rate of a run whose recipe names none, by how many steps it will take. Pure.

Of all constant rates the best for T steps of stochastic gradient descent falls as 1 / sqrt(T) (Nemirovski et al.
2009, "Robust stochastic approximation", section 2.1), and Adam, which moves each weight by about one rate a step
whatever the gradient's size (Kingma and Ba 2015, section 2.1), makes that a distance in weights. With a hundred
labels there are a few dozen steps, and the rate that suits sixty thousand pairs leaves the policy where it was; with
thousands of steps the rate that suits a hundred labels tears it apart. A rate that falls as 1 / T instead would hold
every run at the same distance, so that more labels got it no further. ``docs/experiments.md`` has what this rests on.
"""

from __future__ import annotations

import math

REACH = 0.0025  # rate times the root of the steps, of a LoRA adapter on every layer
LOWEST, HIGHEST = 5e-5, 5e-4
OF_FAST = 2  # a third of the layers has less far to go together
# Full fine-tuning moves every weight, so it takes a step about fifty times smaller (SmolLM2's own DPO recipe).
OF_FULL = 1 / 50


def steps_of(triples: int, epochs: float, pairs_per_step: int) -> int:
    """Optimiser steps of a run in one process."""
    return max(1, math.ceil(epochs * math.ceil(triples / pairs_per_step)))


def usual_learning_rate(method: str, mode: str, steps: int) -> float:
    """Of the method "lora" or "full" in the mode "exact" or "fast", rounded to two digits for people to repeat."""
    rate = min(max(REACH / math.sqrt(max(1, steps)), LOWEST), HIGHEST)
    rate *= (OF_FULL if method == "full" else 1) * (OF_FAST if mode == "fast" else 1)
    return float(f"{rate:.1e}")
