"""The private parts of TRL, transformers and PEFT that the engine stands on, each with what it is needed for.

These fail when a version of those libraries drops a part or gives it another meaning, before a run trains on nonsense.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, TrainerCallback
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.engine import architectures, stock
from tests.engine.prepared import ready_setting, ready_trainer
from tests.engine.runs import succeed, triple
from training.engine import dpo, dpo_trainer, lora_products
from training.engine.dpo_trainer import PairTrainer
from training.engine.scoring import add_scoring_head
from training.jobspec import ModelRef
from training.modelfiles import ALLOWED_MODEL_TYPES

MakeRun = Callable[..., Path]
IDS = torch.tensor([[260, 270, 300, 301, 17]])


class Recording(stock.StockTrainer):
    """TRL's own trainer, and what it calls with what."""

    def __init__(self, **options: Any) -> None:
        self.called: list[tuple[str, Any]] = []
        super().__init__(**options)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        self.called.append(("_prepare_dataset", dataset))
        return dataset.add_column("prepared", [True] * len(dataset))

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        self.called.append(("_precompute_ref_logps", dataset))
        return dataset.add_column("precomputed", [True] * len(dataset))

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        self.called.append(("_compute_loss", inputs))
        return torch.tensor(3.5)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        self.called.append(("create_model_card", args))


