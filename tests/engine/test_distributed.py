"""One run in several processes: the same numbers, one stop for all, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import distributed
from torch.distributed import distributed_c10d

from tests.engine.runs import adapter_bytes, do, read_lines, start, steps, succeed, triple, write_lines
from training import jobspec
from training.engine import launch, process, ranks, resume
from training.engine.errors import EngineError, Interrupted
from training.engine.ranks import share_of
from training.engine.step_plan import plan_steps
from training.jobspec import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_ORPHANED, ModelRef, Result, TrainJob

MakeRun = Callable[..., Path]
Launch = Callable[..., subprocess.Popen[bytes]]

# Lengths differ, every epoch ends with a step of three pairs, and one process has two of them and the other one.
PAIRS, EPOCHS, STEPS = 7, 12.0, 24
FIELDS: dict[str, Any] = {"epochs": EPOCHS, "pairs_per_step": 4, "micro_batch": 1, "learning_rate": 2e-3}
FIELDS |= {"save_every_steps": 3, "lora_rank": 4, "max_length": 128, "seed": 5, "base_name": "example/tiny"}
TWO: dict[str, Any] = FIELDS | {"processes": 2, "device": "cpu", "threads": 2}
# What accelerate would take from a user's home, were it asked: a run in one process, on a machine of Amazon's.
FOREIGN = "compute_environment: AMAZON_SAGEMAKER\ndistributed_type: 'NO'\nnum_processes: 1\n"


def rows() -> list[Any]:
    train = [triple(number) for number in range(PAIRS)]
    return train + [triple(20 + number, split="held_out") for number in range(3)]


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launch]:
    """Start engine processes that, with all their children, do not outlive the test."""
    children: list[subprocess.Popen[bytes]] = []
    home = tmp_path / "home" / "accelerate"
    home.mkdir(parents=True)
    (home / "default_config.yaml").write_text(FOREIGN, encoding="utf-8")

    def begin(run_dir: Path, **options: Any) -> subprocess.Popen[bytes]:
        environment = os.environ | {"HF_HOME": str(home.parent)} | options.pop("env", {})
        children.append(start_logged(run_dir, env=environment, **options))
        return children[-1]

    yield begin
    for child in children:
        ranks = ranks_of(child.pid)
        for pid in (child.pid, *ranks.values()):
            if child.poll() is None or pid != child.pid:
                os.kill(pid, signal.SIGKILL)
        child.wait()


def start_logged(run_dir: Path, **options: Any) -> subprocess.Popen[bytes]:
    with (run_dir / "train.log").open("ab") as log:
        return start("train_dpo", run_dir, stdout=log, stderr=log, **options)


def ranks_of(launcher: int) -> dict[int, int]:
    """Process ids of the ranks that ``launcher`` has started and that are alive."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(") ")[2].split()[0]
        except OSError:
            continue
        if f"{process.LAUNCHER_VARIABLE}={launcher}".encode() in environment and state != "Z":
            names = dict(item.split(b"=", 1) for item in environment if b"=" in item)
            if b"RANK" in names:
                found[int(names[b"RANK"])] = int(folder.name)
    return found


