"""Several processes for one training run, each with a GPU of its own: how many, how they start, how they end.

``accelerate launch`` starts them and watches over them. It runs inside the process that the supervisor started, so that
there is no process between that could be left behind: when this process dies, its children see it
(``process.watch_launcher``). A child tells how it ended in a file of its own; only the launcher writes ``result.json``.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from training.engine import process
from training.engine.errors import EngineError, Interrupted
from training.jobspec import EXIT_INTERRUPTED, PARENT_FD_VARIABLE, Result, TrainJob

MODULE = "training.engine.train_dpo"
# Of the children, to end an optimiser step and save. The supervisor is less patient; so may be who presses Ctrl-C.
STOP_SECONDS = 600
# A reason that may be the mere consequence of another process's end, which breaks every connection to it.
CONSEQUENCE = "crashed"
TIDYING_SECONDS = 10  # torch waits for thirty before it kills what does not end


def processes_wanted(job: TrainJob) -> int:
    """How many processes share ``job`` here; 1 for this one alone, and inside one that was launched.

    Raises ``EngineError`` bad_job, no_gpu.
    """
    if job.processes < 0 or job.sharding not in {"ddp", "fsdp"}:
        hint = "Choose a number of processes, 0 for one a GPU, and ddp or fsdp."
        raise EngineError("bad_job", f"{job.processes} processes with {job.sharding!r} are no way to train.", hint)
    if job.processes == 1 or process.rank() is not None:
        return 1
    gpus = gpus_for(job)
    wanted = job.processes or max(1, gpus)
    if wanted > 1 and job.sharding == "fsdp":
        check_sharding(job, gpus)
    if wanted > max(1, gpus) and job.device != "cpu":  # processes that are meant to share a CPU say so
        message = f"The run asks for {wanted} GPUs and this machine has {gpus or 'none'}."
        hint = "Choose fewer, or 0 for all there are." if gpus else "Leave it at 1: a process uses every core."
        raise EngineError("no_gpu", message, hint)
    return wanted


def check_sharding(job: TrainJob, gpus: int) -> None:
    """accelerate 1.15 does not shard on CPUs; it would quietly copy the model to each process."""
    if not gpus:
        message = "FSDP shares a model out over GPUs, and this run computes on the CPU."
        raise EngineError("bad_job", message, "Choose DDP, or a machine with GPUs.")
    if job.mode == "fast":
        message = "The fast mode runs the lower layers by themselves, which a model that is shared out cannot do."
        raise EngineError("bad_job", message, "Choose DDP, or the exact mode.")


def gpus_for(job: TrainJob) -> int:
    """GPUs that ``job`` may use. Asks the driver without taking hold of a GPU."""
    if job.device == "cpu":
        return 0
    import torch

    count = torch.cuda.device_count()
    if job.device == "cuda" and not count:
        raise EngineError("no_gpu", "The run asks for GPUs and this machine has none.", "Choose auto or cpu.")
    return count


def run(run_dir: Path, job: TrainJob, processes: int) -> dict[str, Any]:
    """Do ``job`` in ``processes`` processes of their own. Returns the details of the result of the first of them.

    Raises ``EngineError`` with the reason of the process that failed first, and ``Interrupted``.
    """
    forget_results(run_dir, processes)
    prepare_environment(processes, job.threads)
    failures = launch(arguments(run_dir, job, processes))
    results = [read_result(run_dir, rank) for rank in range(processes)]
    forget_results(run_dir, processes)
    if (first := results[0]) is not None and first.ok:  # all is done, even if a process then ended uncleanly
        return first.details
    raise reason(results, list(failures.values()))


def launch(argv: list[str]) -> dict[int, Any]:
    """Start the processes and wait for their end. Returns torch's ``ProcessFailure`` of those that failed, in order.

    Raises ``Interrupted``.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    pass_signals_on(SignalException)
    try:
        launch_command(launch_command_parser().parse_args(argv))
    except ChildFailedError as error:
        return dict(error.failures)
    except SignalException:
        raise Interrupted from None
    return {}


