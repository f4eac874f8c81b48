"""Direct Preference Optimization: the loss, the reference, the data, the outcome."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.dpo_trainer as trl_dpo
import trl.trainer.utils as trl_utils
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.engine.runs import adapter_bytes, do, question, steps, succeed, triple
from training import jobspec
from training.engine import dpo, dpo_trainer, evaluation, loading, preference_data
from training.engine import reference as reference_module
from training.engine.compute import Compute
from training.engine.journal import MetricsJournal
from training.engine.preference_data import TokenTriple
from training.jobspec import Completion, ModelRef, TrainJob
from training.modelfiles import ALLOWED_MODEL_TYPES

MakeRun = Callable[..., Path]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "vocab_size": 50,
    "pad_token_id": 0,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CPU = Compute(torch.device("cpu"), torch.float32)


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
    policy = loading.load_policy(dataclasses.replace(reference, adapter_dir=str(run_dir / "checkpoint")), CPU)
    base = loading.load_policy(reference, CPU)
    tokenizer = loading.load_tokenizer(reference.base_dir)
    data = preference_data.read_preferences(run_dir / "dataset.jsonl", tokenizer, 128)
    scores = evaluation.pair_scores(
        data.train, evaluation.score(base, data.train, CPU), evaluation.score(policy, data.train, CPU)
    )
    after = sum(evaluation.margin(item, 0.1) for item in scores) / len(scores)
    assert after == pytest.approx(steps(run_dir)[-1]["reward_margin"], rel=0.1)


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


def test_loss_and_gradient_equal_the_definition(train_run: MakeRun, tmp_path: Path) -> None:
    """With a policy that has moved, at pairs of unequal length, within a padded batch."""
    run_dir = train_run(3, beta=0.3, pairs_per_step=3, micro_batch=3)
    trainer, data, policy = ready_trainer(run_dir)
    move(policy)
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(3)])
    trainer.state.global_step = 1
    loss = trainer.compute_loss(policy, batch)
    loss.backward()
    gradients = {name: tensor.grad.clone() for name, tensor in policy.named_parameters() if tensor.requires_grad}
    policy.zero_grad()

    class Base:
        def __call__(self, **inputs: Any) -> Any:
            with torch.no_grad(), policy.disable_adapter():
                return policy(**inputs)

    expected = plain_loss(policy, Base(), data.train, beta=0.3)
    expected.backward()
    assert abs(expected.item() - math.log(2)) > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name, tensor in policy.named_parameters():
        if tensor.requires_grad:
            torch.testing.assert_close(gradients[name], tensor.grad, rtol=1e-4, atol=1e-6)


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


def ready_trainer(run_dir: Path) -> tuple[Any, Any, Any]:
    job = read_job(run_dir)
    tokenizer = loading.load_tokenizer(job.reference.base_dir)
    data = preference_data.read_preferences(run_dir / "dataset.jsonl", tokenizer, job.max_length)
    recorder = dpo_trainer.StepRecorder(MetricsJournal(run_dir), None)
    start = reference_module.prepare(job, CPU)
    trainer = dpo.build_trainer(job, CPU, start, tokenizer, data.train, run_dir / "trainer", recorder)
    return trainer, data, trainer.model


def read_job(run_dir: Path) -> TrainJob:
    return jobspec.read_job(run_dir, TrainJob)


def move(policy: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in policy.parameters():
            if tensor.requires_grad:
                tensor += 0.02 * torch.randn(tensor.shape, generator=generator)


def test_scoring_completions_only_changes_nothing(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch inside TRL that saves the head for prompts and padding gives the same loss and the same gradients."""
    trainer, _, policy = ready_trainer(train_run(3, pairs_per_step=3, micro_batch=3))
    move(policy)
    trainer.state.global_step = 1
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(3)])
    outcomes = []
    for completions_only in (True, False):
        monkeypatch.setattr(trl_utils, "_use_triton", lambda device, value=completions_only: value)
        policy.zero_grad()
        loss = trainer.compute_loss(policy, batch)
        loss.backward()
        outcomes.append([loss.detach(), *(p.grad.clone() for p in policy.parameters() if p.requires_grad)])
    for ours, stock in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-7)


def test_trl_still_has_the_hooks_that_are_overridden() -> None:
    import inspect

    trainer = trl_dpo.DPOTrainer
    assert list(inspect.signature(trainer._prepare_dataset).parameters)[1] == "dataset"
    assert list(inspect.signature(trainer._compute_loss).parameters) == ["self", "model", "inputs", "return_outputs"]
    assert "_use_triton(hidden_states.device)" in inspect.getsource(trl_utils.add_fused_lm_head)
    source = inspect.getsource(trainer._compute_loss)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert f'self._metrics[mode]["{name}"]' in source


