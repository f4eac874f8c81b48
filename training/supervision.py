"""How a worker carries out any job: claim it, supervise its engine, judge how it ended, recover what was lost.

Every write here goes through the fence of the claim, so a worker that has lost its job can do no harm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection
from django.utils import timezone

from training import store
from training.exceptions import JobFailed, LeaseLost, Rejected
from training.jobspec import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Result,
    read_result,
)
from training.models import (
    CheckpointExport,
    Gate,
    HubPush,
    Job,
    LabelEffects,
    SampleBatch,
    SideBySide,
    TrainingRun,
)
from training.process import GRACE_SECONDS, EngineProcess, is_stopping
from training.rundir import RunDir

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 1.0
RETRY_SECONDS = 5
RESUME_PERIOD = timedelta(days=14)
FORGET_WITHIN = timedelta(days=60)  # so that nobody looks at every job there ever was
AnyJob = TypeVar("AnyJob", bound=Job)


class Work(ABC, Generic[AnyJob]):
    """One kind of job: how its directory is prepared, what its engine reports, what is published."""

    module: str

    def __init__(self, job: AnyJob, run_dir: RunDir) -> None:
        self.job = job
        self.run_dir = run_dir

    @abstractmethod
    def prepare(self) -> bool:
        """Write the run directory; ``False`` if there is nothing for an engine to do."""

    @abstractmethod
    def tick(self) -> dict[str, Any]:
        """Take in what the engine has written since the last call and return the progress to show."""

    def memory_ran_out(self) -> None:
        """The kernel has ended the engine for want of memory: let the next attempt take less, or raise ``JobFailed``.

        By default it is tried again as it was; something else may have held the memory.
        """

    @abstractmethod
    def publish(self, result: Result) -> None:
        """Bring the outcome into the store and the database, and finish the job, in one fenced transaction."""


def execute(job: AnyJob, work_type: type[Work[AnyJob]]) -> None:
    """Claim and carry out a job. Does nothing if the job is not waiting, so a doubled message is harmless."""
    if is_stopping() or not job.claim(f"{socket.gethostname()}:{os.getpid()}"):
        return
    log.info("%s: attempt %d started", job, job.attempt)
    try:
        _carry_out(job, work_type(job, RunDir.of(job.uuid)))
    except LeaseLost:
        log.warning("%s: lost to another worker; stopped here", job)
    except (OperationalError, InterfaceError):
        log.exception("%s: the database does not answer; it is tried again", job)
        _requeue_if_possible(job)
    except JobFailed as failure:
        job.finish(Job.State.FAILED, code=failure.code, error=str(failure), hint=failure.hint)
        log.error("%s failed (%s): %s", job, failure.code, failure)
    except Rejected as refusal:
        job.finish(Job.State.FAILED, code="refused", error=str(refusal))
        log.error("%s refused: %s", job, refusal)
    except OSError as error:
        job.finish(Job.State.FAILED, code="disk", error=f"The file system refused: {error}.", hint=_disk_hint(job))
        log.exception("%s failed", job)
    except Exception as error:
        job.finish(
            Job.State.FAILED, code="internal", error=f"Tiebreak itself failed: {error!r}.", hint="See the worker's log."
        )
        log.exception("%s failed", job)


def _requeue_if_possible(job: Job) -> None:
    connection.close_if_unusable_or_obsolete()
    # If this fails too, the lease runs out and the reconciler does it.
    with contextlib.suppress(DatabaseError, InterfaceError):
        if job.attempt < settings.JOB_MAX_ATTEMPTS:
            job.requeue(delay=timedelta(seconds=RETRY_SECONDS))
        else:
            error = "The database did not answer while the outcome was written."
            job.finish(Job.State.FAILED, code="database", error=error, hint=f"When it does, {job.again}.")


def _carry_out(job: Job, work: Work[Any]) -> None:
    _need_disk(job)
    work.run_dir.make()
    work.run_dir.forget_outcome()
    with _renewing(job):
        has_engine = work.prepare()
    if has_engine:
        ending = supervise(job, work.module, work.run_dir, work.tick)
        memory_ran_out = work.memory_ran_out if ending.ran_out_of_memory else None
        result = _judge(job, ending.status, read_result(work.run_dir.path), memory_ran_out)
        if result is None:
            return
    else:
        result = Result(ok=True)
    if not job.update_held(state=Job.State.PUBLISHING, progress=work.tick()):
        raise LeaseLost
    with _renewing(job):
        work.publish(result)
    log.info("%s: done", job)


@contextlib.contextmanager
def _renewing(job: Job) -> Iterator[None]:
    """Keep the lease from a thread while this one hashes and packs gigabytes. The fence decides in the end."""
    done = threading.Event()

    def renew() -> None:
        try:
            while not done.wait(settings.JOB_LEASE_SECONDS / 3):
                try:
                    job.renew()
                except (DatabaseError, InterfaceError):  # tried again at the next turn
                    connection.close_if_unusable_or_obsolete()
        finally:
            connection.close()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class Ending:
    status: int  # negative: the signal
    ran_out_of_memory: bool


def supervise(job: Job, module: str, run_dir: RunDir, tick: Callable[[], dict[str, Any]]) -> Ending:
    """Run an engine to its end.

    Renews the job's lease meanwhile. When the lease cannot be renewed the engine is killed before anybody else may
    claim the job, so that two engines never work on it. A cancelled job's engine is told to save and stop.
    """
    if not job.renew():
        raise LeaseLost
    engine = EngineProcess(module, run_dir)
    try:
        lease = _LeaseKeeper(job)
        stop_deadline = 0.0
        while (status := engine.wait(POLL_SECONDS)) is None:
            lease.keep(tick)
            if (lease.is_cancelled or is_stopping()) and not stop_deadline:
                engine.ask_to_stop()
                stop_deadline = time.monotonic() + GRACE_SECONDS
            if stop_deadline and time.monotonic() > stop_deadline:
                engine.kill()
        lease.keep(tick, now=True)
        return Ending(status, engine.ran_out_of_memory)
    finally:
        engine.close()


class _LeaseKeeper:
    """Renews a lease at a third of its length, and gives up before anybody else may think it has expired."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.is_cancelled = False
        self.last_success = time.monotonic()
        self.progress: dict[str, Any] = {}

    def keep(self, tick: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        try:
            self._renew(tick, now)
        except (OperationalError, InterfaceError):
            log.exception("%s: the database does not answer", self.job)
            connection.close_if_unusable_or_obsolete()
        if time.monotonic() - self.last_success > settings.JOB_LEASE_SECONDS * 0.75:
            raise LeaseLost

    def _renew(self, tick: Callable[[], dict[str, Any]], now: bool) -> None:
        since = time.monotonic() - self.last_success
        if since < PROGRESS_SECONDS and not now:
            return
        progress = tick()
        if progress != self.progress or now or since > settings.JOB_LEASE_SECONDS / 3:
            if not self.job.renew(progress):
                raise LeaseLost
            self.progress = progress
            self.last_success = time.monotonic()
        current = type(self.job).objects.filter(pk=self.job.pk, cancel_requested_at__isnull=False)
        self.is_cancelled = self.is_cancelled or current.exists()


def _judge(
    job: Job, status: int, result: Result | None, memory_ran_out: Callable[[], None] | None = None
) -> Result | None:
    """Turn an engine's exit into the job's next state; returns the result if there is something to publish.

    ``memory_ran_out``: what to do before the next attempt, where it was the kernel that ended the engine.
    """
    if status == 0 and result is not None and result.ok:
        return result
    if type(job).objects.filter(pk=job.pk, cancel_requested_at__isnull=False).exists():
        job.finish(Job.State.CANCELLED)
        return None
    if memory_ran_out is not None:  # counts while the worker stops too: systemd stops a service that loses a process so
        memory_ran_out()
        _retry_or_fail(job, status)
        return None
    if status == EXIT_INTERRUPTED or (is_stopping() and result is None):
        job.requeue(free=True)  # whatever way an engine ends while its worker stops, it is not the job's fault
        return None
    if status == EXIT_FAILED and result is not None:
        raise JobFailed(result.error_code, result.error, result.hint)
    _retry_or_fail(job, status)
    return None


def _retry_or_fail(job: Job, status: int) -> None:
    killed = f"signal {-status}" if status < 0 else f"exit status {status}"
    if job.attempt < settings.JOB_MAX_ATTEMPTS:
        log.warning("%s: the engine ended with %s; it goes on from its last saved step", job, killed)
        job.requeue(delay=timedelta(seconds=RETRY_SECONDS * 2 ** (job.attempt - 1)))
        return
    raise JobFailed(
        "killed",
        f"The engine ended with {killed}, {job.attempt} times.",
        "Signal 9 often means that memory ran out: try a smaller micro-batch or a shorter maximum length. "
        "The end of the log may say more.",
    )


def _need_disk(job: Job) -> None:
    if (free := store.free_megabytes()) < settings.MINIMUM_FREE_DISK_MB:
        raise JobFailed(
            "disk_full",
            f"Only {free:,} MB are free in {settings.DATA_DIR}; {settings.MINIMUM_FREE_DISK_MB:,} are needed.",
            f"Free some space, then {job.again}. Nothing was lost.",
        )


def _disk_hint(job: Job) -> str:
    return f"{store.free_megabytes():,} MB are free. Free some space, then {job.again}. Nothing was lost."


JOB_TYPES: tuple[
    type[TrainingRun | SampleBatch | CheckpointExport | HubPush | SideBySide | LabelEffects | Gate], ...
] = (
    TrainingRun,
    SampleBatch,
    CheckpointExport,
    HubPush,
    SideBySide,
    LabelEffects,
    Gate,
)


def recover_expired() -> int:
    """Put jobs whose worker is gone back in line, or fail them after their last attempt. Returns how many.

    Conditional on the fence, so two reconcilers at once do it once.
    """
    recovered = 0
    for job_type in JOB_TYPES:
        for job in job_type.objects.expired():
            recovered += _recover(job)
    return recovered


def _recover(job: Job) -> bool:
    if job.cancel_requested_at is not None:
        return job.finish(Job.State.CANCELLED)
    if job.attempt < settings.JOB_MAX_ATTEMPTS:
        log.warning("%s: its worker is gone; queued again", job)
        return job.requeue()
    return job.finish(
        Job.State.FAILED,
        code="worker_lost",
        error=f"The worker disappeared {job.attempt} times while it ran this job.",
        hint=f"Look at the machine: memory and the worker's log. Then {job.again}.",
    )


def clean_staging() -> int:
    live = {f"{job.uuid}-{job.fence}" for job_type in JOB_TYPES for job in job_type.objects.active()}
    return store.remove_stale_staging(live) + store.remove_half_archives()


def forget_ended_jobs() -> None:
    """Drop the saved steps of runs that nobody has resumed, and what is left of the directories of other jobs."""
    until = timezone.now() - RESUME_PERIOD
    for job_type in JOB_TYPES:
        ended = job_type.objects.filter(
            state__in=Job.State.terminal(), finished_at__range=(until - FORGET_WITHIN, until)
        )
        for job_uuid in ended.values_list("uuid", flat=True):
            run_dir = RunDir.of(job_uuid)
            if job_type is TrainingRun:
                run_dir.drop_resume_state()
            else:
                run_dir.remove()