def wait_for_step(run_dir: Path, step: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or f'"step":{step},' not in metrics.read_text():
        assert child.poll() is None, (run_dir / "train.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def finish(child: subprocess.Popen[bytes], run_dir: Path, expected: int = 0) -> None:
    moved, seen = time.monotonic(), 0.0
    while child.poll() is None:
        # Slow is not wrong: this machine has other work. Merely waiting takes a second a minute.
        if (used := cpu_seconds(child.pid)) > seen + 3:
            moved, seen = time.monotonic(), used
        if time.monotonic() - moved > 60:
            stand_still(child, run_dir)
        time.sleep(0.05)
    assert child.returncode == expected, (run_dir / "train.log").read_text()


def cpu_seconds(launcher: int) -> float:
    """Used by the launcher and its living ranks."""
    ticks = 0
    for pid in (launcher, *ranks_of(launcher).values()):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def stand_still(child: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Fail with what every process is at, which each writes to the log when it is asked."""
    pids = (child.pid, *ranks_of(child.pid).values())
    waits = {
        f"{pid} {(task / 'comm').read_text().strip()}": (task / "wchan").read_text()
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)  # one after another, so that their lines do not mix
    results = sorted(path.name for path in run_dir.glob(".result.*"))
    pytest.fail(f"It stands still. {results} {waits}\n{(run_dir / 'train.log').read_text()}", pytrace=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run in two processes from its beginning to its end."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    run_dir.mkdir()
    jobspec.write_job(run_dir, TrainJob(ModelRef(str(tiny_model_dir), "hash-of-base"), **TWO))
    write_lines(run_dir, rows())
    finish(start_logged(run_dir), run_dir)
    return run_dir


def test_the_others_are_waited_for_longer_than_to_come() -> None:
    """By a function of torch's that it does not promise to keep."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=ranks.MEETING)
    try:
        backend = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        assert backend.options._timeout == ranks.MEETING
        distributed_c10d._set_pg_timeout(ranks.PATIENCE)
        assert backend.options._timeout == ranks.PATIENCE
    finally:
        distributed.destroy_process_group()


# The same run.


@pytest.mark.slow
def test_two_processes_train_what_one_trains(train_run: MakeRun, undisturbed: Path) -> None:
    alone = train_run(rows(), name="alone", **FIELDS)
    details = succeed("train_dpo", alone)
    result = jobspec.read_result(undisturbed)
    assert result is not None
    assert result.ok
    assert len(steps(undisturbed)) == STEPS
    for one, two in zip(steps(alone), steps(undisturbed), strict=True):
        for name in ("loss", "reward_margin", "reward_accuracy", "grad_norm", "learning_rate", "epoch"):
            assert two[name] == pytest.approx(one[name], abs=1e-5, rel=1e-5), (name, one["step"])
        assert two["logp_chosen"] == pytest.approx(one["logp_chosen"], rel=1e-5)
    first, second = (load_file(path / "checkpoint" / "adapter_model.safetensors") for path in (alone, undisturbed))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 1e-5, name
    # Who read which pair does not show.
    assert result.details["reference_logps"] == details["reference_logps"]
    assert result.details["held_out"]["after"]["margin"] == pytest.approx(details["held_out"]["after"]["margin"])
    assert result.details["threads"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"mode": "fast", "fast_layers": 1}, {"method": "full"}])
def test_every_way_to_train_can_be_shared_out(train_run: MakeRun, launched: Launch, way: dict[str, Any]) -> None:
    fields = way | {"epochs": 2.0}
    alone = train_run(rows(), name="alone", **FIELDS | fields)
    shared = train_run(rows(), name="shared", **TWO | fields)
    succeed("train_dpo", alone)
    finish(launched(shared), shared)
    for one, two in zip(steps(alone), steps(shared), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5), one["step"]
    first, second = (load_file(next((path / "checkpoint").glob("*model.safetensors"))) for path in (alone, shared))
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 1e-5, name


@pytest.mark.slow
def test_only_the_first_process_writes(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    files = {"job.json", "dataset.jsonl", "metrics.jsonl", "held_out.jsonl", "result.json", "train.log"}
    files |= {"training_pairs.jsonl"}
    assert names == files | {"checkpoint", "trainer", "cache"}
    assert [line["step"] for line in steps(undisturbed)] == list(range(1, STEPS + 1))
    phases = [line["phase"] for line in read_lines(undisturbed, "metrics.jsonl") if "phase" in line]
    assert phases[0] == "loading model"
    assert phases.count("training") == phases.count("writing checkpoint") == 1
    assert (undisturbed / "train.log").read_text().count("step 1 of") == 1


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["launcher", "one rank"])
def test_one_stop_is_for_all_at_the_same_step(
    train_run: MakeRun, launched: Launch, undisturbed: Path, asked: str
) -> None:
    run_dir = train_run(rows(), **TWO)
    child = launched(run_dir)
    wait_for_step(run_dir, 4, child)
    os.kill(child.pid if asked == "launcher" else ranks_of(child.pid)[1], signal.SIGTERM)
    finish(child, run_dir, EXIT_INTERRUPTED)
    assert ranks_of(child.pid) == {}
    assert jobspec.read_result(run_dir) is None
    reached = steps(run_dir)[-1]["step"]
    assert 4 <= reached < STEPS
    saved = resume.last_state(run_dir / "trainer", resume.job_identity(run_dir, "cpu float32"))
    assert saved is not None
    assert resume.step_of(saved) == reached
    if asked == "one rank":
        return  # it goes on as the other does
    finish(launched(run_dir), run_dir)
    assert adapter_bytes(run_dir) == adapter_bytes(undisturbed)
    assert [line["step"] for line in steps(run_dir)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_reason(
    train_run: MakeRun, launched: Launch, undisturbed: Path
) -> None:
    run_dir = train_run(rows(), **TWO)
    child = launched(run_dir)
    wait_for_step(run_dir, 7, child)
    started = time.monotonic()
    os.kill(ranks_of(child.pid)[1], signal.SIGKILL)
    finish(child, run_dir, EXIT_FAILED)
    assert time.monotonic() - started < 40
    assert ranks_of(child.pid) == {}
    result = jobspec.read_result(run_dir)
    assert result is not None
    assert result.error_code == "killed"
    assert result.error == "Process 2 of 2 was ended by SIGKILL, and the others with it."
    assert "last saved step" in result.hint
    finish(launched(run_dir), run_dir)
    assert adapter_bytes(run_dir) == adapter_bytes(undisturbed)


@pytest.mark.slow
def test_all_processes_end_when_the_supervisor_is_gone(train_run: MakeRun, launched: Launch) -> None:
    run_dir = train_run(rows(), **TWO | {"epochs": 2000.0})
    reader, writer = os.pipe()
    child = launched(run_dir, pass_fds=[reader], env={jobspec.PARENT_FD_VARIABLE: str(reader)})
    os.close(reader)
    wait_for_step(run_dir, 1, child)
    ranks = ranks_of(child.pid)
    assert sorted(ranks) == [0, 1]
    for pid in ranks.values():
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, child.pid)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == str(process.OOM_SCORE)
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"HF_HUB_OFFLINE=1" in environment
        assert b"OMP_NUM_THREADS=1" in environment
        assert not any(item.startswith(jobspec.PARENT_FD_VARIABLE.encode()) for item in environment)
    os.close(writer)
    assert child.wait(timeout=30) == EXIT_ORPHANED
    deadline = time.monotonic() + 20
    while ranks_of(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_what_stops_all_processes_is_told_in_their_words(
    train_run: MakeRun, launched: Launch, copied_model: Path
) -> None:
    os.truncate(copied_model / "model.safetensors", 5000)
    run_dir = train_run(rows(), **TWO | {"reference": ModelRef(str(copied_model), "hash")})
    finish(launched(run_dir), run_dir, EXIT_FAILED)
    result = jobspec.read_result(run_dir)
    assert result is not None
    assert result.error_code == "bad_weights"
    assert result.hint == "Import the model again."
    assert not list(run_dir.glob(".result*"))


# Who computes what.


@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 8), st.sampled_from([0.3, 1.0, 2.5]))
def test_every_process_has_work_in_every_step(pairs: int, size: int, processes: int, epochs: float) -> None:
    if min(pairs, size) < processes:
        with pytest.raises(EngineError, match=f"for {processes} processes"):
            plan_steps(pairs, size, epochs, 3, processes)
        return
    plan = plan_steps(pairs, size, epochs, 3, processes)
    epoch = plan_steps(pairs, size, 1.0, 3, processes)
    assert sorted(place for step in epoch for place in step) == list(range(pairs))
    assert len(epoch) * epochs <= len(plan) < len(epoch) * epochs + 1
    for step in plan:
        shares = [share_of(step, rank, processes) for rank in range(processes)]
        assert all(shares)
        assert sorted(place for share in shares for place in share) == sorted(step)
    if processes == 1:
        assert len(epoch) == -(-pairs // size)


# How many processes.


def job(**fields: Any) -> TrainJob:
    return TrainJob(ModelRef("", ""), 0, **fields)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many GPUs the machine has."""
    import torch

    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("there_are", "fields", "expected"),
    [
        (0, {}, 1),
        (4, {}, 1),
        (0, {"processes": 0}, 1),
        (1, {"processes": 0}, 1),
        (4, {"processes": 0}, 4),
        (4, {"processes": 0, "device": "cpu"}, 1),
        (4, {"processes": 2}, 2),
        (4, {"processes": 4, "sharding": "fsdp"}, 4),
        (0, {"processes": 2, "device": "cpu"}, 2),
        (4, {"processes": 8, "device": "cpu"}, 8),
        (1, {"processes": 0, "sharding": "fsdp"}, 1),
    ],
)
def test_the_number_of_processes(
    gpus: Callable[[int], None], there_are: int, fields: dict[str, Any], expected: int
) -> None:
    gpus(there_are)
    assert launch.processes_wanted(job(**fields)) == expected


@pytest.mark.parametrize(
    ("there_are", "fields", "code", "words"),
    [
        (2, {"processes": 4}, "no_gpu", "4 GPUs and this machine has 2"),
        (0, {"processes": 2, "device": "cuda"}, "no_gpu", "has none"),
        (0, {"processes": 4}, "no_gpu", "4 GPUs and this machine has none"),
        (0, {"processes": 2, "sharding": "fsdp"}, "bad_job", "computes on the CPU"),
        (4, {"processes": 2, "sharding": "fsdp", "device": "cpu"}, "bad_job", "computes on the CPU"),
        (4, {"processes": 2, "sharding": "fsdp", "mode": "fast"}, "bad_job", "lower layers"),
        (4, {"processes": -1}, "bad_job", "no way to train"),
        (4, {"processes": 2, "sharding": "zero"}, "bad_job", "no way to train"),
    ],
)
def test_processes_that_cannot_be_had_are_told(
    gpus: Callable[[int], None], there_are: int, fields: dict[str, Any], code: str, words: str
) -> None:
    gpus(there_are)
    with pytest.raises(EngineError, match=words) as caught:
        launch.processes_wanted(job(**fields))
    assert caught.value.code == code
    assert caught.value.hint


def test_a_run_that_cannot_be_shared_out_ends_before_it_is_launched(train_run: MakeRun) -> None:
    result = do("train_dpo", train_run(2, processes=2, sharding="fsdp", device="cpu"))
    assert (result.error_code, result.hint) == ("bad_job", "Choose DDP, or a machine with GPUs.")


def test_a_launched_process_launches_none(monkeypatch: pytest.MonkeyPatch, gpus: Callable[[int], None]) -> None:
    gpus(4)
    monkeypatch.setenv("RANK", "3")
    assert launch.processes_wanted(job(processes=0)) == 1


def test_each_process_tells_in_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert process.result_path(tmp_path).name == "result.json"
    monkeypatch.setenv("RANK", "0")  # accelerate launch, by hand
    assert process.result_path(tmp_path).name == "result.json"
    monkeypatch.setenv(process.LAUNCHER_VARIABLE, "17")
    assert process.result_path(tmp_path).name == ".result.0.json"
    monkeypatch.setenv("RANK", "2")
    assert process.result_path(tmp_path).name == ".result.2.json"


@pytest.mark.parametrize(("visible", "kept"), [(None, "0"), ("2,3", "2"), ("1", "1"), ("", "")])
def test_a_process_alone_keeps_to_one_gpu(monkeypatch: pytest.MonkeyPatch, visible: str | None, kept: str) -> None:
    monkeypatch.setenv(process.GPUS_VARIABLE, visible or "")
    if visible is None:
        monkeypatch.delenv(process.GPUS_VARIABLE)
    process.keep_to_one_gpu()
    assert os.environ[process.GPUS_VARIABLE] == kept


def test_launched_processes_see_all_gpus_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", process.GPUS_VARIABLE, "PET_SIGNALS_TO_HANDLE", "PET_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(process.LAUNCHER_VARIABLE, "")
    monkeypatch.setenv(jobspec.PARENT_FD_VARIABLE, "5")
    launch.prepare_environment(4, threads=12)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ[process.LAUNCHER_VARIABLE] == str(os.getpid())
    assert process.GPUS_VARIABLE not in os.environ
    assert jobspec.PARENT_FD_VARIABLE not in os.environ
    launch.prepare_environment(8, threads=3)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "16")  # the administrator's bound
    launch.prepare_environment(2, threads=0)
    assert os.environ["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_accelerate_understands_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: Any) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    argv = launch.arguments(tmp_path, job(sharding=sharding), 3)
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
    assert (arguments.num_processes, arguments.num_machines, arguments.module) == (3, 1, True)
    assert arguments.training_script == "training.engine.train_dpo"
    assert arguments.training_script_args == [str(tmp_path)]
    assert (arguments.mixed_precision, arguments.dynamo_backend, arguments.use_fsdp) == ("no", "no", sharding == "fsdp")
    environment = prepare_multi_gpu_env(arguments)
    assert environment["OMP_NUM_THREADS"] == "2"
    if sharding == "fsdp":
        assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")
        assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


# Why it ended.


def failed(rank: int, code: int, after: int = 0) -> Any:
    """As torch tells of a process that failed."""
    return SimpleNamespace(local_rank=rank, exitcode=code, timestamp=1_000 + after)


LOST = Result(ok=False, error_code="crashed", error="RuntimeError: Connection closed by peer")
DIVERGED = Result(ok=False, error_code="diverged", error="The loss stopped being a number.", hint="Slower.")
DONE = Result(ok=True)


@pytest.mark.parametrize(
    ("results", "failures", "code", "words"),
    [
        ([LOST, DIVERGED], [failed(0, 1), failed(1, 1)], "diverged", "stopped being a number"),
        ([None, DIVERGED], [failed(1, 1), failed(0, -9, 30)], "diverged", "stopped being a number"),
        ([LOST, None], [failed(0, 1), failed(1, -9)], "killed", "Process 2 of 2 was ended by SIGKILL"),
        ([None, LOST], [failed(0, -11), failed(1, 1)], "killed", "Process 1 of 2 was ended by SIGSEGV"),
        ([None, LOST], [failed(1, 1), failed(0, -9, 30)], "crashed", "Connection closed"),
        ([None, None], [failed(1, 1)], "crashed", "without a result"),
        ([None, DONE], [], "crashed", "without a result"),
    ],
)
def test_the_reason_is_that_of_the_process_that_failed_first(
    results: list[Result | None], failures: list[Any], code: str, words: str
) -> None:
    error = launch.reason(results, failures)
    assert isinstance(error, EngineError)
    assert error.code == code
    assert words in error.message


@pytest.mark.parametrize("codes", [(75, 75), (75, 1), (-15, 75)])
def test_processes_that_were_told_to_stop_have_not_failed(codes: tuple[int, int]) -> None:
    failures = [failed(rank, code) for rank, code in enumerate(codes)]
    assert isinstance(launch.reason([None, LOST], failures), Interrupted)


def test_a_second_signal_does_not_cut_the_saving_short() -> None:
    class Told(Exception):
        pass

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        launch.pass_signals_on(Told)
        with pytest.raises(Told) as caught:
            signal.raise_signal(signal.SIGINT)
        assert caught.value.args[1] == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def test_the_result_of_a_torn_or_missing_file_is_none(tmp_path: Path) -> None:
    assert launch.read_result(tmp_path, 0) is None
    (tmp_path / ".result.0.json").write_text('{"ok": tr')
    assert launch.read_result(tmp_path, 0) is None
    (tmp_path / ".result.0.json").write_text(DONE.to_json())
    assert launch.read_result(tmp_path, 0) == DONE
    launch.forget_results(tmp_path, 2)
    assert not list(tmp_path.iterdir())
