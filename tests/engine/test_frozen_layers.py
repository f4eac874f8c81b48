"""The fast mode: an adapter on the upper layers, on states of the lower ones that are computed once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine import architectures
from tests.engine.prepared import (
    CPU,
    assert_same_step,
    move,
    ready_setting,
    ready_trainer,
    trained,
    whole_step,
)
from tests.engine.runs import adapter_bytes, do, read_lines, steps, succeed, triple
from tests.engine.test_step_parity import mixed_pairs
from training.engine import dpo, frozen_layers, loading, reference_logps, scoring
from training.engine.arrangement import Unlabelled
from training.engine.cache import Cache
from training.engine.dpo_trainer import PairTrainer
from training.engine.frozen_layers import FrozenLayers, decoder_layers, first_trained
from training.engine.scoring import Scorer
from training.engine.setting import Setting
from training.jobspec import ModelRef
from training.modelfiles import ALLOWED_MODEL_TYPES

MakeRun = Callable[..., Path]
FAST: dict[str, Any] = {"mode": "fast", "max_length": 64, "save_every_steps": 100}


def rows_instead(setting: Setting) -> None:
    setting.scorer = dataclasses.replace(setting.scorer, packed=False)


def trainer_of(setting: Setting) -> PairTrainer:
    values, _ = dpo.read_reference(setting)
    return dpo.build_trainer(setting, values[: len(setting.data.train)])[0]


def without_cache(setting: Setting) -> PairTrainer:
    """The same adapter on the same layers, every forward through all of them."""
    setting.scorer = Scorer(packed=setting.scorer.packed)
    return trainer_of(setting)


def watched_layer(setting: Setting) -> list[torch.Tensor]:
    """What the attention of the lowest layer reads from here on."""
    seen: list[torch.Tensor] = []
    attention = decoder_layers(setting.start.plain)[0].self_attn
    attention.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["hidden_states"]), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_is_that_of_the_upper_layers_without_any_cache(train_run: MakeRun, packed: bool) -> None:
    run_dir = train_run(mixed_pairs(), micro_batch=2, **FAST)
    settings = [ready_setting(run_dir), ready_setting(run_dir)]
    assert settings[0].scorer.lower is not None
    if not packed:
        for setting in settings:
            rows_instead(setting)
    fast, slow = trainer_of(settings[0]), without_cache(settings[1])
    seen = [watched_layer(setting) for setting in settings]
    outcomes = []
    for trainer in (fast, slow):
        move(trainer.model)
        outcomes.append(whole_step(trainer, range(6)))
    assert not seen[0], "the lower layers were computed"
    assert seen[1], "nothing is watched"
    assert abs(fast.totals.chosen_drift) > 0.01
    assert_same_step(outcomes[0], outcomes[1])
    assert {name.split(".layers.")[1][0] for name in outcomes[0][1]} == {"1"}


@pytest.mark.parametrize("model_type", sorted(ALLOWED_MODEL_TYPES))
def test_every_architecture_goes_on_from_the_states_of_its_lower_layers(tmp_path: Path, model_type: str) -> None:
    """Layers give a tensor or a tuple; positions, windows and what lies beside the layers stay right."""
    found = []
    pairs = [
        Unlabelled(list(range(260, 275)), [300, 301, 302], [310, 311]),
        Unlabelled([5], list(range(400, 412)), [2]),
    ]
    for lower in (False, True):
        model = architectures.small_model(model_type)
        scoring.add_scoring_head(model)
        scorer = scoring.choose_scorer(model, CPU)
        if lower:
            frozen = FrozenLayers(model, 3, "hash", CPU, Cache(tmp_path / "states", 10**9))
            scorer = dataclasses.replace(scorer, lower=frozen)
        with torch.no_grad(), scorer.over(model):
            found.append(scorer.token_logps(model, scorer.arrange(pairs)))
            again = scorer.token_logps(model, scorer.arrange(pairs))
            torch.testing.assert_close(found[-1], again, rtol=0, atol=0)
        if lower:
            assert frozen.computed == 2  # and not 4
            ids = torch.arange(12)[None]
            with torch.no_grad():  # a plain forward goes through all layers as ever
                torch.testing.assert_close(model(ids).logits, architectures.small_model(model_type)(ids).logits)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_below_does_not_change(train_run: MakeRun, tmp_path: Path, method: str) -> None:
    """In full training neither do the embedding and the head, which may be one: they would change the states."""
    directory = architectures.build("llama", tmp_path / "model", tie_word_embeddings=True)
    run_dir = train_run(
        4, reference=ModelRef(str(directory), "h"), mode="fast", fast_layers=2, method=method, learning_rate=1e-3
    )
    details = succeed("train_dpo", run_dir)
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    tensors = load_file(run_dir / "checkpoint" / name)
    if method == "lora":
        assert {key.split(".layers.")[1][0] for key in tensors} == {"2", "3"}
        return
    before = load_file(directory / "model.safetensors")
    moved = {key for key, tensor in tensors.items() if not torch.equal(tensor, before[key])}
    assert {key.split(".layers.")[1][0] for key in moved} == {"2", "3"}
    assert details["trainable_parameters"] == sum(
        tensor.numel() for key, tensor in tensors.items() if ".layers.2." in key or ".layers.3." in key
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_reference_values_in_bfloat16_are_those_of_the_exact_mode(train_run: MakeRun, method: str) -> None:
    """With full fine-tuning the weights and what flows between layers are float32, and only products are rounded."""
    values = []
    for mode in ("exact", "fast"):
        run_dir = train_run(
            mixed_pairs(), name=mode, **(FAST | {"mode": mode, "method": method, "precision": "bfloat16"})
        )
        found, _ = dpo.read_reference(ready_setting(run_dir))
        values.append(torch.cat([side for pair in found for side in pair]))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


def test_the_checkpoint_is_a_plain_adapter_on_the_base(train_run: MakeRun, reference: ModelRef) -> None:
    """PEFT loads it, and its margins are those that training ended with: the cached states were the right ones."""
    run_dir = train_run([*map(triple, range(4)), triple(9, split="held_out")], epochs=6, **FAST)
    succeed("train_dpo", run_dir)
    config = json.loads((run_dir / "checkpoint" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1]
    told = read_lines(run_dir, "held_out.jsonl")[0]
    policy = loading.load_policy(dataclasses.replace(reference, adapter_dir=str(run_dir / "checkpoint")), CPU)
    base = loading.load_policy(reference, CPU)
    held_out = ready_setting(run_dir).data.held_out[0]
    for model, name in ((policy, "policy"), (base, "reference")):
        for side, ids in (("chosen", held_out.chosen_ids), ("rejected", held_out.rejected_ids)):
            sequence = torch.tensor([held_out.prompt_ids + ids])
            logps = torch.log_softmax(model(input_ids=sequence).logits[0, :-1], -1)
            expected = logps.gather(1, sequence[0, 1:, None])[len(held_out.prompt_ids) - 1 :].sum()
            assert told[f"{name}_{side}"] == pytest.approx(float(expected), abs=2e-4)
    assert abs(told["policy_chosen"] - told["reference_chosen"]) > 1e-2


def states_computed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, Any]]:
    """Do the run; how often it went through the lower layers, and its details."""
    made: list[FrozenLayers] = []
    genuine = FrozenLayers.__post_init__

    def noted(self: FrozenLayers) -> None:
        made.append(self)
        genuine(self)

    with monkeypatch.context() as patched:
        patched.setattr(FrozenLayers, "__post_init__", noted)
        details = succeed("train_dpo", run_dir)
    return made[0].computed, details


def test_states_are_computed_once_for_all_epochs_and_runs(
    train_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"cache_dir": str(tmp_path / "kept"), **FAST}
    lines = [*map(triple, range(4)), triple(9, split="held_out")]
    first, second, third = (train_run(lines, name=name, **kept) for name in ("first", "second", "third"))
    assert states_computed(first, monkeypatch)[0] == 5
    computed, details = states_computed(second, monkeypatch)
    assert computed == 1  # of the pair whose kept values are checked
    assert details["reference_logps"]["forwards"] == 0
    assert adapter_bytes(first) == adapter_bytes(second)
    (tmp_path / "kept" / "hidden-states.sqlite3").write_bytes(b"no database")
    assert states_computed(third, monkeypatch)[0] == 5  # the states anew, the reference's values not
    assert adapter_bytes(first) == adapter_bytes(third)


def test_wrong_states_with_good_checksums_are_found_out(
    train_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with them the reference's values that were computed from them: all is computed anew."""
    kept = {"cache_dir": str(tmp_path / "kept"), **FAST}
    genuine = FrozenLayers.read

    def wrong(self: FrozenLayers, pair: Unlabelled, scorer: Scorer) -> Any:
        segments = tuple(part * 1.5 for part in genuine(self, pair, scorer))
        self.cache.put([(self.key(pair), frozen_layers.to_bytes(torch.cat(segments)))])
        return segments

    first, second = (train_run(4, name=name, **kept) for name in ("first", "second"))
    plain = train_run(4, name="plain", **FAST)
    with monkeypatch.context() as patched:
        patched.setattr(FrozenLayers, "read", wrong)
        succeed("train_dpo", first)
    computed, details = states_computed(second, monkeypatch)
    assert (details["reference_logps"]["forwards"], details["reference_logps"]["damaged"]) == (4, 1)
    assert 4 <= computed <= 5
    succeed("train_dpo", plain)
    assert adapter_bytes(second) == adapter_bytes(plain) != adapter_bytes(first)


