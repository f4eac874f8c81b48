"""How much of a step is in memory at once: planned from the model's sizes before training, and told with the result."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from training import footprint
from training.engine.arrangement import scored_tokens
from training.engine.chat import context_length
from training.engine.compute import Compute, processes
from training.engine.errors import EngineError
from training.engine.preference_data import TokenTriple
from training.engine.scoring import Scorer
from training.footprint import Footprint, Shape
from training.jobspec import MEMORY_RAN_OUT, TrainJob, write_atomically

# Tokens of a prompt and a response that the reference reads in the exact mode where memory allows it, wherever up to
# here a recipe cuts them: another maximum length needs no forward, and the bytes are the same whichever came first.
READ_LENGTH = 2048
ROOM = "room.json"
HINT = "Choose LoRA, the fast mode or a shorter maximum length, or use a machine with more memory."


@dataclass
class Room:
    """How much is in memory at once: positions of a micro-batch, and pairs where that is asked for.

    ``halved`` once memory has run out. That is kept with the saved states: a run that goes on must not find out again,
    nor compute in another order.
    """

    tokens: int
    pairs: int
    checkpointing: bool = False
    halved: bool = False

    def halve(self, tokens: int, pairs: int) -> None:
        """Make room for half of what was at once; a single pair, which has no half, is computed with checkpointing."""
        if pairs > 1:
            self.tokens, self.pairs = max(1, tokens // 2), pairs // 2
        else:
            self.checkpointing = True
        self.halved = True


@dataclass(frozen=True)
class Plan:
    """What was decided, and the bytes that it is expected to take of the bytes that there are."""

    room: Room
    expected: Footprint
    limit: int
    merge: bool = False  # hold W + s B A beside W (``lora_products``)

    def describe(self) -> dict[str, Any]:
        return {
            "estimate_mb": self.expected.total // 2**20,
            "limit_mb": self.limit // 2**20,
            "limit_bytes": self.limit,
            "micro_batch": self.room.pairs,
            **vars(self.room),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


def plan(
    job: TrainJob, config: PretrainedConfig, triples: Sequence[TokenTriple], compute: Compute, scorer: Scorer
) -> Plan:
    """The micro-batch of ``job`` on this machine. Raises ``EngineError`` out_of_memory where not one pair fits.

    It follows from the machine and not from what else is running there, so that the same job gives the same bytes.
    """
    shape = Shape.from_config(config.to_dict())
    longest = max(triples, key=lambda triple: scorer.positions([triple]))
    fixed: dict[str, Any] = {
        "method": job.method,
        "mode": job.mode,
        "lora_rank": job.lora_rank,
        "tokens": scorer.positions([longest]),
        "completion_tokens": scored_tokens(longest),
        "bytes_per_weight": compute.dtype.itemsize,
        "trained_layers": footprint.layers_trained(shape, job.mode, job.fast_layers),
        "models_beside": footprint.models_compared(
            job.method, on_adapter=job.reference.adapter_dir is not None, has_first=job.first is not None
        ),
        "shared_by": processes() if job.sharding == "fsdp" else 1,
    }
    limit = job.memory_bytes or memory_of(compute)
    planned = footprint.plan(
        shape,
        **fixed,
        micro_batch=job.micro_batch,
        pairs_per_step=job.pairs_per_step,
        limit_bytes=limit,
        device=compute.device.type,
    )
    if planned is None:
        raise too_little(footprint.estimate(shape, **fixed, pairs=1, checkpointing=True), fixed["tokens"], limit)
    at_once = planned.pairs if job.micro_batch else job.pairs_per_step
    room = Room(planned.tokens, at_once, planned.checkpointing)
    return Plan(room, planned.expected, limit, merge=planned.merge)


def read_length(job: TrainJob, config: PretrainedConfig, compute: Compute, scorer: Scorer) -> int:
    """How much of a prompt and a response the reference reads. More than training does, where that costs little.

    In the fast mode the kept states would grow with it, and attention over padded rows may grow with its square.
    """
    context = context_length(config)
    if not scorer.packed or scorer.lower is not None:
        return min(job.max_length, context)
    reading = footprint.estimate(
        Shape.from_config(config.to_dict()),
        method=job.method,
        mode=job.mode,
        lora_rank=job.lora_rank,
        tokens=2 * READ_LENGTH,
        completion_tokens=2 * READ_LENGTH,
        pairs=1,
        checkpointing=False,
        bytes_per_weight=compute.dtype.itemsize,
        trained_layers=0,  # nothing is kept for a backward pass: one block at a time
    )
    if reading.training > footprint.SHARE * (job.memory_bytes or memory_of(compute)):
        return min(job.max_length, context)
    return min(max(job.max_length, READ_LENGTH), context)


def too_little(needed: Footprint, tokens: int, limit: int) -> EngineError:
    message = (
        f"With one pair of {tokens:,} tokens at once, this run needs about {needed.total / 2**30:.1f} GiB, and it has "
        f"{limit / 2**30:.1f}."
    )
    return EngineError("out_of_memory", message, HINT)


def memory_of(compute: Compute) -> int:
    """Bytes of the device, or of the machine or container."""
    if compute.on_cuda:
        return int(torch.cuda.get_device_properties(compute.device).total_memory)
    return (footprint.machine_memory() or footprint.UNKNOWN) // processes()  # which all are on this machine


def remember(room: Room, trainer_dir: Path) -> None:
    """Keep ``room``, and tell the supervisor that memory has run out."""
    write_atomically(trainer_dir / ROOM, json.dumps(vars(room)))
    (trainer_dir.parent / MEMORY_RAN_OUT).touch()


def remembered_room(trainer_dir: Path) -> Room | None:
    """What an earlier attempt of this run had to make do with."""
    path = trainer_dir / ROOM
    return Room(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
