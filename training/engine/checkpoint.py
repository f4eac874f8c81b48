"""Writing ``checkpoint/``: the files that may leave the machine, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.engine.resume import sync

PUBLISHABLE = {".safetensors", ".json", ".jinja", ".txt", ".model"}  # no pickle can hide behind these


def publish(run_dir: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a staging directory, then make it ``checkpoint/`` in one step. Files end up mode 0644."""
    staging, final = run_dir / ".checkpoint.partial", run_dir / "checkpoint"
    for stale in (staging, final):
        shutil.rmtree(stale, ignore_errors=True)
    staging.mkdir()
    write(staging)
    for path in sorted(staging.rglob("*")):
        if path.is_dir() or path.suffix not in PUBLISHABLE:
            raise RuntimeError(f"{path.name} must not be in a checkpoint")
        path.chmod(0o644)
        sync(path)
    staging.chmod(0o755)
    sync(staging)
    staging.rename(final)
    sync(run_dir)
    return final


def write_adapter(directory: Path, model: PeftModel, base_name: str) -> None:
    """The adapter that was trained, and nothing of the frozen copy beside it, nor of this machine."""
    # "auto" would look for the base model on the Hub to learn whether its embedding has grown.
    tensors = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_name, "revision": None, "inference_mode": True}
    write_json(directory / "adapter_config.json", config)


def write_full(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Full weights in the precision they have in memory, with the configurations beside them."""
    model.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for private in ("_name_or_path", "_model_name_or_path", "quantization_config", "auto_map"):
        config.pop(private, None)
    write_json(path, config)
    write_tokenizer(directory, tokenizer)


def write_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for private in ("name_or_path", "auto_map", "gguf_file", "local_files_only", "is_local"):
        config.pop(private, None)
    write_json(path, config)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Sorted, also inside sets, so that equal content is equal bytes."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, default=plain)
    path.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(getattr(value, "value", value))
