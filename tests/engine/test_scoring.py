"""Log-probabilities of tokens: values and gradients against autograd over a plain log_softmax."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.engine import architectures
from tests.engine.prepared import CPU
from training.engine import scoring
from training.engine.arrangement import Unlabelled
from training.engine.compute import Compute
from training.engine.scoring import (
    CHUNK,
    ROWS_IN_CACHE,
    Head,
    Scorer,
    TokenLogps,
    add_scoring_head,
    choose_scorer,
    logit_scale,
)
from training.modelfiles import ALLOWED_MODEL_TYPES

VOCABULARY, WIDTH = 37, 11
PAIRS = [Unlabelled([5, 6, 7], [300, 301], [302, 303, 304, 2]), Unlabelled([9], [310], [311, 2])]


def leaves(positions: int, *, bias: bool, trained: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, WIDTH, generator=generator).requires_grad_(True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_(trained)
    own_bias = torch.randn(VOCABULARY, generator=generator).requires_grad_(trained) if bias else None
    return hidden, weight, own_bias


def plain(hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor, scale: float, cap: Any) -> Any:
    logits = hidden @ weight.t() if bias is None else hidden @ weight.t() + bias
    logits = logits * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)


def ours(hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor, scale: float, cap: Any) -> Any:
    head = Head(weight, bias, scale, cap)
    return TokenLogps.apply(hidden, weight, bias, targets, head)


@pytest.mark.parametrize("positions", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize(
    ("bias", "scale", "cap", "trained"),
    list(itertools.product([False, True], [1.0, 0.0625, 3.0], [None, 2.0], [False, True])),
)
def test_values_and_gradients_are_those_of_autograd(
    positions: int, bias: bool, scale: float, cap: float | None, trained: bool
) -> None:
    """Against float64, with a gradient that differs from position to position."""
    tensors = leaves(positions, bias=bias, trained=trained)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(VOCABULARY, (positions,), generator=generator)
    upstream = torch.randn(positions, generator=generator)
    exact = [None if item is None else item.detach().double().requires_grad_(item.requires_grad) for item in tensors]
    values, expected = ours(*tensors, targets, scale, cap), plain(*exact, targets, scale, cap)
    assert values.dtype is torch.float32
    torch.testing.assert_close(values, expected.float(), rtol=1e-5, atol=1e-5)
    values.backward(upstream)
    expected.backward(upstream.double())
    for item, other in zip(tensors, exact, strict=True):
        if item is not None:
            assert (item.grad is None) == (other.grad is None) == (not item.requires_grad)
            if item.grad is not None:
                torch.testing.assert_close(item.grad, other.grad.float(), rtol=1e-4, atol=2e-5)


def test_gradients_agree_with_finite_differences() -> None:
    """Values are float32 by design, so the step is wide and the tolerance with it."""
    hidden, weight, bias = leaves(3, bias=True, trained=True)
    targets = torch.tensor([0, 5, VOCABULARY - 1])

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        return ours(*tensors, targets, 0.5, 4.0)

    assert torch.autograd.gradcheck(value, (hidden, weight, bias), eps=1e-2, atol=5e-3, rtol=5e-3, fast_mode=False)


def test_a_part_of_the_tensors_may_be_frozen() -> None:
    """A trained bias beside a frozen weight, and a head that is trained on frozen hidden states."""
    for wanted in ((True, False, True), (False, True, True), (False, True, False), (False, False, True)):
        both = zip(leaves(5, bias=True, trained=True), wanted, strict=True)
        tensors = [item.detach().requires_grad_(want) for item, want in both]
        twins = [item.detach().clone().requires_grad_(item.requires_grad) for item in tensors]
        targets = torch.arange(5)
        ours(*tensors, targets, 1.0, None).sum().backward()
        plain(*twins, targets, 1.0, None).sum().backward()
        for item, other in zip(tensors, twins, strict=True):
            assert (item.grad is None) == (other.grad is None)
            if item.grad is not None:
                torch.testing.assert_close(item.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_extreme_logits_give_numbers() -> None:
    hidden, weight, _ = leaves(4, bias=False, trained=True)
    values = ours(hidden * 1e4, weight, None, torch.arange(4), 1.0, None)
    assert torch.isfinite(values).all()
    values.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_logits_of_a_chunk_are_all_that_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {"product": [], "logits": []}

    def watch(name: str) -> None:
        genuine = getattr(Head, name)

        def watched(self: Head, tensor: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = genuine(self, tensor)
            seen[name].append(tuple(result.shape))
            return result

        monkeypatch.setattr(Head, name, watched)

    watch("product")
    watch("logits")
    hidden, weight, _ = leaves(2 * CHUNK + 1, bias=False, trained=True)
    ours(hidden, weight, None, torch.zeros(2 * CHUNK + 1, dtype=torch.int64), 1.0, None).sum().backward()
    once = [(CHUNK, VOCABULARY), (CHUNK, VOCABULARY), (1, VOCABULARY)]
    assert seen["product"] == once + once  # and again for the weight's gradient
    assert max(rows for rows, _ in seen["logits"]) == ROWS_IN_CACHE
    assert sum(rows for rows, _ in seen["logits"]) == 2 * (2 * CHUNK + 1)


def test_nothing_is_computed_for_a_gradient_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _ = leaves(5, bias=False, trained=False)
    wanted = []
    genuine = scoring.head_chunk

    def watched(*args: Any, residues: bool) -> Any:
        wanted.append(residues)
        return genuine(*args, residues=residues)

    monkeypatch.setattr(scoring, "head_chunk", watched)
    one = ours(hidden.detach(), weight, None, torch.arange(5), 1.0, None)
    other = ours(hidden, weight, None, torch.arange(5), 1.0, None)
    assert torch.equal(one, other.detach())
    assert wanted == [False, True]


def test_bfloat16_weights_give_float32_values() -> None:
    hidden, weight, _ = leaves(50, bias=False, trained=False)
    values = ours(hidden.bfloat16(), weight.bfloat16(), None, torch.arange(50) % VOCABULARY, 1.0, None)
    assert values.dtype is torch.float32
    expected = plain(hidden.bfloat16().float(), weight.bfloat16().float(), None, torch.arange(50) % VOCABULARY, 1, None)
    torch.testing.assert_close(values, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("model_type", sorted(ALLOWED_MODEL_TYPES))
def test_the_head_of_every_architecture_is_rebuilt_whole(model_type: str) -> None:
    """Scale, cap, bias and all: both ways through the model give the same log-probabilities."""
    model = architectures.small_model(model_type)
    add_scoring_head(model)
    ids = torch.arange(12)[None] + 290
    with torch.no_grad():
        scored = model(input_ids=ids, sources=torch.arange(11), targets=ids[0, 1:])
        logits = model(input_ids=ids).logits[0, :-1]
    expected = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=1e-5)


def test_architectures_whose_logits_are_scaled_are_known() -> None:
    """A factor under a name that nobody looks for would be left out in silence."""
    from transformers import AutoConfig

    factors = {kind: logit_scale(AutoConfig.for_model(kind).get_text_config()) for kind in ALLOWED_MODEL_TYPES}
    assert {kind for kind, factor in factors.items() if factor != 1.0} == {"cohere", "cohere2"}
    assert logit_scale(AutoConfig.for_model("granite", logits_scaling=8.0)) == 1 / 8
    assert logit_scale(AutoConfig.for_model("cohere", logit_scale=0.5)) == 0.5


def test_without_sources_the_forward_is_the_models_own() -> None:
    model = architectures.small_model("llama")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(input_ids=ids, labels=ids)
        add_scoring_head(model)
        after = model(input_ids=ids, labels=ids)
    assert torch.equal(before.logits, after.logits)
    assert before.loss == after.loss
    import inspect

    assert "position_ids" in inspect.signature(model.forward).parameters  # which ``generate`` looks at


@pytest.mark.parametrize("model_type", sorted(ALLOWED_MODEL_TYPES))
def test_packed_is_chosen_where_it_gives_the_numbers_of_rows(model_type: str) -> None:
    model = architectures.small_model(model_type)
    add_scoring_head(model)
    assert choose_scorer(model, CPU).packed is (model_type not in architectures.ROWS)


def test_rows_are_chosen_where_packed_gives_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an architecture that computes positions by itself, or passes a mask to nobody."""
    model = architectures.small_model("llama")
    add_scoring_head(model)
    genuine = scoring.packed_attention.PackedAttention.attend

    def other(self: Any, query: torch.Tensor, *args: Any) -> torch.Tensor:
        return genuine(self, query, *args) + 0.1

    monkeypatch.setattr(scoring.packed_attention.PackedAttention, "attend", other)
    assert not choose_scorer(model, CPU).packed


