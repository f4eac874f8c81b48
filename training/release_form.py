"""The release rule and an admin's word on a gate, as they are typed in."""

from __future__ import annotations

from typing import Any

from django import forms

from training.gate import LEAST_PROMPTS
from training.gates import why_too_few
from training.models import Gate, ReleaseRule


class ReleaseRuleForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = ReleaseRule
        fields = ("compares", "decides", "asks_people", "most_votes", "watches", "watch_votes", "rolls_back")
        labels = {
            "compares": "Compare each finished run with the policy",
            "decides": "Who promotes",
            "asks_people": "Ask annotators as well",
            "most_votes": "about this many pairs at most",
            "watches": "Watch a new policy",
            "watch_votes": "with this many pairs",
            "rolls_back": "Roll back by itself",
        }
        help_texts = {
            "compares": "Held-out preferences, answers to held-out prompts and refusals, candidate against policy. A "
            "checkpoint can be compared by hand whatever this says.",
            "decides": "The gate promotes by itself only what held-out preferences or people show to be better for "
            "sure, if it passes every check. It rejects by itself either way; an admin can promote any checkpoint at "
            "any time.",
            "asks_people": "Blind pairs on held-out prompts among the others, one answer by each of the two. Votes are "
            "tested after every one of them, so asking ends as soon as they tell.",
            "most_votes": "Where 60 of 100 decided votes are for the candidate, 300 show it in four of five "
            "comparisons, and the gate as a whole promotes in more than half; where 55 are, 500 show it in "
            "fewer than half.",
            "watches": "After a promotion, blind pairs of the new policy against the one before it.",
            "watch_votes": "Labels that these pairs take are missing elsewhere.",
            "rolls_back": "When the watch shows that people prefer the policy before. Otherwise an admin is told.",
        }

    def __init__(self, *args: Any, held_out_prompts: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["most_votes"].help_text += _of_few_prompts(held_out_prompts, self.instance.most_votes)
        if too_few := why_too_few(held_out_prompts):
            for name in ("compares", "watches"):
                self.fields[name].help_text += f" It cannot begin yet. {too_few}"


def _of_few_prompts(prompts: int, wanted: int) -> str:
    """Each prompt is asked about once in a gate, so that votes are independent of each other."""
    if prompts >= wanted:
        return ""
    said = f" Each pair takes a held-out prompt of its own, and the project has {prompts}"
    if prompts < LEAST_PROMPTS:
        return (
            f"{said}. Figures decide nothing on fewer than {LEAST_PROMPTS}, and so few votes seldom tell: import more "
            "prompts."
        )
    return f"{said}: import more prompts for more pairs."


class VerdictForm(forms.Form):
    """``verdict`` is the button that was pressed."""

    verdict = forms.ChoiceField(choices=Gate.Outcome.choices)
    reason = forms.CharField(max_length=300, required=False, label="Reason, for the log (optional)")
