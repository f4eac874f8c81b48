"""Two policies that answer at once: what each writes, in which order, and how it ends early."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.engine.runs import do, question, start, succeed, write_lines
from tests.installation import wait_until
from training import jobspec
from training.engine import answering, loading, tiny_model
from training.engine.answering import Side
from training.engine.chat import prompt_token_ids, response_text, stop_token_ids
from training.engine.compute import Compute
from training.engine.decoding import Decoding, Request, write_responses
from training.engine.sampling import response_seed
from training.engine.shared_weights import Policies
from training.jobspec import EXIT_INTERRUPTED, ModelRef, SideBySideAnswer, SideBySideJob

CPU = Compute(torch.device("cpu"), torch.float32)
MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ModelRef]:
    """Two adapters over the tiny model that move it in different directions."""
    found = []
    for seed, modules in ((1, ["q_proj", "down_proj"]), (2, ["v_proj", "up_proj"])):
        model = get_peft_model(
            loading.load_weights(tiny_model_dir, torch.float32), LoraConfig(r=4, target_modules=modules)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=8.0, generator=generator)
        directory = tmp_path_factory.mktemp("adapters") / str(seed)
        model.save_pretrained(directory)
        found.append(ModelRef(str(tiny_model_dir), "hash-of-base", str(directory), f"hash-of-{seed}"))
    return found


@pytest.fixture
def stranger(tmp_path: Path) -> ModelRef:
    """Full weights of another model."""
    tiny_model.build(tmp_path / "stranger", seed=8)
    return ModelRef(str(tmp_path / "stranger"), "hash-of-stranger")


@pytest.fixture
def ask(tmp_path: Path) -> MakeRun:
    """A run directory: ``ask(left, right, prompts, **fields)``."""

    def make(left: ModelRef, right: ModelRef, prompts: int | list[Any] = 3, **fields: Any) -> Path:
        run_dir = tmp_path / "side-by-side"
        run_dir.mkdir()
        defaults = {"seed": 7, "temperature": 0.9, "max_new_tokens": 40, "threads": 1, "device": "cpu"}
        jobspec.write_job(run_dir, SideBySideJob(left=left, right=right, **(defaults | fields)))
        write_lines(run_dir, [question(number) for number in range(prompts)] if isinstance(prompts, int) else prompts)
        return run_dir

    return make


def answers(run_dir: Path) -> list[SideBySideAnswer]:
    lines = json.loads((run_dir / "answers.json").read_text(encoding="utf-8"))
    return [SideBySideAnswer.from_dict(line) for line in lines]


def alone(reference: ModelRef, number: int, job: SideBySideJob) -> str:
    """What the policy writes to a prompt when nothing else is in the process."""
    model, tokenizer = loading.load_policy(reference, CPU), loading.load_tokenizer(reference.base_dir)
    stop_ids = frozenset(stop_token_ids(tokenizer, model.generation_config))
    ids, seed = prompt_token_ids(tokenizer, question(number).messages), response_seed(7, f"prompt-{number}", 1, 0)
    decoding = Decoding(job.temperature, job.top_p, stop_ids, tokenizer.pad_token_id)
    ((_, (row,)),) = write_responses(model, [Request(ids, [seed], job.max_new_tokens)], decoding)
    return response_text(tokenizer, row.token_ids)


PAIRS = ["adapters", "adapter and base", "base and adapter", "two models"]


@pytest.fixture(params=PAIRS)
def pair(
    request: pytest.FixtureRequest, adapters: list[ModelRef], reference: ModelRef, stranger: ModelRef
) -> tuple[ModelRef, ModelRef]:
    found = {
        "adapters": (adapters[0], adapters[1]),
        "adapter and base": (adapters[0], reference),
        "base and adapter": (reference, adapters[1]),
        "two models": (adapters[0], stranger),
    }
    return found[request.param]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_writes_what_it_would_write_alone(
    ask: MakeRun, pair: tuple[ModelRef, ModelRef], temperature: float
) -> None:
    run_dir = ask(*pair, temperature=temperature)
    details = succeed("side_by_side", run_dir)
    job = jobspec.read_job(run_dir, SideBySideJob)
    written = answers(run_dir)
    assert [one.prompt_id for one in written] == ["prompt-0", "prompt-1", "prompt-2"]
    for number, one in enumerate(written):
        assert one.left.text == alone(job.left, number, job)
        assert one.right.text == alone(job.right, number, job)
        assert {one.left.finish_reason, one.right.finish_reason} <= {"stop", "length"}
    if temperature:  # the likeliest words of two models as near as these may be the same
        assert any(one.left.text != one.right.text for one in written)
    assert details["tokens"] == sum(one.left.tokens + one.right.tokens for one in written)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Side]:
    """Who wrote, in order."""
    taken: list[Side] = []
    step = Side.step
    monkeypatch.setattr(Side, "step", lambda side: taken.append(side) or step(side))
    return taken


def test_the_two_take_turns_and_each_state_that_readers_find_is_whole(
    ask: MakeRun, adapters: list[ModelRef], steps: list[Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "WRITE_SECONDS", 0.0)
    states: list[list[dict[str, Any]]] = []
    write = answering.write_atomically
    monkeypatch.setattr(
        answering, "write_atomically", lambda path, text: states.append(json.loads(text)) or write(path, text)
    )
    succeed("side_by_side", ask(*adapters, prompts=2))
    left, right = steps[:2]
    assert left is not right
    both = min(steps.count(left), steps.count(right))
    assert steps[: 2 * both] == [left, right] * both
    assert len(states) > 5
    for number, state in enumerate(states, start=1):  # between two states a token of each answer that goes on
        for one in [line[side] for line in state for side in ("left", "right")]:
            assert one["tokens"] == number or one["finish_reason"]
    assert all(one["left"]["finish_reason"] and one["right"]["finish_reason"] for one in states[-1])


def test_one_that_ends_early_does_not_stop_the_other(ask: MakeRun, adapters: list[ModelRef], steps: list[Side]) -> None:
    run_dir = ask(*adapters, prompts=1)
    succeed("side_by_side", run_dir)
    (one,) = answers(run_dir)
    assert one.left.tokens != one.right.tokens, "take another seed"
    assert steps.count(steps[0]) == one.left.tokens + 1
    assert steps.count(steps[1]) == one.right.tokens + 1


def test_the_base_is_in_memory_once(
    adapters: list[ModelRef], reference: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = loading.load_weights
    monkeypatch.setattr(
        loading, "load_weights", lambda directory, dtype: loaded.append(directory) or load(directory, dtype)
    )
    for pair in (adapters, [adapters[0], reference], [reference, adapters[0]]):
        loaded.clear()
        policies = Policies(CPU)
        one, two = map(policies.opened, pair)
        for opened in (one, two):  # an adapter that comes second is put around what is there
            with opened():
                pass
        with one() as first:
            pass
        with two() as second:
            assert second is first
        assert len(loaded) == policies.loads == 1


def test_a_prompt_that_one_of_them_cannot_read_is_refused_with_its_reason(
    ask: MakeRun, reference: ModelRef, copied_model: Path
) -> None:
    template = "{% if 'bird' in messages[0]['content'] %}{{ raise_exception('no birds') }}{% endif %}<|im_start|>"
    (copied_model / "chat_template.jinja").write_text(template, encoding="utf-8")
    run_dir = ask(
        reference, ModelRef(str(copied_model), "other"), [question(1), question(9, "a boat " * 300), question(0)]
    )
    assert succeed("side_by_side", run_dir)["refused"] == 2
    bird, long, plain = answers(run_dir)
    assert "no birds" in bird.refused
    assert "the model reads at most 512" in long.refused
    assert (bird.left.text, bird.right.tokens) == ("", 0)
    assert not plain.refused
    assert plain.left.finish_reason
    assert plain.right.finish_reason


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"temperature": -0.1}, "temperature"), ({"top_p": 0}, "top_p"), ({"max_new_tokens": 0}, "max")],
)
def test_a_job_that_cannot_be_is_refused(
    ask: MakeRun, adapters: list[ModelRef], fields: dict[str, Any], word: str
) -> None:

    result = do("side_by_side", ask(*adapters, **fields))
    assert result.error_code == "bad_job"
    assert word in result.error


def test_half_a_character_is_not_shown(reference: ModelRef) -> None:
    tokenizer = loading.load_tokenizer(reference.base_dir)
    job = SideBySideJob(left=reference, right=reference, seed=1)
    side = Side(Policies(CPU).opened(reference), tokenizer, job)
    side.take([question(0)])
    row = side.rows["prompt-0"]
    row.token_ids = tokenizer("boat é", add_special_tokens=False)["input_ids"][:-1]
    assert side.so_far("prompt-0").text.strip() == "boat"
    row.finish_reason = "length"
    assert side.so_far("prompt-0").text.endswith("\ufffd")


def test_a_process_that_is_told_to_stop_leaves_what_was_written(ask: MakeRun, adapters: list[ModelRef]) -> None:
    run_dir = ask(*adapters, prompts=8, max_new_tokens=400)
    engine = start("side_by_side", run_dir)
    wait_until(lambda: (run_dir / "answers.json").exists() or engine.poll() is not None, 200, "the first words")
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(60) == EXIT_INTERRUPTED
    assert len(answers(run_dir)) == 8
    assert jobspec.read_result(run_dir) is None
