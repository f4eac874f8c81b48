"""The learning rate of a run whose recipe names none, by how many steps it will take. Pure.

Adam moves each weight by about one learning rate a step, whatever the gradient's size (Kingma and Ba 2015, section
2.1), so that steps times rate say how far a run can go. With a hundred labels there are a few dozen steps, and the rate
that suits sixty thousand pairs leaves the policy where it was; with thousands of steps the rate that suits a hundred
labels tears it apart. So the usual rate falls as the steps grow, between two bounds. ``docs/experiments.md`` has what
it rests on.
"""

from __future__ import annotations

import math

REACH = 0.025  # rate times steps, of a LoRA adapter
LOWEST, HIGHEST = 5e-5, 1e-3
# Full fine-tuning moves every weight, so it takes a step about fifty times smaller (SmolLM2's own DPO recipe).
OF_FULL = 1 / 50


def steps_of(triples: int, epochs: float, pairs_per_step: int) -> int:
    """Optimiser steps of a run in one process."""
    return max(1, math.ceil(epochs * math.ceil(triples / pairs_per_step)))


def usual_learning_rate(method: str, steps: int) -> float:
    """Of the method "lora" or "full", rounded to two digits, so that a person can read and repeat it."""
    rate = min(max(REACH / max(1, steps), LOWEST), HIGHEST) * (OF_FULL if method == "full" else 1)
    return float(f"{rate:.1e}")
