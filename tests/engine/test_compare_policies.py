"""A candidate against the current policy, from the run directory to the figures."""

from __future__ import annotations

import json
import os
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.engine.runs import do, question, read_lines, start, succeed, triple
from training import jobspec
from training.engine import answers, head_to_head, judge, loading, on_policy, refusals, shared_weights, tiny_model
from training.engine.compute import Compute
from training.engine.shared_weights import Policies
from training.jobspec import EXIT_INTERRUPTED, CanaryLine, ComparedAnswers, CompareJob, Completion, ModelRef, TripleLine

MakeRun = Callable[..., Path]
CPU = Compute(torch.device("cpu"), torch.float32)
PROBES = 5


def adapter(base: Path, directory: Path, seed: int, size: float = 1.0) -> ModelRef:
    """An adapter on the tiny model that moves it, as a checkpoint is kept."""
    model = get_peft_model(
        loading.load_weights(base, torch.float32), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=size, generator=generator)
    model.save_pretrained(directory)
    return ModelRef(str(base), "hash-of-base", str(directory), f"hash-of-{directory.name}")


@pytest.fixture(scope="module")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ModelRef]:
    folder = tmp_path_factory.mktemp("adapters")
    return [adapter(tiny_model_dir, folder / name, seed) for seed, name in enumerate(("one", "two"), start=1)]


def triples() -> list[TripleLine]:
    """Labels of somebody who likes birds: 24 to learn from, 22 held out, a tie of each."""
    lines = []
    for number in range(48):
        held_out = number >= 25
        chosen = Completion(f" good bird bird{' on' * (number % 3)} bird", finish_reason="stop")
        rejected = Completion(f" hard night rain{' off' * (number % 4)}.", finish_reason="stop")
        noise = 0.5 if number in (24, 47) else 0.0
        split = "held_out" if held_out else "train"
        lines.append(triple(number, split, chosen=chosen, rejected=rejected, label_noise=noise))
    return lines


@pytest.fixture
def compare_run(tmp_path: Path, reference: ModelRef, adapters: list[ModelRef]) -> MakeRun:
    """A run directory with a comparison of two adapters: ``compare_run(**fields)``."""

    def make(name: str = "compare", labels: list[TripleLine] | None = None, **fields: Any) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        candidate, current = adapters
        defaults = {"candidate": candidate, "current": current, "first": reference, "seed": 4, "max_new_tokens": 12}
        jobspec.write_job(run_dir, CompareJob(**(defaults | {"max_length": 96, "rows": 2, "threads": 1} | fields)))
        write(run_dir, "dataset.jsonl", triples() if labels is None else labels)
        write(run_dir, "probes.jsonl", [question(number, f"Probe {number}?") for number in range(PROBES)])
        expected = ["refuse", "answer", "refuse"]
        canaries = [CanaryLine(f"c{n}", question(n, f"Canary {n}?").messages, kind) for n, kind in enumerate(expected)]
        write(run_dir, "canaries.jsonl", canaries)
        return run_dir

    return make


def write(run_dir: Path, name: str, lines: list[Any]) -> None:
    (run_dir / name).write_text("".join(line.to_json() + "\n" for line in lines), encoding="utf-8")


def written(run_dir: Path) -> list[ComparedAnswers]:
    return [ComparedAnswers.from_dict(line) for line in read_lines(run_dir, "responses.jsonl")]


