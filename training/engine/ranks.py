"""The processes of one run among themselves: which one this is, waiting for each other, sharing work out.

In a process alone every function does what one would do without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from torch import distributed
from torch.distributed import distributed_c10d

from training.engine import process
from training.engine.compute import Compute, processes
from training.engine.journal import MetricsJournal
from training.jobspec import StepMetrics

MEETING = timedelta(minutes=10)  # before anything is computed; whoever is not there by then will not come
# The first process may write responses for hours while the others wait. That one has died, the launcher notices.
PATIENCE = timedelta(days=7)

Item = TypeVar("Item")


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not process.rank()


def join(compute: Compute) -> None:
    """Meet the other processes: by NCCL on GPUs, by gloo on CPUs. Raises what torch raises if one does not come."""
    if processes() > 1:
        PartialState(cpu=not compute.on_cuda, timeout=MEETING)
        distributed.barrier()
        distributed_c10d._set_pg_timeout(PATIENCE)


def leave() -> None:
    """Part, all at the same place; what follows is done without the others."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Let the first process do the block before the others do it."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def share(items: Sequence[Item]) -> list[Item]:
    """Those of ``items`` that this process computes."""
    return share_of(items, process.rank() or 0, processes())


def share_of(items: Sequence[Item], rank: int, of: int) -> list[Item]:
    """Those of process ``rank``, counted from 0, where there are ``of``: as many as the others have, or one more."""
    return list(items[rank::of])


def all_shares(mine: list[Item]) -> list[Item]:
    """What all processes have made of their ``share``, one for one, in the order of the items."""
    parts = of_all(mine)
    joined: list[Any] = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        joined[rank :: len(parts)] = part
    return joined


def of_all(mine: Item) -> list[Item]:
    """``mine`` of every process, the first one's first."""
    if not distributed.is_initialized():
        return [mine]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return found


class SilentJournal(MetricsJournal):
    """The journal of a process that is not the first one: nothing is written and nothing is said."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.last_phase = ""

    def append(self, record: Any, *, durable: bool = False) -> None:
        pass

    def phase(self, name: str, **figures: Any) -> None:
        pass

    def step(self, metrics: StepMetrics) -> None:
        pass

    def rewind(self, step: int) -> list[StepMetrics]:
        return []


def journal(run_dir: Path) -> MetricsJournal:
    return MetricsJournal(run_dir) if is_first() else SilentJournal(run_dir)
