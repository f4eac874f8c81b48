"""Direct Preference Optimization: the loss, the reference, the data, the outcome."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from tests.engine import architectures
from tests.engine.prepared import (
    CPU,
    Gradients,
    assert_same_step,
    examples_of,
    gradients,
    move,
    ready_setting,
    ready_trainer,
    whole_step,
)
from tests.engine.runs import adapter_bytes, do, question, read_lines, steps, succeed, triple
from training.engine import chat, evaluation, loading, ranks, step_plan, step_record
from training.engine import reference as reference_module
from training.engine.errors import EngineError
from training.engine.guards import TrainingGuard
from training.engine.preference_data import TokenTriple
from training.engine.reference_logps import scored_with
from training.engine.scoring import Scorer, add_scoring_head
from training.jobspec import Completion, ModelRef, TrainJob, TripleLine
from training.modelfiles import ALLOWED_MODEL_TYPES

MakeRun = Callable[..., Path]


def digest(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.fixture
def adapter_dir(train_run: MakeRun) -> Path:
    run_dir = train_run(6, name="earlier", lora_rank=2, seed=11)
    succeed("train_dpo", run_dir)
    return run_dir / "checkpoint"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_learns_the_preferences_and_leaves_the_base_alone(
    train_run: MakeRun, tiny_model_dir: Path, method: str
) -> None:
    before = digest(tiny_model_dir)
    run_dir = train_run(6, method=method, epochs=5, learning_rate=1e-2 if method == "lora" else 1e-3)
    details = succeed("train_dpo", run_dir)
    history = steps(run_dir)

    assert history[0]["reward_margin"] == 0.0
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert history[0]["reward_accuracy"] == 0.5
    assert history[-1]["loss"] < 0.5
    assert history[-1]["reward_margin"] > 0.3
    assert [line["step"] for line in history] == list(range(1, 16))
    assert {line["steps"] for line in history} == {15}
    assert digest(tiny_model_dir) == before
    assert details["steps"] == 15
    assert details["triples"] == {"train": 6, "held_out": 0, "left_out": 0}
    assert details["held_out"] == {"pairs": 0}
    assert details["final"] == history[-1]


def test_policy_of_a_checkpoint_is_the_policy_that_was_trained(train_run: MakeRun, reference: ModelRef) -> None:
    """The margin of the written adapter, computed from the files alone, continues that of the last step."""
    run_dir = train_run(2, epochs=20)
    succeed("train_dpo", run_dir)
    data = ready_setting(run_dir).data
    scores = []
    for adapter_dir in (None, str(run_dir / "checkpoint")):
        base = loading.load_base(reference, torch.float32)
        add_scoring_head(base)
        model = loading.load_adapter(base, adapter_dir, trainable=False) if adapter_dir else base
        scores.append(list(map(scored_with(model.eval(), Scorer(packed=False), CPU), data.train)))
    margins = [
        evaluation.margin(evaluation.pair_score(triple, before, after), 0.1)
        for triple, before, after in zip(data.train, *scores, strict=True)
    ]
    assert sum(margins) / 2 == pytest.approx(steps(run_dir)[-1]["reward_margin"], rel=0.1)


def plain_loss(policy: Any, frozen: Any, triples: list[TokenTriple], beta: float) -> torch.Tensor:
    """Rafailov et al. 2023, eq. 7, one pair at a time and without any of TRL."""
    losses = []
    for item in triples:
        gap = torch.zeros(())
        for sign, ids in ((1, item.chosen_ids), (-1, item.rejected_ids)):
            sequence = torch.tensor([item.prompt_ids + ids])
            for weight, model in ((1, policy), (-1, frozen)):
                logps = torch.log_softmax(model(input_ids=sequence).logits[0, :-1], -1)
                tokens = logps.gather(1, sequence[0, 1:, None])[len(item.prompt_ids) - 1 :]
                gap = gap + sign * weight * tokens.sum()
        losses.append(-torch.nn.functional.logsigmoid(beta * gap))
    return torch.stack(losses).mean()


def definition(policy: Any, triples: list[TokenTriple], beta: float) -> tuple[float, Gradients]:
    class Base:
        def __call__(self, **inputs: Any) -> Any:
            with torch.no_grad(), policy.disable_adapter():
                return policy(**inputs)

    policy.zero_grad()
    loss = plain_loss(policy, Base(), triples, beta)
    loss.backward()
    return loss.item(), gradients(policy)


def test_loss_and_gradient_equal_the_definition(train_run: MakeRun) -> None:
    """With a policy that has moved, at pairs of unequal length."""
    trainer = ready_trainer(train_run(3, beta=0.3, pairs_per_step=3, micro_batch=3))
    move(trainer.model)
    ours = whole_step(trainer, range(3))
    expected = definition(trainer.model, examples_of(trainer), beta=0.3)
    assert abs(expected[0] - math.log(2)) > 1e-3
    assert_same_step(ours, expected)


def test_every_pair_of_a_step_counts_the_same(train_run: MakeRun) -> None:
    """However a step is cut into micro-batches; here the last one of each epoch is smaller than the others."""
    logged = []
    for micro_batch in (1, 2, 4):
        fields: dict[str, Any] = {"pairs_per_step": 4, "micro_batch": micro_batch, "epochs": 3.0}
        run_dir = train_run(7, name=f"micro-{micro_batch}", **fields)
        succeed("train_dpo", run_dir)
        logged.append(steps(run_dir))
    for other in logged[1:]:
        for one, two in zip(logged[0], other, strict=True):
            for name in ("loss", "grad_norm", "reward_margin", "logp_chosen"):
                assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-4), (name, one["step"])


def test_sampled_ids_are_trained_on_as_they_are(train_run: MakeRun) -> None:
    """Ids that no text would tokenise to reach the batch unchanged, with no newline and no second end."""
    odd = [300, 98, 301, 2]
    rows = [triple(0, chosen=Completion(" came\ufffd can", odd, "stop"), rejected=Completion(" bird"))]
    setting = ready_setting(train_run(rows))
    assert setting.data.retokenised == []
    [pair] = setting.data.train
    assert pair.chosen_ids == odd
    tokenizer = setting.tokenizer
    assert pair.rejected_ids == [*tokenizer(" bird")["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(pair.prompt_ids) == (
        "<|im_start|>user\n0: Why is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert setting.scorer.arrange([pair]).targets.tolist() == odd + pair.rejected_ids


@pytest.mark.parametrize(("finish_reason", "ends"), [("stop", True), ("length", False)])
def test_ids_of_another_vocabulary_are_not_trained_on(train_run: MakeRun, finish_reason: Any, ends: bool) -> None:
    """A project whose first policy had another tokenizer: the same ids mean other words here, or nothing at all."""
    foreign, unknown = Completion(" bird", [17, 18, 19], finish_reason), Completion(" tree", [99_999], finish_reason)
    negative = Completion(" bird", [-1], finish_reason)
    rows = [triple(0, chosen=foreign, rejected=unknown), triple(1, chosen=negative, rejected=unknown)]
    setting = ready_setting(train_run(rows))
    tokenizer = setting.tokenizer
    end = [tokenizer.eos_token_id] if ends else []
    for pair in setting.data.train:
        assert pair.chosen_ids == tokenizer(" bird")["input_ids"] + end
        assert pair.rejected_ids == tokenizer(" tree")["input_ids"] + end
    assert setting.data.retokenised == ["pair-0", "pair-1"]


def test_an_imported_response_ends_with_the_token_that_the_template_ends_a_turn_with(
    train_run: MakeRun, copied_model: Path
) -> None:
    """In Gemma's way: the end of a text is another token than the end of a turn."""
    tokenizer = AutoTokenizer.from_pretrained(copied_model)
    turn_end = tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.save_pretrained(copied_model)
    stops = GenerationConfig.from_pretrained(copied_model)
    assert chat.turn_end_id(AutoTokenizer.from_pretrained(copied_model), stops) == turn_end != tokenizer.eos_token_id
    assert chat.turn_end_id(tokenizer, None) == tokenizer.eos_token_id, "a token that ends no response of this model"
    setting = ready_setting(train_run([triple(0)], reference=ModelRef(str(copied_model), "hash-of-copy")))
    assert setting.data.train[0].chosen_ids[-1] == turn_end
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert chat.turn_end_id(tokenizer, stops) == tokenizer.eos_token_id
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert chat.turn_end_id(tokenizer, stops) == tokenizer.eos_token_id