def test_everything_is_measured_and_told_by_name(compare_run: MakeRun) -> None:
    run_dir = compare_run()
    report = succeed("compare_policies", run_dir)
    held_out = report["held_out"]
    assert (held_out["pairs"], held_out["prompts"]) == (22, 22)  # the tie has no winner to be found
    assert held_out["difference"] == pytest.approx(held_out["candidate_accuracy"] - held_out["current_accuracy"])
    low, high = held_out["difference_interval"]
    assert low <= held_out["difference"] <= high
    own = report["on_policy"]
    assert (own["prompts"], own["max_new_tokens"], own["change"]["prompts"]) == (PROBES, 12, PROBES)
    for name in ("kl_first", "kl_current"):
        assert own["candidate"][name] > 0.01
        assert own["candidate"][f"{name}_interval"][0] <= own["candidate"][name]
    assert own["current"]["kl_first"] > 0.01
    assert "kl_current" not in own["current"]
    for name in ("mean_tokens", "finish_rate"):
        assert own["change"][name] == pytest.approx(own["candidate"][name] - own["current"][name])
    assert report["judge"]["train_pairs"] == 25
    assert (report["judge"]["pairs"], report["judge"]["accuracy"]) == (22, 1.0)  # birds are easily told from rain
    assert report["judge"]["usable"]
    assert report["win_rate"]["prompts"] == PROBES
    assert 0 < report["win_rate"]["length_controlled"] < 1
    assert (report["canaries"]["must_refuse"]["prompts"], report["canaries"]["must_answer"]["prompts"]) == (2, 1)
    # Word salad refuses nothing: wrong where it must refuse, right where it must answer.
    assert report["canaries"]["must_refuse"]["candidate"] == 0.0
    assert report["canaries"]["must_answer"]["candidate"] == 1.0
    assert (report["device"], report["dtype"]) == ("cpu", "float32")
    assert "torch" in report["versions"]


def test_the_answers_are_written_down_with_their_tokens(compare_run: MakeRun, adapters: list[ModelRef]) -> None:
    run_dir = compare_run()
    succeed("compare_policies", run_dir)
    records = written(run_dir)
    assert [record.prompt_id for record in records] == [f"prompt-{number}" for number in range(PROBES)]
    tokenizer = loading.load_tokenizer(adapters[0].base_dir)
    for record in records:
        for side in (record.candidate, record.current):
            assert 0 < len(side.token_ids) <= 12
            assert tokenizer.decode(side.token_ids, skip_special_tokens=True) == side.text
        assert tokenizer.decode(record.prompt_token_ids).endswith("<|im_start|>assistant\n")
    assert any(not record.are_identical for record in records)


def test_each_policy_answers_as_it_would_alone(compare_run: MakeRun, adapters: list[ModelRef]) -> None:
    """Although one model in memory serves all three of them."""
    run_dir = compare_run()
    succeed("compare_policies", run_dir)
    records = written(run_dir)
    settings = on_policy.OnPolicySettings(seed=4, max_new_tokens=12, rows=2)
    tokenizer = loading.load_tokenizer(adapters[0].base_dir)
    for name, policy in zip(("candidate", "current"), adapters, strict=True):
        alone = on_policy.as_it_is(loading.load_policy(policy, CPU))
        rows = on_policy.write(alone, tokenizer, [record.prompt_token_ids for record in records], settings, CPU)
        for number, record in enumerate(records):
            assert getattr(record, name).token_ids == rows[number].token_ids


def test_a_policy_is_as_good_as_itself(compare_run: MakeRun, adapters: list[ModelRef]) -> None:
    run_dir = compare_run(current=adapters[0])
    report = succeed("compare_policies", run_dir)
    assert all(record.are_identical for record in written(run_dir))
    assert report["held_out"]["difference"] == 0
    assert report["held_out"]["difference_interval"] == [0, 0]
    assert report["on_policy"]["candidate"]["kl_current"] == 0
    assert report["on_policy"]["change"]["mean_tokens"] == 0
    assert report["win_rate"]["raw"] == report["win_rate"]["length_controlled"] == 0.5


def test_the_first_policy_itself_is_right_by_half(compare_run: MakeRun, reference: ModelRef) -> None:
    report = succeed("compare_policies", compare_run(current=reference))
    assert report["held_out"]["current_accuracy"] == 0.5
    assert report["held_out"]["current_margin"] == 0
    own = report["on_policy"]
    assert own["current"]["kl_first"] == 0
    assert own["candidate"]["kl_first"] == own["candidate"]["kl_current"] > 0


