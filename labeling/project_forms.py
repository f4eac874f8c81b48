"""What the admins of a project type: its settings, its members, its guidelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling.models import Membership, Project
from labeling.models.projects import MAX_GUIDELINES_CHARACTERS
from labeling.project_settings import HOW_OFTEN, SETTINGS, WHAT_IS_SAID, WHO_MAY, check_settings

NEW_PAIRS = _("Holds for pairs made from now on; those that exist keep what they were made with.")
AT_ONCE = _("Holds at once.")
NEXT_LEASE = _("Holds from the next pair that somebody is given.")
NEXT_CONFLICT = _("Holds from the next judgement on, for pairs that exist as well.")
FROM_NOW = _("Holds from the next judgement on; those that exist stay as they are.")
NEWCOMERS = _("Holds for tries that end from now on; whoever has passed stays in.")

LABELS = {
    "name": _("Name"),
    "is_paused": _("Paused"),
    "judgements_per_pair": _("People per pair"),
    "most_judgements": _("People per pair at most"),
    "calibration_percent": _("Shared pairs, percent"),
    "control_percent": _("Pairs in random order, percent"),
    "repeat_percent": _("Second looks, percent"),
    "gold_percent": _("Pairs with a known answer, percent"),
    "lease_minutes": _("Minutes that a pair is kept for somebody"),
    "asks_strength": _("Ask how much better"),
    "criteria": _("Criteria"),
    "reason_chips": _("Reasons"),
    "reasons_percent": _("Judgements that must name a reason, percent"),
    "allows_rewrites": _("Rewrites"),
    "qualification_pass_percent": _("Right answers to pass, percent"),
    "qualification_tries": _("Tries"),
}
EFFECTS = {
    "name": AT_ONCE,
    "is_paused": _("Holds at once. Whoever has a pair open may still answer it."),
    "judgements_per_pair": NEW_PAIRS,
    "most_judgements": NEXT_CONFLICT,
    "calibration_percent": NEW_PAIRS,
    "control_percent": NEW_PAIRS,
    "repeat_percent": NEXT_LEASE,
    "gold_percent": NEXT_LEASE,
    "lease_minutes": NEXT_LEASE,
    "asks_strength": FROM_NOW,
    "criteria": FROM_NOW,
    "reason_chips": FROM_NOW,
    "reasons_percent": FROM_NOW,
    "allows_rewrites": FROM_NOW,
    "qualification_pass_percent": NEWCOMERS,
    "qualification_tries": _("Holds at once, for everybody who has not passed yet."),
}
SENTENCES = {
    "name": _("What the project is called on every page."),
    "criteria": _("What is also compared one by one, such as “Correct” or “Safe”. One a line; none is fine."),
    "reason_chips": _("Offered after a vote. One a line; none is fine."),
}


@dataclass(frozen=True)
class Group:
    """Settings that belong together on the page."""

    id: str
    title: Any
    names: tuple[str, ...]


GROUPS = (
    Group("project", _("The project"), ("name", "is_paused")),
    Group("how-often", _("How often a pair is judged"), HOW_OFTEN),
    Group("what-is-said", _("What a judgement may carry"), WHAT_IS_SAID),
    Group("who-may", _("Who may judge"), WHO_MAY),
)


class LinesField(forms.JSONField):
    """A list of names, typed one a line."""

    widget = forms.Textarea

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.widget.attrs |= {"rows": 5, "class": "lines"}

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:  # type: ignore[override]
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]

    def bound_data(self, data: Any, initial: Any) -> Any:
        return data

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(data) != (initial or []))


class SettingsForm(forms.ModelForm):  # type: ignore[type-arg]
    """Every setting of a project, each with what it does and for what a change holds."""

    class Meta:
        model = Project
        fields = SETTINGS
        labels = LABELS
        field_classes = {"criteria": LinesField, "reason_chips": LinesField}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, field in self.fields.items():
            does = SENTENCES.get(name) or Project._meta.get_field(name).help_text  # type: ignore[union-attr]
            field.show_hidden_initial = True  # what the page was opened with, to tell what its reader has changed
            field.help_text = f"{does} {EFFECTS[name]}"

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            check_settings(Project(**cleaned))
        return cleaned

    def groups(self) -> list[tuple[Group, list[forms.BoundField]]]:
        return [(group, [self[name] for name in group.names]) for group in GROUPS]

    def changes(self) -> dict[str, Any]:
        """What somebody has changed, so that two admins do not undo each other's settings."""
        return {name: self.cleaned_data[name] for name in self.changed_data}


class NewProjectForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Project
        fields = ("name", "slug")
        labels = {"name": _("Name"), "slug": _("Short name")}
        help_texts = {
            "slug": _("For addresses: small letters, digits and hyphens. It stays when the name changes."),
        }
        error_messages = {"slug": {"unique": _("Another project has this short name. Choose another one.")}}

    def clean_slug(self) -> str:
        slug: str = self.cleaned_data["slug"]
        if slug != slug.lower():
            raise ValidationError(gettext("Use small letters."))
        return slug


class MemberForm(forms.Form):
    username = forms.CharField(label=_("Username"), max_length=150)
    role = forms.ChoiceField(label=_("Role"), choices=Membership.Role.choices)


class GuidelinesForm(forms.Form):
    """A new version. ``based_on`` is the one that its author saw before them when they began."""

    text = forms.CharField(
        label=_("Guidelines"),
        required=False,
        max_length=MAX_GUIDELINES_CHARACTERS,
        widget=forms.Textarea(attrs={"rows": 18}),
        help_text=_("Markdown: headings with #, lists with -, **bold**, tables. Raw HTML is shown as text."),
    )
    note = forms.CharField(
        label=_("What is new"),
        required=False,
        max_length=200,
        help_text=_("One sentence for the list of versions."),
    )
    based_on = forms.IntegerField(min_value=0, widget=forms.HiddenInput)
