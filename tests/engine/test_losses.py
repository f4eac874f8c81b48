"""The preference losses: the same numbers and gradients as TRL's, and what TRL has not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from training.engine import loading, losses, tiny_model
from training.engine.errors import EngineError
from training.engine.losses import LossSettings, PairLogps
from training.jobspec import ModelRef, TrainJob

# Lengths differ within and between pairs, and either side is the longer one. Some are won by nats and one is lost.
PAIRS = [
    {"prompt_ids": [1, 40, 50], "chosen_ids": [300, 301, 302, 2], "rejected_ids": [310, 2]},
    {"prompt_ids": [1, 41], "chosen_ids": [320, 2], "rejected_ids": [330, 331, 332, 333, 334]},
    {"prompt_ids": [1, 42, 60, 61], "chosen_ids": [340, 341, 2], "rejected_ids": [350, 351, 2]},
    {"prompt_ids": [1, 41], "chosen_ids": [330, 331, 332, 333, 334], "rejected_ids": [320, 2]},
]
Trainer = Callable[..., DPOTrainer]


@pytest.fixture(scope="module")
def other_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference nats away from the policy, so that no loss is at its starting point."""
    directory = tmp_path_factory.mktemp("models") / "other"
    tiny_model.build(directory, seed=4)
    return directory


@pytest.fixture
def stock_trainer(tiny_model_dir: Path, other_model_dir: Path, tmp_path: Path) -> Trainer:
    """TRL's own trainer as it comes: ``stock_trainer(**fields of DPOConfig)``."""

    def make(**fields: Any) -> DPOTrainer:
        config = DPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **fields,
        )
        return DPOTrainer(
            model=loading.load_weights(tiny_model_dir, torch.float32),
            ref_model=loading.load_weights(other_model_dir, torch.float32),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "Who?", "chosen": " good", "rejected": " hard"}]),
            processing_class=loading.load_tokenizer(tiny_model_dir),
        )

    return make


def token_logps(model: PreTrainedModel, side: str, pairs: list[dict[str, Any]]) -> Tensor:
    """Plainly: one response at a time through the whole model."""
    rows = []
    for pair in pairs:
        ids = torch.tensor([pair["prompt_ids"] + pair[side]])
        logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
        rows.append(logps.gather(1, ids[0, 1:, None]).squeeze(1)[-len(pair[side]) :])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def pair_logps(trainer: DPOTrainer, pairs: list[dict[str, Any]]) -> PairLogps:
    sides = ("chosen_ids", "rejected_ids")
    with torch.no_grad():
        reference = [token_logps(trainer.ref_model, side, pairs) for side in sides]
    lengths = [torch.tensor([len(pair[side]) for pair in pairs]) for side in sides]
    return PairLogps(*(token_logps(trainer.model, side, pairs) for side in sides), *reference, *lengths)


