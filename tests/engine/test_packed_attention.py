"""Attention over a packed row: to every position what it would see in a row of its own."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import PreTrainedModel

from tests.engine import architectures
from training.engine import bfloat16_attention, packed_attention
from training.engine.arrangement import Span, Unlabelled, pack, rows
from training.engine.packed_attention import PackedAttention, block_mask, can_serve
from training.engine.scoring import Scorer, add_scoring_head

HEADS, WIDTH = 4, 8
LAYOUTS = [
    [Span(0, 1, 2, 3)],  # one token each
    [Span(0, 5, 8, 10)],
    [Span(0, 3, 20, 21), Span(21, 30, 31, 40), Span(40, 41, 49, 50)],
]
MODULE = torch.nn.Module()


def attention_over(spans: list[Span]) -> PackedAttention:
    attention = PackedAttention()
    attention.spans = spans
    return attention


def tensors(columns: int, kv_heads: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, heads, columns, WIDTH) for heads in (HEADS, kv_heads, kv_heads))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True) for shape in shapes]


def by_definition(
    spans: list[Span], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Each response as a plain causal row with its prompt before it; (1, columns, heads, width)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.empty_like(query)
    for span in spans:
        prompt = list(range(span.prompt, span.chosen))
        for part in (range(span.chosen, span.rejected), range(span.rejected, span.end)):
            columns = prompt + list(part)
            distance = torch.arange(len(columns))[:, None] - torch.arange(len(columns))
            hidden = (distance < 0) | (distance >= (window or len(columns)))
            scores = (query[:, :, columns] @ key[:, :, columns].transpose(2, 3) * scale).masked_fill(hidden, -torch.inf)
            output[:, :, columns] = scores.softmax(-1) @ value[:, :, columns]
    return output.transpose(1, 2)


@pytest.mark.parametrize("spans", LAYOUTS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("scale", "window"), [(0.3, None), (None, 1), (None, 4), (1.0, 1000)])
def test_output_and_gradients_are_those_of_plain_rows(
    spans: list[Span], kv_heads: int, scale: float | None, window: int | None
) -> None:
    found = []
    upstream = torch.randn(1, spans[-1].end, HEADS, WIDTH, dtype=torch.float64)
    for number in (0, 1):
        inputs = tensors(spans[-1].end, kv_heads)
        if number:
            output = by_definition(spans, *inputs, scale or WIDTH**-0.5, window)
        else:
            output, _ = attention_over(spans)(MODULE, *inputs, None, scaling=scale, sliding_window=window)
        output.backward(upstream)
        found.append([output.detach(), *(item.grad for item in inputs)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("spans", LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 4, 1000])
def test_the_block_mask_for_a_gpu_is_that_of_plain_rows(spans: list[Span], window: int | None) -> None:
    """Its kernel runs on a GPU, what it is told to hide does not depend on that."""
    inputs = [item.detach().float() for item in tensors(spans[-1].end, 2)]
    mask = block_mask(spans, torch.device("cpu"), window)
    output = flex_attention(*inputs, block_mask=mask, scale=0.3, enable_gqa=True)
    expected = by_definition(spans, *inputs, 0.3, window)
    torch.testing.assert_close(output.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=[3, 1000], ids=["small blocks", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(bfloat16_attention, "BLOCK", request.param)
    return int(request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("kept", [0, 1, 1000])
@pytest.mark.parametrize("spans", LAYOUTS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("scale", "window"), [(0.3, None), (None, 1), (None, 4), (1.0, 1000)])
def test_attention_in_bfloat16_is_that_of_plain_rows(
    monkeypatch: pytest.MonkeyPatch,
    spans: list[Span],
    kv_heads: int,
    scale: float | None,
    window: int | None,
    kept: int,
) -> None:
    """Its precision is that of its inputs, so in float64 nothing but the order of sums is left."""
    monkeypatch.setattr(bfloat16_attention, "KEPT_WIDTHS", kept)
    upstream = torch.randn(1, spans[-1].end, HEADS, WIDTH, dtype=torch.float64)
    found = []
    for number in (0, 1):
        inputs = tensors(spans[-1].end, kv_heads)
        if number:
            output = by_definition(spans, *inputs, scale or WIDTH**-0.5, window)
        else:
            output = attention_over(spans).in_bfloat16(*inputs, scale, window)
        output.backward(upstream)
        found.append([output.detach(), *(item.grad for item in inputs)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def in_bfloat16(spans: list[Span]) -> list[torch.Tensor]:
    """Output and gradients of its own attention for values that bfloat16 holds."""
    inputs = [item.detach().bfloat16().requires_grad_(True) for item in tensors(spans[-1].end, 2)]
    output = attention_over(spans).in_bfloat16(*inputs, None, None)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


@pytest.mark.usefixtures("block")
def test_scores_and_sums_are_more_precise_than_products() -> None:
    """Rounding the results alone is 0.0016 of them; with scores in bfloat16 it would be 0.0042 and 0.0050."""
    spans = [Span(0, 60, 150, 210), Span(210, 215, 300, 340)]
    inputs = [item.detach().bfloat16().double().requires_grad_(True) for item in tensors(spans[-1].end, 2)]
    output = by_definition(spans, *inputs, WIDTH**-0.5, None)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    exact = [output.detach(), *torch.autograd.grad(output, inputs, upstream)]
    for ours, expected, most in zip(in_bfloat16(spans), exact, (0.003, 0.0045, 0.0045, 0.0045), strict=True):
        assert ours.dtype is torch.bfloat16
        assert float((ours.double() - expected).norm() / expected.norm()) < most


def test_gradients_of_a_shared_key_are_summed_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of one token before two long responses, in blocks of two queries: as many parts as there are blocks."""
    monkeypatch.setattr(bfloat16_attention, "BLOCK", 2)
    spans = [Span(0, 1, 400, 800)]
    many = in_bfloat16(spans)
    monkeypatch.setattr(bfloat16_attention, "BLOCK", 1000)
    for ours, other in zip(many[2:], in_bfloat16(spans)[2:], strict=True):
        assert float((ours[:, :, 0] - other[:, :, 0]).norm() / other[:, :, 0].norm()) < 0.01


