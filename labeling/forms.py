"""What people type into labeling pages."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling.models import Slot

MAX_UPLOAD_BYTES = 200 * 2**20
LEFT, RIGHT, TIE, BOTH_BAD = "left", "right", "tie", "both_bad"


class VoteForm(forms.Form):
    """A vote as it was cast: by side. Which response that is only the server knows."""

    token = forms.CharField(max_length=400)
    choice = forms.ChoiceField(choices=[(choice, choice) for choice in (LEFT, RIGHT, TIE, BOTH_BAD)])


class TokenForm(forms.Form):
    token = forms.CharField(max_length=400)
    reason = forms.CharField(max_length=200, required=False)


class PromptImportForm(forms.Form):
    file = forms.FileField(
        label=_("Prompts (JSONL)"),
        help_text=_(
            "One prompt a line: a text in quotes, a list of messages, or an object with “prompt” or “messages”."
        ),
    )

    def clean_file(self) -> object:
        file = self.cleaned_data["file"]
        if file.size > MAX_UPLOAD_BYTES:
            told = {"size": round(file.size / 2**20), "most": MAX_UPLOAD_BYTES // 2**20}
            raise forms.ValidationError(
                gettext(
                    "The file has %(size)d MiB; at most %(most)d are read here. "
                    "Use manage.py import_prompts for larger ones."
                )
                % told
            )
        return file


def choice_of(side_choice: str, shown_left: str) -> str:
    """Translate a vote by side into one by response: A or B."""
    if side_choice not in (LEFT, RIGHT):
        return side_choice
    if side_choice == LEFT:
        return shown_left
    return Slot.Side.B if shown_left == Slot.Side.A else Slot.Side.A


def side_of(choice: str, shown_left: str) -> str:
    """The inverse of ``choice_of``: where the chosen response stands on the page."""
    if choice not in Slot.Side.values:
        return choice
    return LEFT if choice == shown_left else RIGHT
