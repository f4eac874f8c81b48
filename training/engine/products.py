"""Matrix products in float32 on a CPU, by oneDNN.

torch hands them to the BLAS that it is built with, which is MKL, and other precisions to oneDNN, which is in every
build as well. Of the shapes of a small language model, a few hundred rows times frozen weights, oneDNN computes more
a second: on an AMD EPYC up to 40 % for the layers, and 40 to 70 % for the output head. The sums are float32 in both;
their order, and so the last bits, differ.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T for ``x`` (..., inputs) and ``weight`` (outputs, inputs), which may be a transposed view. Not for autograd.

    A product of two matrices A B is ``linear(A, B.t())``.
    """
    if not served(x, weight):
        return F.linear(x, weight)
    output = torch.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, None, "none", [], "")
    # No view: a model that clamps what an autograd function returns may not write into one.
    reshaped: torch.Tensor = torch.ops.aten._unsafe_view(output, (*x.shape[:-1], len(weight)))
    return reshaped


def served(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN computes x W^T: float32 values on a CPU, some of them, in a build that has the operator.

    It is the operator that torch's own compiler uses for linear layers on a CPU.
    """
    plain = x.dtype is weight.dtype is torch.float32 and x.device.type == weight.device.type == "cpu"
    return plain and x.numel() > 0 and weight.numel() > 0 and has_operator()


def has_operator() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
