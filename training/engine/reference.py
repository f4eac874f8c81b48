"""The policy as training starts, which is the reference: its values are taken before the first step.

============  ========================  =============================
method        weights of ``reference``  policy
============  ========================  =============================
lora          base                      base + fresh adapter (B = 0)
lora          base + adapter            the adapter, trained on
full          base                      the weights
full          base + adapter            the weights, adapter folded in
============  ========================  =============================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from training.engine import frozen_layers, loading
from training.engine.compute import Compute
from training.engine.scoring import add_scoring_head
from training.jobspec import TrainJob


@dataclass(frozen=True)
class Start:
    """What ``DPOTrainer`` takes as model and peft_config. ``plain`` is the causal language model inside ``model``."""

    model: PreTrainedModel | PeftModel
    plain: PreTrainedModel
    peft_config: LoraConfig | None = None


def prepare(job: TrainJob, compute: Compute) -> Start:
    """Load the reference onto the device, with its scoring head. A fresh adapter is put on by the trainer."""
    if job.method == "full":
        policy = loading.load_full_weights(job.reference, torch.float32).to(compute.device).requires_grad_(True)
        switch_off_dropout(policy)
        add_scoring_head(policy)
        return Start(policy, policy)
    base = loading.load_base(job.reference, compute.dtype).to(compute.device).requires_grad_(False)
    switch_off_dropout(base)
    add_scoring_head(base)
    if job.reference.adapter_dir is None:
        return Start(base, base, peft_config=fresh_adapter(base, job))
    return Start(loading.load_adapter(base, job.reference.adapter_dir, trainable=True), base)


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Or the policy would not be the reference at the first step.

    TRL does it for modules. Granite, StarCoder2 and others keep a bare number, and Falcon reads its configuration, so
    that it stays off there until the weights are written (``restore_dropout``).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in bare_dropouts(vars(module)):
            setattr(module, name, 0.0)
    for name in bare_dropouts(model.config.get_text_config().to_dict()):
        setattr(model.config.get_text_config(), name, 0.0)


def restore_dropout(model: PreTrainedModel, base_dir: str) -> None:
    """What ``switch_off_dropout`` has taken from the configuration, before it is written with the weights."""
    config = AutoConfig.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False).get_text_config()
    for name in bare_dropouts(config.to_dict()):
        setattr(model.config.get_text_config(), name, getattr(config, name))


def bare_dropouts(values: dict[str, Any]) -> list[str]:
    return [name for name, value in values.items() if "drop" in name and isinstance(value, float)]


def fresh_adapter(base: PreTrainedModel, job: TrainJob) -> LoraConfig:
    """LoRA (Hu et al. 2021) on every linear layer but the output head. With B = 0 the policy starts as the base."""
    names = linear_layer_names(base)
    return LoraConfig(
        r=job.lora_rank,
        lora_alpha=job.lora_alpha,
        lora_dropout=0.0,
        target_modules=names,
        layers_to_transform=trained_layers(base, job),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in base.modules()),
        bias="none",
        task_type="CAUSAL_LM",
    )


def trained_layers(model: PreTrainedModel, job: TrainJob) -> list[int] | None:
    """Numbers of the layers that the fast mode trains; None for all."""
    if job.mode == "exact":
        return None
    layers = len(frozen_layers.decoder_layers(model))
    return list(range(frozen_layers.first_trained(layers, job.fast_layers), layers))


def linear_layer_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names, such as q_proj. PEFT's "all-linear" means the same and would list every layer's.

    GPT-2's ``Conv1D`` is a linear layer whose weight is stored transposed.
    """
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    linear = [name for name, layer in model.named_modules() if isinstance(layer, kinds) and layer is not head]
    return sorted({name.rpartition(".")[2] for name in linear})