def arguments(run_dir: Path, job: TrainJob, processes: int) -> list[str]:
    """Of ``accelerate launch``. All of them, and a configuration that says no more, lest it reads that of a user."""
    argv = ["--config_file", str(write_configuration(run_dir, job, processes))]
    argv += ["--num_processes", str(processes), "--num_machines", "1", "--machine_rank", "0"]
    argv += ["--main_process_port", "0", "--rdzv_backend", "static", "--max_restarts", "0"]
    argv += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the trainer's arguments say the precision
    argv += ["--num_cpu_threads_per_process", os.environ["OMP_NUM_THREADS"]]
    argv += FSDP_ARGUMENTS if job.sharding == "fsdp" else ["--multi_gpu"]  # which starts processes on CPUs as well
    return [*argv, "--module", MODULE, str(run_dir)]


FSDP_ARGUMENTS = [
    *("--use_fsdp", "--fsdp_version", "2", "--fsdp_reshard_after_forward", "true"),
    *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_state_dict_type", "FULL_STATE_DICT"),
    *("--fsdp_cpu_ram_efficient_loading", "false", "--fsdp_offload_params", "false"),
    *("--fsdp_activation_checkpointing", "false"),
]


def write_configuration(run_dir: Path, job: TrainJob, processes: int) -> Path:
    path = run_dir / "trainer" / "accelerate.json"
    path.parent.mkdir(exist_ok=True)
    kind = "FSDP" if job.sharding == "fsdp" else "MULTI_GPU"
    settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": kind, "num_processes": processes}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def prepare_environment(processes: int, threads: int) -> None:
    """What the children inherit. They share the cores, and the supervisor's pipe does not reach them."""
    os.environ[process.LAUNCHER_VARIABLE] = str(os.getpid())
    os.environ.pop(PARENT_FD_VARIABLE, None)
    total = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    os.environ["OMP_NUM_THREADS"] = str(max(1, total // processes))
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP"  # of the others we take care
    os.environ["PET_SHUTDOWN_TIMEOUT"] = str(STOP_SECONDS)


def pass_signals_on(signal_error: type[Exception]) -> None:
    """The first SIGTERM or SIGINT goes on to all processes as SIGTERM; a second one must not cut their saving short.

    ``signal_error`` is what makes torch tell its processes to end, and wait for them.
    """

    def handle(signum: int, frame: FrameType | None) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise signal_error(f"Stopped by {signal.Signals(signum).name}.", signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def reason(results: list[Result | None], failures: list[Any]) -> BaseException:
    """Why a run failed. When one process ends, the others lose their connection to it and fail as well."""
    told = [result for result in results if result is not None and not result.ok]
    for result in told:
        if result.error_code != CONSEQUENCE:
            return as_error(result)
    # What is killed later than the first end is killed by torch, which tidies up.
    early = [item for item in failures if item.timestamp - failures[0].timestamp <= TIDYING_SECONDS]
    for failure in early:
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            return killed(failure.local_rank, signal.Signals(-failure.exitcode), len(results))
    if any(failure.exitcode in {EXIT_INTERRUPTED, -signal.SIGTERM} for failure in early):
        return Interrupted()
    if told:
        return as_error(told[0])
    return EngineError("crashed", "The processes of the run ended without a result.", "Read the log of this run.")


def as_error(result: Result) -> EngineError:
    return EngineError(result.error_code, result.error, result.hint)


def killed(rank: int, number: signal.Signals, processes: int) -> EngineError:
    message = f"Process {rank + 1} of {processes} was ended by {number.name}, and the others with it."
    hint = "Start the run again: it goes on from its last saved step. SIGKILL often means that memory ran out."
    return EngineError("killed", message, hint)


def read_result(run_dir: Path, rank: int) -> Result | None:
    try:
        return Result.from_dict(json.loads((run_dir / process.RANK_RESULT.format(rank)).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def forget_results(run_dir: Path, processes: int) -> None:
    for rank in range(processes):
        (run_dir / process.RANK_RESULT.format(rank)).unlink(missing_ok=True)
