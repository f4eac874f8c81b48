"""Two different responses to each prompt, the same ones whatever else happens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.engine.runs import do, question, read_lines, succeed
from training.engine import chat, decoding, kv_cache, loading, sampling, sampling_backends
from training.engine.compute import Compute
from training.engine.decoding import Decoding, Request, Row
from training.engine.errors import EngineError
from training.engine.journal import Journal
from training.jobspec import ModelRef, PromptLine, SampledPair, SampledResponse
from training.modelfiles import ALLOWED_MODEL_TYPES

MakeRun = Callable[..., Path]

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOW: dict[str, Any] = {"sliding_window": 5}
ALTERNATING = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": WINDOW,
    "phi3": WINDOW,
    "starcoder2": WINDOW,
    "qwen2": ALTERNATING | {"use_sliding_window": True},
    "qwen3": ALTERNATING | {"use_sliding_window": True},
    "gemma2": ALTERNATING,
    "gemma3_text": ALTERNATING,
    "cohere2": ALTERNATING,
    "smollm3": ALTERNATING | {"use_sliding_window": True, "no_rope_layers": [1, 0]},
}
SHAPES = [(model_type, WINDOWS.get(model_type, {})) for model_type in sorted(ALLOWED_MODEL_TYPES)]
SHAPES += [
    ("falcon", {"alibi": True}),
    ("falcon", {"multi_query": False}),
    ("falcon", {"new_decoder_architecture": True}),
]


def pairs(run_dir: Path) -> dict[str, dict[str, Any]]:
    return {line["prompt_id"]: line for line in read_lines(run_dir, "samples.jsonl")}


def written(run_dir: Path) -> dict[str, dict[str, Any]]:
    """What was sampled, without the log-probabilities, whose last digits depend on the batch."""
    lines = pairs(run_dir)
    for response in (response for line in lines.values() for response in line["responses"]):
        del response["logps"]
    return lines


@torch.inference_mode()
def forced_logps(model: PreTrainedModel, prompt_ids: list[int], token_ids: list[int]) -> torch.Tensor:
    """log pi(token | prefix) of each token by one plain forward of the whole text."""
    logits = model(input_ids=torch.tensor([prompt_ids + token_ids])).logits[0, len(prompt_ids) - 1 : -1].float()
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(token_ids)[:, None]).squeeze(1)


def assert_logps(model: PreTrainedModel, prompt_ids: list[int], token_ids: list[int], logps: list[float]) -> None:
    expected = forced_logps(model, prompt_ids, token_ids)
    torch.testing.assert_close(torch.tensor(logps), expected, atol=1e-4, rtol=0)


def test_each_prompt_gets_two_different_readable_responses(sample_run: MakeRun) -> None:
    run_dir = sample_run(8, rows=3)
    details = succeed("sample", run_dir)

    records = [SampledPair.from_dict(line) for line in read_lines(run_dir, "samples.jsonl")]
    assert sorted(record.prompt_id for record in records) == sorted(f"prompt-{number}" for number in range(8))
    for record in records:
        first, second = record.responses
        assert first.text != second.text
        assert first.text.strip().isprintable()
        assert first.seed != second.seed
    assert (details["prompts"], details["pairs"], details["refused"]) == (8, 8, 0)
    assert details["tokens"] >= sum(len(item.token_ids) for record in records for item in record.responses)


def test_a_stopped_response_ends_with_a_stop_id(sample_run: MakeRun, tiny_model_dir: Path) -> None:
    run_dir = sample_run(8)
    details = succeed("sample", run_dir)
    responses = [response for line in pairs(run_dir).values() for response in line["responses"]]
    stopped = [response for response in responses if response["finish_reason"] == "stop"]
    assert stopped
    for response in stopped:
        assert response["token_ids"][-1] in details["stop_token_ids"]
        assert not set(response["token_ids"][:-1]) & set(details["stop_token_ids"])
        assert "<|" not in response["text"]
    tokenizer = loading.load_tokenizer(tiny_model_dir)
    assert stopped[0]["text"] == tokenizer.decode(stopped[0]["token_ids"][:-1])


def test_a_response_that_reaches_its_length_says_so(sample_run: MakeRun) -> None:
    run_dir = sample_run(6, max_new_tokens=3)
    succeed("sample", run_dir)
    cut = [item for line in pairs(run_dir).values() for item in line["responses"] if item["finish_reason"] == "length"]
    assert cut
    assert all(len(item["token_ids"]) == 3 for item in cut)


def test_every_end_token_of_model_and_tokenizer_stops(tiny_model_dir: Path) -> None:
    from transformers import GenerationConfig

    tokenizer = loading.load_tokenizer(tiny_model_dir)
    eos = tokenizer.eos_token_id
    assert chat.stop_token_ids(tokenizer, GenerationConfig(eos_token_id=[0, 1])) == sorted({0, 1, eos})
    assert chat.stop_token_ids(tokenizer, GenerationConfig(eos_token_id=0)) == sorted({0, eos})
    assert chat.stop_token_ids(tokenizer, None) == [eos]
    row = Row(0, 1, 10)
    row.add(0, -1.5, frozenset({0, eos}))
    assert row.finish_reason == "stop"


def test_the_same_job_gives_the_same_responses_in_any_batch(sample_run: MakeRun) -> None:
    one_by_one = sample_run(6, name="small", rows=1)
    together = sample_run(6, name="large", rows=12)
    succeed("sample", one_by_one)
    succeed("sample", together)
    assert written(one_by_one) == written(together)


def test_another_seed_gives_other_responses(sample_run: MakeRun) -> None:
    first, second = sample_run(3, name="first", seed=1), sample_run(3, name="second", seed=2)
    succeed("sample", first)
    succeed("sample", second)
    assert all(pairs(first)[key]["responses"] != pairs(second)[key]["responses"] for key in pairs(first))


def test_a_restart_keeps_what_is_there_and_drops_a_torn_line(sample_run: MakeRun) -> None:
    whole, cut = sample_run(5, name="whole"), sample_run(5, name="cut")
    succeed("sample", whole)
    lines = (whole / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (cut / "samples.jsonl").write_text("".join(lines[:2]) + lines[2][:40], encoding="utf-8")

    details = succeed("sample", cut)
    assert details["pairs"] == 3
    assert details["from_earlier_attempts"] == 2
    assert (cut / "samples.jsonl").read_text(encoding="utf-8").startswith("".join(lines[:2]))
    assert written(cut) == written(whole)
    progress = [line for line in read_lines(cut, "metrics.jsonl") if "total" in line]
    assert progress[-1]["done"] == progress[-1]["total"] == 5


def test_the_first_pair_is_written_alone_and_told_at_once(sample_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counting(model: Any, requests: list[Request], decoding: Decoding, rows: int) -> Any:
        sizes.append(len(requests))
        return original(model, requests, decoding, rows)

    original = sampling_backends.write_responses
    monkeypatch.setattr(sampling_backends, "write_responses", counting)
    run_dir = sample_run(5, rows=8, seed=8)
    succeed("sample", run_dir)
    assert sizes[:2] == [1, 4]
    assert next(iter(pairs(run_dir))) == "prompt-0"
    progress = [line for line in read_lines(run_dir, "metrics.jsonl") if "total" in line]
    assert progress[0]["done"] == 1
    assert progress[-1]["done"] == 5
    assert progress[-1]["tokens_per_s"] > 0


def test_a_pair_keeps_what_it_was_sampled_from_and_how_likely_it_was(sample_run: MakeRun, tiny_model_dir: Path) -> None:
    run_dir = sample_run(4, temperature=0.6, top_p=0.8)
    succeed("sample", run_dir)
    model, tokenizer = loading.load_weights(tiny_model_dir, torch.float32), loading.load_tokenizer(tiny_model_dir)
    for number in range(4):
        line = pairs(run_dir)[f"prompt-{number}"]
        assert line["prompt_token_ids"] == chat.prompt_token_ids(tokenizer, question(number).messages)
        for response in line["responses"]:
            assert response["finish_reason"] in {"stop", "length"}
            assert all(logp <= 0 and float(f"{logp:.9g}") == logp for logp in response["logps"])
            assert_logps(model, line["prompt_token_ids"], response["token_ids"], response["logps"])


def test_the_result_says_how_it_was_sampled(sample_run: MakeRun) -> None:
    details = succeed("sample", sample_run(3, rows=4))
    assert (details["backend"], details["rows"], details["device"]) == ("local", 4, "cpu")
    assert details["tokens_per_s"] == pytest.approx(details["tokens"] / details["seconds"], rel=0.01)


def test_a_prompt_that_leaves_no_room_is_refused_with_its_length(sample_run: MakeRun) -> None:
    long = question(9, "a bird " * 200)
    run_dir = sample_run([question(0), long], max_length=128)
    succeed("sample", run_dir)
    refusal = pairs(run_dir)["prompt-9"]
    assert refusal["responses"] == []
    assert "the model reads at most 512 and training 128" in refusal["refused"]
    assert pairs(run_dir)["prompt-0"]["refused"] == ""


def test_a_prompt_that_the_template_does_not_accept_is_refused(sample_run: MakeRun, copied_model: Path) -> None:
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}<|im_start|>"
    (copied_model / "chat_template.jinja").write_text(template, encoding="utf-8")
    bad = PromptLine("bad", [{"role": "assistant", "content": "Hello"}])
    run_dir = sample_run([bad, question(0)], model=ModelRef(str(copied_model), "hash"))
    succeed("sample", run_dir)
    assert "user first" in pairs(run_dir)["bad"]["refused"]
    assert pairs(run_dir)["prompt-0"]["responses"]


def scripted(monkeypatch: pytest.MonkeyPatch, script: Callable[[str, int, int], list[int]]) -> None:
    """Let the model write what ``script(prompt_id, attempt, index)`` says."""
    known: dict[int, tuple[str, int, int]] = {}
    original = sampling.response_seed

    def remembered(job_seed: int, prompt_id: str, attempt: int, index: int) -> int:
        seed = original(job_seed, prompt_id, attempt, index)
        known[seed] = (prompt_id, attempt, index)
        return seed

    def write_responses(model: Any, requests: list[Request], decoding: Decoding, rows: int) -> Any:
        for number, request in enumerate(requests):
            yield number, [Row(number, seed, 9, script(*known[seed]), "stop") for seed in request.seeds]

    monkeypatch.setattr(sampling, "response_seed", remembered)
    monkeypatch.setattr(sampling_backends, "write_responses", write_responses)


def test_equal_pairs_are_sampled_again_and_only_they(sample_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    equal_at_first = {"prompt-1": 2, "prompt-2": 3}

    def script(prompt_id: str, attempt: int, index: int) -> list[int]:
        return [300, 310 + (index if attempt >= equal_at_first.get(prompt_id, 1) else 0), 2]

    scripted(monkeypatch, script)
    run_dir = sample_run(4, max_attempts=3)
    details = succeed("sample", run_dir)
    assert {key: line["attempts"] for key, line in pairs(run_dir).items()} == {
        "prompt-0": 1,
        "prompt-1": 2,
        "prompt-2": 3,
        "prompt-3": 1,
    }
    assert details["resampled"] == 3


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([300, 2], "The model wrote the same response twice"), ([2], "The model wrote an empty response")],
)
def test_a_prompt_without_a_usable_pair_is_refused_after_all_attempts(
    sample_run: MakeRun, monkeypatch: pytest.MonkeyPatch, ids: list[int], reason: str
) -> None:
    scripted(monkeypatch, lambda prompt_id, attempt, index: ids)
    run_dir = sample_run(2, max_attempts=2)
    assert succeed("sample", run_dir)["refused"] == 2
    assert pairs(run_dir)["prompt-0"]["refused"] == f"{reason} in each of 2 attempts."
    assert pairs(run_dir)["prompt-0"]["attempts"] == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Hello there", "  hello\n\nTHERE "),
        ("**Hello** _there_", "Hello there"),
        ("# Title\n- one\n- two", "Title\n* one\n* two"),
        ("ﬁne", "fine"),
        ("> quoted `code`", "quoted code"),
        ("Yes.", "Yes!"),
    ],
)
def test_what_a_reader_does_not_see_is_no_difference(first: str, second: str) -> None:
    assert sampling.normalised(first) == sampling.normalised(second)


@pytest.mark.parametrize(("first", "second"), [("It is 3.5", "It is 35"), ("yes", "no"), ("a, b", "a b c")])
def test_what_a_reader_sees_is_a_difference(first: str, second: str) -> None:
    assert sampling.normalised(first) != sampling.normalised(second)


def test_responses_equal_within_what_training_reads_are_no_pair() -> None:
    first = SampledResponse("one two", [1, 2, 3, 4], "stop", 1)
    second = SampledResponse("one three", [1, 2, 3, 5], "stop", 2)
    assert sampling.unusable([first, second], trained_tokens=3)
    assert not sampling.unusable([first, second], trained_tokens=4)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"rows": 0}, "rows"),
        ({"beta": -0.1}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"backend": "cloud"}, "cloud"),
        ({"backend": "server", "server_model": "tiny"}, "URL"),
        ({"backend": "server", "server_model": "tiny", "server_url": "ftp://example.org/v1"}, "URL"),
        ({"backend": "server", "server_url": "http://example.org/v1"}, "model"),
        (
            {
                "backend": "server",
                "server_url": "http://example.org/v1",
                "server_model": "tiny",
                "model": ModelRef("base", "hash", "adapter"),
            },
            "hash",
        ),
    ],
)
def test_a_job_that_cannot_be_done_is_told(sample_run: MakeRun, fields: dict[str, Any], word: str) -> None:
    result = do("sample", sample_run(1, **fields))
    assert result.error_code == "bad_job"
    assert word in result.error


def test_a_prompt_listed_twice_is_told(sample_run: MakeRun) -> None:
    assert do("sample", sample_run([question(1), question(1)])).error_code == "bad_dataset"


def test_no_prompts_is_no_failure(sample_run: MakeRun) -> None:
    assert succeed("sample", sample_run(0))["pairs"] == 0


def make_adapter(base_dir: Path, directory: Path, std: float = 0.5, seed: int = 1) -> ModelRef:
    """A LoRA adapter that changes what the model writes."""
    from peft import LoraConfig, get_peft_model

    model = loading.load_weights(base_dir, torch.float32)
    names = ["q_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * std
    adapted.save_pretrained(directory)
    return ModelRef(str(base_dir), "base", str(directory), "adapter")


def test_an_adapter_changes_what_is_written(sample_run: MakeRun, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted = make_adapter(tiny_model_dir, tmp_path / "adapter")
    plain, changed = sample_run(3, name="plain"), sample_run(3, name="changed", model=adapted)
    assert not succeed("sample", plain)["adapter_merged"]
    assert succeed("sample", changed)["adapter_merged"]
    assert written(plain) != written(changed)


def test_folding_the_adapter_in_changes_no_log_probability(
    sample_run: MakeRun, tiny_model_dir: Path, tmp_path: Path
) -> None:
    adapted = make_adapter(tiny_model_dir, tmp_path / "adapter")
    run_dir = sample_run(3, model=adapted)
    succeed("sample", run_dir)
    beside = loading.load_policy(adapted, Compute(torch.device("cpu"), torch.float32))
    for line in pairs(run_dir).values():
        for response in line["responses"]:
            assert_logps(beside, line["prompt_token_ids"], response["token_ids"], response["logps"])


@pytest.mark.parametrize(("model_type", "fields"), SHAPES)
def test_every_model_that_may_be_added_writes_as_it_would_alone(
    model_type: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places that are taken anew, columns that move, and windows shorter than the text change nothing."""
    monkeypatch.setattr(kv_cache, "LEAST_SLACK", 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SMALL | fields))).eval()
    settings = Decoding(1.3, 0.95, frozenset({2, 3, 4}), 0)
    lengths = (3, 17, 5, 5, 9, 2)
    requests = [
        Request([7 + (11 * number + place) % 40 for place in range(length)], [number, number + 100], 24)
        for number, length in enumerate(lengths)
    ]
    answers = dict(decoding.write_responses(model, requests, settings, rows=5))
    assert sorted(answers) == list(range(6))
    for number, rows in answers.items():
        for row in rows:
            prompt_ids = requests[number].prompt_ids
            assert row.token_ids == written_alone(model, prompt_ids, row.seed, settings, 24)
            assert_logps(model, prompt_ids, row.token_ids, row.logps)