def test_sampled_ids_are_trained_on_as_they_are(train_run: MakeRun) -> None:
    """Ids that no text would tokenise to reach the batch unchanged, with no newline and no second end."""
    odd = [300, 98, 301, 2]
    rows = [triple(0, chosen=Completion(" came\ufffd can", odd, "stop"), rejected=Completion(" bird"))]
    trainer, data, _ = ready_trainer(train_run(rows))
    assert data.retokenised == []
    row = trainer.train_dataset[0]
    assert row["chosen_ids"] == odd
    tokenizer = trainer.processing_class
    assert row["rejected_ids"] == [*tokenizer(" bird")["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(row["prompt_ids"]) == (
        "<|im_start|>user\n0: Why is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    )
    batch = trainer.data_collator([row])
    assert batch["completion_mask"].sum().item() == len(odd) + len(row["rejected_ids"])


@pytest.mark.parametrize(("finish_reason", "ends"), [("stop", True), ("length", False)])
def test_ids_of_another_vocabulary_are_not_trained_on(train_run: MakeRun, finish_reason: Any, ends: bool) -> None:
    """A project whose first policy had another tokenizer: the same ids mean other words here, or nothing at all."""
    foreign, unknown = Completion(" bird", [17, 18, 19], finish_reason), Completion(" tree", [99_999], finish_reason)
    trainer, data, _ = ready_trainer(train_run([triple(0, chosen=foreign, rejected=unknown)]))
    tokenizer, row = trainer.processing_class, trainer.train_dataset[0]
    end = [tokenizer.eos_token_id] if ends else []
    assert row["chosen_ids"] == tokenizer(" bird")["input_ids"] + end
    assert row["rejected_ids"] == tokenizer(" tree")["input_ids"] + end
    assert data.retokenised == ["pair-0"]


def test_an_adapter_as_reference_is_continued_at_its_own_rank(
    train_run: MakeRun, reference: ModelRef, adapter_dir: Path
) -> None:
    before = digest(adapter_dir)
    continued = dataclasses.replace(reference, adapter_dir=str(adapter_dir), adapter_hash="hash-of-adapter")
    run_dir = train_run(6, reference=continued, lora_rank=16)
    succeed("train_dpo", run_dir)
    history = steps(run_dir)
    assert history[0]["reward_margin"] == 0.0
    assert history[-1]["reward_margin"] > 0
    assert digest(adapter_dir) == before
    assert json.loads((run_dir / "checkpoint" / "adapter_config.json").read_text())["r"] == 2
    old, new = (load_file(path / "adapter_model.safetensors") for path in (adapter_dir, run_dir / "checkpoint"))
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_full_training_starts_from_the_folded_adapter(
    train_run: MakeRun, reference: ModelRef, adapter_dir: Path
) -> None:
    continued = dataclasses.replace(reference, adapter_dir=str(adapter_dir))
    run_dir = train_run(4, reference=continued, method="full", learning_rate=1e-4)
    succeed("train_dpo", run_dir)
    assert steps(run_dir)[0]["reward_margin"] == 0.0
    names = {path.name for path in (run_dir / "checkpoint").iterdir()}
    assert "model.safetensors" in names
    assert "adapter_config.json" not in names


def test_a_wrong_reference_stops_the_run_before_the_first_step(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = reference_module.prepare

    def wrong(job: TrainJob, compute: Compute) -> reference_module.Start:
        start = genuine(job, compute)
        move(start.ref_model.requires_grad_(True))
        return start

    monkeypatch.setattr(reference_module, "prepare", wrong)
    run_dir = train_run(3, method="full")
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
    ("pairs", "epochs", "expected"), [(1, 1.0, 1), (5, 1.0, 3), (6, 2.0, 6), (6, 0.5, 2), (7, 1.5, 6)]
)
def test_the_number_of_steps_is_foreseen(train_run: MakeRun, pairs: int, epochs: float, expected: int) -> None:
    run_dir = train_run(pairs, epochs=epochs)
    assert dpo_trainer.total_steps(read_job(run_dir), pairs) == expected
    assert succeed("train_dpo", run_dir)["steps"] == expected


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


def test_a_dataset_without_training_rows_is_told(train_run: MakeRun) -> None:
    result = do("train_dpo", train_run([triple(0, split="held_out"), triple(1, chosen=triple(1).rejected)]))
    assert result.error_code == "bad_dataset"
    assert "None of the 1 training pairs" in result.error
    assert do("train_dpo", train_run([], name="empty")).error_code == "bad_dataset"


def test_weights_and_label_noise_are_not_silently_ignored(train_run: MakeRun) -> None:
    assert do("train_dpo", train_run([triple(0, weight=0.5)])).error_code == "bad_dataset"


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
        {"micro_batch": 3, "pairs_per_step": 8},
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

    config = AutoConfig.for_model(model_type, **SMALL)
    model = AutoModelForCausalLM.from_config(config)
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
