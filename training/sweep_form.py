"""What an admin types to ask for a sweep: the recipe of a run, with several values where a run has one."""

from __future__ import annotations

from typing import Any

from django import forms

from training.exceptions import Rejected
from training.forms import TrainForm
from training.recipe import Recipe
from training.sweeps import MOST_POINTS, USUAL_BETAS, grid


class NumbersField(forms.CharField):
    """Several numbers with spaces, commas or semicolons between them."""

    def clean(self, value: Any) -> list[float]:
        words = super().clean(value).replace(",", " ").replace(";", " ").split()
        try:
            return [float(word) for word in words]
        except ValueError:
            raise forms.ValidationError("Write numbers with a point, such as 0.1, and spaces between them.") from None


class SweepForm(TrainForm):
    beta = None  # type: ignore[assignment]
    learning_rate = None  # type: ignore[assignment]
    betas = NumbersField(
        label="β",
        initial=" ".join(f"{beta:g}" for beta in USUAL_BETAS),
        help_text="Each is a run. Smaller lets the policy move further from the reference.",
    )
    learning_rates = NumbersField(
        required=False,
        label="Learning rates",
        help_text="Each is tried with each β. Leave empty for the usual one, which goes by the number of steps. "
        f"A sweep has at most {MOST_POINTS} runs.",
    )

    ESSENTIAL = ("method", "mode", "reference", "betas", "learning_rates", "epochs")
    FURTHER = tuple(
        (title, tuple(name for name in names if name != "learning_rate")) for title, names in TrainForm.FURTHER
    )
    NOT_OF_THE_RECIPE = (*TrainForm.NOT_OF_THE_RECIPE, "betas", "learning_rates")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        recipe: Recipe | None = cleaned.get("recipe")
        if recipe is not None:
            try:
                cleaned["recipes"] = grid(recipe, cleaned["betas"], cleaned["learning_rates"])
            except Rejected as error:
                raise forms.ValidationError(str(error)) from error
        return cleaned
