"""LoRA layers with fewer products and passes than plain LoRA, which computes x W^T + s (x A^T) B^T.

Per layer that is two more products, with matrices so thin that a CPU is busy moving them, and a sum over the whole
output. In float32 W + s B A is the same map up to rounding: folding costs 2 r values for each weight and optimiser
step, whatever the number of tokens, and the gradient of x takes one product instead of three. In bfloat16 a small
update would vanish in W, so there the second term is added to the first while it is written. Layers of another
precision, and layers that are not plain linear ones, keep PEFT's own computation.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch.optim.optimizer import register_optimizer_step_post_hook

from training.engine.products import linear

ADAPTER = "default"
Product = Callable[[LoraLinear, torch.Tensor], torch.Tensor]


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


class AddedProduct(torch.autograd.Function):
    """y = x W^T + s (x A^T) B^T in the bfloat16 of W, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, weight: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows = x.to(weight.dtype).flatten(0, -2)
        lora_a, lora_b = lora_a.to(weight.dtype), lora_b.to(weight.dtype)
        ctx.save_for_backward(rows, lora_a, lora_b, weight)
        ctx.scale, ctx.shape, ctx.precision = scale, x.shape, x.dtype
        output = torch.addmm(rows @ weight.t(), rows @ lora_a.t(), lora_b.t(), alpha=scale)
        # No view: a model that clamps what an autograd function returns may not write into one.
        reshaped: torch.Tensor = torch.ops.aten._unsafe_view(output, (*x.shape[:-1], len(weight)))
        return reshaped

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        rows, lora_a, lora_b, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype).flatten(0, -2)
        low = grad @ lora_b
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = torch.addmm(grad @ weight, low, lora_a, alpha=ctx.scale).view(ctx.shape).to(ctx.precision)
        for_a = (low.t() @ rows).float().mul_(ctx.scale)
        for_b = (grad.t() @ (rows @ lora_a.t())).float().mul_(ctx.scale)
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
    """Let the LoRA layers of ``model`` that are float32 and allow it multiply once. Returns how many do.

    Memory: once more the weights of those layers.
    """
    served = [layer for layer in plain_layers(model) if layer.base_layer.weight.dtype is torch.float32]
    for layer in served:
        replace_forward(layer, merged_product(layer))
    return len(served)


def add_products(model: PeftModel) -> int:
    """Let the LoRA layers of ``model`` whose weights are bfloat16 add both terms in one pass. Returns how many do."""
    served = [layer for layer in plain_layers(model) if layer.base_layer.weight.dtype is torch.bfloat16]
    for layer in served:
        replace_forward(layer, added_product)
    return len(served)


def plain_layers(model: PeftModel) -> list[LoraLinear]:
    return [layer for layer in model.modules() if isinstance(layer, LoraLinear) and is_plain(layer)]


def is_plain(layer: LoraLinear) -> bool:
    plain = type(layer.base_layer) is torch.nn.Linear and layer.base_layer.bias is None
    single = list(layer.lora_A) == [ADAPTER] and layer.lora_B[ADAPTER].bias is None and not layer.fan_in_fan_out
    if not (plain and single and isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity)):
        return False
    if ADAPTER in layer.lora_variant:  # such as DoRA
        return False
    # What is frozen keeps its numbers to the last bit: they may be kept from one run to the next (``frozen_layers``).
    return bool(layer.lora_A[ADAPTER].weight.requires_grad)


def merged_product(layer: LoraLinear) -> Product:
    merged = Merged(layer)

    def product(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
        lora_a, lora_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        output: torch.Tensor = MergedProduct.apply(x, lora_a, lora_b, merged.of(layer), layer.scaling[ADAPTER])
        return output

    return product


def added_product(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
    lora_a, lora_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    output: torch.Tensor = AddedProduct.apply(x, lora_a, lora_b, layer.base_layer.weight, layer.scaling[ADAPTER])
    return output


def replace_forward(layer: LoraLinear, product: Product) -> None:
    original = layer.forward

    def forward(self: LoraLinear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return original(x, *args, **kwargs)
        return product(self, x)

    layer.forward = types.MethodType(forward, layer)
