"""Models from outside: read without running their code, written in one form, and tried before they are offered."""

from __future__ import annotations

import shutil
import struct
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.engine import checkpoint, loading
from training.engine import compute as compute_module
from training.engine.chat import PromptError, context_length, prompt_token_ids, stop_token_ids
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.jobspec import ImportJob

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]

# GGUF names the pre-tokenizer. These cut every digit off on its own before the byte-level rule, as llama.cpp does for
# them; transformers 5.23 builds the byte-level rule alone, which differs where several spaces precede a number.
SINGLE_DIGIT_PRE_TOKENIZERS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}

GREETING = [{"role": "user", "content": "Say hello."}]


def import_model(run_dir: Path, job: ImportJob) -> dict[str, Any]:
    """Do ``job``. Returns the details of the result. Raises ``EngineError``."""
    metrics, started = MetricsJournal(run_dir), time.monotonic()
    compute = compute_module.choose("cpu", 0)
    metrics.phase("reading model")
    model, tokenizer, origin = read_source(run_dir, job)
    model.generation_config = generation_config(model, tokenizer)
    metrics.phase("writing checkpoint")

    def write(directory: Path) -> None:
        checkpoint.write_full(directory, model, tokenizer)
        metrics.phase("checking checkpoint")
        facts.update(try_out(directory))

    facts: dict[str, Any] = {}
    checkpoint.publish(run_dir, write)
    shutil.rmtree(run_dir / "download", ignore_errors=True)
    return compute.describe() | origin | facts | {"seconds": round(time.monotonic() - started, 3)}


def read_source(run_dir: Path, job: ImportJob) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model, tokenizer, and what the result says about where they came from."""
    if job.source_kind == "gguf":
        return read_gguf(Path(job.source))
    if job.source_kind == "directory":
        return *read_directory(Path(job.source)), {"source_kind": "directory"}
    if job.source_kind == "hub":
        directory, commit = download(job.source, job.revision, run_dir / "download")
        return *read_directory(directory), {"source_kind": "hub", "source": job.source, "revision": commit}
    raise EngineError("bad_job", f"There is no source {job.source_kind!r}.", "Choose gguf, directory or hub.")


def read_directory(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not directory.is_dir():
        raise EngineError("bad_job", f"{directory} is not a directory.", "Check the path on the worker's machine.")
    if not (directory / "config.json").is_file():
        hint = "Give the directory of full weights; an adapter alone cannot be imported."
        raise EngineError("unsupported_model", "The directory has no config.json.", hint)
    if not any(directory.glob("*.safetensors")):
        hint = "Pickled weights can run code when they are read. Convert them to safetensors first."
        raise EngineError("unsafe_weights", "The directory has no safetensors weights.", hint)
    return loading.load_weights(directory, "auto"), loading.load_tokenizer(directory)


def download(repository: str, revision: str, directory: Path) -> tuple[Path, str]:
    """Fetch ``repository`` at ``revision`` and say which commit that is."""
    try:
        commit = HfApi().model_info(repository, revision=revision or None).sha or ""
        snapshot_download(repository, revision=commit, allow_patterns=HUB_FILES, local_dir=directory)
    except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
        hint = "Check the name and the network. Models that need a licence or a token are read with HF_TOKEN."
        raise EngineError("unsupported_model", f"The model could not be fetched: {error}", hint) from error
    return directory, commit


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Dequantised weights of a GGUF file, in the smaller of bfloat16 and float32 that holds every value exactly.

    Quantised blocks are scale x integer + offset with float16 scales, which bfloat16 rounds: of the Q4_1 weights of
    SmolLM2-135M three in four change, the next-token distribution moves by 9e-5 nats, and some most likely tokens
    change. What people label should be the model they know, so such weights stay in float32.
    """
    if not file.is_file():
        raise EngineError("bad_job", f"{file} is not a file.", "Check the path on the worker's machine.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError, struct.error) as error:
        hint = "The file must be one unsplit GGUF of a causal language model that transformers knows."
        raise EngineError("unsupported_model", f"The GGUF file cannot be read: {error}", hint) from error
    loading.check_tokenizer(tokenizer)
    loading.check_finite(model)
    fields = gguf_fields(file)
    if fields["pre_tokenizer"] in SINGLE_DIGIT_PRE_TOKENIZERS:
        split_digits(tokenizer)
    exact = all(torch.equal(tensor.bfloat16().float(), tensor) for tensor in model.state_dict().values())
    return model.to(torch.bfloat16 if exact else torch.float32), tokenizer, {"source_kind": "gguf"} | fields


def gguf_fields(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    names = {"name": "general.name", "license": "general.license", "pre_tokenizer": "tokenizer.ggml.pre"}
    fields = {ours: reader.get_field(theirs) for ours, theirs in names.items()}
    stored = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    return {ours: field.contents() if field else "" for ours, field in fields.items()} | {"stored_types": stored}


def split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    byte_level = tokenizer.backend_tokenizer.pre_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])


def generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Only the ids. Decoding settings belong to the jobs, and some models ship contradictory ones."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_token_ids(tokenizer, model.generation_config),
        pad_token_id=tokenizer.pad_token_id,
    )


def try_out(directory: Path) -> dict[str, Any]:
    """Load what was written, put a chat to it, and return the facts about it."""
    tokenizer = loading.load_tokenizer(directory)
    model = loading.load_weights(directory, "auto").eval()
    try:
        prompt = prompt_token_ids(tokenizer, GREETING)
    except PromptError as error:
        raise EngineError("no_chat_template", str(error), "Mend the model's chat template.") from error
    if max(prompt) >= model.get_input_embeddings().num_embeddings:
        raise EngineError("bad_tokenizer", "The tokenizer has ids that the model has no embedding for.")
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits
    if not torch.isfinite(logits).all():
        raise EngineError("bad_weights", "The model answers with NaN or infinite values.", loading.IMPORT_AGAIN)
    return {
        "parameters": model.num_parameters(),
        "context": context_length(model.config),
        "vocabulary": model.config.get_text_config().vocab_size,
        "eos_token": tokenizer.eos_token,
        "eos_token_id": tokenizer.eos_token_id,
        "stop_token_ids": stop_token_ids(tokenizer, model.generation_config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "architecture": type(model).__name__,
    }