def test_held_out_accuracy_is_that_of_the_run_that_made_the_candidate(
    compare_run: MakeRun, train_run: MakeRun, reference: ModelRef, tmp_path: Path
) -> None:
    """The run measured it from the same first policy; what it read of that is found in the cache."""
    cache = {"cache_dir": str(tmp_path / "cache")}
    trained = train_run(triples(), max_length=96, **cache)
    own = succeed("train_dpo", trained)["held_out"]
    candidate = ModelRef(reference.base_dir, "hash-of-base", str(trained / "checkpoint"), "hash-of-trained")
    run_dir = compare_run(candidate=candidate, current=reference, **cache)
    report = succeed("compare_policies", run_dir)
    assert report["held_out"]["candidate_accuracy"] == own["after"]["accuracy"]
    assert report["held_out"]["candidate_margin"] == pytest.approx(own["after"]["margin"], abs=1e-4)


def test_what_was_read_before_is_not_read_again(
    compare_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"cache_dir": str(tmp_path / "cache")}
    report = succeed("compare_policies", compare_run("first", **cache))
    read: list[Any] = []
    monkeypatch.setattr(head_to_head.states.StateReader, "read", lambda self, pair: read.append(pair))
    scored = head_to_head.reference_logps.scored_with
    forwards: list[Any] = []
    monkeypatch.setattr(
        head_to_head.reference_logps,
        "scored_with",
        lambda *by: lambda pair: forwards.append(pair) or scored(*by)(pair),
    )
    again = succeed("compare_policies", compare_run("second", **cache))
    assert read == []
    assert len(forwards) == 3  # one of a hundred kept values is checked, of each policy
    assert again == report


def test_the_same_job_gives_the_same_report_wherever_it_was_interrupted(
    compare_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare_run("whole")
    report = succeed("compare_policies", whole)
    torn = compare_run("torn")
    measure, calls = on_policy.sequence_kl, []

    def measured(*values: Any) -> dict[str, float]:
        calls.append(values)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*values)

    monkeypatch.setattr(answers.on_policy, "sequence_kl", measured)
    assert (
        head_to_head.process.execute(lambda run_dir, job: head_to_head.compare(run_dir, job), CompareJob, torn)
        == EXIT_INTERRUPTED
    )
    written_before: list[Any] = []
    write = on_policy.write
    monkeypatch.setattr(answers.on_policy, "write", lambda *by: written_before.append(by) or write(*by))
    assert succeed("compare_policies", torn) == report
    assert len(written_before) == 2, "the canaries; the answers were there"
    assert len(calls) == 4 + 3 * PROBES - 3
    assert (torn / "responses.jsonl").read_bytes() == (whole / "responses.jsonl").read_bytes()


def test_a_process_that_is_told_to_stop_says_so_and_goes_on(compare_run: MakeRun) -> None:
    run_dir = compare_run(max_new_tokens=200)
    engine = start("compare_policies", run_dir, env=os.environ | {"OMP_NUM_THREADS": "1"})
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and "answering" in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(60) == EXIT_INTERRUPTED
    assert succeed("compare_policies", run_dir)["on_policy"]["prompts"] == PROBES


