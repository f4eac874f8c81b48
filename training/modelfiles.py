"""What a model must look like before its weights are read: an allowlist of sources, files and settings. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from django.conf import settings

from training.exceptions import ModelRejected

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ALLOWED_FILE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|merges\.txt|vocab\.txt|tokenizer\.model|chat_template\.jinja|README\.md|LICENSE(\.txt|\.md)?|NOTICE|manifest\.json"
    r"|\.gitattributes"
)
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
ALLOWED_MODEL_TYPES = {
    *(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "olmo",
        "olmo2",
        "smollm3",
    ),
    *("gpt2", "gpt_neox", "granite", "stablelm", "starcoder2", "falcon", "cohere", "cohere2"),
}


def allowed_directory(path: str) -> Path:
    """Return the directory if it lies under one that the operator allows, else raise ``ModelRejected``."""
    directory = Path(path).resolve()
    if not any(directory.is_relative_to(root) for root in settings.MODEL_DIRECTORIES):
        roots = ", ".join(map(str, settings.MODEL_DIRECTORIES)) or "none yet"
        raise ModelRejected(
            [f"{directory} is not under an allowed directory ({roots}). Add its parent to TIEBREAK_MODEL_DIRECTORIES."]
        )
    if not directory.is_dir():
        raise ModelRejected([f"{directory} is not a directory."])
    return directory


def allowed_hub_id(name: str) -> str:
    """Return the Hub id if the operator allows it, else raise ``ModelRejected``."""
    if not HUB_ID.fullmatch(name):
        raise ModelRejected([f"“{name}” is neither a directory nor a Hub id of the form owner/name."])
    if name not in settings.MODEL_HUB_IDS:
        raise ModelRejected([f"The operator does not allow {name}. Add it to TIEBREAK_MODEL_HUB_IDS."])
    return name


def check_directory(directory: Path) -> None:
    """Raise ``ModelRejected`` with every problem that can be seen without reading the weights."""
    problems = [*_file_problems(directory), *_config_problems(directory), *_tokenizer_problems(directory)]
    if problems:
        raise ModelRejected(problems)


def _file_problems(directory: Path) -> list[str]:
    problems = []
    names = sorted(path.name for path in directory.iterdir())
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and not path.resolve().is_relative_to(directory):
            problems.append(f"{path.name} is a link that leads out of the directory.")
        elif not path.is_file() or not ALLOWED_FILE.fullmatch(path.name):
            why = "may carry code" if path.suffix in (".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt") else "is not known"
            problems.append(f"{path.name} {why}. Only configuration, tokenizer and safetensors files are accepted.")
    if not any(name.endswith(".safetensors") for name in names):
        problems.append("There are no safetensors weights (model.safetensors).")
    return problems


def _config_problems(directory: Path) -> list[str]:
    config = _read_json(directory / "config.json")
    if not isinstance(config, dict):
        return ["config.json is missing or not a JSON object."]
    problems = [
        f"config.json asks for code ({key}); models with code of their own are not accepted."
        for key in CODE_KEYS
        if key in config
    ]
    if (kind := config.get("model_type")) not in ALLOWED_MODEL_TYPES:
        problems.append(
            f"The architecture “{kind}” is not supported. Supported: {', '.join(sorted(ALLOWED_MODEL_TYPES))}."
        )
    return problems


def _tokenizer_problems(directory: Path) -> list[str]:
    config = _read_json(directory / "tokenizer_config.json")
    if not isinstance(config, dict):
        return ["tokenizer_config.json is missing or not a JSON object."]
    problems = [f"tokenizer_config.json asks for code ({key})." for key in CODE_KEYS if key in config]
    if not any(
        (directory / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    ):
        problems.append("There is no tokenizer (tokenizer.json).")
    if not config.get("chat_template") and not (directory / "chat_template.jinja").exists():
        problems.append(
            "The tokenizer has no chat template, so the model cannot be asked in turns. Add chat_template.jinja."
        )
    if not config.get("eos_token"):
        problems.append("The tokenizer names no EOS token, so responses would never end. Set eos_token.")
    return problems


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
