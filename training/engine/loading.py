"""From directories to a model in memory: safetensors only, no code from the model, nothing missing, all finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from training.engine import process
from training.engine.compute import Compute
from training.engine.errors import EngineError
from training.jobspec import ModelRef

transformers_logging.disable_progress_bar()

IMPORT_AGAIN = "Import the model again."


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer with an end of sequence, a padding token and a chat template.

    Raises ``EngineError``: bad_tokenizer, no_chat_template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError("bad_tokenizer", f"The tokenizer cannot be read: {error}", IMPORT_AGAIN) from error
    check_tokenizer(tokenizer)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        hint = "Set eos_token in tokenizer_config.json to the token that ends the assistant's turn."
        raise EngineError("bad_tokenizer", "The tokenizer has no end-of-sequence token: no response would end.", hint)
    if not tokenizer.chat_template:
        hint = "Choose an instruction-tuned model, or add chat_template.jinja to its directory and import it again."
        raise EngineError("no_chat_template", "The model has no chat template, so a chat cannot be put to it.", hint)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked out everywhere, so any id does


def load_policy(reference: ModelRef, compute: Compute) -> PreTrainedModel | PeftModel:
    """The model that ``reference`` names, ready to write: eval mode, nothing trainable."""
    model = load_base(reference, compute.dtype)
    if reference.adapter_dir is not None:
        model = load_adapter(model, reference.adapter_dir, trainable=False)
    return model.to(compute.device).eval().requires_grad_(False)


def load_full_weights(reference: ModelRef, dtype: torch.dtype) -> PreTrainedModel:
    """The full weights that ``reference`` names, an adapter folded in, on the CPU."""
    model = load_base(reference, dtype)
    if reference.adapter_dir is None:
        return model
    return load_adapter(model, reference.adapter_dir, trainable=False).merge_and_unload(safe_merge=True)


def load_base(reference: ModelRef, dtype: torch.dtype) -> PreTrainedModel:
    return load_weights(reference.base_dir, dtype)


def load_weights(directory: str | Path, dtype: torch.dtype | str) -> PreTrainedModel:
    """Full weights from ``directory``, on the CPU. ``dtype`` "auto" keeps the stored precision.

    Raises ``EngineError``: unsafe_weights, bad_weights, unsupported_model.
    """
    if not any(Path(directory).glob("*.safetensors")):
        raise EngineError("unsafe_weights", "There are no safetensors weights in the model's directory.", IMPORT_AGAIN)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise EngineError("bad_weights", f"The weights cannot be read: {error}", IMPORT_AGAIN) from error
    except ValueError as error:
        hint = "Only causal language models that transformers itself knows can be used."
        raise EngineError("unsupported_model", f"This model cannot be loaded: {error}", hint) from error
    except RuntimeError as error:
        if process.is_out_of_memory(error):
            raise
        raise EngineError("bad_weights", f"The weights do not fit the configuration: {error}", IMPORT_AGAIN) from error
    # transformers fills a missing tensor with random numbers and goes on.
    if missing := sorted(report["missing_keys"]):
        raise EngineError("bad_weights", f"The weights lack {len(missing)} tensors, first {missing[0]}.", IMPORT_AGAIN)
    check_finite(model)
    return model


def load_adapter(model: PreTrainedModel, directory: str, *, trainable: bool) -> PeftModel:
    with reading_adapter(directory):
        adapted = PeftModel.from_pretrained(model, directory, is_trainable=trainable, local_files_only=True)
    check_finite(adapted)
    # PEFT looks up the configuration of the base model under this name whenever it saves, on the Hub if need be.
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path
    return adapted


def add_adapter(model: PeftModel, directory: str, name: str) -> None:
    """Load one more adapter over the same base weights; ``model.set_adapter(name)`` puts it in the other's place."""
    with reading_adapter(directory):
        model.load_adapter(directory, name, is_trainable=False, local_files_only=True)
    check_finite(model)


@contextlib.contextmanager
def reading_adapter(directory: str) -> Iterator[None]:
    if not (Path(directory) / "adapter_model.safetensors").is_file():
        raise EngineError("unsafe_weights", "The adapter has no adapter_model.safetensors.", "Publish it again.")
    try:
        yield
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if process.is_out_of_memory(error):
            raise
        message = f"The adapter does not fit the base weights or cannot be read: {error}"
        raise EngineError("bad_weights", message, "Choose the checkpoint it was trained on.") from error


def check_finite(model: torch.nn.Module) -> None:
    """Raises ``EngineError`` bad_weights with the name of the first tensor that holds NaN or infinity."""
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise EngineError("bad_weights", f"The tensor {name} holds NaN or infinite values.", IMPORT_AGAIN)