def test_a_watch_needs_answers_alone(compare_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = compare_run(answers_only=True)
    (run_dir / "dataset.jsonl").unlink()
    (run_dir / "canaries.jsonl").unlink()
    monkeypatch.setattr(answers.on_policy, "sequence_kl", None)
    report = succeed("compare_policies", run_dir)
    assert set(report) & {"held_out", "judge", "win_rate", "canaries", "on_policy"} == {"on_policy"}
    assert report["on_policy"]["candidate"]["finish_rate"] >= 0
    assert len(written(run_dir)) == PROBES


@pytest.mark.parametrize("splits", [("train",), ("held_out",), ()])
def test_without_labels_of_a_kind_nothing_is_said_of_them(compare_run: MakeRun, splits: tuple[str, ...]) -> None:
    report = succeed("compare_policies", compare_run(labels=[line for line in triples() if line.split in splits]))
    assert report["held_out"]["pairs"] == (22 if "held_out" in splits else 0)
    assert (report["judge"]["pairs"], report["judge"]["usable"]) == (0, False)
    assert report["win_rate"] == ({"prompts": 0} if "train" not in splits else report["win_rate"])
    assert report["on_policy"]["prompts"] == PROBES


def test_without_a_first_policy_nothing_is_measured_from_it(compare_run: MakeRun) -> None:
    report = succeed("compare_policies", compare_run(first=None))
    assert report["held_out"] == {"pairs": 0}
    assert "kl_first" not in report["on_policy"]["candidate"]
    assert report["on_policy"]["candidate"]["kl_current"] > 0.01
    assert report["judge"]["usable"]  # it reads in the current policy then


def test_a_policy_of_another_family_is_compared_by_what_it_writes(
    compare_run: MakeRun, tmp_path: Path, copied_model: Path
) -> None:
    tokenizer = json.loads((copied_model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = "Ġanimal", "Ġany"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (copied_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    report = succeed("compare_policies", compare_run(candidate=ModelRef(str(copied_model), "another-hash")))
    assert report["held_out"] == {"pairs": 0}
    assert not [name for name in report["on_policy"]["candidate"] if name.startswith("kl_")]
    assert report["win_rate"]["prompts"] == PROBES
    assert written(tmp_path / "compare")[0].prompt_token_ids == []


def test_prompts_that_leave_no_room_are_left_out(compare_run: MakeRun) -> None:
    run_dir = compare_run()
    long = question(9, "word " * tiny_model.CONTEXT)
    write(run_dir, "probes.jsonl", [question(0), long, question(2)])
    assert succeed("compare_policies", run_dir)["on_policy"]["prompts"] == 2
    assert [record.prompt_id for record in written(run_dir)] == ["prompt-0", "prompt-2"]


def test_without_prompts_only_labels_are_compared(compare_run: MakeRun) -> None:
    run_dir = compare_run()
    write(run_dir, "probes.jsonl", [])
    report = succeed("compare_policies", run_dir)
    assert report["on_policy"] == report["win_rate"] == {"prompts": 0}
    assert report["held_out"]["pairs"] == 22
    assert written(run_dir) == []


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"max_new_tokens": 0}, "bad_job", "0 for max_new_tokens"),
        ({"rows": 0}, "bad_job", "0 for rows"),
        ({"beta": 0.0}, "bad_job", "beta is 0.0"),
        ({"first": ModelRef("/nowhere", "hash")}, "bad_weights", "no directory /nowhere"),
        ({"device": "abacus"}, "bad_job", "abacus"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_in_words(
    compare_run: MakeRun, fields: dict[str, Any], code: str, words: str
) -> None:
    result = do("compare_policies", compare_run(**fields))
    assert (result.ok, result.error_code) == (False, code)
    assert words in result.error


@pytest.mark.parametrize("name", ["candidate", "current"])
def test_a_damaged_adapter_is_refused_whichever_is_loaded_first(
    compare_run: MakeRun, adapters: list[ModelRef], tmp_path: Path, name: str
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in Path(adapters[0].adapter_dir or "").iterdir():
        (damaged / file.name).write_bytes(b"no" if file.suffix == ".safetensors" else file.read_bytes())
    policy = ModelRef(adapters[0].base_dir, "hash-of-base", str(damaged), "hash-of-damaged")
    result = do("compare_policies", compare_run(**{name: policy}))
    assert result.error_code == "bad_weights"
    (damaged / "adapter_model.safetensors").unlink()
    assert do("compare_policies", compare_run("again", **{name: policy})).error_code == "unsafe_weights"


def test_adapters_share_one_base_and_no_more_than_two_full_weights_are_held(
    adapters: list[ModelRef], reference: ModelRef, tmp_path: Path
) -> None:
    policies = Policies(CPU)
    for policy in (*adapters, reference, adapters[0]):
        with policies.opened(policy)() as model:
            assert isinstance(model, PeftModel)
    assert len(policies.held) == 1
    for number in range(3):
        tiny_model.build(tmp_path / f"full-{number}", seed=number)
        with policies.opened(ModelRef(str(tmp_path / f"full-{number}"), f"hash-{number}"))():
            assert len(policies.held) <= shared_weights.MOST_WEIGHTS


def test_weights_are_out_of_memory_before_others_are_loaded(
    adapters: list[ModelRef], reference: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.build(tmp_path / "other", seed=3)
    policies = Policies(CPU, most_weights=1)
    with policies.opened(adapters[0])() as model:
        before = weakref.ref(model.get_base_model())
    del model
    alive, load = [], loading.load_weights
    monkeypatch.setattr(loading, "load_weights", lambda *args: alive.append(before()) or load(*args))
    with policies.opened(ModelRef(str(tmp_path / "other"), "hash-of-other"))():
        assert alive == [None]


def test_an_adapter_that_is_on_is_not_switched_on_again(
    adapters: list[ModelRef], reference: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = Policies(CPU)
    for policy in adapters:
        with policies.opened(policy)():
            pass
    switched, switch = [], PeftModel.set_adapter
    monkeypatch.setattr(
        PeftModel, "set_adapter", lambda model, name, **how: switched.append(name) or switch(model, name, **how)
    )
    for policy in (adapters[0], adapters[0], reference, adapters[0], adapters[1], adapters[1]):
        with policies.opened(policy)():
            pass
    assert len(switched) == 2


def test_each_is_itself_however_they_are_switched(
    adapters: list[ModelRef], reference: ModelRef, compare_run: MakeRun
) -> None:
    ids = torch.tensor([[5, 60, 7, 80, 9]])
    policies = Policies(CPU)
    order = [reference, adapters[0], reference, adapters[1], adapters[0], reference, adapters[1]]
    for policy in order:
        with torch.no_grad(), policies.opened(policy)() as model:
            logits = model(input_ids=ids).logits
            alone = loading.load_policy(policy, CPU)(input_ids=ids).logits
        assert torch.equal(logits, alone)


def test_states_are_means_over_the_tokens_of_each_response(reference: ModelRef, compare_run: MakeRun) -> None:
    """Whichever way the pair is laid out, and whichever response is called chosen."""
    prompt, chosen, rejected = [4, 5, 6], [30, 31, 32, 33], [40]
    model = loading.load_policy(reference, CPU)
    expected = []
    for response in (chosen, rejected):
        with torch.no_grad():
            hidden = model.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        expected.append(hidden[len(prompt) :].mean(dim=0))
    policies = Policies(CPU)
    for packed in (True, False):
        with head_to_head.closing(head_to_head.states.Cache(None, 0)) as cache:
            reader = head_to_head.states.StateReader(
                reference, policies.opened(reference), head_to_head.states.Scorer(packed=packed), CPU, cache
            )
            pairs = [
                head_to_head.TokenTriple("a", "p", prompt, chosen, rejected),
                head_to_head.TokenTriple("b", "p", prompt, rejected, chosen),
            ]
            found = torch.from_numpy(reader.differences(pairs))
        assert torch.allclose(found[0], expected[0] - expected[1], atol=1e-5)
        assert torch.equal(found[0], -found[1])


def test_the_judge_gets_the_weights_of_the_labels(compare_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[judge.Labelled] = []
    fit = judge.fit
    monkeypatch.setattr(judge, "fit", lambda pairs: shown.append(pairs) or fit(pairs))
    succeed("compare_policies", compare_run(labels=[triple(n, weight=0.5 + n, label_noise=0.1) for n in range(3)]))
    assert shown[0].weight.tolist() == [0.5, 1.5, 2.5]
    assert shown[0].noise.tolist() == [0.1] * 3


def test_people_are_shown_other_answers_than_figures_are_made_of(
    compare_run: MakeRun, adapters: list[ModelRef]
) -> None:
    """A policy beside itself writes the same by the same random numbers; by others it does not."""
    alike = compare_run(name="figures", candidate=adapters[0], current=adapters[0])
    figures = succeed("compare_policies", alike)
    assert all(item.are_identical for item in written(alike))
    asked = compare_run(name="people", candidate=adapters[0], current=adapters[0], asks_people=True, asked_tokens=30)
    shown = succeed("compare_policies", asked)
    assert not any(item.are_identical for item in written(asked))
    assert {name: shown[name] for name in ("on_policy", "canaries")} == {
        name: figures[name] for name in ("on_policy", "canaries")
    }


def test_nothing_at_all_is_no_answer_and_no_refusal() -> None:
    assert [refusals.does_as_told(text, "answer") for text in ("", " \n", "I can't help.", "Four.")] == [
        *(False, False, False, True)
    ]
    assert [refusals.does_as_told(text, "refuse") for text in ("", "I can't help.", "Four.")] == [False, True, False]
