"""Labelers as processes: each takes the next pair, answers at random, thinks, and keeps the times of both.

What the benchmark asks of the queue stands in ``ask`` and ``answer`` alone. Import it after Django is set up.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from django.db import connection, connections

from benchmarks.seeding import Seeded
from benchmarks.timing import Cores, milliseconds_since, percentiles, read_cores
from labeling import queue
from labeling.models import Choice, Project

START_SECONDS = 120
NOTHING_OPEN_SECONDS = 0.02
MAX_ERRORS = 50


@dataclass(frozen=True)
class Served:
    """A pair as the queue gave it."""

    pair_id: int
    slot_id: int
    token: str


def ask(project: Project, annotator_id: int) -> Served | None:
    lease = queue.lease_next(project, annotator_id)
    return Served(lease.slot.pair_id, lease.slot.pk, lease.token) if lease else None


def answer(project: Project, served: Served, annotator_id: int, choice: str) -> str:
    """What became of it: ``saved``, ``repeated`` or ``extra``."""
    said = queue.submit(project, served.token, annotator_id, choice)
    if said.is_repeat:
        return "repeated"
    return "extra" if said.is_extra else "saved"


@dataclass(frozen=True)
class Shift:
    """How long labelers work, and with how much thought: the mean of exponential times, in seconds."""

    clients: int
    warm_up: float
    seconds: float
    think: float


@dataclass
class Clock:
    """The time of one call, and how much of it was spent waiting for statements (COMMIT is none)."""

    whole_ms: list[float] = field(default_factory=list)
    statements_ms: list[float] = field(default_factory=list)
    statements: int = 0

    def time(self, call: Callable[[], Any], *, is_kept: bool) -> Any:
        spent: list[float] = []

        def timed(execute: Callable[..., Any], *arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return execute(*arguments)
            finally:
                spent.append(milliseconds_since(started))

        with connection.execute_wrapper(timed):
            started = time.perf_counter()
            result = call()
            whole = milliseconds_since(started)
        if is_kept:
            self.whole_ms.append(whole)
            self.statements_ms.append(sum(spent))
            self.statements += len(spent)
        return result


@dataclass(frozen=True)
class Event:
    """A pair was asked for and given, or its answer was taken, at a moment of the machine's clock."""

    annotator_id: int
    pair_id: int
    slot_id: int
    at: float


@dataclass
class Tally:
    """What one labeler has seen."""

    lease: Clock = field(default_factory=Clock)
    submit: Clock = field(default_factory=Clock)
    outcomes: Counter[str] = field(default_factory=Counter)
    claims: int = 0  # in the measured time, like the clocks; the rest is of the warm-up as well
    served: list[Event] = field(default_factory=list)
    answered: list[Event] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


def work(seeded: Seeded, annotators: list[int], shift: Shift, barrier: Any, out: Connection) -> None:
    """One labeler's shift; its tally goes to ``out``."""
    random.seed()  # a copy of the parent's would have all think alike
    project = Project.objects.get(pk=seeded.project_id)
    tally = Tally()
    barrier.wait(START_SECONDS)
    measured_from = time.monotonic() + shift.warm_up
    ends = measured_from + shift.seconds
    people = itertools.cycle(annotators)
    cpu = 0.0
    time.sleep(random.random() * shift.think)
    while (now := time.monotonic()) < ends and len(tally.errors) < MAX_ERRORS:
        cpu = cpu or (time.process_time() if now >= measured_from else 0.0)
        try:
            _judge_one(project, next(people), tally, shift.think, is_kept=now >= measured_from)
        except Exception as error:  # whatever it is, it is counted, told and makes the benchmark fail
            tally.errors.append(f"{type(error).__name__}: {error}")
    tally.cpu_s = time.process_time() - (cpu or time.process_time())
    out.send(tally)