@pytest.mark.parametrize("spans", [[Span(0, 4, 4, 7)], [Span(0, 0, 3, 5)], LAYOUTS[2]])
def test_values_may_be_wider_than_keys_and_a_part_empty(spans: list[Span]) -> None:
    columns = spans[-1].end
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, columns, WIDTH), (1, 2, columns, WIDTH), (1, 2, columns, 3)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True) for shape in shapes]
    twins = [item.detach().clone().requires_grad_(True) for item in inputs]
    output = attention_over(spans).in_bfloat16(*inputs, 0.3, None)
    query, key, value = twins
    key, value = (item.repeat_interleave(2, 1) for item in (key, value))
    expected = torch.empty_like(output)
    for span in spans:
        for part in (range(span.chosen, span.rejected), range(span.rejected, span.end)):
            seen = [*range(span.prompt, span.chosen), *part]
            hidden = torch.ones(len(seen), len(seen), dtype=torch.bool).triu(1)
            scores = (query[:, :, seen] @ key[:, :, seen].transpose(2, 3) * 0.3).masked_fill(hidden, -torch.inf)
            expected[:, seen] = (scores.softmax(-1) @ value[:, :, seen]).transpose(1, 2)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(output, inputs, upstream)
    for ours, plain in zip(found, torch.autograd.grad(expected, twins, upstream), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("wanted", [False, True])
def test_nothing_is_kept_where_no_gradient_is_wanted(wanted: bool) -> None:
    """Not even until the end of the forward pass, which would hold the weights of all blocks together."""
    kept: list[torch.Tensor] = []
    ctx = SimpleNamespace(needs_input_grad=(wanted, False, False, False), save_for_backward=lambda *t: kept.extend(t))
    inputs = [item.detach().bfloat16().squeeze(0) for item in tensors(10, 2)]
    bfloat16_attention.BFloat16Attention.forward(ctx, *inputs, bfloat16_attention.Row(LAYOUTS[1], 0.3))
    assert bool(kept) is wanted


@pytest.mark.usefixtures("block")
def test_weights_that_are_made_again_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = in_bfloat16(LAYOUTS[2])
    monkeypatch.setattr(bfloat16_attention, "KEPT_WIDTHS", 0)
    assert all(torch.equal(one, other) for one, other in zip(kept, in_bfloat16(LAYOUTS[2]), strict=True))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (True, torch.float32), (False, torch.bfloat16)])
def test_its_own_attention_is_for_bfloat16_on_a_cpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(packed_attention, "has_bfloat16", lambda: native)
    attention = attention_over(LAYOUTS[1])
    asked: list[str] = []
    for name in ("in_bfloat16", "pair_by_pair"):
        genuine = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *a, name=name, genuine=genuine: asked.append(name) or genuine(*a))
    inputs = [item.detach().to(dtype) for item in tensors(10, 2)]
    output, _ = attention(MODULE, *inputs, None, scaling=0.3)
    assert asked == ["in_bfloat16" if native and dtype is torch.bfloat16 else "pair_by_pair"]
    assert output.dtype is dtype
    assert output.is_contiguous()
    expected = by_definition(LAYOUTS[1], *(item.double() for item in inputs), 0.3, None)
    torch.testing.assert_close(output.double(), expected, rtol=0.02, atol=0.02)