class OnGpu(Compute):
    """The CPU, taken for a GPU."""

    @property
    def on_cuda(self) -> bool:
        return True

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def test_rows_are_chosen_where_a_gpu_cannot_compile_the_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = architectures.small_model("llama")
    add_scoring_head(model)

    def fails(*args: Any) -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(scoring.packed_attention.PackedAttention, "pair_by_pair", fails)
    assert not choose_scorer(model, OnGpu(CPU.device, CPU.dtype)).packed
    assert "plain rows" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="C compiler"):  # on a CPU there is nothing to compile, so it is a mistake
        choose_scorer(model, CPU)


def test_attention_is_as_before_after_scoring() -> None:
    model = architectures.small_model("llama")
    add_scoring_head(model)
    scorer = Scorer(packed=True)
    before = model.config._attn_implementation
    with scorer.over(model):
        assert model.config._attn_implementation != before

    def fail() -> None:
        with scorer.over(model):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert model.config._attn_implementation == before
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids).logits).all()


def test_positions_are_counted_as_they_are_laid_out() -> None:
    for scorer in (Scorer(packed=True), Scorer(packed=False)):
        for pairs in (PAIRS, PAIRS[:1], PAIRS[1:]):
            assert scorer.positions(pairs) == scorer.arrange(pairs).input_ids.numel()