def gradients(model: PreTrainedModel, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_equals_stock(
    trainer: DPOTrainer, settings: LossSettings, noise: float = 0.0, weight: float = 1.0, pairs: int = len(PAIRS)
) -> None:
    """Value and gradient of every weight, and the rewards. TRL's trainer averages, and ``weight`` multiplies it."""
    rows = PAIRS[:pairs]
    batch = trainer.data_collator(rows)
    stock = weight * trainer._compute_loss(trainer.model, batch, return_outputs=False)
    expected = gradients(trainer.model, stock)
    logps = pair_logps(trainer, rows)
    ours = losses.pair_losses(logps, torch.full((pairs,), weight), torch.full((pairs,), noise), settings)
    assert ours.shape == (pairs,)
    assert ours.mean().item() == pytest.approx(stock.item(), abs=1e-6, rel=1e-6)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradients(trainer.model, ours.mean()), expected, rtol=1e-4, atol=1e-6)
    for name, reward in zip(("chosen", "rejected"), losses.rewards(logps, settings), strict=True):
        stock_reward = trainer._metrics["eval"][f"rewards/{name}"][-1]
        assert reward.mean().item() == pytest.approx(stock_reward, abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(
    ("name", "stock_name"),
    [
        ("dpo", "sigmoid"),
        ("ipo", "ipo"),
        ("hinge", "hinge"),
        ("robust", "robust"),
        ("apo_zero", "apo_zero"),
        ("apo_down", "apo_down"),
    ],
)
def test_every_loss_is_that_of_trl(stock_trainer: Trainer, name: Any, stock_name: str, beta: float) -> None:
    assert_equals_stock(stock_trainer(loss_type=[stock_name], beta=beta), LossSettings(name, beta))


def test_robust_with_label_noise_is_that_of_trl(stock_trainer: Trainer) -> None:
    trainer = stock_trainer(loss_type=["robust"], beta=0.3, label_smoothing=0.2)
    assert_equals_stock(trainer, LossSettings("robust", 0.3), noise=0.2)


@pytest.mark.parametrize(("name", "stock_name"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("apo_down", "apo_down")])
@pytest.mark.parametrize("ld_alpha", [0.0, 0.3])
def test_a_lighter_tail_is_that_of_trl(stock_trainer: Trainer, name: Any, stock_name: str, ld_alpha: float) -> None:
    trainer = stock_trainer(loss_type=[stock_name], beta=0.3, ld_alpha=ld_alpha)
    assert_equals_stock(trainer, LossSettings(name, 0.3, ld_alpha=ld_alpha))


@pytest.mark.parametrize("ld_alpha", [1.0, 0.3])
def test_the_sft_term_of_a_weighted_pair_is_that_of_trl(stock_trainer: Trainer, ld_alpha: float) -> None:
    # One pair, because TRL averages this term over the tokens of a batch and so favours its longer responses.
    trainer = stock_trainer(
        loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.4], beta=0.3, ld_alpha=None if ld_alpha == 1.0 else ld_alpha
    )
    settings = LossSettings("dpo", 0.3, sft_weight=0.4, ld_alpha=ld_alpha)
    assert_equals_stock(trainer, settings, weight=2.5, pairs=1)


def one_pair(chosen: float, rejected: float, chosen_tokens: int = 1, rejected_tokens: int = 1) -> PairLogps:
    """A pair with these log-ratios in its first tokens, and nothing in the others; ratios can be differentiated."""

    def row(value: float, tokens: int) -> Tensor:
        return torch.tensor([[value] + [0.0] * (tokens - 1)], dtype=torch.float64, requires_grad=True)

    policy = row(chosen, chosen_tokens), row(rejected, rejected_tokens)
    lengths = torch.tensor([chosen_tokens]), torch.tensor([rejected_tokens])
    return PairLogps(*policy, *(torch.zeros_like(values) for values in policy), *lengths)


def loss_of(logps: PairLogps, settings: LossSettings, noise: float = 0.0, weight: float = 1.0) -> Tensor:
    numbers = (torch.tensor([value], dtype=torch.float64) for value in (weight, noise))
    return losses.pair_losses(logps, *numbers, settings)[0]


def slope(logps: PairLogps, settings: LossSettings, noise: float) -> float:
    """d loss / d log pi(y_w | x)."""
    (gradient,) = torch.autograd.grad(loss_of(logps, settings, noise), logps.policy_chosen)
    return gradient[0, 0].item()


