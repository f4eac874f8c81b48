"""What every engine process does around its work: arguments, signals, priority, and how the end is told.

This module and the entry modules import nothing heavy, so that ``--help`` is immediate and a process whose supervisor
dies while torch is still being imported notices it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import faulthandler
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from training import jobspec
from training.engine.errors import EngineError, Interrupted
from training.jobspec import JsonRecord, Result

Job = TypeVar("Job", bound=JsonRecord)
Work = Callable[[Path, Job], dict[str, Any]]

NICENESS = 5
LAUNCHER_SECONDS = 0.5  # between two looks at whether the launcher is still there
OOM_SCORE = 800  # of 1000: the kernel should end a trainer before it ends the web server or the database

GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"
RANK_RESULT = ".result.{}.json"
# glibc's names for two settings of its malloc, and values: the main thread's blocks all come from its heap, which never
# gives back what is freed.
MALLOC_SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}

LAUNCHER_VARIABLE = "TIEBREAK_LAUNCHER_PID"  # set for the processes of a run that has several

ENVIRONMENT_DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Idle OpenMP threads sleep. By default they spin, and two engines on the same cores then slow each other down more
    # than twentyfold. GNU's, which torch comes with, may spin for some tens of microseconds before: an engine alone
    # takes a tenth less for a step then, and each of two a twentieth more.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2500",
    GPUS_VARIABLE: "0",  # one GPU a process: the trainer has no data parallelism inside a process
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # or cuBLAS is not deterministic
}

# torch reports a failed allocation on the CPU, and a full disk, as RuntimeError or SafetensorError with these words.
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
DISK_FULL_WORDS = (
    "No space left on device",
    "File too large",
    "os error 28",
    "os error 27",
    "PytorchStreamWriter failed writing",
    "unexpected pos",
)
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StopRequest:
    """SIGTERM and SIGINT: raised at once, or kept for the end of the micro-batch while ``deferred``."""

    def __init__(self) -> None:
        self.requested = False
        self.agreed: bool | None = None  # by all processes, at the last optimiser step; None for a process alone
        self._deferred = False

    @property
    def due(self) -> bool:
        """Whether to stop at the end of this optimiser step: what the processes of a run have agreed on."""
        return self.requested if self.agreed is None else self.agreed

    def handle(self, signum: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first and not self._deferred:  # a second signal must not hit what is on its way out
            raise Interrupted

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the body finish what it is doing; it asks ``requested``. Raises ``Interrupted`` after the body."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise Interrupted


stop = StopRequest()


def run(
    work: Work[Job],
    job_type: type[Job],
    description: str,
    argv: Sequence[str] | None = None,
    *,
    may_launch: bool = False,
) -> NoReturn:
    """Be an engine process: read ``RUN_DIR/job.json``, do ``work``, write ``RUN_DIR/result.json``.

    ``may_launch``: the work may be that of several processes, so it sees to its GPU itself.
    Ends with the exit code 0, ``EXIT_FAILED`` with the reason in ``result.json``, or ``EXIT_INTERRUPTED``.
    """
    run_dir = parse_run_dir(description, argv)
    set_up_process(one_gpu=not may_launch)
    end_at_once(execute(work, job_type, run_dir))


def end_at_once(code: int) -> NoReturn:
    """End without the interpreter's tidying up, when all is written.

    Torch's threads of autograd and gloo race with it and may never let it end (pytorch issues 56297 and 190489), and
    whoever waits for this process would wait for ever. One of several that has failed in the middle of an exchange
    would wait for the others there, and they for it; its closed sockets tell them at once.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code)


def parse_run_dir(description: str, argv: Sequence[str] | None) -> Path:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="RUN_DIR holds job.json and, for some jobs, dataset.jsonl. The outcome is in RUN_DIR/result.json. "
        f"Exit codes: 0 done, {jobspec.EXIT_FAILED} failed, {jobspec.EXIT_INTERRUPTED} stopped on request (start it "
        f"again to go on), {jobspec.EXIT_ORPHANED} the supervising process is gone.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run directory of this job")
    run_dir: Path = parser.parse_args(argv).run_dir
    if not run_dir.is_dir():
        parser.error(f"{run_dir} is not a directory")
    return run_dir.resolve()


def set_up_process(*, one_gpu: bool = True) -> None:
    for name, value in ENVIRONMENT_DEFAULTS.items():
        if one_gpu or name != GPUS_VARIABLE:
            os.environ.setdefault(name, value)
    if one_gpu:
        keep_to_one_gpu()
    keep_freed_memory()
    # Asked by ``kill -USR1``, a process that seems to stand still writes to its log what each thread is at.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    signal.signal(signal.SIGTERM, stop.handle)
    signal.signal(signal.SIGINT, stop.handle)
    if (launcher := os.environ.get(LAUNCHER_VARIABLE)) is not None:  # it is nice already, and so are its children
        watch_launcher(int(launcher))
        return
    watch_supervisor()
    os.nice(NICENESS)
    volunteer_for_oom_killer()


