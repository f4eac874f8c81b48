"""The engine's surroundings: its environment and its log."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from training import process
from training.rundir import RunDir


def _pour(path: Path, *chunks: bytes) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as sink:
        sink.write(b"".join(chunks))
    process._keep_log(os.fdopen(read_end, "rb"), path)


def test_the_log_is_bounded_and_keeps_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 1000)
    monkeypatch.setattr(process, "CHUNK_BYTES", 100)
    _pour(tmp_path / "log", b"early\n" * 200, b"the end")
    kept = (tmp_path / "log").read_bytes()
    assert kept.startswith(b"[earlier output dropped]\n")
    assert kept.endswith(b"early\nthe end")
    assert len(kept) < 1100


def test_a_log_that_cannot_be_written_does_not_stop_the_engine():
    _pour(Path("/dev/full"), b"x" * 10_000)


def test_only_an_import_from_the_hub_gets_a_token_and_a_way_out(monkeypatch):
    for name in ("HF_TOKEN", "HTTPS_PROXY", "TIEBREAK_SECRET_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, "secret")
    for module in ("train_dpo", "sample"):
        alone = process._environment(3, module, online=False)
        assert "secret" not in alone.values()
        assert alone["HF_HUB_OFFLINE"] == "1"
    online = process._environment(3, "import_model", online=True)
    assert {name for name, value in online.items() if value == "secret"} == {"HF_TOKEN", "HTTPS_PROXY"}
    assert "HF_HUB_OFFLINE" not in online


def test_only_the_sampling_engine_gets_the_key_of_the_inference_server(monkeypatch):
    monkeypatch.setenv("TIEBREAK_SAMPLING_SERVER_KEY", "key")
    assert process._environment(3, "sample", online=False)["TIEBREAK_SAMPLING_SERVER_KEY"] == "key"
    for module, online in (("train_dpo", False), ("merge", False), ("import_model", True)):
        assert "key" not in process._environment(3, module, online=online).values()


def test_the_kernel_says_how_many_it_has_ended_for_want_of_memory(tmp_path):
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 3\nswap_ra 0\n")
    assert process.oom_kills(vmstat) == 3
    vmstat.write_text("nr_free_pages 5\n")
    assert process.oom_kills(vmstat) == 0
    assert process.oom_kills(tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("number", "kills", "seconds_later", "expected"),
    [
        (signal.SIGKILL, 1, 0, True),
        (signal.SIGKILL, 1, 59, True),  # the process takes long to end
        (signal.SIGKILL, 1, 61, False),
        (signal.SIGKILL, 0, 0, False),
        (signal.SIGTERM, 1, 0, False),
        (None, 1, 0, False),  # its own supervisor has lost patience
    ],
)
def test_an_engine_has_run_out_of_memory_where_the_kernel_has_killed_one_just_before(
    tmp_path, monkeypatch, number, kills, seconds_later, expected
):
    counted, now = [5], [1000.0]
    monkeypatch.setattr(process, "oom_kills", lambda: counted[0])
    monkeypatch.setattr(process.time, "monotonic", lambda: now[0])
    engine = process.EngineProcess("train_dpo", RunDir(tmp_path))
    try:
        assert not engine.ran_out_of_memory
        counted[0] += kills
        assert engine.wait(0) is None
        now[0] += seconds_later
        engine.kill() if number is None else os.kill(engine.pid, number)
        assert engine._process.wait(60) is not None
        assert engine.wait(0) is not None
        assert engine.ran_out_of_memory is expected
    finally:
        engine.close()