@pytest.fixture
def recording(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> Recording:
    monkeypatch.setattr(stock, "StockTrainer", Recording)
    trainer = stock.stock_trainer(train_run(2, method="full"), precompute_ref_log_probs=True)
    assert isinstance(trainer, Recording)
    return trainer


def test_what_prepare_dataset_gives_back_is_trained_on(recording: Recording) -> None:
    """``PairTrainer`` gives back a plan of steps there, which holds no text to tokenise."""
    name, dataset = recording.called[0]
    assert (name, len(dataset)) == ("_prepare_dataset", 2)
    assert recording.train_dataset["prepared"] == [True, True]


def test_what_precompute_ref_logps_gives_back_is_trained_on(recording: Recording) -> None:
    """Without the override TRL would run the policy on a plan of steps, and keep the outcome on the disk."""
    assert [name for name, _ in recording.called] == ["_prepare_dataset", "_precompute_ref_logps"]
    assert recording.train_dataset["precomputed"] == [True, True]
    assert list(inspect.signature(DPOTrainer._precompute_ref_logps).parameters) == ["self", "dataset", "name", "batch_size"]  # fmt: skip  # noqa: E501


def test_compute_loss_asks_compute_loss_of_the_subclass(recording: Recording) -> None:
    """The step calls the public one, inside the contexts of the trainer, and the private one is ours."""
    inputs = object()
    assert recording.compute_loss(recording.model, inputs) == 3.5
    assert recording.called[-1] == ("_compute_loss", inputs)


def test_a_saved_state_makes_a_model_card_through_a_method_that_is_ours(recording: Recording) -> None:
    """TRL's would name a directory of this machine."""
    recording.create_optimizer_and_scheduler(num_training_steps=2)
    recording._save_checkpoint(recording.model, trial=None)
    assert recording.called[-1][0] == "create_model_card"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_trl_has_no_reference_model_and_no_copy_of_the_adapter_in_memory(
    train_run: MakeRun, reference: ModelRef, method: str
) -> None:
    """``precompute_ref_log_probs`` keeps it away in full training; with an adapter nothing is loaded anyway."""
    trainer = ready_trainer(train_run(2, name="fresh", method=method))
    assert trainer.ref_model is None
    assert not [name for name, _ in trainer.model.named_parameters() if ".ref." in name]
    if method == "lora":
        earlier = train_run(2, name="earlier")
        succeed("train_dpo", earlier)
        adapted = dataclasses.replace(reference, adapter_dir=str(earlier / "checkpoint"), adapter_hash="h")
        run_dir = train_run(2, name="continued", reference=adapted)
        assert "ref" in stock.stock_trainer(run_dir).model.peft_config  # what TRL would have put there
        trainer = ready_trainer(run_dir)
        assert list(trainer.model.peft_config) == ["default"]
        assert trainer.ref_model is None
        assert not [name for name, _ in trainer.model.named_parameters() if ".ref." in name]
        assert [name for name, tensor in trainer.model.named_parameters() if tensor.requires_grad]


class StepWatcher(TrainerCallback):
    """What a callback hears."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def watched(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PairTrainer, list[int], StepWatcher]:
    """A trainer that has trained, the steps it was given, and what was logged."""
    given: list[int] = []
    genuine = PairTrainer.training_step

    def noted(self: PairTrainer, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        given.append(inputs["step"])
        return genuine(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(PairTrainer, "training_step", noted)
    trainer, watcher = ready_trainer(run_dir), StepWatcher()
    trainer.add_callback(watcher)
    dpo_trainer.run(trainer, None)
    return trainer, given, watcher


def test_every_step_of_the_plan_is_made_once_and_in_order(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """``get_train_dataloader`` is asked for the batches, gives them unshuffled, and one batch is one optimiser step."""
    trainer, given, watcher = watched(train_run(5, epochs=1.5), monkeypatch)
    assert given == list(range(5))
    assert trainer.state.global_step == trainer.state.max_steps == 5
    assert len([logs for logs in watcher.logs if "loss" in logs]) == 5


def test_what_is_put_into_metrics_is_logged_with_its_step_and_then_forgotten(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``note_step`` hands its means to ``StepRecorder`` this way, beside the trainer's own figures."""
    trainer, _, watcher = watched(train_run(3), monkeypatch)
    for logs in watcher.logs[:-1]:
        assert {"margin", "accuracy", "logp_chosen", "logp_rejected", "chosen_shift"} <= set(logs)
        assert {"loss", "grad_norm", "learning_rate"} <= set(logs)
    assert "loss" not in watcher.logs[-1]  # the summary at the end, which is no step
    assert not trainer._metrics["train"]
    trainer.model.train()
    trainer.callback_handler.callbacks = [watcher]
    trainer._metrics["train"]["figure"] = [2.0]
    trainer.log({"loss": 1.0})
    assert watcher.logs[-1]["figure"] == 2.0


def test_the_loss_that_is_logged_is_what_the_step_returns(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not divided by anything, and not averaged over steps."""
    returned: list[float] = []
    genuine = PairTrainer.whole_step

    def noted(self: PairTrainer, *args: Any) -> torch.Tensor:
        loss = genuine(self, *args)
        returned.append(loss.item())
        return loss

    monkeypatch.setattr(PairTrainer, "whole_step", noted)
    _, _, watcher = watched(train_run(5, pairs_per_step=3, micro_batch=1), monkeypatch)
    assert [logs["loss"] for logs in watcher.logs if "loss" in logs] == pytest.approx(returned, rel=1e-6)


def test_a_saved_state_holds_what_resuming_needs_and_no_card(train_run: MakeRun) -> None:
    """``_save_checkpoint`` writes ``checkpoint-STEP``; ``run`` calls it for a step that was cut short."""
    run_dir = train_run(2, save_every_steps=1, epochs=1)
    succeed("train_dpo", run_dir)
    state = run_dir / "trainer" / "checkpoint-1"
    names = {path.name for path in state.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    assert "DPO" not in (state / "README.md").read_text()  # that is PEFT's own


def test_any_optimiser_tells_that_it_has_stepped(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through accelerate's wrapper too. Weights are folded again then, as fused optimisers leave no other trace."""
    before = lora_products.Updates.count
    trainer, _, _ = watched(train_run(4), monkeypatch)
    assert lora_products.Updates.count == before + trainer.state.global_step


# transformers.


def plain_lora(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def test_models_say_whether_their_attention_can_be_replaced() -> None:
    """``packed_attention.can_serve`` goes by it."""
    assert isinstance(PreTrainedModel._supports_attention_backend, bool)
    found = {kind: architectures.small_model(kind)._supports_attention_backend for kind in ALLOWED_MODEL_TYPES}
    assert {kind for kind, supported in found.items() if not supported} == {"falcon", "stablelm"}


@pytest.mark.parametrize("model_type", sorted(ALLOWED_MODEL_TYPES - architectures.ROWS))
def test_a_registered_attention_gets_all_that_it_must_obey(model_type: str) -> None:
    """The window of each layer, its scaling, keys in groups, and no mask where the registered one is none."""
    calls: list[dict[str, Any]] = []
    model = architectures.small_model(model_type)
    kv_heads = 4 if model_type in {"gpt2", "gpt_neox", "phi"} else 2

    def spy(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        assert query.shape[:3] == (1, 4, IDS.shape[1])
        assert key.shape[:3] == value.shape[:3] == (1, kv_heads, IDS.shape[1])
        calls.append({"mask": attention_mask} | kwargs)
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register("tests_spy", spy)
    AttentionMaskInterface.register("tests_spy", lambda *args, **kwargs: None)
    model.set_attn_implementation("tests_spy")
    with torch.no_grad():
        model(input_ids=IDS, position_ids=torch.tensor([[0, 1, 2, 1, 2]]), attention_mask=None, use_cache=False)
    assert len(calls) == 4  # layers
    assert all(call["mask"] is None for call in calls)
    assert all(isinstance(call["scaling"], float) for call in calls)
    windows = [call.get("sliding_window") for call in calls]
    assert (architectures.WINDOW in windows) is (model_type in architectures.SLIDING)
    assert set(windows) <= {architectures.WINDOW, None}
    assert [call.get("dropout", 0.0) for call in calls] == [0.0] * 4


def test_the_attention_of_a_model_can_be_set_and_read_through_its_adapter() -> None:
    """``packed_attention.used_by`` does both with whatever the trainer holds."""
    model = plain_lora(architectures.small_model("llama"))
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    layers = [module for module in model.modules() if type(module).__name__ == "LlamaAttention"]
    assert {layer.config._attn_implementation for layer in layers} == {"eager"}
    model.set_attn_implementation(before)
    assert {layer.config._attn_implementation for layer in layers} == {before}


def test_base_model_is_the_model_without_its_head() -> None:
    """``add_scoring_head`` asks it for the last hidden state, and ``get_output_embeddings`` for the head."""
    for model_type in sorted(ALLOWED_MODEL_TYPES):
        model = architectures.small_model(model_type)
        states = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        assert states.shape == (1, IDS.shape[1], head.weight.shape[1]), model_type
        assert head.weight.shape[0] == model.config.get_text_config().vocab_size


# PEFT, and TRL around our forward.


def scored(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(
            input_ids=IDS,
            position_ids=torch.arange(5)[None],
            attention_mask=None,
            sources=torch.arange(4),
            targets=IDS[0, 1:],
        )


def test_an_adapter_passes_on_what_it_does_not_know() -> None:
    """``sources`` and ``targets`` go through ``PeftModel`` to ``add_scoring_head``, and its answer comes back."""
    model = architectures.small_model("llama")
    add_scoring_head(model)
    expected = scored(model)
    adapted = plain_lora(model)
    assert torch.equal(scored(adapted), expected)


def test_the_head_that_trl_adds_leaves_ours_reachable() -> None:
    """``DPOTrainer`` puts its own forward around whatever it is given, after us."""
    model = architectures.small_model("llama")
    add_scoring_head(model)
    expected = scored(model)
    add_fused_lm_head(model)
    assert torch.equal(scored(model), expected)
    fused = model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs
    torch.testing.assert_close(fused[0].detach(), expected, rtol=1e-5, atol=1e-5)


def test_a_lora_layer_has_the_parts_that_are_folded() -> None:
    """``lora_products`` multiplies with W + s B A where this is all that PEFT does."""
    model = plain_lora(architectures.small_model("llama"))
    layer = next(module for module in model.modules() if isinstance(module, LoraLinear))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    x = torch.randn(3, 32)
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.base_layer.weight + layer.scaling["default"] * lora_b @ lora_a
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-4, atol=1e-5)
    assert isinstance(layer.lora_dropout["default"], torch.nn.Identity)
    assert layer.lora_B["default"].bias is None
    assert layer.lora_variant == {}
    assert layer.fan_in_fan_out is False
    assert (layer.disable_adapters, layer.merged) == (False, False)
    with model.disable_adapter():
        assert layer.disable_adapters
    model.merge_adapter()
    assert layer.merged
    model.unmerge_adapter()
    versions = lora_a._version
    model.load_state_dict(model.state_dict())
    assert lora_a._version > versions


def test_variants_of_lora_are_named_as_such() -> None:
    """DoRA and its like do more than W + s B A, and ``lora_products`` leaves them alone."""
    model = architectures.small_model("llama")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"))
    layer = next(module for module in adapted.modules() if isinstance(module, LoraLinear))
    assert "default" in layer.lora_variant


def test_a_deleted_adapter_leaves_no_trace_in_a_layer() -> None:
    """TRL's copy of an adapter is deleted before the products are merged."""
    model = plain_lora(architectures.small_model("llama"))
    model.add_adapter("ref", model.peft_config["default"])
    layer = next(module for module in model.modules() if isinstance(module, LoraLinear))
    assert list(layer.lora_A) == ["default", "ref"]
    model.delete_adapter("ref")
    assert list(layer.lora_A) == ["default"]
    assert model.active_adapters == ["default"]
    assert layer.lora_A["default"].weight.requires_grad


def test_an_adapter_may_be_kept_to_some_layers() -> None:
    """``layers_to_transform`` is what makes the fast mode a plain adapter."""
    model = architectures.small_model("llama")
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[2, 3], task_type="CAUSAL_LM")
    names = [name for name, tensor in get_peft_model(model, config).named_parameters() if tensor.requires_grad]
    assert {name.split(".layers.")[1][0] for name in names} == {"2", "3"}


def test_the_trainer_of_a_run_is_built_on_all_of_this(train_run: MakeRun) -> None:
    """The parts together: our forward, TRL's around it, the adapter around both, and products that are merged."""
    setting = ready_setting(train_run([triple(0), triple(1)]))
    values, _ = dpo.read_reference(setting)
    trainer, _ = dpo.build_trainer(setting, values)
    expected = torch.cat([side for pair in values for side in pair])
    with torch.no_grad(), setting.scorer.over(trainer.model):
        found = setting.scorer.token_logps(trainer.model, setting.scorer.arrange(setting.data.train))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