def keep_freed_memory() -> None:
    """Let this process use again what it has freed, where the C library is glibc.

    By default it gives the end of its heap back to the kernel once some megabytes there are free, and the kernel zeroes
    the same pages for the next tensors: 170,000 page faults in an optimiser step of SmolLM2-135M, and 25,000 with this.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in MALLOC_SETTINGS.values():
            mallopt(setting, value)


def give_back_freed_memory() -> None:
    """Give the free pages of the heap to the kernel at once, where the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_to_one_gpu() -> None:
    """The first of those that this process may see: a trainer that sees two would copy the model to both."""
    os.environ[GPUS_VARIABLE] = os.environ.get(GPUS_VARIABLE, "0").split(",")[0]


def rank() -> int | None:
    """Which of the processes of a run this is, counted from 0; None for one that was not launched as one of several."""
    number = os.environ.get("RANK")
    return None if number is None else int(number)


def watch_launcher(launcher: int) -> None:
    """End this process soon after the one that launched it. torch starts such processes in sessions of their own and
    without open files, so that neither a signal to the group nor the supervisor's pipe reaches them.
    """

    def wait_for_another_parent() -> None:
        while os.getppid() == launcher:
            time.sleep(LAUNCHER_SECONDS)
        os._exit(jobspec.EXIT_ORPHANED)

    threading.Thread(target=wait_for_another_parent, name="launcher-watch", daemon=True).start()


def watch_supervisor() -> None:
    """End this process when the write end of the supervisor's pipe closes, which happens however it dies."""
    if (number := os.environ.get(jobspec.PARENT_FD_VARIABLE)) is None:
        return
    descriptor = int(number)
    os.set_inheritable(descriptor, False)

    def wait_for_end_of_file() -> None:
        while os.read(descriptor, 1):
            pass
        os._exit(jobspec.EXIT_ORPHANED)

    threading.Thread(target=wait_for_end_of_file, name="supervisor-watch", daemon=True).start()


def volunteer_for_oom_killer() -> None:
    # Not on every system, and not allowed in every container; the run is right without it.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def result_path(run_dir: Path) -> Path:
    """Where this process tells how it ended. Of several processes each tells its launcher, which tells the rest."""
    if (number := rank()) is None or (number == 0 and LAUNCHER_VARIABLE not in os.environ):
        return run_dir / "result.json"
    return run_dir / RANK_RESULT.format(number)


def execute(work: Work[Job], job_type: type[Job], run_dir: Path) -> int:
    """Do ``work`` and tell how it ended. The result of an earlier attempt goes first, lest it look like this one's."""
    result_path(run_dir).unlink(missing_ok=True)
    try:
        job = jobspec.read_job(run_dir, job_type)
        details = work(run_dir, job)
    except (Interrupted, KeyboardInterrupt):
        tell("Stopped on request.")
        return jobspec.EXIT_INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        write_failure(run_dir, explain(error, run_dir))
        return jobspec.EXIT_FAILED
    jobspec.write_atomically(result_path(run_dir), Result(ok=True, details=details).to_json())
    return 0


def write_failure(run_dir: Path, result: Result) -> None:
    """Write the reason, also on a full disk: what this attempt has half written is given back first."""
    shutil.rmtree(run_dir / ".checkpoint.partial", ignore_errors=True)
    try:
        jobspec.write_atomically(result_path(run_dir), result.to_json())
    except OSError as error:
        tell(f"{result_path(run_dir).name} could not be written: {error}\n{result.error}")


def explain(error: Exception, run_dir: Path) -> Result:
    """The words for ``error``."""
    if isinstance(error, EngineError):
        return _failure(error.code, error.message, error.hint)
    if isinstance(error, (jobspec.SpecError, FileNotFoundError)) or type(error).__name__ == "JSONDecodeError":
        return _failure("bad_job", _last_line(error), "The run directory was not written by this version.")
    if is_out_of_memory(error):
        hint = "Lower the micro-batch or the maximum length (sampling: fewer pairs), or use a machine with more memory."
        return _failure("out_of_memory", "There was not enough memory.", hint)
    if is_disk_full(error):
        free = shutil.disk_usage(run_dir).free / 2**20
        message = f"The disk is full or a file limit was reached; {free:,.0f} MiB are free where the run is stored."
        return _failure("disk_full", message, "Free some space or move the data directory, then start the run again.")
    return _failure("crashed", _last_line(error), "The whole traceback is in the log of this run.")


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return True
    named = isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError"
    return named and any(words in str(error) for words in DISK_FULL_WORDS)


def tell(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _failure(code: str, message: str, hint: str) -> Result:
    return Result(ok=False, error_code=code, error=message, hint=hint)