def watched(model: PreTrainedModel) -> tuple[list[int], list[int]]:
    """Rows of each forward of ``model`` from now on: those that read prompts, and those that read one token a row."""
    prompts: list[int] = []
    steps: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows, columns = kwargs["input_ids"].shape
        (steps if columns == 1 else prompts).append(rows)

    model.register_forward_pre_hook(note, with_kwargs=True)
    return prompts, steps


@pytest.mark.parametrize("rows", [1, 3, 4, 50])
def test_a_place_that_is_freed_is_taken_at_once(tiny_model_dir: Path, rows: int) -> None:
    model = loading.load_weights(tiny_model_dir, torch.float32).eval()
    prompts, steps = watched(model)
    requests = [Request([1, 5, 9 + number, 12], [2 * number, 2 * number + 1], 12 + number) for number in range(9)]
    answers = dict(decoding.write_responses(model, requests, Decoding(0.9, 0.95, frozenset(), 0), rows=rows))

    assert sum(prompts) == 9, "each prompt is read once for both of its responses"
    full = min(rows, 18)
    assert max(steps) == full
    assert sum(steps) == sum(len(row.token_ids) - 1 for answer in answers.values() for row in answer)
    queued = [size for place, size in enumerate(steps) if sum(steps[place:]) > full * 20]
    assert full * len(queued) - sum(queued) <= 18, "an end leaves a place empty for one token at most"