def test_masks_of_one_row_are_not_used_for_the_next() -> None:
    attention = PackedAttention()
    for spans in (LAYOUTS[2], LAYOUTS[1], LAYOUTS[2]):
        attention.lay_out(pack([Unlabelled(*ids_of(span)) for span in spans]))
        assert attention.spans == spans
        inputs = tensors(spans[-1].end, 2)
        output, _ = attention(MODULE, *inputs, None, scaling=0.3, sliding_window=3)
        torch.testing.assert_close(output, by_definition(spans, *inputs, 0.3, 3))


def ids_of(span: Span) -> list[list[int]]:
    borders = (span.prompt, span.chosen, span.rejected, span.end)
    return [list(range(start, end)) for start, end in itertools.pairwise(borders)]


def test_masks_are_made_once_for_all_layers() -> None:
    attention = attention_over(LAYOUTS[1])
    inputs = tensors(10, 4)
    for _ in range(3):
        attention(MODULE, *inputs, None, scaling=0.3, sliding_window=3)
    masks = dict(attention.masks)
    attention(MODULE, *inputs, None, scaling=0.3, sliding_window=3)
    assert all(attention.masks[key] is mask for key, mask in masks.items())
    assert set(masks) == set(attention.masks)


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"dropout": 0.1}])
def test_what_it_does_not_do_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="neither soft-capping nor dropout"):
        attention_over(LAYOUTS[1])(MODULE, *tensors(10, 4), None, **asked)


def test_a_response_does_not_see_the_other_nor_the_other_pair() -> None:
    """By what changes: a new token in one place, and the log-probabilities that notice."""
    model = prepared_model("llama")
    pair, other = Unlabelled([5, 6, 7], [300, 301, 302], [310, 311]), Unlabelled([8, 9], [320], [330, 331])
    before = logps(model, [pair, other])
    changed = logps(model, [Unlabelled(pair.prompt_ids, pair.chosen_ids, [399, 311]), other])
    assert torch.equal(before[:3], changed[:3])
    assert (before[3:5] - changed[3:5]).abs().min() > 1e-4
    assert torch.equal(before[5:], changed[5:])
    changed = logps(model, [pair, Unlabelled([400, 9], [320], [330, 331])])
    assert torch.equal(before[:5], changed[:5])
    assert (before[5:] - changed[5:]).abs().min() > 1e-4


def prepared_model(model_type: str, **fields: Any) -> PreTrainedModel:
    model = architectures.small_model(model_type, **fields)
    add_scoring_head(model)
    return model


@torch.no_grad()
def logps(model: PreTrainedModel, pairs: list[Unlabelled], *, packed: bool = True) -> torch.Tensor:
    scorer = Scorer(packed=packed)
    with scorer.over(model):
        return scorer.token_logps(model, scorer.arrange(pairs))


@pytest.mark.parametrize("model_type", sorted(architectures.SLIDING))
@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 30])
def test_windows_reach_from_a_response_into_its_prompt(model_type: str, prompt: int) -> None:
    """With the border between prompt and responses at, just before and just after the end of a window."""
    model = prepared_model(model_type)
    pairs = [
        Unlabelled(list(range(260, 260 + prompt)), list(range(300, 312)), list(range(320, 321))),
        Unlabelled(list(range(360, 365)), list(range(400, 407)), list(range(420, 440))),
    ]
    torch.testing.assert_close(logps(model, pairs), logps(model, pairs, packed=False), rtol=1e-4, atol=1e-4)


def test_pairs_of_every_shape_agree_with_rows() -> None:
    model = prepared_model("llama")
    for prompt, chosen, rejected in ((1, 1, 1), (1, 20, 1), (1, 1, 20), (20, 1, 1), (64, 63, 65)):
        pair = Unlabelled(*(list(range(260, 260 + length)) for length in (prompt, chosen, rejected)))
        torch.testing.assert_close(
            logps(model, [pair, pair]), logps(model, [pair, pair], packed=False), rtol=1e-4, atol=1e-4
        )


def test_models_whose_attention_cannot_be_replaced_are_told_apart() -> None:
    assert can_serve(architectures.small_model("llama"))
    assert not can_serve(architectures.small_model("falcon"))
    assert not can_serve(architectures.small_model("gemma2"))
    assert can_serve(architectures.small_model("gemma2", attn_logit_softcapping=None))


def test_plain_forwards_of_the_model_are_untouched_between_two_packed_ones() -> None:
    model = prepared_model("llama")
    ids = rows([Unlabelled([5, 6, 7], [300, 301], [310])]).input_ids
    with torch.no_grad():
        before = model(input_ids=ids).logits
        logps(model, [Unlabelled([1, 2], [3], [4])])
        assert torch.equal(model(input_ids=ids).logits, before)
    assert packed_attention.NAME not in str(model.config._attn_implementation)
