"""How much of a step is in memory at once: planned from the model's sizes before training, and told with the result."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from training import footprint
from training.engine.arrangement import packed_tokens, scored_tokens
from training.engine.compute import Compute
from training.engine.dpo_trainer import Room
from training.engine.errors import EngineError
from training.engine.preference_data import TokenTriple
from training.footprint import Footprint, Shape
from training.jobspec import TrainJob

HINT = "Choose LoRA, the fast mode or a shorter maximum length, or use a machine with more memory."


@dataclass(frozen=True)
class Plan:
    """What was decided, and the bytes that it is expected to take of the bytes that there are."""

    room: Room
    expected: Footprint
    limit: int

    def describe(self) -> dict[str, Any]:
        return {
            "estimate_mb": self.expected.total // 2**20,
            "limit_mb": self.limit // 2**20,
            "micro_batch": self.room.pairs,
            "tokens": self.room.tokens,
            "checkpointing": self.room.checkpointing,
            "halved": self.room.halved,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


def plan(job: TrainJob, config: PretrainedConfig, triples: Sequence[TokenTriple], compute: Compute) -> Plan:
    """The micro-batch of ``job`` on this machine. Raises ``EngineError`` out_of_memory where not one pair fits.

    It follows from the machine and not from what else is running there, so that the same job gives the same bytes.
    """
    shape = Shape.from_config(config.to_dict())
    longest = max(triples, key=packed_tokens)
    fixed: dict[str, Any] = {
        "method": job.method,
        "mode": job.mode,
        "lora_rank": job.lora_rank,
        "tokens": packed_tokens(longest),
        "completion_tokens": scored_tokens(longest),
        "bytes_per_weight": compute.dtype.itemsize,
        "trained_layers": footprint.layers_trained(shape, job.mode, job.fast_layers),
    }
    limit = memory_of(compute)
    at_once = job.micro_batch or job.pairs_per_step
    chosen = footprint.choose(shape, **fixed, pairs_per_step=at_once, limit_bytes=limit, most_tokens=2**40)
    if chosen is None:
        raise too_little(footprint.estimate(shape, **fixed, pairs=1, checkpointing=True), fixed["tokens"], limit)
    pairs, checkpointing = chosen
    tokens = pairs * fixed["tokens"]
    if not job.micro_batch:
        tokens = max(fixed["tokens"], min(tokens, footprint.MOST_TOKENS[compute.device.type]))
    expected = footprint.estimate(shape, **fixed, pairs=-(-tokens // fixed["tokens"]), checkpointing=checkpointing)
    return Plan(Room(tokens, min(at_once, pairs) if job.micro_batch else at_once, checkpointing), expected, limit)


def too_little(needed: Footprint, tokens: int, limit: int) -> EngineError:
    message = (
        f"One pair of {tokens:,} tokens needs about {needed.total / 2**30:.1f} GiB, and this machine has "
        f"{limit / 2**30:.1f}."
    )
    return EngineError("out_of_memory", message, HINT)


def memory_of(compute: Compute) -> int:
    """Bytes of the device, or of the machine or container."""
    if compute.on_cuda:
        return int(torch.cuda.get_device_properties(compute.device).total_memory)
    memory = footprint.machine_memory()
    return memory.total if memory else 2**40  # where nothing can be read nothing is refused