def test_rows_below_one_are_no_way_to_write(tiny_model_dir: Path) -> None:
    model = loading.load_weights(tiny_model_dir, torch.float32)
    with pytest.raises(ValueError, match="0 rows"):
        next(decoding.write_responses(model, [Request([1], [1], 1)], Decoding(1, 1, frozenset(), 0), rows=0))


def test_logits_that_are_not_finite_are_told(tiny_model_dir: Path) -> None:
    model = loading.load_weights(tiny_model_dir, torch.float32).eval()
    model.lm_head.weight.data[7, 3] = float("nan")
    with pytest.raises(EngineError) as told:
        list(decoding.write_responses(model, [Request([1, 5], [1], 3)], Decoding(1, 0.9, frozenset(), 0)))
    assert told.value.code == "bad_weights"


def test_padding_and_cache_do_not_change_the_distribution(tiny_model_dir: Path) -> None:
    """Sampling with a shared, padded batch draws what a plain forward of the whole text would draw."""
    model = loading.load_weights(tiny_model_dir, torch.float32).eval()
    settings = Decoding(0.8, 0.9, frozenset({2}), 0)
    requests = [Request([1, 5, 9, 12], [11, 12], 12), Request([1, 300, 301, 302, 303, 304, 305, 40], [13, 14], 12)]
    for number, rows in decoding.write_responses(model, requests, settings):
        for row in rows:
            assert row.token_ids == written_alone(model, requests[number].prompt_ids, row.seed, settings, 12)


