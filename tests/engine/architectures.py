"""A small random model of every architecture that may be added, with settings that make each of its parts matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.engine.tiny_model import CONTEXT, build_tokenizer

WINDOW = 8  # positions of a sliding window: fewer than a sequence of the tests has
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": None,
}
EVERY_OTHER = ["sliding_attention", "full_attention"] * 2
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 1.5,
        "query_pre_attn_scalar": 12,
    },
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": EVERY_OTHER,
        "query_pre_attn_scalar": 12,
    },
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "phi3": {"sliding_window": WINDOW},
    "olmo": {"clip_qkv": 1.5},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": EVERY_OTHER},
    "gpt2": {"tie_word_embeddings": True},
    "gpt_neox": {"rotary_pct": 0.5},
    "granite": {
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    },
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "starcoder2": {"sliding_window": WINDOW, "use_bias": True},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "bias": True},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": WINDOW, "layer_types": EVERY_OTHER},
}
SLIDING = {"mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "starcoder2", "cohere2"}
ROWS = {"falcon", "gemma2", "stablelm"}  # attention that cannot be replaced, or is capped


def small_model(model_type: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """Weights of a size at which attention, windows and caps all show in the output."""
    tokenizer = build_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = COMMON | {"vocab_size": len(tokenizer)} | ids | OWN.get(model_type, {}) | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.normal_(std=0.25 if tensor.ndim > 1 else 0.1)
                if "norm" in name and name.endswith("weight") and not model_type.startswith("gemma"):
                    tensor += 1
    return model.eval()


def build(model_type: str, directory: Path, **fields: Any) -> Path:
    """Write a small model with the tests' tokenizer to ``directory``."""
    model = small_model(model_type, **fields)
    model.save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory
