"""What admins type into training pages. Every field says what it does."""

from __future__ import annotations

from typing import Any

from django import forms

from training.exceptions import Rejected
from training.models import Checkpoint, LoopRule
from training.recipe import LABELS, LEARNING_RATES, Recipe


class TrainForm(forms.Form):
    """The recipe of one DPO run."""

    method = forms.ChoiceField(
        choices=[("lora", "LoRA adapter"), ("full", "Full fine-tuning")],
        initial=Recipe.method,
        help_text="LoRA trains small matrices beside the frozen weights: little memory, a small download. "
        "Full fine-tuning moves every weight.",
    )
    reference = forms.ModelChoiceField(
        queryset=Checkpoint.objects.none(),
        empty_label=None,
        help_text="The frozen model that the policy starts from and is held close to. "
        "The first policy of the project is the safe choice: distances stay comparable from run to run.",
    )
    beta = forms.FloatField(
        initial=Recipe.beta,
        help_text="How strongly the policy is held to the reference. Smaller lets it move further "
        "(Rafailov et al. 2023, eq. 7).",
    )
    learning_rate = forms.FloatField(
        required=False,
        help_text=f"Leave empty for {LEARNING_RATES['lora']:g} with LoRA and {LEARNING_RATES['full']:g} with full "
        "fine-tuning. If the loss stays at 0.69, raise it; if it becomes unsteady, lower it.",
    )
    epochs = forms.FloatField(
        initial=Recipe.epochs,
        help_text="Passes over the triples. Few triples are memorised quickly; judge on the held-out ones.",
    )
    pairs_per_step = forms.IntegerField(
        initial=Recipe.pairs_per_step, help_text="Triples that one optimiser step averages over."
    )
    micro_batch = forms.IntegerField(
        initial=Recipe.micro_batch,
        help_text="Triples in memory at once. Must divide the pairs a step; lower it when memory runs out. "
        "The result stays the same but for rounding.",
    )
    max_length = forms.IntegerField(
        initial=Recipe.max_length,
        help_text="Tokens of prompt and response together; what is longer is cut at the end.",
    )
    warmup_ratio = forms.FloatField(
        initial=Recipe.warmup_ratio,
        help_text="Share of the steps in which the learning rate rises to its full value.",
    )
    lora_rank = forms.IntegerField(
        initial=Recipe.lora_rank,
        help_text="Width of the adapter. An adapter that starts from another adapter keeps that one's rank.",
    )
    lora_alpha = forms.IntegerField(initial=Recipe.lora_alpha, help_text="The adapter's effect is scaled by α / rank.")
    seed = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=2**31 - 1,
        help_text="Leave empty for a random one; it is recorded either way.",
    )

    ESSENTIAL = ("method", "reference", "beta", "epochs")

    def __init__(self, *args: Any, references: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, label in LABELS.items():
            self.fields[name].label = label
        field = self.fields["reference"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = references

    def essential_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.ESSENTIAL]

    def further_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.fields if name not in self.ESSENTIAL]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        values = {
            name: value for name, value in cleaned.items() if name not in ("reference", "seed") and value is not None
        }
        values.setdefault("learning_rate", LEARNING_RATES[values["method"]])
        try:
            cleaned["recipe"] = Recipe.from_dict(values)
        except Rejected as error:
            raise forms.ValidationError(str(error)) from error
        return cleaned


class SampleForm(forms.Form):
    pairs = forms.IntegerField(min_value=1, max_value=2000, initial=24, label="Pairs")


class PromoteForm(forms.Form):
    reason = forms.CharField(max_length=300, required=False)


class LoopRuleForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = LoopRule
        fields = ("open_pairs_wanted", "retrains", "min_new_triples", "min_minutes_between")
        help_texts = {"retrains": "", "min_new_triples": "", "min_minutes_between": ""}
        labels = {
            "open_pairs_wanted": "Keep this many pairs open",
            "retrains": "Train by itself",
            "min_new_triples": "when this many triples are new",
            "min_minutes_between": "at most once in minutes",
        }
