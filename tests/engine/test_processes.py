"""Engine processes as processes: how they start, are stopped, are killed, and go on."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.runs import ROOT, adapter_bytes, do, question, read_lines, start, steps, succeed, triple
from training import jobspec
from training.engine import checkpoint, process, resume, train_dpo
from training.jobspec import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_ORPHANED, ModelRef, SampleJob, TrainJob

MakeRun = Callable[..., Path]
LONG = {"epochs": 30.0, "save_every_steps": 3}  # 90 steps of three a pass


@pytest.fixture
def uninterrupted(train_run: MakeRun) -> Path:
    run_dir = train_run(6, name="uninterrupted", **LONG)
    succeed("train_dpo", run_dir)
    return run_dir


@pytest.fixture
def launched() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start engine processes that do not outlive the test."""
    children: list[subprocess.Popen[bytes]] = []

    def launch(name: str, run_dir: Path, **options: Any) -> subprocess.Popen[bytes]:
        children.append(start(name, run_dir, **{"stderr": subprocess.DEVNULL} | options))
        return children[-1]

    yield launch
    for child in children:
        child.kill()
        child.wait()


def wait_for_step(run_dir: Path, step: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while f'"step":{step},' not in ((run_dir / "metrics.jsonl").read_text() if child_has_begun(run_dir) else ""):
        assert child.poll() is None, "the process ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def child_has_begun(run_dir: Path) -> bool:
    return (run_dir / "metrics.jsonl").exists()


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    train_run: MakeRun, uninterrupted: Path, launched: Callable[..., Any], number: signal.Signals
) -> None:
    run_dir = train_run(6, name="stopped", **LONG)
    child = launched("train_dpo", run_dir)
    wait_for_step(run_dir, 10, child)
    child.send_signal(number)
    code = child.wait(timeout=20)
    reached = steps(run_dir)[-1]["step"]
    assert reached < 90
    assert jobspec.read_result(run_dir) is None
    if number == signal.SIGTERM:
        assert code == EXIT_INTERRUPTED
        saved = max(resume.step_of(state) for state in (run_dir / "trainer").glob("checkpoint-*"))
        assert saved == reached

    assert succeed("train_dpo", run_dir)["steps"] == 90
    assert adapter_bytes(run_dir) == adapter_bytes(uninterrupted)
    assert untimed(steps(run_dir)) == untimed(steps(uninterrupted))
    seconds = [line["seconds"] for line in steps(run_dir)]
    assert seconds == sorted(seconds)


def test_full_training_resumes_to_the_same_bytes(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"method": "full", "learning_rate": 1e-3, "epochs": 3.0, "save_every_steps": 2}
    whole, cut = train_run(6, name="whole", **fields), train_run(6, name="cut", **fields)
    succeed("train_dpo", whole)
    stop_after(5, cut, monkeypatch)
    succeed("train_dpo", cut)
    name = Path("checkpoint") / "model.safetensors"
    assert (whole / name).read_bytes() == (cut / name).read_bytes()