# The prompt as sampled.


TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}<|im_start|>system\nToday is {{ strftime_now('%d %B %Y, %H:%M:%S.%f') }}."
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def dated(copied_model: Path) -> ModelRef:
    """A model whose template tells the time, so that no two prompts have the same ids."""
    (copied_model / "chat_template.jinja").write_text(TEMPLATE)
    return ModelRef(str(copied_model), "hash-of-base")


def sampled_yesterday(model: ModelRef, **fields: Any) -> TripleLine:
    tokenizer = AutoTokenizer.from_pretrained(model.base_dir)
    text = "<|im_start|>system\nToday was a day.<|im_end|>\n<|im_start|>user\n"
    text += f"{triple(0).messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    sides = [
        Completion(words, [*tokenizer(words)["input_ids"], tokenizer.eos_token_id], "stop")
        for words in (" good bird", " hard night")
    ]
    return triple(0, **({"chosen": sides[0], "rejected": sides[1], "prompt_token_ids": tokenizer(text)["input_ids"]} | fields))  # fmt: skip  # noqa: E501


def test_a_template_that_writes_the_date_does_not_change_what_was_sampled(train_run: MakeRun, dated: ModelRef) -> None:
    line = sampled_yesterday(dated)
    [pair] = ready_setting(train_run([line], name="one", reference=dated)).data.train
    assert pair.prompt_ids == line.prompt_token_ids
    without = dataclasses.replace(line, prompt_token_ids=[])
    [other] = ready_setting(train_run([without], name="other", reference=dated)).data.train
    # Responses that nobody sampled here have no prompt ids: they get those of one and the same day, whatever today is.
    assert "Today is 26 July 2024, 00:00:00.000000." in AutoTokenizer.from_pretrained(dated.base_dir).decode(
        other.prompt_ids
    )
    runs = [train_run([line], name=name, reference=dated) for name in ("first", "second")]
    for run_dir in runs:
        succeed("train_dpo", run_dir)
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])


@pytest.mark.parametrize("why", ["vocabulary", "negative", "words", "completion", "imported"])
def test_prompt_ids_of_another_tokenizer_are_not_used(train_run: MakeRun, reference: ModelRef, why: str) -> None:
    line = sampled_yesterday(reference)
    fields: dict[str, Any] = {
        "vocabulary": {"prompt_token_ids": [*line.prompt_token_ids, 99_999]},
        "negative": {"prompt_token_ids": [-1, *line.prompt_token_ids]},
        "words": {"prompt_token_ids": [token + 1 for token in line.prompt_token_ids]},
        "completion": {"chosen": Completion(" good bird", [40, 41, 42], "stop")},
        "imported": {"chosen": Completion(" good bird")},
    }[why]
    [pair] = ready_setting(train_run([dataclasses.replace(line, **fields)])).data.train
    assert pair.prompt_ids == ready_setting(train_run([triple(0)], name="plain")).data.train[0].prompt_ids


def test_the_seconds_of_a_run_are_those_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(step_record.time, "monotonic", lambda: now[0])
    recorder = step_record.StepRecorder(None, TrainingGuard())  # type: ignore[arg-type]
    nothing: Any = None
    for event, seconds in (("on_train_begin", 30.0), ("on_train_end", 500.0)):
        getattr(recorder, event)(nothing, nothing, nothing)
        now[0] += seconds
    assert recorder.seconds == 30.0


# The reference.