def test_conservative_dpo_by_hand() -> None:
    z = 0.5 * (1.2 - -0.6)
    expected = -3 * (0.9 * math.log(1 / (1 + math.exp(-z))) + 0.1 * math.log(1 / (1 + math.exp(z))))
    assert loss_of(one_pair(1.2, -0.6), LossSettings("dpo", 0.5), 0.1, 3.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("noise", [0.01, 0.2, 0.45, 0.5])
def test_conservative_dpo_rests_where_the_margin_is_the_log_odds_of_the_label(noise: float) -> None:
    settings = LossSettings("dpo", 0.5)
    optimum = math.log((1 - noise) / noise)
    assert slope(one_pair(optimum / 0.5, 0.0), settings, noise) == pytest.approx(0.0, abs=1e-12)
    assert slope(one_pair(optimum / 0.5 - 0.1, 0.0), settings, noise) < 0
    assert slope(one_pair(optimum / 0.5 + 0.1, 0.0), settings, noise) > 0


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
def test_ipo_rests_where_its_population_loss_does(noise: float) -> None:
    optimum = (1 - 2 * noise) / (2 * 0.25)  # per token; both responses have two
    assert slope(one_pair(2 * optimum, 0.0, 2, 2), LossSettings("ipo", 0.25), noise) == pytest.approx(0.0, abs=1e-12)


def test_robust_without_bound_below_keeps_pushing_where_conservative_dpo_turns_back() -> None:
    far = one_pair(60.0, 0.0)
    assert slope(far, LossSettings("dpo", 0.5), 0.2) == pytest.approx(0.5 * 0.2)
    assert slope(far, LossSettings("robust", 0.5), 0.2) == pytest.approx(-0.5 * 0.2 / 0.6)
    assert loss_of(far, LossSettings("robust", 0.5), 0.2).item() < -9


def test_robust_is_on_average_the_loss_of_the_clean_label() -> None:
    robust, clean = LossSettings("robust", 0.5), LossSettings("dpo", 0.5)
    right, wrong = one_pair(1.2, -0.6), one_pair(-0.6, 1.2)
    mean = 0.7 * loss_of(right, robust, 0.3) + 0.3 * loss_of(wrong, robust, 0.3)
    assert mean.item() == pytest.approx(loss_of(right, clean).item())


def test_a_tie_teaches_apo_zero_nothing_and_pushes_both_down_in_apo_down() -> None:
    pair = one_pair(0.3, -0.4)
    assert slope(pair, LossSettings("apo_zero", 0.5), 0.5) == pytest.approx(0.0, abs=1e-12)
    loss = loss_of(pair, LossSettings("apo_down", 0.5), 0.5)
    for gradient in torch.autograd.grad(loss, [pair.policy_chosen, pair.policy_rejected]):
        assert gradient[0, 0] > 0


def test_the_sft_term_fades_with_the_label_and_is_gone_for_a_tie() -> None:
    pair = one_pair(-3.0, 0.0, 2, 2)
    with_term, without = LossSettings("dpo", 0.5, sft_weight=0.4), LossSettings("dpo", 0.5)
    for noise, share in ((0.0, 1.0), (0.1, 0.8), (0.5, 0.0)):
        term = loss_of(pair, with_term, noise) - loss_of(pair, without, noise)
        assert term.item() == pytest.approx(0.4 * share * 1.5)


def test_the_tail_of_the_longer_response_weighs_alpha() -> None:
    chosen = torch.tensor([[-1.0, -2.0, -4.0, 0.0], [-1.0, -1.0, 0.0, 0.0]])
    rejected = torch.tensor([[-3.0, 0.0, 0.0], [-1.0, -2.0, -4.0]])
    zeros = torch.zeros_like(chosen), torch.zeros_like(rejected)
    logps = PairLogps(chosen, rejected, *zeros, torch.tensor([3, 2]), torch.tensor([1, 3]))
    ratios = losses.log_ratios(logps, 0.5)
    assert ratios.chosen.tolist() == [-4.0, -2.0]
    assert ratios.rejected.tolist() == [-3.0, -5.0]


NAMES = st.sampled_from(["dpo", "ipo", "hinge", "robust", "apo_zero", "apo_down"])
NATS = st.floats(-20, 20)
NOISE = st.floats(0, 0.49)


@given(NAMES, NATS, NATS, NOISE, st.floats(0, 1), st.floats(0, 100))
def test_a_weight_multiplies_the_whole_loss(
    name: Any, chosen: float, rejected: float, noise: float, sft: float, weight: float
) -> None:
    pair, settings = one_pair(chosen, rejected), LossSettings(name, 0.3, sft_weight=sft)
    expected = weight * loss_of(pair, settings, noise).item()
    assert loss_of(pair, settings, noise, weight).item() == pytest.approx(expected)


@given(NAMES.filter(lambda name: name != "robust"), NATS, NATS, st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
def test_a_tie_costs_the_same_in_either_order(
    name: Any, chosen: float, rejected: float, long: int, short: int, ld_alpha: float
) -> None:
    settings = LossSettings(name, 0.3, sft_weight=0.7, ld_alpha=ld_alpha)
    one, other = one_pair(chosen, rejected, long, short), one_pair(rejected, chosen, short, long)
    assert loss_of(one, settings, 0.5).item() == pytest.approx(loss_of(other, settings, 0.5).item())


@given(NAMES, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), NOISE)
def test_no_margin_is_too_far_for_a_finite_loss_and_gradient(
    name: Any, chosen: float, rejected: float, noise: float
) -> None:
    pair = one_pair(chosen, rejected)
    loss = loss_of(pair, LossSettings(name, 0.5, sft_weight=0.1), noise)
    assert math.isfinite(loss.item())
    assert torch.isfinite(torch.autograd.grad(loss, pair.policy_chosen)[0]).all()


@given(NATS, NATS, NOISE)
def test_a_pair_does_not_depend_on_the_pairs_beside_it(chosen: float, rejected: float, noise: float) -> None:
    settings = LossSettings("ipo", 0.3, sft_weight=0.2, ld_alpha=0.4)
    first, second = one_pair(chosen, rejected, 3, 2), one_pair(1.0, -2.0, 3, 2)
    both = PairLogps(*(torch.cat([getattr(pair, field.name) for pair in (first, second)]) for field in FIELDS))
    numbers = torch.tensor([1.0, 5.0], dtype=torch.float64), torch.tensor([noise, 0.1], dtype=torch.float64)
    together = losses.pair_losses(both, *numbers, settings)
    assert together[0].item() == pytest.approx(loss_of(first, settings, noise).item())


FIELDS = dataclasses.fields(PairLogps)


def test_the_settings_are_those_of_the_job() -> None:
    job = TrainJob(ModelRef("base", "hash"), seed=1, beta=0.2, loss="ipo", sft_weight=0.3, ld_alpha=0.4)
    assert LossSettings.of(job) == LossSettings("ipo", 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "kto"}, "kto"),
        ({"beta": 0.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"sft_weight": -0.1}, "SFT"),
        ({"sft_weight": math.nan}, "SFT"),
        ({"ld_alpha": 1.5}, "ld_alpha"),
    ],
)
def test_settings_without_sense_are_refused(fields: dict[str, Any], told: str) -> None:
    settings = dataclasses.replace(LossSettings("dpo", 0.1), **fields)
    with pytest.raises(EngineError, match=told) as caught:
        losses.check(settings, [1.0], [0.0])
    assert caught.value.code == "bad_job"
    assert caught.value.hint


