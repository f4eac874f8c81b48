"""Which pairs make up each optimiser step."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from training.engine.errors import EngineError


def plan_steps(pairs: int, pairs_per_step: int, epochs: float, seed: int, processes: int = 1) -> list[list[int]]:
    """Places of the pairs of each optimiser step: every epoch all pairs once, in an order of its own.

    The last step of an epoch may have fewer pairs, but not fewer than there are processes: such a rest joins the step
    before it. Raises ``EngineError`` when a process would have nothing to compute: bad_dataset for fewer pairs than
    processes, bad_job for fewer pairs a step.
    """
    if pairs_per_step < processes:
        message = f"A step has {pairs_per_step} pairs for {processes} processes."
        raise EngineError("bad_job", message, "Use fewer GPUs, or more pairs a step.")
    if pairs < processes:
        message = f"There are {pairs} pairs for {processes} processes."
        raise EngineError("bad_dataset", message, "Use fewer GPUs, or label more pairs.")
    shuffle = random.Random(seed).shuffle
    in_an_epoch = len(list(cut(list(range(pairs)), pairs_per_step, processes)))
    steps_wanted = max(1, math.ceil(epochs * in_an_epoch))
    steps: list[list[int]] = []
    while len(steps) < steps_wanted:
        order = list(range(pairs))
        shuffle(order)
        steps += cut(order, pairs_per_step, processes)
    return steps[:steps_wanted]


def cut(order: list[int], size: int, least: int) -> Iterator[list[int]]:
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if len(parts) > 1 and len(parts[-1]) < least:
        rest = parts.pop()
        parts[-1] = parts[-1] + rest
    yield from parts
