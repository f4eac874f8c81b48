"""LoRA layers with fewer products: PEFT's numbers, whatever happens to the adapter in between."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from tests.engine import architectures
from tests.engine.prepared import move, trained
from training.engine import loading
from training.engine.lora_products import add_products, merge_products

IDS = torch.tensor([[5, 300, 301, 17, 400], [9, 8, 7, 6, 5]])
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(directory: Path, model_type: str = "", **fields: Any) -> PeftModel:
    base = architectures.small_model(model_type) if model_type else loading.load_weights(directory, torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(**(options | fields)))


@pytest.fixture
def plain(tiny_model_dir: Path) -> PeftModel:
    """PEFT's own, with an adapter that does something."""
    model = adapted(tiny_model_dir)
    move(model, 0.05)
    return model


@pytest.fixture
def merged(plain: PeftModel) -> PeftModel:
    model = copy.deepcopy(plain)
    assert merge_products(model) == 2 * len(LINEAR)
    return model


def outcome(model: PeftModel) -> list[torch.Tensor]:
    """Logits, and the gradient of every tensor of the adapter."""
    model.zero_grad()
    logits = model(IDS).logits
    logits.sin().sum().backward()
    return [logits.detach(), *(tensor.grad.clone() for _, tensor in trained(model))]


def assert_alike(one: PeftModel, other: PeftModel) -> None:
    for left, right in zip(outcome(one), outcome(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))


def test_output_and_gradients_are_those_of_peft(plain: PeftModel, merged: PeftModel) -> None:
    assert_alike(merged, plain)
    with plain.disable_adapter():
        assert (outcome_without_gradient(plain) - outcome_without_gradient(merged)).abs().max() > 0.1


