"""LoRA layers that multiply once: with W + s B A, folded anew after each optimiser step.

Plain LoRA computes x W^T + s (x A^T) B^T: per layer two more products, with matrices so thin that a CPU is busy moving
them, and a sum over the whole output. W + s B A is the same map. Folding costs 2 r values for each weight and optimiser
step, whatever the number of tokens. The gradients of A and B do not change, and that of x takes one product instead of
three. In float32 the difference is that of rounding; in bfloat16 a small update would vanish in W, so layers of another
precision, and layers that are not plain linear ones, keep PEFT's own computation.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch.optim.optimizer import register_optimizer_step_post_hook

from training.engine.products import linear

ADAPTER = "default"


class Updates:
    """Steps of any optimiser so far. Fused ones write in place without counting a tensor's version up."""

    count = 0

    @classmethod
    def add(cls, *args: Any) -> None:
        cls.count += 1


register_optimizer_step_post_hook(Updates.add)


class MergedProduct(torch.autograd.Function):
    """y = x M^T for M = W + s B A, with gradients for x, A and B. M follows from A and B and gets none."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, merged: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, lora_a, lora_b, merged)
        ctx.scale = scale
        return linear(x, merged)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, lora_a, lora_b, merged = ctx.saved_tensors
        for_x = linear(grad, merged.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return for_x, None, None, None, None
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        for_a = linear(linear(grad, lora_b.t()).t(), x.t()).mul_(ctx.scale)
        for_b = linear(linear(x, lora_a).t(), grad.t()).t().mul_(ctx.scale)
        return for_x, for_a, for_b, None, None


class Merged:
    """W + s B A of one layer, folded again when A or B has changed."""

    def __init__(self, layer: LoraLinear) -> None:
        self.weight = torch.empty_like(layer.base_layer.weight)
        self.state: tuple[int, ...] = ()

    def of(self, layer: LoraLinear) -> torch.Tensor:
        lora_a, lora_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        # Loading a state counts the version up, as every write in place but those of fused optimisers does.
        state = (lora_a.data_ptr(), lora_a._version, lora_b.data_ptr(), lora_b._version, Updates.count)
        if state != self.state:
            with torch.no_grad():
                torch.addmm(layer.base_layer.weight, lora_b, lora_a, alpha=layer.scaling[ADAPTER], out=self.weight)
            self.state = state
        return self.weight


def merge_products(model: PeftModel) -> int:
    """Let the LoRA layers of ``model`` that allow it multiply once. Returns how many do.

    Memory: once more the weights of those layers.
    """
    served = [layer for layer in model.modules() if isinstance(layer, LoraLinear) and can_serve(layer)]
    for layer in served:
        replace_forward(layer)
    return len(served)


def can_serve(layer: LoraLinear) -> bool:
    plain = type(layer.base_layer) is torch.nn.Linear and layer.base_layer.bias is None
    single = list(layer.lora_A) == [ADAPTER] and layer.lora_B[ADAPTER].bias is None and not layer.fan_in_fan_out
    if not (plain and single and isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity)):
        return False
    if ADAPTER in layer.lora_variant:  # such as DoRA
        return False
    # What is frozen keeps its numbers to the last bit: they may be kept from one run to the next (``frozen_layers``).
    return layer.lora_A[ADAPTER].weight.requires_grad and layer.base_layer.weight.dtype is torch.float32


def replace_forward(layer: LoraLinear) -> None:
    original, merged = layer.forward, Merged(layer)

    def forward(self: LoraLinear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return original(x, *args, **kwargs)
        lora_a, lora_b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        output: torch.Tensor = MergedProduct.apply(x, lora_a, lora_b, merged.of(self), self.scaling[ADAPTER])
        return output

    layer.forward = types.MethodType(forward, layer)
