"""Products by oneDNN: the numbers of plain ones for every shape and layout, and a plain one where it cannot serve."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from training.engine import process, products

SHAPES = [(1, 1, 1), (1, 7, 5), (13, 16, 3), (300, 64, 128), (5, 3, 300)]


def tensors(rows: int, inner: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + inner + outputs)
    return torch.randn(rows, inner, generator=generator), torch.randn(outputs, inner, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("leading", [(), (1,), (2, 1)])
def test_numbers_are_those_of_a_plain_product(shape: tuple[int, int, int], leading: tuple[int, ...]) -> None:
    rows, weight = tensors(*shape)
    x = rows.expand(*leading, *rows.shape)
    assert products.served(x, weight)
    exact = (x.double() @ weight.double().t()).float()
    torch.testing.assert_close(products.linear(x, weight), exact, rtol=1e-5, atol=1e-5)


def test_transposed_views_are_read_as_they_lie() -> None:
    x, weight = tensors(24, 40, 56)
    gradient = torch.randn(24, 56, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(products.linear(gradient, weight.t()), gradient @ weight)
    torch.testing.assert_close(products.linear(x.t(), gradient.t()), x.t() @ gradient)
    torch.testing.assert_close(products.linear(x[::2, ::2], weight[:, ::2]), x[::2, ::2] @ weight[:, ::2].t())


def test_what_comes_out_may_be_written_into() -> None:
    """OLMo clamps in place what a layer returns, which autograd forbids for a view made inside a function."""
    x, weight = tensors(3, 4, 5)
    assert not products.linear(x[None], weight)._is_view()


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(0, 4), torch.ones(3, 4)),
        (torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16)),
        (torch.ones(2, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)),
    ],
)
def test_others_are_plain_products(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert not products.served(x, weight)
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))


def test_a_build_without_the_operator_multiplies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_operator", lambda: False)
    x, weight = tensors(6, 8, 10)
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))


def test_the_pinned_torch_has_the_operator() -> None:
    assert products.has_operator()


glibc_only = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="Only glibc's malloc can be told to keep its heap."
)


@glibc_only
def test_large_blocks_are_used_again() -> None:
    """glibc maps blocks above 32 MiB anew each time, a page fault for each 4 KiB; told, it takes them from its heap."""
    pages = blocks_pages(4, 10_000_000)
    assert faults_of_blocks(4, 10_000_000, told=False) > pages / 2
    assert faults_of_blocks(4, 10_000_000, told=True) < pages / 10


@glibc_only
def test_blocks_that_are_freed_together_are_used_again() -> None:
    """Untold, glibc gives these back or not as something lies at the end of its heap or not; told, it never does."""
    assert faults_of_blocks(20, 1_000_000, told=True) < blocks_pages(20, 1_000_000) / 10


ROUNDS = 5


def blocks_pages(tensors: int, values: int) -> int:
    return ROUNDS * tensors * values * 4 // resource.getpagesize()


def faults_of_blocks(tensors: int, values: int, *, told: bool) -> int:
    """Page faults of allocating and freeing these float32 tensors ROUNDS times, after the heap has found its size."""
    return int(
        run_python(
            "import resource, torch\n"
            "from training.engine import process\n"
            f"{'process.keep_freed_memory()' if told else ''}\n"
            "def faults():\n"
            "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "def work():\n"
            f"    return [torch.ones({values}) for _ in range({tensors})]\n"
            "for _ in range(3):\n"  # the first blocks are cut up again once
            "    work()\n"
            "before = faults()\n"
            f"for _ in range({ROUNDS}):\n"
            "    work()\n"
            "print(faults() - before)\n"
        )
    )


def run_python(script: str) -> str:
    root = Path(process.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    return done.stdout
