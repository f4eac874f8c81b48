"""What people type into labeling pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling.answers import MAX_COMMENT_CHARACTERS, MAX_REWRITE_CHARACTERS, Details
from labeling.desk import BOTH_BAD, LEFT, RIGHT, TIE, choice_of
from labeling.models import Project, Skip
from labeling.models.projects import MAX_NAME_LENGTH, MAX_REASON_CHIPS
from labeling.tokens import MAX_TOKEN_LENGTH

MAX_UPLOAD_BYTES = 200 * 2**20
# Nobody reads a pair for longer than a day; what says so is a clock that was set.
MAX_SECONDS = 24 * 3600


class SayingForm(forms.Form):
    """A form of which a page says one sentence when it cannot be read."""

    unreadable = _("The page did not say which pair this is about. Reload it, please.")

    def first_error(self) -> str:
        return str(self.non_field_errors()[0] if self.non_field_errors() else self.unreadable)


class TokenForm(SayingForm):
    token = forms.CharField(max_length=MAX_TOKEN_LENGTH)


class ReasonsField(forms.MultipleChoiceField):
    """Reasons as they were clicked; the queue knows which the project has."""

    def valid_value(self, value: Any) -> bool:
        return len(str(value)) <= MAX_NAME_LENGTH

    def validate(self, value: Any) -> None:
        super().validate(value)
        if len(value) > MAX_REASON_CHIPS:
            raise forms.ValidationError(gettext("Too many reasons."))


class ReasonsForm(TokenForm):
    reasons = ReasonsField(required=False)
    comment = forms.CharField(max_length=MAX_COMMENT_CHARACTERS, required=False)


class VoteForm(ReasonsForm):
    """A vote as it was cast: by side. Which response that is only the server knows."""

    unreadable = _("That was not a vote this page knows. Please choose again.")
    choice = forms.ChoiceField(choices=[(choice, choice) for choice in (LEFT, RIGHT, TIE, BOTH_BAD)])
    is_strong = forms.BooleanField(required=False)
    rewrite = forms.CharField(max_length=MAX_REWRITE_CHARACTERS, required=False, strip=False)
    seconds = forms.FloatField(min_value=0, max_value=MAX_SECONDS, required=False)
    guidelines = forms.IntegerField(min_value=1, required=False)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        for number, name in enumerate(project.criteria):
            self.fields[f"criterion-{number}"] = forms.ChoiceField(
                label=name, choices=[(choice, choice) for choice in (LEFT, RIGHT, TIE)], required=False
            )

    def details(self, shown_left: str) -> Details:
        said = self.cleaned_data
        by_side = {name: said[f"criterion-{number}"] for number, name in enumerate(self.project.criteria)}
        return Details(
            is_strong=said["is_strong"],
            criteria={name: choice_of(side, shown_left) for name, side in by_side.items() if side},
            reasons=tuple(said["reasons"]),
            comment=said["comment"],
            rewrite=said["rewrite"],
            seconds=said["seconds"],
            guidelines_version=said["guidelines"],
        )


class SkipForm(TokenForm):
    unreadable = _("Nothing was skipped: the page did not say which pair. Please try again.")
    reason = forms.ChoiceField(choices=Skip.Reason.choices, required=False)
    note = forms.CharField(max_length=500, required=False)


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