def _judge_one(project: Project, annotator_id: int, tally: Tally, think: float, *, is_kept: bool) -> None:
    """Take a pair, think, answer. The next pair follows the answer at once, as on the page."""
    asked = time.monotonic()
    served = tally.lease.time(lambda: ask(project, annotator_id), is_kept=is_kept)
    if served is None:
        tally.outcomes["nothing_open"] += 1
        time.sleep(NOTHING_OPEN_SECONDS)
        return
    tally.claims += is_kept
    tally.served.append(Event(annotator_id, served.pair_id, served.slot_id, asked))
    if think:
        time.sleep(random.expovariate(1 / think))
    choice = random.choice(Choice.values)
    outcome = tally.submit.time(lambda: answer(project, served, annotator_id, choice), is_kept=is_kept)
    tally.outcomes[outcome] += 1
    tally.answered.append(Event(annotator_id, served.pair_id, served.slot_id, time.monotonic()))


def run_shift(seeded: Seeded, groups: list[list[int]], shift: Shift) -> tuple[list[Tally], float | None]:
    """Let every client work its shift, client i as ``groups[i]``; also returns how busy the machine's cores were."""
    connections.close_all()  # a connection is of one process
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(shift.clients + 1)
    clients = [_start(context, seeded, annotators, shift, barrier) for annotators in groups]
    try:
        barrier.wait(START_SECONDS)
        time.sleep(shift.warm_up)
        before: Cores = read_cores()
        time.sleep(shift.seconds)
        busy = read_cores().busy_since(before)
        return [receiver.recv() for _, receiver in clients], busy
    finally:
        for process, _ in clients:
            process.join(30)
            process.kill()


def _start(
    context: Any, seeded: Seeded, annotators: list[int], shift: Shift, barrier: Any
) -> tuple[multiprocessing.Process, Connection]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(seeded, annotators, shift, barrier, sender), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def served_twice(tallies: list[Tally]) -> int:
    """How often somebody was given a pair in a second slot, or asked after its answer and was given it once more."""
    slots: dict[tuple[int, int], int] = {}
    answered: dict[tuple[int, int], float] = {}
    for event in _events(tallies, "answered"):
        key = event.annotator_id, event.pair_id
        answered[key] = min(event.at, answered.get(key, event.at))
    twice = 0
    for event in _events(tallies, "served"):
        key = event.annotator_id, event.pair_id
        is_another_slot = slots.setdefault(key, event.slot_id) != event.slot_id
        twice += is_another_slot or event.at > answered.get(key, event.at)
    return twice


def _events(tallies: list[Tally], kind: str) -> Iterator[Event]:
    return itertools.chain.from_iterable(getattr(tally, kind) for tally in tallies)


def told(tallies: list[Tally], shift: Shift, busy: float | None) -> dict[str, Any]:
    """The figures of one shift."""
    claims = sum(tally.claims for tally in tallies)
    clocks = {name: [getattr(tally, name) for tally in tallies] for name in ("lease", "submit")}
    figures: dict[str, Any] = {"think_ms": shift.think * 1000, "claims_per_s": round(claims / shift.seconds, 1)}
    for name, each in clocks.items():
        figures[f"{name}_ms"] = percentiles([ms for clock in each for ms in clock.whole_ms])
        figures[f"{name}_statements_ms"] = percentiles([ms for clock in each for ms in clock.statements_ms])
        calls = sum(len(clock.whole_ms) for clock in each)
        figures[f"{name}_statements"] = round(sum(clock.statements for clock in each) / calls, 1) if calls else 0
    cpu_ms = sum(tally.cpu_s for tally in tallies) * 1000
    return figures | {"cpu_busy": busy, "client_cpu_ms_per_claim": round(cpu_ms / claims, 2) if claims else 0}


def outcomes(tallies: list[Tally]) -> Counter[str]:
    """What became of all answers, the warm-up's too: saved, repeated, extra; and how often nothing_open was said."""
    return sum((tally.outcomes for tally in tallies), Counter())