def outcome_without_gradient(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_the_gradient_of_what_comes_in_is_that_of_peft(plain: PeftModel, merged: PeftModel) -> None:
    found = []
    for model in (merged, plain):
        embedded = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
        model(inputs_embeds=embedded).logits.sin().sum().backward()
        found.append(embedded.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("optimizer", "rate"), [(torch.optim.AdamW, 1e-2), (torch.optim.SGD, 1e-5)])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_an_optimiser_step_is_folded_in(
    plain: PeftModel, merged: PeftModel, optimizer: Any, rate: float, options: dict[str, bool]
) -> None:
    """In each of the ways in which torch updates tensors in place; the fused one leaves no trace in a tensor."""
    before = outcome(plain)[0]
    for model in (plain, merged):
        steps = optimizer([tensor for _, tensor in trained(model)], lr=rate, **options)
        for _ in range(3):
            outcome(model)
            steps.step()
    assert (outcome(plain)[0] - before).abs().max() > 1e-2
    assert_alike(merged, plain)


def test_a_loaded_state_is_folded_in(plain: PeftModel, merged: PeftModel) -> None:
    outcome(merged)
    move(plain, 0.1, seed=2)
    merged.load_state_dict(plain.state_dict())
    assert_alike(merged, plain)


def test_a_loaded_adapter_is_folded_in(plain: PeftModel, merged: PeftModel, tmp_path: Path) -> None:
    """Both ways: as a run resumes (``load_adapter``), and from a dictionary."""
    outcome(merged)
    move(plain, 0.1, seed=2)
    set_peft_model_state_dict(merged, get_peft_model_state_dict(plain))
    assert_alike(merged, plain)
    move(plain, 0.1, seed=3)
    plain.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged.load_adapter(str(tmp_path / "adapter"), "default", is_trainable=True)
    assert_alike(merged, plain)


def test_weights_put_in_place_of_the_old_ones_are_folded_in(plain: PeftModel, merged: PeftModel) -> None:
    outcome(merged)
    move(plain, 0.1, seed=2)
    for (_, ours), (_, theirs) in zip(trained(merged), trained(plain), strict=True):
        ours.data = theirs.data.clone()
    assert_alike(merged, plain)


def test_it_serves_once_the_frozen_copy_is_deleted(plain: PeftModel) -> None:
    both = copy.deepcopy(plain)
    both.add_adapter("ref", both.peft_config["default"])
    assert merge_products(copy.deepcopy(both)) == 0  # with two adapters it is PEFT's own affair
    both.delete_adapter("ref")
    assert merge_products(both) == 2 * len(LINEAR)
    assert_alike(both, plain)


def test_without_the_adapter_it_is_the_base_to_the_bit(merged: PeftModel, tiny_model_dir: Path) -> None:
    base = loading.load_weights(tiny_model_dir, torch.float32)
    with torch.no_grad(), merged.disable_adapter():
        assert torch.equal(merged(IDS).logits, base(IDS).logits)


def test_inference_mode_and_training_may_alternate(plain: PeftModel, merged: PeftModel) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(merged(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)
    assert_alike(merged, plain)
    for model in (plain, merged):
        move(model, 0.1, seed=4)
    with torch.inference_mode():
        torch.testing.assert_close(merged(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)
    assert_alike(merged, plain)


def test_a_weight_folded_between_forward_and_backward_is_noticed(merged: PeftModel) -> None:
    """Rather than giving gradients of other weights."""
    loss = merged(IDS).logits.sum()
    move(merged, 0.1)
    with torch.no_grad():
        merged(IDS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_saved_and_what_is_unloaded_are_unchanged(plain: PeftModel, merged: PeftModel, tmp_path: Path) -> None:
    outcome(merged)
    for name, model in (("plain", plain), ("merged", merged)):
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "merged"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert set(plain.state_dict()) == set(merged.state_dict())
    folded = copy.deepcopy(plain).merge_and_unload()
    with torch.no_grad():
        assert torch.equal(merged.merge_and_unload()(IDS).logits, folded(IDS).logits)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {"lora_dropout": 0.1}),
        ("llama", {"use_dora": True}),
        ("llama", {"lora_bias": True}),
        ("qwen2", {"target_modules": ["q_proj", "k_proj", "v_proj"]}),  # layers with a bias
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*lora_bias.*")
def test_layers_that_are_something_else_are_left_to_peft(
    tiny_model_dir: Path, model_type: str, fields: dict[str, Any]
) -> None:
    assert merge_products(adapted(tiny_model_dir, model_type, **fields)) == 0


def test_other_precisions_and_frozen_adapters_are_left_to_peft(plain: PeftModel) -> None:
    assert merge_products(copy.deepcopy(plain).to(torch.bfloat16)) == 0
    assert merge_products(copy.deepcopy(plain).requires_grad_(False)) == 0


# bfloat16.


def test_in_bfloat16_it_is_as_near_to_float32_as_peft(plain: PeftModel) -> None:
    """Loss, gradients of the adapter, and of what comes in, against those of the same rounded weights in float32."""
    exact = copy.deepcopy(plain)
    for name, tensor in exact.named_parameters():
        if "lora_" not in name:
            tensor.data = tensor.data.bfloat16().float()
    half = copy.deepcopy(exact)
    for name, tensor in half.named_parameters():
        if "lora_" not in name:
            tensor.data = tensor.data.bfloat16()
    ours = copy.deepcopy(half)
    assert merge_products(ours) == 0
    assert add_products(ours) == 2 * len(LINEAR)
    assert add_products(exact) == 0
    expected = outcome(exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, of_peft = outcome(ours), outcome(half)
    assert {tensor.dtype for tensor in found[1:]} == {torch.float32}
    for own, other, right in zip(found, of_peft, expected, strict=True):
        error, its_error = (float((item.float() - right).norm() / right.norm()) for item in (own, other))
        assert error < 0.1
        assert error < 1.5 * its_error + 1e-3


def test_in_bfloat16_an_adapter_that_is_off_is_off(plain: PeftModel) -> None:
    model = plain.to(torch.bfloat16)
    assert add_products(model) == 2 * len(LINEAR)
    with model.disable_adapter():
        off = outcome_without_gradient(model)
    assert (off - outcome_without_gradient(model)).abs().max() > 0.1
