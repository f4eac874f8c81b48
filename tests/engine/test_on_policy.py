"""What the policy writes by itself: divergence from other policies, length, endings, variety."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.engine.runs import question
from training.engine import loading, on_policy, tiny_model
from training.engine.chat import prompt_token_ids
from training.engine.compute import Compute
from training.engine.on_policy import OnPolicyResponse, OnPolicySettings, as_it_is, measure, without_adapter

CPU = Compute(torch.device("cpu"), torch.float32)
SHORT = OnPolicySettings(seed=2, max_new_tokens=24)


@pytest.fixture(scope="module")
def policy(tiny_model_dir: Path) -> PreTrainedModel:
    return loading.load_weights(tiny_model_dir, torch.float32).eval()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    directory = tmp_path_factory.mktemp("models") / "other"
    tiny_model.build(directory, seed=8)
    return loading.load_weights(directory, torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return loading.load_tokenizer(tiny_model_dir)


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [prompt_token_ids(tokenizer, question(number).messages) for number in range(40)]


@pytest.fixture
def adapted(tiny_model_dir: Path) -> PeftModel:
    """The tiny model below an adapter that moves it."""
    model = get_peft_model(
        loading.load_weights(tiny_model_dir, torch.float32), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=3.0, generator=generator)
    return model.eval()


@torch.inference_mode()
def next_logps(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)


def log_ratio(policy: PreTrainedModel, other: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    """log policy(y | x) / other(y | x) of one response."""
    tokens = torch.tensor(response)[:, None]
    rows = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
    logps = [next_logps(model, prompt + response)[rows].gather(1, tokens).sum() for model in (policy, other)]
    return (logps[0] - logps[1]).item()


def kl_of_response(policy: PreTrainedModel, other: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    return on_policy.sequence_kl(as_it_is(policy), {"other": as_it_is(other)}, prompt, response, CPU)["other"]


def test_a_policy_does_not_differ_from_itself(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    figures, responses = measure(as_it_is(policy), {"reference": as_it_is(policy)}, tokenizer, prompts[:5], SHORT, CPU)
    assert figures["kl_reference"] == figures["kl_reference_per_token"] == 0.0
    assert figures["kl_reference_interval"] == [0.0, 0.0]
    assert [item.prompt for item in responses] == [0, 1, 2, 3, 4]


def test_for_responses_of_one_token_the_divergence_is_the_sum_over_the_vocabulary(
    policy: PreTrainedModel, other: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    settings = OnPolicySettings(max_new_tokens=1)
    figures, responses = measure(as_it_is(policy), {"first": as_it_is(other)}, tokenizer, prompts[:4], settings, CPU)
    expected = []
    for prompt, response in zip(prompts, responses, strict=False):
        ours, theirs = next_logps(policy, prompt)[-1].tolist(), next_logps(other, prompt)[-1].tolist()
        expected.append(sum(np.exp(p) * (p - q) for p, q in zip(ours, theirs, strict=True)))
        assert response.kl["first"] == pytest.approx(expected[-1], abs=1e-5)
    assert min(expected) > 0.01
    assert figures["kl_first"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert figures["kl_first_per_token"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert figures["mean_tokens"] == 1.0


def test_the_mean_estimate_is_the_divergence_over_all_responses_of_two_tokens(
    policy: PreTrainedModel, other: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    """Every response of up to two tokens is written out, those that stop after the first one among them."""
    prompt, stop, vocabulary = prompts[0], tokenizer.eos_token_id, policy.config.vocab_size

    @torch.inference_mode()
    def all_logps(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
        """log p(y_1) and log p(y_1, y_2), where y_2 is nothing after a stop."""
        firsts = torch.tensor([[*prompt, token] for token in range(vocabulary)])
        logps = torch.log_softmax(model(input_ids=firsts, logits_to_keep=2).logits.double(), dim=-1)
        logps[stop, 1] = 0.0
        return logps[0, 0], logps[0, 0][:, None] + logps[:, 1]

    (first, ours), (_, theirs) = all_logps(policy), all_logps(other)
    chances = ours.exp()
    chances[stop, 1:] = 0.0
    expected = (chances * (ours - theirs)).sum().item()
    mean = sum(
        first[token].exp().item() * kl_of_response(policy, other, prompt, [token] if token == stop else [token, stop])
        for token in range(vocabulary)
    )
    assert expected > 0.1
    assert mean == pytest.approx(expected, rel=1e-5)


def test_the_estimate_agrees_with_log_ratios_and_varies_less(
    policy: PreTrainedModel, other: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    figures, responses = measure(as_it_is(policy), {"first": as_it_is(other)}, tokenizer, prompts, SHORT, CPU)
    exact = np.array([item.kl["first"] for item in responses])
    ratios = np.array([log_ratio(policy, other, prompts[item.prompt], item.token_ids) for item in responses])
    difference = ratios - exact
    assert abs(difference.mean()) < 3 * difference.std(ddof=1) / len(prompts) ** 0.5
    assert exact.std() < ratios.std()
    assert exact.min() > 0
    low, high = figures["kl_first_interval"]
    assert low < figures["kl_first"] < high
    assert figures["kl_first"] == pytest.approx(exact.mean())
    assert figures["kl_first_per_token"] == pytest.approx(exact.sum() / (figures["mean_tokens"] * len(prompts)))


@pytest.mark.parametrize("positions", [1, 5])
def test_a_response_read_in_pieces_gives_the_same_divergence(
    policy: PreTrainedModel,
    other: PreTrainedModel,
    prompts: list[list[int]],
    positions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    response = [300, 301, 302, 303, 304, 305, 306, 307, 308, 309, 2]
    whole = kl_of_response(policy, other, prompts[0], response)
    assert whole > 0.1
    monkeypatch.setattr(on_policy, "LOGITS_AT_ONCE", positions * policy.config.vocab_size)
    pieces = kl_of_response(policy, other, prompts[0], response)
    assert pieces == pytest.approx(whole, rel=1e-5)


def test_the_reference_can_be_the_policy_with_its_adapter_off(
    adapted: PeftModel, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    others = {"reference": without_adapter(adapted), "first": as_it_is(policy)}
    after, responses = measure(as_it_is(adapted), others, tokenizer, prompts[:6], SHORT, CPU)
    assert after["kl_reference"] > 0.1
    assert after["kl_reference"] == pytest.approx(after["kl_first"], rel=1e-5)
    before, first_responses = measure(without_adapter(adapted), others, tokenizer, prompts[:6], SHORT, CPU)
    assert before["kl_reference"] == pytest.approx(0.0, abs=1e-9)
    assert [item.token_ids for item in responses] != [item.token_ids for item in first_responses]
    again, _ = measure(as_it_is(adapted), others, tokenizer, prompts[:6], SHORT, CPU)
    assert again == after  # the adapter is on again


def test_a_response_does_not_depend_on_the_other_prompts(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    def written(chosen: list[list[int]], seed: int = 2) -> dict[tuple[int, ...], list[int]]:
        _, responses = measure(as_it_is(policy), {}, tokenizer, chosen, OnPolicySettings(seed, 16), CPU)
        return {tuple(chosen[item.prompt]): item.token_ids for item in responses}

    both = written([prompts[3], prompts[1]])
    assert written([prompts[1]])[tuple(prompts[1])] == both[tuple(prompts[1])]
    assert written([prompts[1]], seed=3)[tuple(prompts[1])] != both[tuple(prompts[1])]


def test_prompts_without_room_for_a_response_are_left_out(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    context = policy.config.max_position_embeddings
    fits, long = (prompts[0] + [40] * (context - extra - len(prompts[0])) for extra in (4, 3))
    settings = OnPolicySettings(max_new_tokens=4)
    heard: list[tuple[int, int]] = []
    figures, responses = measure(
        as_it_is(policy), {}, tokenizer, [long, fits, prompts[1]], settings, CPU, lambda *done: heard.append(done)
    )
    assert [item.prompt for item in responses] == [1, 2]
    assert figures["prompts"] == 2
    assert heard == [(1, 2), (2, 2)]
    assert measure(as_it_is(policy), {}, tokenizer, [long], settings, CPU) == ({"prompts": 0}, [])


def test_figures_by_hand() -> None:
    responses = [
        OnPolicyResponse(0, [5, 6, 5, 6, 2], "stop", {"reference": 3.0}),
        OnPolicyResponse(1, [5, 6, 7], "length", {"reference": 1.0}),
    ]
    figures = on_policy.figures(responses)
    assert figures["prompts"] == 2
    assert figures["mean_tokens"] == 4.0
    assert figures["finish_rate"] == 0.5
    assert figures["kl_reference"] == 2.0
    assert figures["kl_reference_per_token"] == 0.5
    assert figures["kl_reference_interval"] == [1.0, 3.0]
    # 5 6 5 6 and 5 6 7, without the token that ended the first.
    assert figures["distinct_1"] == pytest.approx(3 / 7)
    assert figures["distinct_2"] == pytest.approx(3 / 5)  # 56 65 56, 56 67
    assert figures["distinct_3"] == pytest.approx(3 / 3)  # 565 656, 567
    json.dumps(figures)


def test_n_grams_do_not_cross_responses() -> None:
    assert on_policy.distinct([[1], [1], [2]], 2) == 0.0
    assert on_policy.distinct([[1, 2], [1, 2], [3, 4]], 2) == pytest.approx(2 / 3)


def test_endings_and_lengths_are_those_of_the_responses(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    figures, responses = measure(as_it_is(policy), {}, tokenizer, prompts, SHORT, CPU)
    ended = [item for item in responses if item.finish_reason == "stop"]
    assert 0 < len(ended) < len(prompts)
    assert all(item.token_ids[-1] == tokenizer.eos_token_id for item in ended)
    assert all(len(item.token_ids) == 24 for item in responses if item.finish_reason == "length")
    assert figures["finish_rate"] == len(ended) / len(prompts)
    assert figures["mean_tokens"] == np.mean([len(item.token_ids) for item in responses])
    assert 0 < figures["distinct_1"] < figures["distinct_2"] < figures["distinct_3"] <= 1
