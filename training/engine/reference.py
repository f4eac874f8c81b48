"""The policy as training starts and the frozen reference beside it, which are the same function.

============  =======================  ===========================  =========================================
method        weights of ``reference``  policy                       reference
============  =======================  ===========================  =========================================
lora          base                     base + fresh adapter (B = 0)  the adapter switched off
lora          base + adapter           trainable copy of the adapter  frozen copy, TRL's adapter "ref"
full          base                     the weights                  a second instance of the weights
full          base + adapter           adapter folded in            a second instance, folded the same way
============  =======================  ===========================  =========================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from training.engine import loading
from training.engine.compute import Compute
from training.jobspec import TrainJob


@dataclass(frozen=True)
class Start:
    """What ``DPOTrainer`` takes as model, ref_model and peft_config."""

    model: PreTrainedModel | PeftModel
    ref_model: PreTrainedModel | None = None
    peft_config: LoraConfig | None = None


def prepare(job: TrainJob, compute: Compute) -> Start:
    if job.method == "full":
        # Left to itself TRL reads the reference again from the model's path, which is not what was folded in memory.
        policy = loading.load_full_weights(job.reference, torch.float32).requires_grad_(True)
        reference = loading.load_full_weights(job.reference, torch.float32).requires_grad_(False).eval()
        return Start(policy, ref_model=reference)
    base = loading.load_base(job.reference, compute.dtype)
    if job.reference.adapter_dir is None:
        return Start(base, peft_config=fresh_adapter(base, job))
    return Start(loading.load_adapter(base, job.reference.adapter_dir, trainable=True))


def fresh_adapter(base: PreTrainedModel, job: TrainJob) -> LoraConfig:
    """LoRA (Hu et al. 2021) on every linear layer but the output head. With B = 0 the policy starts as the base."""
    names = linear_layer_names(base)
    return LoraConfig(
        r=job.lora_rank,
        lora_alpha=job.lora_alpha,
        lora_dropout=0.0,
        target_modules=names,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in base.modules()),
        bias="none",
        task_type="CAUSAL_LM",
    )


def linear_layer_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names, such as q_proj. PEFT's "all-linear" means the same and would list every layer's.

    GPT-2's ``Conv1D`` is a linear layer whose weight is stored transposed.
    """
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    linear = [name for name, layer in model.named_modules() if isinstance(layer, kinds) and layer is not head]
    return sorted({name.rpartition(".")[2] for name in linear})
