"""What two policies make of judged pairs, against plain forwards of each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.prepared import CPU
from tests.engine.runs import do, question, read_lines, start, succeed, write_lines
from tests.engine.test_sampling import forced_logps, make_adapter
from training import jobspec
from training.engine import chat, loading
from training.jobspec import Completion, EffectsJob, JudgedPair, ModelRef

WORDS = (" good bird book", " hard night rain", " on and off", " number")


def judged(number: int, prompt: int | None = None, **fields: Any) -> JudgedPair:
    line = question(number if prompt is None else prompt)
    defaults = {
        "response_a": Completion(WORDS[number % 4] * (1 + number % 2), finish_reason="stop"),
        "response_b": Completion(WORDS[(number + 1) % 4], finish_reason="length"),
    }
    return JudgedPair(f"pair-{number}", line.prompt_id, line.messages, **(defaults | fields))


@pytest.fixture(scope="module")
def adapted(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return make_adapter(tiny_model_dir, tmp_path_factory.mktemp("models") / "adapter")


@pytest.fixture
def effects_run(tmp_path: Path, reference: ModelRef, adapted: ModelRef) -> Callable[..., Path]:
    def make(pairs: list[JudgedPair], name: str = "effects", **fields: Any) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        defaults = {"before": reference, "after": adapted, "first": reference, "seed": 7, "max_new_tokens": 24}
        jobspec.write_job(run_dir, EffectsJob(**(defaults | {"threads": 1, "max_length": 128} | fields)))
        write_lines(run_dir, pairs)
        return run_dir

    return make


def gap(ref: ModelRef, pair: JudgedPair) -> float:
    """log pi(a | x) - log pi(b | x) by two plain forwards."""
    model, tokenizer = loading.load_policy(ref, CPU), loading.load_tokenizer(ref.base_dir)
    turn_end = chat.turn_end_id(tokenizer, model.generation_config)
    prompt = chat.prompt_token_ids(tokenizer, pair.messages)
    a, b = (
        forced_logps(model, prompt, chat.completion_token_ids(tokenizer, one, turn_end)).double().sum()
        for one in (pair.response_a, pair.response_b)
    )
    return float(a - b)


def effects(run_dir: Path) -> dict[str, dict[str, Any]]:
    return {line["pair_id"]: line for line in read_lines(run_dir, "effects.jsonl")}


def test_margins_are_those_of_plain_forwards_measured_from_the_first(
    effects_run: Callable[..., Path], adapted: ModelRef, reference: ModelRef
) -> None:
    pairs = [judged(number) for number in range(5)]
    run_dir = effects_run(pairs)
    details = succeed("label_effects", run_dir)
    assert (details["pairs"], details["measured"], details["left_out"]) == (5, 5, {})
    found = effects(run_dir)
    moved = {pair.pair_id: gap(adapted, pair) - gap(reference, pair) for pair in pairs}
    assert max(map(abs, moved.values())) > 0.1
    assert {name: line["margin_after"] for name, line in found.items()} == pytest.approx(moved, abs=1e-3)
    assert {line["margin_before"] for line in found.values()} == {0.0}, "it was the first itself"


def test_after_a_rollback_the_roles_are_exchanged(
    effects_run: Callable[..., Path], adapted: ModelRef, reference: ModelRef
) -> None:
    pairs = [judged(number) for number in range(3)]
    there, back = effects_run(pairs), effects_run(pairs, name="back", before=adapted, after=reference)
    succeed("label_effects", there)
    succeed("label_effects", back)
    for name, line in effects(there).items():
        other = effects(back)[name]
        assert (line["margin_after"], line["answer_after"]) == (other["margin_before"], other["answer_before"])
        assert (line["margin_before"], line["answer_before"]) == (other["margin_after"], other["answer_after"])


def test_the_base_is_loaded_once_for_two_adapters(
    effects_run: Callable[..., Path], adapted: ModelRef, tiny_model_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    second = make_adapter(tiny_model_dir, tmp_path / "second", std=0.3, seed=2)
    loads, load = [], loading.load_weights
    monkeypatch.setattr(loading, "load_weights", lambda *args: loads.append(args[0]) or load(*args))
    pairs = [judged(number) for number in range(3)]
    run_dir = effects_run(pairs, before=second)
    assert succeed("label_effects", run_dir)["bases_loaded"] == len(loads) == 1
    monkeypatch.undo()
    first = ModelRef(str(tiny_model_dir), "hash-of-base")
    for pair in pairs:
        line = effects(run_dir)[pair.pair_id]
        assert line["margin_before"] == pytest.approx(gap(second, pair) - gap(first, pair), abs=1e-3)
        assert line["margin_after"] == pytest.approx(gap(adapted, pair) - gap(first, pair), abs=1e-3)


def test_a_first_policy_that_is_other_weights_is_measured_from(
    effects_run: Callable[..., Path], adapted: ModelRef, copied_model: Path
) -> None:
    weights = loading.load_weights(copied_model, torch.float32)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    weights.save_pretrained(copied_model)
    first, pair = ModelRef(str(copied_model), "hash-of-first"), judged(1)
    run_dir = effects_run([pair], first=first)
    assert succeed("label_effects", run_dir)["bases_loaded"] == 2
    expected = gap(adapted, pair) - gap(first, pair)
    assert effects(run_dir)["pair-1"]["margin_after"] == pytest.approx(expected, abs=1e-3)


def test_answers_depend_on_the_prompt_and_the_seed_alone(effects_run: Callable[..., Path], reference: ModelRef) -> None:
    """Not on the other prompts; pairs of one prompt have one answer; the same policy says the same twice."""
    alone, together = effects_run([judged(0)], name="alone"), effects_run([judged(0), judged(1), judged(2, prompt=0)])
    other = effects_run([judged(0)], name="other", seed=8)
    same = effects_run([judged(0)], name="same", after=reference)
    for run_dir in (alone, together, other, same):
        succeed("label_effects", run_dir)
    found = effects(together)
    names = ("answer_before", "answer_after")
    assert [effects(alone)["pair-0"][name] for name in names] == [found["pair-0"][name] for name in names]
    assert [found["pair-2"][name] for name in names] == [found["pair-0"][name] for name in names]
    assert found["pair-0"]["answer_before"] != effects(other)["pair-0"]["answer_before"]
    assert found["pair-0"]["answer_before"] != found["pair-0"]["answer_after"]
    assert effects(same)["pair-0"]["answer_before"] == effects(same)["pair-0"]["answer_after"]


def test_a_pair_that_training_could_not_read_is_left_out_with_its_reason(effects_run: Callable[..., Path]) -> None:
    long = judged(0)
    long.messages[0]["content"] = "bird " * 400
    run_dir = effects_run([long, judged(1)])
    details = succeed("label_effects", run_dir)
    assert details["measured"] == 1
    assert "training reads 128" in details["left_out"]["pair-0"]
    assert list(effects(run_dir)) == ["pair-1"]


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"top_p": 1.5}, {"rows": 0}])
def test_a_job_that_cannot_be_is_refused(effects_run: Callable[..., Path], fields: dict[str, Any]) -> None:
    assert do("label_effects", effects_run([judged(0)], **fields)).error_code == "bad_job"


def test_it_is_a_process(effects_run: Callable[..., Path]) -> None:
    run_dir = effects_run([judged(0)])
    assert start("label_effects", run_dir).wait(120) == 0
    assert jobspec.read_result(run_dir).ok
