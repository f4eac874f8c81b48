"""GGUF by a converter of the operator's: a real process that stands for llama.cpp's, and the ways in which it fails."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from gguf import GGUFReader

from training.engine import converting
from training.engine.errors import EngineError
from training.jobspec import GgufJob, ModelRef

# Like convert_hf_to_gguf.py it takes a model directory and --outfile; what it does is in the environment.
CONVERTER = """
import argparse, os, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path, required=True)
parser.add_argument("--outtype", default="auto")
arguments = parser.parse_args()
act = os.environ.get("CONVERTER_ACT", "")
print("INFO:hf-to-gguf:Loading model:", arguments.model.name, arguments.outtype, flush=True)
if act == "fails":
    print("NotImplementedError: Architecture 'OkapiForCausalLM' not supported!", file=sys.stderr)
    sys.exit(1)
if act == "hangs":
    Path(os.environ["CONVERTER_PID"]).write_text(str(os.getpid()))
    time.sleep(60)
if act == "text":
    arguments.outfile.write_text("no gguf")
elif act == "cut":
    arguments.outfile.write_bytes(b"GGUF")
elif act != "nothing":
    import numpy
    from gguf import GGUFWriter
    from safetensors.numpy import load_file
    writer = GGUFWriter(arguments.outfile, "llama")
    for name, tensor in load_file(arguments.model / "model.safetensors").items() if act != "empty" else ():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
"""


@pytest.fixture
def converter(tmp_path: Path) -> list[str]:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(CONVERTER)
    return [sys.executable, str(script), "--outtype", "f32"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_full_weights_are_converted_as_they_are(run_dir, reference, converter, capfd):
    details = converting.convert(run_dir, GgufJob(reference, converter))
    assert len(GGUFReader(run_dir / "model.gguf").tensors) == details["tensors"] > 10
    assert details["stored_types"] == ["F32"]
    assert "Loading model: tiny f32" in capfd.readouterr().out, "what it says is in the log"
    assert {path.name for path in run_dir.iterdir()} == {"metrics.jsonl", "model.gguf"}


def test_an_adapter_is_folded_into_its_base_first(run_dir, reference, converter, adapter_dir):
    model = ModelRef(reference.base_dir, reference.base_hash, str(adapter_dir), "hash-of-adapter")
    converting.convert(run_dir, GgufJob(model, converter))
    merged = {tensor.name: tensor.data.copy() for tensor in GGUFReader(run_dir / "model.gguf").tensors}
    (run_dir / "model.gguf").unlink()
    converting.convert(run_dir, GgufJob(reference, converter))
    base = {tensor.name: tensor.data for tensor in GGUFReader(run_dir / "model.gguf").tensors}
    changed = {name for name, values in base.items() if not (merged[name] == values).all()}
    assert changed
    assert all("proj" in name for name in changed)
    assert not (run_dir / "checkpoint").exists(), "gigabytes that nobody would clear away"


@pytest.fixture
def adapter_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    from training.engine import checkpoint, loading

    model = get_peft_model(
        loading.load_weights(tiny_model_dir, torch.float32),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    directory = tmp_path / "adapter"
    directory.mkdir()
    checkpoint.write_adapter(directory, model, "somebody/tiny")
    return directory


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("fails", "exit status 1: INFO:hf-to-gguf:Loading model: tiny f32 / NotImplementedError: Architecture 'Okapi"),
        ("nothing", "it has written no file"),
        ("text", "is not GGUF"),
        ("cut", "cannot be read"),
        ("empty", "has no weights in it"),
    ],
)
def test_a_converter_that_fails_is_quoted_and_leaves_nothing(run_dir, reference, converter, monkeypatch, act, words):
    monkeypatch.setenv("CONVERTER_ACT", act)
    with pytest.raises(EngineError, match=r"converter|GGUF") as caught:
        converting.convert(run_dir, GgufJob(reference, converter))
    assert caught.value.code == "converter_failed"
    assert words in caught.value.message
    assert caught.value.hint
    assert {path.name for path in run_dir.iterdir()} == {"metrics.jsonl"}


def test_a_converter_that_hangs_is_ended(converter, reference, run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVERTER_ACT", "hangs")
    monkeypatch.setenv("CONVERTER_PID", str(tmp_path / "pid"))
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"had not finished after 0\.05 minutes") as caught:
        converting.run_converter([*converter, reference.base_dir, "--outfile", str(run_dir / "x")], 3.0)
    assert caught.value.code == "converter_timeout"
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "No GGUF converter is set up"),
        (["/nowhere/convert"], "/nowhere/convert cannot be started here"),
        ([sys.executable, "/nowhere/convert_hf_to_gguf.py"], "/nowhere/convert_hf_to_gguf.py is not on this machine"),
    ],
)
def test_a_converter_that_is_not_there_is_told_before_any_merging(run_dir, reference, command, words, monkeypatch):
    monkeypatch.setattr(converting, "full_weights", None)
    with pytest.raises(EngineError, match="onverter") as caught:
        converting.convert(run_dir, GgufJob(reference, command))
    assert (caught.value.code, words in caught.value.message) == ("no_converter", True)
    assert "TIEBREAK_GGUF_CONVERTER" in caught.value.hint


def test_the_job_says_which_command(tmp_path, reference):
    from training.jobspec import read_job, write_job

    job = GgufJob(reference, ["python", "convert.py"], 7)
    write_job(tmp_path, job)
    assert json.loads((tmp_path / "job.json").read_text())["kind"] == "convert_gguf"
    assert read_job(tmp_path, GgufJob) == job