@pytest.mark.parametrize("continued", [False, True])
def test_a_bound_that_is_too_small_costs_time_and_not_a_bit(
    train_run: MakeRun, reference: ModelRef, monkeypatch: pytest.MonkeyPatch, continued: bool
) -> None:
    """Also on an adapter that has lower layers of its own, and with pairs that share prompts and responses."""
    if continued:
        earlier = train_run(4, name="earlier")
        succeed("train_dpo", earlier)
        reference = dataclasses.replace(
            reference, adapter_dir=str(earlier / "checkpoint"), adapter_hash="hash-of-adapter"
        )
    one, two = triple(0), triple(0, pair_id="other", rejected=triple(5).rejected)
    lines = [one, two, triple(1), triple(2), triple(9, split="held_out")]
    roomy = train_run(lines, name="roomy", reference=reference, **FAST)
    tight = train_run(lines, name="tight", reference=reference, cache_mb=0, **FAST)
    assert states_computed(roomy, monkeypatch)[0] == 5
    assert states_computed(tight, monkeypatch)[0] > 5
    assert adapter_bytes(roomy) == adapter_bytes(tight)
    assert (roomy / "held_out.jsonl").read_bytes() == (tight / "held_out.jsonl").read_bytes()


def test_an_adapter_is_continued_in_its_upper_layers(
    train_run: MakeRun, reference: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = train_run(4, name="earlier")
    succeed("train_dpo", earlier)
    continued = dataclasses.replace(reference, adapter_dir=str(earlier / "checkpoint"), adapter_hash="hash-of-adapter")
    run_dir = train_run(4, reference=continued, **FAST)
    succeed("train_dpo", run_dir)
    assert steps(run_dir)[0]["reward_margin"] == pytest.approx(0.0, abs=1e-6)
    before, after = (load_file(path / "checkpoint" / "adapter_model.safetensors") for path in (earlier, run_dir))
    assert before.keys() == after.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(".layers.1." in name for name in moved)


def test_a_stopped_run_goes_on_to_the_same_bytes(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine.test_processes import stop_after

    whole, cut = train_run(6, name="whole", **FAST), train_run(6, name="cut", **FAST)
    succeed("train_dpo", whole)
    stop_after(3, cut, monkeypatch)
    succeed("train_dpo", cut)
    assert adapter_bytes(whole) == adapter_bytes(cut)


def test_checkpointing_changes_nothing(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.engine import memory

    run_dir = train_run(mixed_pairs(), micro_batch=2, **FAST)
    plain = ready_trainer(run_dir)
    genuine = memory.plan

    def sparing(*arguments: Any) -> memory.Plan:
        plan = genuine(*arguments)
        return dataclasses.replace(plan, room=dataclasses.replace(plan.room, checkpointing=True), merge=False)

    monkeypatch.setattr(memory, "plan", sparing)
    sparse = ready_trainer(run_dir)
    assert sparse.args.gradient_checkpointing
    outcomes = []
    for trainer in (plain, sparse):
        move(trainer.model)
        outcomes.append(whole_step(trainer, range(6)))
    assert_same_step(*outcomes)


def test_keys_name_all_that_states_follow_from(tmp_path: Path) -> None:
    model = architectures.small_model("llama")
    cache = Cache(None, 0)
    pair = Unlabelled([1], [2], [3])
    frozen = FrozenLayers(model, 2, "hash", CPU, cache)
    others = [
        dataclasses.replace(frozen, name="other").key(pair),
        dataclasses.replace(frozen, first=1).key(pair),
        dataclasses.replace(frozen, compute=dataclasses.replace(CPU, dtype=torch.bfloat16)).key(pair),
        frozen.key(Unlabelled([4], [2], [3])),
        frozen.key(Unlabelled([1], [2], [4])),
        frozen.key(Unlabelled([1, 2], [3], [3])),
    ]
    assert len({frozen.key(pair), *others}) == 7


def test_states_survive_the_cache_to_the_bit(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.randn(5, 8).to(dtype)
        again = frozen_layers.from_bytes(frozen_layers.to_bytes(states), dtype, 5)
        assert again.dtype is dtype
        assert torch.equal(again, states)


@pytest.mark.parametrize(
    ("layers", "wanted", "first"), [(30, 0, 20), (2, 0, 1), (1, 0, 0), (4, 0, 3), (4, 4, 0), (4, 3, 1), (31, 0, 21)]
)
def test_a_third_of_the_layers_or_as_many_as_wanted_are_trained(layers: int, wanted: int, first: int) -> None:
    assert first_trained(layers, wanted) == first


def test_more_layers_than_there_are_cannot_be_trained(train_run: MakeRun) -> None:
    result = do("train_dpo", train_run(2, mode="fast", fast_layers=3))
    assert result.error_code == "bad_job"
    assert "2 layers" in result.error


def test_all_layers_is_the_exact_mode(train_run: MakeRun) -> None:
    fast, exact = train_run(3, name="fast", mode="fast", fast_layers=2), train_run(3, name="exact")
    for run_dir in (fast, exact):
        succeed("train_dpo", run_dir)
    one, other = (load_file(path / "checkpoint" / "adapter_model.safetensors") for path in (fast, exact))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("model_type", sorted(ALLOWED_MODEL_TYPES))
def test_the_layers_of_every_architecture_are_found(model_type: str) -> None:
    model = architectures.small_model(model_type)
    layers = decoder_layers(model)
    assert len(layers) == 4
    assert len({type(layer) for layer in layers}) == 1
    outside = {name for name, _ in model.named_parameters()} - {
        name for prefix, layer in model.named_modules() if layer in set(layers) for name in names_below(prefix, layer)
    }
    assert not [name for name in outside if "attn" in name or "attention" in name or "mlp" in name]


def names_below(prefix: str, layer: torch.nn.Module) -> list[str]:
    return [f"{prefix}.{name}" for name, _ in layer.named_parameters()]


def test_reference_values_are_those_of_the_exact_mode(train_run: MakeRun, tmp_path: Path) -> None:
    """So that both modes may share them."""
    kept = {"cache_dir": str(tmp_path / "kept")}
    succeed("train_dpo", train_run(3, name="exact", **kept))
    fast = train_run(3, name="fast", mode="fast", **kept)
    assert succeed("train_dpo", fast)["reference_logps"]["forwards"] == 0
    assert abs(steps(fast)[0]["reward_margin"]) < 1e-6
    assert [name for name, _ in trained(ready_trainer(fast).model) if ".layers.0." in name] == []
    assert reference_logps.LAYOUT != frozen_layers.LAYOUT