def test_an_adapter_as_reference_is_continued_at_its_own_rank(
    train_run: MakeRun, reference: ModelRef, adapter_dir: Path
) -> None:
    before = digest(adapter_dir)
    continued = dataclasses.replace(reference, adapter_dir=str(adapter_dir), adapter_hash="hash-of-adapter")
    run_dir = train_run(6, reference=continued, lora_rank=16)
    succeed("train_dpo", run_dir)
    history = steps(run_dir)
    assert history[0]["reward_margin"] == pytest.approx(0.0, abs=1e-6)
    assert history[-1]["reward_margin"] > 0
    assert digest(adapter_dir) == before
    assert json.loads((run_dir / "checkpoint" / "adapter_config.json").read_text())["r"] == 2
    old, new = (load_file(path / "adapter_model.safetensors") for path in (adapter_dir, run_dir / "checkpoint"))
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_full_training_starts_from_the_folded_adapter(
    train_run: MakeRun, reference: ModelRef, adapter_dir: Path
) -> None:
    continued = dataclasses.replace(reference, adapter_dir=str(adapter_dir), adapter_hash="hash-of-adapter")
    run_dir = train_run(4, reference=continued, method="full", learning_rate=1e-4)
    succeed("train_dpo", run_dir)
    assert steps(run_dir)[0]["reward_margin"] == 0.0
    names = {path.name for path in (run_dir / "checkpoint").iterdir()}
    assert "model.safetensors" in names
    assert "adapter_config.json" not in names


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_wrong_reference_stops_the_run_before_the_first_step(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Here the weights move after the reference was read, as if two different models had been loaded."""
    from training.engine import dpo

    read = dpo.read_reference

    def moved_after(setting: Any) -> Any:
        values = read(setting)
        with torch.no_grad():
            for tensor in setting.start.plain.model.layers[0].parameters():
                tensor += 0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        return values

    monkeypatch.setattr(dpo, "read_reference", moved_after)
    run_dir = train_run(3, method=method)
    result = do("train_dpo", run_dir)
    assert result.error_code == "wrong_reference"
    assert "nats" in result.error
    assert steps(run_dir) == []
    assert not (run_dir / "checkpoint").exists()


def test_a_diverging_run_is_told(train_run: MakeRun) -> None:
    result = do("train_dpo", train_run(6, method="full", learning_rate=1e30, epochs=4))
    assert result.error_code == "diverged"
    assert "learning rate" in result.hint


def test_the_same_job_gives_the_same_bytes(train_run: MakeRun) -> None:
    first, second = train_run(5, name="first"), train_run(5, name="second")
    succeed("train_dpo", first)
    torch.rand(3)
    succeed("train_dpo", second)
    assert adapter_bytes(first) == adapter_bytes(second)
    other = train_run(5, name="other", seed=6)
    succeed("train_dpo", other)
    assert adapter_bytes(first) != adapter_bytes(other)


def test_one_pair_is_enough(train_run: MakeRun) -> None:
    run_dir = train_run(1, pairs_per_step=8, micro_batch=2, epochs=1)
    assert succeed("train_dpo", run_dir)["steps"] == 1
    assert steps(run_dir)[0]["learning_rate"] > 0
    tensors = load_file(run_dir / "checkpoint" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("pairs", "epochs", "expected"), [(1, 1.0, 1), (5, 1.0, 3), (6, 2.0, 6), (6, 0.5, 2), (7, 1.5, 6), (6, 0.01, 1)]
)
def test_the_number_of_steps_is_foreseen(train_run: MakeRun, pairs: int, epochs: float, expected: int) -> None:
    run_dir = train_run(pairs, epochs=epochs)
    assert len(step_plan.plan_steps(pairs, 2, epochs, seed=5)) == expected
    assert succeed("train_dpo", run_dir)["steps"] == expected
    history = steps(run_dir)
    assert {line["steps"] for line in history} == {expected}
    assert history[-1]["epoch"] == pytest.approx(expected / -(-pairs // 2), abs=1e-4)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("pairs", "a_step"), [(7, 3), (10, 4), (4, 8), (9, 3)])
def test_every_epoch_has_every_pair_once_in_an_order_of_its_own(pairs: int, a_step: int, processes: int) -> None:
    plan = step_plan.plan_steps(pairs, a_step, 3.0, seed=1, processes=processes)
    places = [place for step in plan for place in step]
    assert Counter(places) == dict.fromkeys(range(pairs), 3)
    epochs = [places[start : start + pairs] for start in range(0, 3 * pairs, pairs)]
    assert all(sorted(epoch) == list(range(pairs)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for step in plan:
        shares = [ranks.share_of(step, rank, processes) for rank in range(processes)]
        assert all(shares)
        assert sorted(place for share in shares for place in share) == sorted(step)
    assert plan == step_plan.plan_steps(pairs, a_step, 3.0, seed=1, processes=processes)
    assert plan != step_plan.plan_steps(pairs, a_step, 3.0, seed=2, processes=processes)


def test_fewer_pairs_than_processes_are_refused() -> None:
    with pytest.raises(EngineError) as caught:
        step_plan.plan_steps(2, 4, 1.0, seed=1, processes=3)
    assert caught.value.code == "bad_dataset"


def test_rows_that_teach_nothing_are_left_out_and_counted(train_run: MakeRun) -> None:
    same_beginning = " ".join(["bird"] * 200)
    rows = [
        triple(0),
        triple(1, messages=question(1, "rain " * 200).messages),
        triple(2, chosen=Completion(f" {same_beginning} now"), rejected=Completion(f" {same_beginning} not")),
        triple(3, split="held_out", chosen=Completion(" bird"), rejected=Completion(" bird")),
    ]
    details = succeed("train_dpo", train_run(rows))
    assert details["triples"] == {"train": 1, "held_out": 0, "left_out": 3}
    reasons = {item["pair_id"]: item["reason"] for item in details["left_out"]}
    assert "training reads 128" in reasons["pair-1"]
    assert "the same within the 128 tokens" in reasons["pair-2"]
    assert "the same" in reasons["pair-3"]
    assert details["left_out_by_split"] == {"train": 2, "held_out": 1}
    assert details["cut"] == 0


def test_a_response_that_does_not_fit_is_cut_and_counted(train_run: MakeRun) -> None:
    long = Completion(f" {' '.join(['bird'] * 150)}")
    prompt = len(ready_setting(train_run([triple(0)], name="plain")).data.train[0].prompt_ids)
    rows = [triple(0), triple(0, pair_id="pair-long", chosen=long)]
    run_dir = train_run(rows, max_length=prompt + 20)
    cut = {pair.pair_id: (pair.cut, len(pair.chosen_ids)) for pair in ready_setting(run_dir).data.train}
    assert cut["pair-long"] == (True, 20)
    assert cut["pair-0"][0] is False
    assert succeed("train_dpo", run_dir)["cut"] == 1


def test_a_dataset_without_training_rows_is_told(train_run: MakeRun) -> None:
    result = do("train_dpo", train_run([triple(0, split="held_out"), triple(1, chosen=triple(1).rejected)]))
    assert result.error_code == "bad_dataset"
    assert "None of the 1 training pairs" in result.error
    assert do("train_dpo", train_run([], name="empty")).error_code == "bad_dataset"


def test_a_response_without_tokens_is_left_out(train_run: MakeRun) -> None:
    """It has nothing to be scored. One that ended at once has its end of turn."""
    cut, ended = Completion("", [], "length"), Completion("", [2], "stop")
    rows = [triple(0, chosen=cut), triple(1, chosen=ended), triple(2, rejected=Completion(""))]
    details = succeed("train_dpo", train_run(rows))
    assert [item["pair_id"] for item in details["left_out"]] == ["pair-0"]
    assert "no tokens" in details["left_out"][0]["reason"]
    assert details["triples"]["train"] == 2


# Weight and label noise.


def step_of(train_run: MakeRun, name: str, rows: list[TripleLine], **fields: Any) -> tuple[float, Gradients]:
    trainer = ready_trainer(train_run(rows, name=name, pairs_per_step=len(rows), micro_batch=2, **fields))
    move(trainer.model)
    return whole_step(trainer, range(len(rows)))


def scaled(step: tuple[float, Gradients], factor: float) -> tuple[float, Gradients]:
    return step[0] * factor, {name: factor * tensor for name, tensor in step[1].items()}


def test_a_weight_counts_a_pair_so_often(train_run: MakeRun) -> None:
    """The step is the mean over its pairs of weight times loss: a pair of weight 0 teaches nothing but is counted."""
    rows = [triple(number) for number in range(3)]
    weighted = [dataclasses.replace(row, weight=weight) for row, weight in zip(rows, (1.0, 0.0, 1.0), strict=True)]
    without = step_of(train_run, "without", [rows[0], rows[2]])
    assert_same_step(step_of(train_run, "weighted", weighted), scaled(without, 2 / 3))
    doubled = [dataclasses.replace(rows[0], weight=2.0), rows[1]]
    twice = step_of(train_run, "twice", [rows[0], rows[0], rows[1]])
    assert_same_step(step_of(train_run, "doubled", doubled), scaled(twice, 3 / 2))


def test_label_noise_mixes_both_orders(train_run: MakeRun) -> None:
    row, noise = triple(1), 0.2
    turned = dataclasses.replace(row, chosen=row.rejected, rejected=row.chosen)
    one, other = step_of(train_run, "one", [row]), step_of(train_run, "other", [turned])
    noisy = step_of(train_run, "noisy", [dataclasses.replace(row, label_noise=noise)])
    mixed = {name: (1 - noise) * tensor + noise * other[1][name] for name, tensor in one[1].items()}
    assert_same_step(noisy, ((1 - noise) * one[0] + noise * other[0], mixed))


def test_a_tie_pulls_the_margin_back_whichever_response_is_called_chosen(train_run: MakeRun) -> None:
    tie = triple(1, label_noise=0.5)
    turned = dataclasses.replace(tie, chosen=tie.rejected, rejected=tie.chosen)
    one = step_of(train_run, "one", [tie], beta=1.0)
    assert_same_step(one, step_of(train_run, "other", [turned], beta=1.0))
    assert one[0] > math.log(2)
    trainer = ready_trainer(train_run([tie], name="down", beta=1.0))
    move(trainer.model)
    margins = []
    for _ in range(2):
        whole_step(trainer, [0])
        margins.append(abs(trainer.totals.margin))
        with torch.no_grad():
            for tensor in trainer.model.parameters():
                if tensor.grad is not None:
                    tensor -= 1e-4 * tensor.grad
    assert margins[1] < margins[0]


def test_ties_are_trained_on_and_are_in_no_accuracy(train_run: MakeRun) -> None:
    """They have no winner to find."""
    rows = [triple(0), triple(1, label_noise=0.5), triple(2), triple(3, label_noise=0.5)]
    held_out = [triple(7, "held_out"), triple(8, "held_out", label_noise=0.5)]
    run_dir = train_run([*rows, *held_out], pairs_per_step=4, epochs=3)
    details = succeed("train_dpo", run_dir)
    assert details["ties"] == 2
    assert details["triples"]["held_out"] == 2
    assert details["held_out"]["pairs"] == 1
    assert [line["pair_id"] for line in read_lines(run_dir, "held_out.jsonl")] == ["pair-7"]
    assert {line["reward_accuracy"] for line in steps(run_dir)} <= {0.0, 0.5, 1.0}  # of two pairs
    only_ties = train_run([rows[1], rows[3]], name="ties", epochs=3)
    succeed("train_dpo", only_ties)
    assert {line["reward_accuracy"] for line in steps(only_ties)} == {0.5}


def test_a_margin_of_rounding_is_no_win(train_run: MakeRun) -> None:
    """Before the first update no pair is right or wrong, however the sums are rounded."""
    trainer = ready_trainer(train_run(4, pairs_per_step=4, micro_batch=4))
    for example, sign in zip(trainer.course.examples, (1, 1, -1, 1), strict=True):
        example.reference[0][0] -= 3e-4 * sign
    whole_step(trainer, range(4))
    assert 0 < abs(trainer.totals.margin) < 4 * step_record.ROUNDING
    assert trainer.totals.won / trainer.totals.decided == 0.5
    trainer.course.examples[0].reference[0][0] -= 1e-2
    whole_step(trainer, range(4))
    assert trainer.totals.won == 2.5


@pytest.mark.parametrize(
    "fields", [{"weight": -1.0}, {"weight": math.nan}, {"label_noise": 0.6}, {"label_noise": -0.1}]
)
def test_a_weight_or_noise_that_means_nothing_is_refused(train_run: MakeRun, fields: dict[str, float]) -> None:
    result = do("train_dpo", train_run([triple(0), triple(1, **fields)]))
    assert result.error_code == "bad_dataset"
    assert "pair-1" in result.error


# Jobs and datasets that cannot be done.


def test_a_broken_line_is_named(train_run: MakeRun) -> None:
    run_dir = train_run(2)
    with (run_dir / "dataset.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"pair_id": "x"}\n')
    result = do("train_dpo", run_dir)
    assert result.error_code == "bad_dataset"
    assert "Line 3" in result.error


@pytest.mark.parametrize(
    "fields",
    [
        {"micro_batch": -1},
        {"pairs_per_step": 0},
        {"mode": "slow"},
        {"loss": "none"},
        {"learning_rate": 0.0},
        {"method": "magic"},
        {"epochs": 0.0},
        {"beta": 0.0},
        {"device": "abacus"},
    ],
)
def test_a_job_that_cannot_be_done_is_told(train_run: MakeRun, fields: dict[str, Any]) -> None:
    assert do("train_dpo", train_run(1, **fields)).error_code == "bad_job"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_told(train_run: MakeRun) -> None:
    assert do("train_dpo", train_run(1, device="cuda")).error_code == "no_gpu"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_checkpoint_holds_what_may_leave_the_machine_and_nothing_else(
    train_run: MakeRun, tiny_model_dir: Path, method: str
) -> None:
    run_dir = train_run(2, method=method, learning_rate=1e-4)
    succeed("train_dpo", run_dir)
    checkpoint = run_dir / "checkpoint"
    weights = {"adapter_model.safetensors", "adapter_config.json"}
    if method == "full":
        weights = {"model.safetensors", "config.json", "generation_config.json"}
    assert {path.name for path in checkpoint.iterdir()} == weights | {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    for path in checkpoint.iterdir():
        content = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
        assert str(tiny_model_dir.parent).encode() not in content
        assert str(run_dir).encode() not in content
        assert b"ref." not in content[:4096]
    if method == "lora":
        config = json.loads((checkpoint / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "example/tiny"
        assert config["target_modules"] == [
            "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
        ]  # fmt: skip
        loading.load_tokenizer(checkpoint)


@pytest.mark.parametrize("model_type", sorted(ALLOWED_MODEL_TYPES))
def test_lora_finds_the_layers_of_every_model_that_may_be_added(model_type: str) -> None:
    from peft import get_peft_model

    model = architectures.small_model(model_type)
    policy = get_peft_model(model, reference_module.fresh_adapter(model, TrainJob(ModelRef("", ""), 0)))
    policy(torch.tensor([[1, 2, 3]]))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in policy.named_parameters() if "lora_" in name}
    assert len(adapted) >= 3, adapted
    assert "lm_head" not in adapted
    assert "embed_out" not in adapted


def test_lora_names_mean_all_linear(tiny_model_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = loading.load_weights(tiny_model_dir, torch.float32)
    names = reference_module.linear_layer_names(model)
    ours = get_peft_model(model, LoraConfig(target_modules=names, task_type="CAUSAL_LM"))
    ours = {name for name, _ in ours.named_parameters() if "lora_" in name}
    model = loading.load_weights(tiny_model_dir, torch.float32)
    stock = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert isinstance(stock, PeftModel)
    assert ours == {name for name, _ in stock.named_parameters() if "lora_" in name}