@pytest.mark.parametrize(("weight", "noise"), [(-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, 0.6), (1.0, -0.1)])
def test_a_weight_or_noise_out_of_bounds_is_refused_with_the_name_of_the_pair(weight: float, noise: float) -> None:
    with pytest.raises(EngineError, match="Pair pair-7 ") as caught:
        losses.check(LossSettings("dpo", 0.1), [1.0, weight], [0.0, noise], ["pair-6", "pair-7"])
    assert caught.value.code == "bad_dataset"
    with pytest.raises(EngineError, match="Pair number 2 "):
        losses.check(LossSettings("dpo", 0.1), [1.0, weight], [0.0, noise])


def test_ties_are_refused_by_the_robust_loss_alone() -> None:
    losses.check(LossSettings("dpo", 0.1), [1.0, 0.0], [0.5, 0.2])
    losses.check(LossSettings("robust", 0.1), [1.0], [0.49])
    for noise, told in ((0.5, "is a tie"), (0.49999999, "is nearly a tie")):
        with pytest.raises(EngineError, match=told) as caught:
            losses.check(LossSettings("robust", 0.1), [1.0], [noise])
        assert caught.value.code == "bad_dataset"


def test_pairs_that_all_weigh_nothing_are_refused() -> None:
    with pytest.raises(EngineError, match="weight 0") as caught:
        losses.check(LossSettings("dpo", 0.1), [0.0, 0.0], [0.0, 0.1])
    assert caught.value.code == "bad_dataset"
