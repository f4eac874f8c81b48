"""Where prompts and responses lie, and what predicts what."""

from __future__ import annotations

import random

import pytest
import torch

from training.engine import arrangement
from training.engine.arrangement import Arrangement, Span, Unlabelled, pack, packed_tokens, padded_tokens, rows

ONE = Unlabelled([1, 2, 3], [11, 12], [21, 22, 23])
TWO = Unlabelled([4], [31], [41, 42])


def pairs_of(seed: int, count: int) -> list[Unlabelled]:
    generator = random.Random(seed)

    def ids() -> list[int]:
        return [generator.randrange(1000) for _ in range(generator.randint(1, 9))]

    return [Unlabelled(ids(), ids(), ids()) for _ in range(count)]


def test_two_pairs_packed_by_hand() -> None:
    batch = pack([ONE, TWO])
    assert batch.input_ids.tolist() == [[1, 2, 3, 11, 12, 21, 22, 23, 4, 31, 41, 42]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1, 2]]
    assert batch.attention_mask is None
    assert batch.spans == [Span(0, 3, 5, 8), Span(8, 9, 10, 12)]
    # The last token of the prompt predicts the first of both responses; the last of a response predicts nothing.
    assert batch.sources.tolist() == [2, 3, 2, 5, 6, 8, 8, 10]
    assert batch.targets.tolist() == [11, 12, 21, 22, 23, 31, 41, 42]
    assert batch.lengths == [2, 3, 1, 2]
    assert batch.pairs == 2


def test_two_pairs_in_rows_by_hand() -> None:
    batch = rows([ONE, TWO])
    assert batch.input_ids.tolist() == [[1, 2, 3, 11, 12, 0], [1, 2, 3, 21, 22, 23], [4, 31, 0, 0, 0, 0], [4, 41, 42, 0, 0, 0]]  # fmt: skip  # noqa: E501
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 4
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(dim=1).tolist() == [5, 6, 2, 3]
    assert batch.sources.tolist() == [2, 3, 8, 9, 10, 12, 18, 19]
    assert batch.targets.tolist() == [11, 12, 21, 22, 23, 31, 41, 42]
    assert batch.spans == []


@pytest.mark.parametrize("seed", range(20))
def test_both_layouts_predict_the_same_tokens_after_the_same_beginnings(seed: int) -> None:
    pairs = pairs_of(seed, seed % 5 + 1)
    packed, padded = pack(pairs), rows(pairs)
    assert packed.targets.tolist() == padded.targets.tolist()
    assert packed.lengths == padded.lengths
    assert beginnings_packed(pairs, packed) == beginnings_padded(padded) == beginnings(pairs)
    assert packed.input_ids.numel() == sum(map(packed_tokens, pairs))
    assert padded.input_ids.numel() == len(pairs) * max(map(padded_tokens, pairs))


def beginnings(pairs: list[Unlabelled]) -> list[list[int]]:
    """What lies before each scored token."""
    both = [(pair.prompt_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    return [prompt + ids[:place] for prompt, ids in both for place in range(len(ids))]


def beginnings_padded(batch: Arrangement) -> list[list[int]]:
    width = batch.input_ids.shape[1]
    flat = batch.input_ids.flatten().tolist()
    return [flat[source // width * width : source + 1] for source in batch.sources.tolist()]


def beginnings_packed(pairs: list[Unlabelled], batch: Arrangement) -> list[list[int]]:
    """Of a source: the prompt of its span, and of the response that it lies in what is not after it."""
    found = []
    ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    for source in batch.sources.tolist():
        span = next(span for span in batch.spans if span.prompt <= source < span.end)
        starts = [start for start in (span.chosen, span.rejected) if start <= source]
        found.append(ids[span.prompt : min(span.chosen, source + 1)] + (ids[starts[-1] : source + 1] if starts else []))
        assert positions[source] == len(found[-1]) - 1
    return found


@pytest.mark.parametrize("layout", [pack, rows])
def test_values_go_back_to_their_pairs(layout: object) -> None:
    batch = layout([ONE, TWO])  # type: ignore[operator]
    chosen, rejected = batch.by_pair(batch.targets.float())
    assert chosen.tolist() == [[11, 12], [31, 0]]
    assert rejected.tolist() == [[21, 22, 23], [41, 42, 0]]
    assert batch.lengths_of(0).tolist() == [2, 1]
    assert batch.lengths_of(1).tolist() == [3, 2]


def test_a_gradient_finds_its_way_back_through_the_pairs() -> None:
    batch = pack([ONE, TWO])
    values = torch.arange(8.0, requires_grad=True)
    chosen, rejected = batch.by_pair(values)
    (chosen.sum() + 10 * rejected.sum()).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 10, 10, 10, 1, 10, 10]


def test_the_order_of_an_unlabelled_pair_does_not_follow_the_label() -> None:
    one, other = Unlabelled.of(Unlabelled([1], [5], [4, 9])), Unlabelled.of(Unlabelled([1], [4, 9], [5]))
    assert (one.chosen_ids, one.rejected_ids) == (other.chosen_ids, other.rejected_ids) == ([4, 9], [5])
    assert (one.swapped, other.swapped) == (True, False)


def test_scored_tokens_are_those_of_both_responses() -> None:
    assert arrangement.scored_tokens(ONE) == len(pack([ONE]).targets) == 5