def stop_after(step: int, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until ``step``, then as if SIGTERM had come."""
    from training.engine.step_record import StepRecorder

    original = StepRecorder.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        process.stop.requested = state.global_step == step
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(StepRecorder, "on_step_end", on_step_end)
        assert process.execute(train_dpo.main, TrainJob, run_dir) == EXIT_INTERRUPTED
    process.stop.requested = False


@pytest.mark.parametrize("asked_after", [0, 3, 4])
def test_a_stop_does_not_wait_for_the_end_of_a_long_step(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, asked_after: int
) -> None:
    """In the middle of a step of six pairs: after the first one, and where that step was saved or was not."""
    from training.engine.dpo_trainer import PairTrainer

    fields: dict[str, Any] = {"pairs_per_step": 6, "epochs": 6.0, "save_every_steps": 2}
    whole, cut = train_run(6, name="whole", **fields), train_run(6, name="cut", **fields)
    succeed("train_dpo", whole)
    original, computed = PairTrainer._compute_loss, []

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = original(self, model, inputs, return_outputs)
        computed.append(len(inputs.examples))
        process.stop.requested = self.state.global_step == asked_after
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(PairTrainer, "_compute_loss", compute_loss)
        assert process.execute(train_dpo.main, TrainJob, cut) == EXIT_INTERRUPTED
    process.stop.requested = False
    assert sum(computed) == 6 * asked_after + 1
    assert len(steps(cut)) == asked_after
    saved = resume.last_state(cut / "trainer", resume.job_identity(cut, "cpu float32"))
    assert (resume.step_of(saved) if saved else 0) == asked_after
    succeed("train_dpo", cut)
    assert adapter_bytes(cut) == adapter_bytes(whole)
    assert untimed(steps(cut)) == untimed(steps(whole))


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "unsealed"])
def test_a_torn_state_is_removed_and_the_one_before_is_used(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole, cut = train_run(6, name="whole"), train_run(6, name="cut")
    succeed("train_dpo", whole)
    stop_after(5, cut, monkeypatch)
    state = cut / "trainer" / "checkpoint-5"
    if damage == "cut":
        os.truncate(state / "optimizer.pt", 100)
    elif damage == "flipped":  # one bit of a moment: a number like any other
        content = bytearray((state / "optimizer.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (state / "optimizer.pt").write_bytes(content)
    else:
        (state / ("adapter_model.safetensors" if damage == "missing" else resume.SEAL)).unlink()
    found = resume.last_state(cut / "trainer", resume.job_identity(cut, "cpu float32"))
    assert found == cut / "trainer" / "checkpoint-4"
    assert not state.exists()
    succeed("train_dpo", cut)
    assert adapter_bytes(cut) == adapter_bytes(whole)


def test_a_state_of_another_job_is_not_used(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = train_run(6)
    stop_after(4, run_dir, monkeypatch)
    with (run_dir / "dataset.jsonl").open("a", encoding="utf-8") as file:
        file.write(triple(6).to_json() + "\n")
    assert resume.last_state(run_dir / "trainer", resume.job_identity(run_dir, "cpu float32")) is None
    assert succeed("train_dpo", run_dir)["steps"] == 8
    assert [line["step"] for line in steps(run_dir)] == list(range(1, 9))


def test_a_run_stopped_while_scoring_does_not_train_again(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.engine import dpo
    from training.engine.errors import Interrupted

    rows = [triple(number) for number in range(4)] + [triple(5, split="held_out")]
    whole, cut = train_run(rows, name="whole"), train_run(rows, name="cut")
    succeed("train_dpo", whole)

    def interrupted(*args: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(dpo, "score_held_out", interrupted)
        assert process.execute(train_dpo.main, TrainJob, cut) == EXIT_INTERRUPTED
    before = steps(cut)
    details = succeed("train_dpo", cut)
    assert steps(cut) == before
    assert details["steps"] == 4
    assert details["final"] == before[-1]
    assert adapter_bytes(cut) == adapter_bytes(whole)


def test_sampling_stops_at_once_and_keeps_what_it_has(sample_run: MakeRun, launched: Callable[..., Any]) -> None:
    run_dir = sample_run(400, rows=1)
    child = launched("sample", run_dir)
    deadline = time.monotonic() + 60
    while not (run_dir / "samples.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.terminate()
    assert child.wait(timeout=60) == EXIT_INTERRUPTED
    assert not (run_dir / "result.json").exists()
    assert (run_dir / "samples.jsonl").read_bytes().count(b"\n") < 400


def test_a_process_ends_when_its_supervisor_is_gone(train_run: MakeRun, launched: Callable[..., Any]) -> None:
    run_dir = train_run(6, epochs=1000.0)
    reader, writer = os.pipe()
    environment = os.environ | {jobspec.PARENT_FD_VARIABLE: str(reader)}
    with (run_dir / "asked.log").open("wb") as log:
        child = launched("train_dpo", run_dir, pass_fds=[reader], env=environment, stderr=log)
    os.close(reader)
    wait_for_step(run_dir, 1, child)
    adjustment = Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip()
    assert adjustment == str(process.OOM_SCORE)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) >= process.NICENESS
    child.send_signal(signal.SIGUSR1)  # asked what it is at, it says so and goes on
    wait_for_step(run_dir, len(steps(run_dir)) + 1, child)
    assert "Current thread" in (run_dir / "asked.log").read_text()
    os.close(writer)
    assert child.wait(timeout=30) == EXIT_ORPHANED


@pytest.mark.parametrize("name", ["sample", "train_dpo", "merge", "import_model"])
def test_help_is_immediate_and_says_what_to_give(name: str) -> None:
    command = [sys.executable, "-m", f"training.engine.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "RUN_DIR" in done.stdout
    assert "75" in done.stdout


def test_entry_modules_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from training.engine import sample, train_dpo, merge, import_model\n"
        "print(sorted({'torch', 'transformers', 'trl', 'peft', 'numpy', 'django', 'celery'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_limit_is_told_as_a_full_disk(train_run: MakeRun) -> None:
    """The limit lets result.json through and stops the weights."""
    run_dir = train_run(2)
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from training.engine import process, train_dpo\n"
        "from training.jobspec import TrainJob\n"
        "process.run(train_dpo.main, TrainJob, '', [sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run_dir)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == EXIT_FAILED
    result = jobspec.read_result(run_dir)
    assert result is not None
    assert result.error_code == "disk_full"
    assert "MiB are free" in result.error
    assert b"Traceback" in done.stderr


def test_a_full_disk_while_publishing_leaves_no_checkpoint(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    run_dir = train_run(1)
    assert do("train_dpo", run_dir).error_code == "disk_full"
    assert not (run_dir / "checkpoint").exists()
    assert not (run_dir / ".checkpoint.partial").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out_of_memory",
        ),
        (OSError(12, "Cannot allocate memory"), "out_of_memory"),
        (OSError(28, "No space left on device"), "disk_full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk_full"),
        (RuntimeError("something else"), "crashed"),
        (jobspec.SpecError("TrainJob has no field x"), "bad_job"),
    ],
)
def test_an_exception_is_put_into_words(tmp_path: Path, error: Exception, code: str) -> None:
    result = process.explain(error, tmp_path)
    assert (result.ok, result.error_code) == (False, code)
    assert result.error
    assert result.hint


def test_torch_and_safetensors_say_it_in_their_own_words(tmp_path: Path) -> None:
    import torch
    from safetensors import SafetensorError

    assert process.explain(torch.OutOfMemoryError("CUDA out of memory."), tmp_path).error_code == "out_of_memory"
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert process.explain(full, tmp_path).error_code == "disk_full"


def test_a_job_of_another_kind_is_refused(sample_run: MakeRun) -> None:
    run_dir = sample_run(1)
    assert process.execute(train_dpo.main, TrainJob, run_dir) == EXIT_FAILED
    result = jobspec.read_result(run_dir)
    assert result is not None
    assert result.error_code == "bad_job"
    assert "not 'train_dpo'" in result.error


@pytest.mark.parametrize("text", ['{"kind": "sample", "surprise": 1}', "{", '{"kind": "sample"}'])
def test_a_job_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    assert process.execute(lambda run_dir, job: {}, SampleJob, tmp_path) == EXIT_FAILED
    result = jobspec.read_result(tmp_path)
    assert result is not None
    assert result.error_code == "bad_job"


def test_the_result_of_an_earlier_attempt_goes_first(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = train_run(6)
    jobspec.write_atomically(run_dir / "result.json", jobspec.Result(ok=True).to_json())
    stop_after(2, run_dir, monkeypatch)
    assert jobspec.read_result(run_dir) is None


def test_phases_are_written_with_their_time(train_run: MakeRun) -> None:
    run_dir = train_run([triple(0), triple(1), triple(2, "held_out")])
    (run_dir / "probes.jsonl").write_text("".join(question(number).to_json() + "\n" for number in range(2)))
    succeed("train_dpo", run_dir)
    phases = [line for line in read_lines(run_dir, "metrics.jsonl") if "phase" in line]
    assert [name for name, _ in itertools.groupby(line["phase"] for line in phases)] == [
        "loading model",
        "reading reference",
        "comparing responses",
        "training",
        "scoring held-out pairs",
        "comparing responses",
        "writing checkpoint",
    ]
    assert all(abs(line["at"] - time.time()) < 60 for line in phases)
    told = [line for line in phases if "done" in line]
    assert {(line["phase"], line["done"], line["total"]) for line in told} == {
        ("reading reference", 3, 3),
        ("comparing responses", 2, 2),
        ("scoring held-out pairs", 1, 1),
    }


def test_a_run_stopped_while_reading_the_reference_does_not_read_it_again(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.engine import reference_logps
    from training.engine.errors import Interrupted

    monkeypatch.setattr(reference_logps, "SAVED_TOGETHER", 2)
    run_dir = train_run(6)
    genuine = reference_logps.ReferenceLogps.computed

    def computed(self: Any, pair: Any) -> Any:
        if self.counts.forwards == 5:
            raise Interrupted
        return genuine(self, pair)

    with monkeypatch.context() as patched:
        patched.setattr(reference_logps.ReferenceLogps, "computed", computed)
        assert process.execute(train_dpo.main, TrainJob, run_dir) == EXIT_INTERRUPTED
    counts = succeed("train_dpo", run_dir)["reference_logps"]
    assert (counts["forwards"], counts["cached"]) == (2, 4)


def test_a_saved_state_stays_good_when_the_data_moves_and_not_when_the_job_changes(tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        run_dir = tmp_path / str(len(list(tmp_path.iterdir())))
        run_dir.mkdir()
        (run_dir / "dataset.jsonl").write_text("{}\n")
        reference = ModelRef(changes.pop("base_dir", "/here"), changes.pop("base_hash", "a"))
        jobspec.write_job(run_dir, TrainJob(reference=reference, seed=1, **changes))
        return resume.job_identity(run_dir, "cpu float32")

    assert identity() == identity(base_dir="/there", threads=3, kl_first_budget=5.0)
    assert len({identity(), identity(beta=0.5), identity(base_hash="b"), identity(device="cuda")}) == 4
