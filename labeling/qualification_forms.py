"""What newcomers answer, and what admins type into the qualification set."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from labeling.desk import BOTH_BAD, LEFT, RIGHT, TIE
from labeling.models import Choice, QualificationItem
from labeling.prompts import InvalidPrompt, Message, parse_prompt
from labeling.qualification_items import MAX_EXPLANATION_CHARACTERS, InvalidItem, ItemContent, check_item

MAX_ITEMS_BYTES = 8 * 2**20
MAX_ID = 2**63 - 1


class AnswerForm(forms.Form):
    """An answer as it was given: by side, to an item, in a try."""

    item = forms.IntegerField(min_value=1, max_value=MAX_ID)
    attempt = forms.IntegerField(min_value=1, max_value=32_767)
    choice = forms.ChoiceField(choices=[(choice, choice) for choice in (LEFT, RIGHT, TIE, BOTH_BAD)])


class ItemForm(forms.Form):
    """One item of the set. Of a conversation only the last turn can be changed; the turns before it stay."""

    prompt = forms.CharField(label=_("Prompt"), widget=forms.Textarea(attrs={"rows": 4}), strip=False)
    response_a = forms.CharField(label=_("Response A"), widget=forms.Textarea(attrs={"rows": 8}), strip=False)
    response_b = forms.CharField(label=_("Response B"), widget=forms.Textarea(attrs={"rows": 8}), strip=False)
    choice = forms.ChoiceField(
        label=_("Expected answer"),
        choices=Choice.choices,
        widget=forms.RadioSelect,
        help_text=_("Only this one counts as right. If two answers would do, write a clearer pair."),
    )
    explanation = forms.CharField(
        label=_("Why"),
        max_length=MAX_EXPLANATION_CHARACTERS,
        widget=forms.Textarea(attrs={"rows": 5}),
        help_text=_("Shown after the answer, right or wrong. Markdown. Say what decides, with a word from the texts."),
    )

    def __init__(self, *args: Any, item: QualificationItem | None = None, **options: Any) -> None:
        self.earlier: list[Message] = list(item.messages[:-1]) if item else []
        if item:
            options["initial"] = {
                "prompt": item.messages[-1]["content"],
                "response_a": item.response_a,
                "response_b": item.response_b,
                "choice": item.choice,
                "explanation": item.explanation,
            }
        super().__init__(*args, **options)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        try:
            messages = parse_prompt([*self.earlier, {"role": "user", "content": cleaned["prompt"]}])
            texts = {name: cleaned[name] for name in ("response_a", "response_b", "choice", "explanation")}
            cleaned["content"] = check_item(ItemContent(messages=messages, **texts))
        except InvalidPrompt as error:
            self.add_error("prompt", str(error))
        except InvalidItem as error:
            self.add_error(None, str(error))
        return cleaned


class ItemsFileForm(forms.Form):
    file = forms.FileField(
        label=_("Items (JSONL)"),
        help_text=_(
            "One object a line with “prompt” (a text) or “messages”, “response_a”, “response_b”, “choice” "
            "(a, b, tie or both_bad) and “explanation”."
        ),
    )

    def clean_file(self) -> object:
        file = self.cleaned_data["file"]
        if file.size > MAX_ITEMS_BYTES:
            told = {"most": MAX_ITEMS_BYTES // 2**20}
            raise forms.ValidationError(_("The file is too large; at most %(most)d MiB are read.") % told)
        return file
