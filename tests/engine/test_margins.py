"""Margins of sampled pairs: those of a direct computation, wherever the adapter is, and at no other cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.engine import architectures
from tests.engine.prepared import CPU
from tests.engine.runs import do, question, read_lines, succeed, triple
from tests.engine.test_sampling import assert_logps, forced_logps, make_adapter, written
from training.engine import loading, margins, sampling_backends
from training.engine.compute import Compute
from training.engine.margins import Margins, taken_out, updates_of
from training.engine.scoring import add_scoring_head
from training.jobspec import Completion, ModelRef, SampledPair, SampledResponse

MakeRun = Callable[..., Path]
BETA = 10.0


@pytest.fixture(scope="module")
def adapted(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return make_adapter(tiny_model_dir, tmp_path_factory.mktemp("models") / "adapter")


def sampled(run_dir: Path) -> list[SampledPair]:
    return [SampledPair.from_dict(line) for line in read_lines(run_dir, "samples.jsonl")]


def direct(model: ModelRef, pair: SampledPair) -> float:
    """beta [(log pi - log pi_ref)(a) - (log pi - log pi_ref)(b)] from plain forwards of two models."""
    policy, reference = loading.load_policy(model, CPU), loading.load_weights(model.base_dir, torch.float32).eval()
    a, b = (
        sum(
            sign * forced_logps(one, pair.prompt_token_ids, response.token_ids).double().sum()
            for one, sign in ((policy, 1), (reference, -1))
        )
        for response in pair.responses
    )
    return float(BETA * (a - b))


@pytest.mark.parametrize("folds", [True, False])
def test_the_margin_is_that_of_a_direct_computation(
    sample_run: MakeRun, adapted: ModelRef, folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not folds:
        monkeypatch.setattr(sampling_backends, "folds_exactly", lambda *args: False)
    run_dir = sample_run(5, model=adapted, beta=BETA)
    details = succeed("sample", run_dir)
    assert (details["adapter_merged"], details["scored"]) == (folds, 5)
    found = {pair.prompt_id: pair.margin for pair in sampled(run_dir)}
    expected = {pair.prompt_id: direct(adapted, pair) for pair in sampled(run_dir)}
    assert max(map(abs, expected.values())) > 1
    assert found == pytest.approx(expected, abs=1e-3)


def test_scoring_changes_nothing_that_is_written(sample_run: MakeRun, adapted: ModelRef) -> None:
    plain, scored = sample_run(4, name="plain", model=adapted), sample_run(4, name="scored", model=adapted, beta=BETA)
    assert succeed("sample", plain)["scored"] == 0
    succeed("sample", scored)
    assert all(pair.margin is None for pair in sampled(plain))
    lines = written(scored)
    for line in lines.values():
        line["margin"] = None
        for response in line["responses"]:
            response["reference_logps"] = []
    assert lines == written(plain)


def test_what_the_reference_says_is_kept_for_runs_against_it(
    sample_run: MakeRun, adapted: ModelRef, tiny_model_dir: Path
) -> None:
    run_dir = sample_run(3, model=adapted, beta=BETA)
    succeed("sample", run_dir)
    reference = loading.load_weights(tiny_model_dir, torch.float32).eval()
    for pair in sampled(run_dir):
        for response in pair.responses:
            assert_logps(reference, pair.prompt_token_ids, response.token_ids, response.reference_logps)


def test_a_run_against_the_reference_takes_its_values_from_the_sampler(
    sample_run: MakeRun, train_run: MakeRun, adapted: ModelRef, reference: ModelRef
) -> None:
    """One of them is computed again and held against it."""
    run_dir = sample_run(6, model=adapted, beta=BETA)
    succeed("sample", run_dir)
    triples = []
    for number, pair in enumerate(sampled(run_dir)):
        a, b = (
            Completion(each.text, each.token_ids, each.finish_reason, each.reference_logps, reference.base_hash)
            for each in pair.responses
        )
        messages = question(int(pair.prompt_id.rpartition("-")[2])).messages
        triples.append(triple(number, chosen=a, rejected=b, messages=messages, prompt_token_ids=pair.prompt_token_ids))
    details = succeed("train_dpo", train_run(triples, epochs=1.0))
    found = details["reference_logps"]
    assert (found["sampled"], found["checked"], found["forwards"]) == (6, 1, 0)


def test_in_bfloat16_the_margin_is_all_that_is_kept(adapted: ModelRef) -> None:
    scores = Margins.beside(load(adapted, torch.bfloat16), Compute(torch.device("cpu"), torch.bfloat16), BETA)
    exact = Margins.beside(load(adapted), CPU, BETA)
    assert scores is not None
    assert exact is not None
    found = scores.of([1, 5, 9, 12], RESPONSES)
    assert found.reference_logps == [[], []]
    assert found.margin == pytest.approx(exact.of([1, 5, 9, 12], RESPONSES).margin, abs=BETA * 0.1)


def test_full_weights_are_their_own_reference_and_have_no_margin(sample_run: MakeRun) -> None:
    run_dir = sample_run(2, beta=BETA)
    assert succeed("sample", run_dir)["scored"] == 0
    assert [pair.margin for pair in sampled(run_dir)] == [None, None]


def test_a_margin_that_is_no_number_costs_the_order_and_no_pair(
    sample_run: MakeRun, adapted: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Margins, "logps", lambda *args: [torch.tensor([float("nan")]), torch.zeros(1)])
    run_dir = sample_run(2, model=adapted, beta=BETA)
    assert do("sample", run_dir).ok
    assert [pair.margin for pair in sampled(run_dir)] == [None, None]


def load(model: ModelRef, dtype: torch.dtype = torch.float32) -> Any:
    base = loading.load_base(model, dtype)
    add_scoring_head(base)
    return loading.load_adapter(base, str(model.adapter_dir), trainable=False).eval()


RESPONSES = [SampledResponse("", [300, 301, 302, 2], "stop", 1), SampledResponse("", [310, 311], "length", 2)]


@torch.no_grad()
def test_what_was_folded_in_is_taken_out_and_is_there_again(adapted: ModelRef) -> None:
    ids = torch.tensor([[1, 5, 300, 301, 302]])
    base = loading.load_weights(adapted.base_dir, torch.float32).eval()
    beside = load(adapted)
    updates = updates_of(beside)
    assert updates
    folded = beside.merge_and_unload(safe_merge=True)
    policy = folded(input_ids=ids).logits
    with taken_out(updates):
        reference = folded(input_ids=ids).logits
    torch.testing.assert_close(reference, base(input_ids=ids).logits, atol=1e-4, rtol=0)
    assert (policy - reference).abs().max() > 0.1
    assert torch.equal(folded(input_ids=ids).logits, policy)
    with pytest.raises(RuntimeError), taken_out(updates):
        raise RuntimeError("stopped")
    assert torch.equal(folded(input_ids=ids).logits, policy)


def test_the_policys_own_values_are_computed_where_the_sampler_kept_none(adapted: ModelRef) -> None:
    scores = Margins.beside(load(adapted), CPU, BETA)
    assert scores is not None
    prompt = [1, 5, 9, 12]
    plain = scores.of(prompt, RESPONSES).margin
    policy = loading.load_policy(adapted, CPU)
    kept = [
        dataclasses.replace(each, logps=forced_logps(policy, prompt, each.token_ids).tolist()) for each in RESPONSES
    ]
    assert scores.of(prompt, kept).margin == pytest.approx(plain, abs=1e-3)
    assert scores.of(prompt, RESPONSES[::-1]).margin == pytest.approx(-plain, abs=1e-3)
    assert abs(plain) > 0.1


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "falcon"])
def test_models_of_every_layout_are_scored(model_type: str) -> None:
    """Qwen has biases in the adapted layers, GPT-2 keeps its weights the other way round, Falcon takes padded rows."""
    model = architectures.small_model(model_type)
    add_scoring_head(model)
    adapted = get_peft_model(
        model,
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=model_type == "gpt2"),
    ).eval()
    updates = updates_of(adapted)
    assert updates
    beside = Margins.beside(adapted, CPU, BETA)
    assert beside is not None
    expected = beside.of([5, 6, 7], RESPONSES).margin
    folded = Margins.folded(adapted.merge_and_unload(), updates, CPU, BETA)
    pair = margins.Unlabelled([5, 6, 7], RESPONSES[0].token_ids, RESPONSES[1].token_ids)
    assert folded.of([5, 6, 7], RESPONSES).margin == pytest.approx(expected, abs=1e-2)
    assert margins.sums(folded.logps(pair, folded.as_reference)) != margins.sums(
        folded.logps(pair, margins.nullcontext)
    )


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}, {"lora_bias": True}],
)
def test_adapters_that_are_more_than_plain_lora_are_not_scored(fields: dict[str, Any]) -> None:
    config = LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | fields))
    adapted = get_peft_model(architectures.small_model("qwen2"), config)
    assert updates_of(adapted) is None
    assert Margins.beside(adapted, CPU, BETA) is None