@torch.inference_mode()
def written_alone(model: Any, prompt_ids: list[int], seed: int, settings: Decoding, limit: int) -> list[int]:
    generator, ids = torch.Generator().manual_seed(seed), list(prompt_ids)
    for _ in range(limit):
        logits = model(input_ids=torch.tensor([ids])).logits[:, -1].float()
        token = int(decoding.choose(logits, torch.rand(1, generator=generator, dtype=torch.float64), settings))
        ids.append(token)
        if token in settings.stop_ids:
            break
    return ids[len(prompt_ids) :]


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_draws_follow_the_nucleus(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequencies over a fine grid of uniforms equal the renormalised nucleus, also on the sorting path."""
    monkeypatch.setattr(decoding, "CANDIDATES", (2, 3))
    logits = torch.tensor([0.3, 1.7, -0.4, 0.9, 0.0])
    probabilities = torch.softmax(logits / 0.7, 0)
    order = probabilities.argsort(descending=True)
    mass_before = probabilities[order].cumsum(0) - probabilities[order]
    kept = order[mass_before < top_p]
    expected = torch.zeros(5)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()

    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = decoding.choose(logits.repeat(len(grid), 1), grid, Decoding(0.7, top_p, frozenset(), 0))
    torch.testing.assert_close(torch.bincount(drawn, minlength=5) / len(grid), expected, atol=2e-4, rtol=0)


def test_a_draw_does_not_depend_on_the_nucleus_of_a_neighbour() -> None:
    """Ties are broken by the sort, so a row must be sorted the same way beside a row that needs a wider one."""
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(1, 5000, generator=generator).round(decimals=0) * 4
    wide = torch.zeros(1, 5000)
    settings, uniforms = Decoding(1.0, 0.9, frozenset(), 0), torch.linspace(0, 0.999, 50, dtype=torch.float64)
    for uniform in uniforms:
        alone = decoding.choose(narrow, uniform[None], settings)
        beside = decoding.choose(torch.cat([wide, narrow]), uniform.repeat(2), settings)
        assert beside[1] == alone[0]


def test_seeds_fit_a_json_number_and_differ() -> None:
    keys = itertools.product("ab", (1, 2), (0, 1))
    seeds = {sampling.response_seed(1, *key) for key in keys}
    assert len(seeds) == 8
    assert all(json.loads(json.dumps(float(seed))) == seed for seed in seeds)


def test_line_separators_inside_a_response_do_not_end_its_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "samples.jsonl")
    journal.append({"text": "one\u2028two\u2029three\u0085four"})
    assert Journal(tmp_path / "samples.jsonl").read() == [{"text": "one\u2028two\u2029three\u0085four"}]
