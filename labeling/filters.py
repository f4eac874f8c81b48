"""Which judgements and pairs somebody asks for: the filters of the tables, and pages of rows found in bounded steps.

What an index answers (project, person, days) narrows the rows; everything else is looked for among the newest
``SEARCHED`` of them, and the page says from where the search can go on. No filter reads a whole table at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, Generic, TypeVar

from django import forms
from django.contrib.auth.models import User
from django.db.models import Exists, F, Model, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models import Choice, Pair, Preference, Project

ROWS_PER_PAGE = 50
SEARCHED, TEXTS_SEARCHED = 5_000, 2_000
Row = TypeVar("Row", bound=Model)
NOT_RETIRED = Q(is_retired=False)
STATES = {
    "review": (_("To review"), ~Q(review="")),
    "conflict": (_("Judgements conflict"), Q(review=Pair.Review.CONFLICT)),
    "flag": (_("Flagged"), Q(review=Pair.Review.FLAG)),
    "skips": (_("Skipped by several"), Q(review=Pair.Review.SKIPS)),
    "open": (_("Open"), Q(judgements_count__lt=F("judgements_wanted")) & NOT_RETIRED),
    "judged": (_("Judged"), Q(judgements_count__gte=F("judgements_wanted")) & NOT_RETIRED),
    "gold": (_("Gold"), ~Q(gold_choice="")),
    "decided": (_("Decided by a reviewer"), ~Q(adjudicated_choice="")),
    "retired": (_("Taken out"), Q(is_retired=True)),
}
# What tables and exports show of a judgement itself; of pair and person they show a field or two.
OWN_FIELDS = (
    *("project", "created_at", "choice", "shown_left", "is_strong", "seconds", "criteria", "reasons", "comment"),
    *("version", "is_repeat", "guidelines_version", "withdrawal"),
)
RELATED_FIELDS = ("annotator__username", "pair__gold_choice", "pair__prompt__messages", "rewrite__response__text")
# These have an index of their own, so that nothing else is read.
INDEXED = {"review", "gold"}


class PairFilter(forms.Form):
    state = forms.ChoiceField(
        label=_("State"), required=False, choices=[("", _("Any")), *((key, name) for key, (name, _q) in STATES.items())]
    )
    text = forms.CharField(label=_("In the prompt"), required=False, max_length=200)


class JudgementFilter(forms.Form):
    person = forms.ModelChoiceField(User.objects.none(), label=_("Person"), required=False, empty_label=_("Anybody"))
    choice = forms.ChoiceField(label=_("Choice"), required=False, choices=[("", _("Any")), *Choice.choices])
    side = forms.ChoiceField(
        label=_("Side"), required=False, choices=[("", _("Any")), ("left", _("Left")), ("right", _("Right"))]
    )
    since = forms.DateField(label=_("From"), required=False, widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(label=_("To"), required=False, widget=forms.DateInput(attrs={"type": "date"}))
    text = forms.CharField(label=_("In the prompt"), required=False, max_length=200)
    strong = forms.BooleanField(label=_("Much better"), required=False)
    comment = forms.BooleanField(label=_("With a comment"), required=False)
    rewrite = forms.BooleanField(label=_("With a rewrite"), required=False)
    conflict = forms.BooleanField(label=_("Others disagree"), required=False)
    gold = forms.BooleanField(label=_("Gold"), required=False)
    repeat = forms.BooleanField(label=_("Second looks"), required=False)
    withdrawn = forms.BooleanField(label=_("Withdrawn"), required=False)

    def __init__(self, project: Project, *given: Any) -> None:
        super().__init__(*given)
        people = User.objects.filter(seats__project=project).order_by("username")
        self.fields["person"].queryset = people  # type: ignore[attr-defined]

    def clean_person(self) -> User | None:
        person: User | None = self.cleaned_data["person"]
        return person


@dataclass(frozen=True)
class Found(Generic[Row]):
    """A page of rows, newest first. ``older``: from which row on the search continues; ``None`` at the end.

    ``is_bounded``: the search ended because enough rows were looked at, not because there are no more.
    """

    rows: list[Row]
    older: int | None
    is_bounded: bool


@dataclass(frozen=True)
class Search(Generic[Row]):
    """Rows of a project by what an index answers, what else they must be, and a text of their prompt."""

    rows: QuerySet[Row]
    order: tuple[str, ...]
    conditions: Q
    text: str
    messages: str

    def page(self, before: int | None = None) -> Found[Row]:
        """The newest ``ROWS_PER_PAGE`` rows, or those older than the row ``before``."""
        rows = self._older_than(before) if before else self.rows
        rows = rows.order_by(*self.order)
        if not self.conditions and not self.text:
            found = list(rows[: ROWS_PER_PAGE + 1])
            return Found(found[:ROWS_PER_PAGE], self._last(found), is_bounded=False)
        return self._searched(rows)

    def everything(self) -> Iterator[Row]:
        """All rows that match, in a stream."""
        rows = self.rows.filter(self.conditions).order_by(*self.order)
        for row in rows.iterator(chunk_size=1000):
            if self._matches(_value(row, self.messages)):
                yield row

    def _searched(self, rows: QuerySet[Row]) -> Found[Row]:
        window = TEXTS_SEARCHED if self.text else SEARCHED
        near = self.rows.filter(pk__in=rows.values("pk")[:window]).filter(self.conditions).order_by(*self.order)
        found = list(self._with_text(near) if self.text else near[: ROWS_PER_PAGE + 1])
        if len(found) > ROWS_PER_PAGE:
            return Found(found[:ROWS_PER_PAGE], self._last(found), is_bounded=False)
        beyond = rows.values_list("pk", flat=True)[window - 1 : window].first()
        return Found(found, beyond, is_bounded=beyond is not None)

    def _with_text(self, near: QuerySet[Row]) -> QuerySet[Row]:
        hits = []
        for pk, messages in near.values_list("pk", self.messages):
            if self._matches(messages):
                hits.append(pk)
            if len(hits) > ROWS_PER_PAGE:
                break
        return near.filter(pk__in=hits)

    def _matches(self, messages: list[dict[str, str]]) -> bool:
        """In Python: a database that stores JSON as text has its letters escaped."""
        wanted = self.text.casefold()
        return not wanted or any(wanted in message["content"].casefold() for message in messages)

    def _older_than(self, before: int) -> QuerySet[Row]:
        if self.order == ("-pk",):
            return self.rows.filter(pk__lt=before)
        last = self.rows.filter(pk=before).values_list("created_at", flat=True).first()
        if last is None:
            return self.rows
        return self.rows.filter(created_at__lte=last).exclude(created_at=last, pk__gte=before)

    def _last(self, found: list[Row]) -> int | None:
        return found[ROWS_PER_PAGE - 1].pk if len(found) > ROWS_PER_PAGE else None


def pairs_search(project: Project, wanted: dict[str, Any], withheld: Collection[int] = ()) -> Search[Pair]:
    """``withheld``: pairs of whose state its reader is to know nothing; a filter by state must not tell it."""
    rows = Pair.objects.filter(project=project).select_related("prompt")
    state = wanted.get("state") or ""
    if state and withheld:
        rows = rows.exclude(pk__in=withheld)
    condition = STATES[state][1] if state else Q()
    if state in INDEXED:
        rows, condition = rows.filter(condition), Q()
    return Search(rows, ("-pk",), condition, wanted.get("text") or "", "prompt__messages")


def judgements_search(project: Project, wanted: dict[str, Any], withheld: Collection[int] = ()) -> Search[Preference]:
    """``wanted``: what ``JudgementFilter`` has cleaned. Judgements of the pairs ``withheld`` are left out.

    Of what an admin has withdrawn there is nothing but where it is asked for, and then nothing else.
    """
    is_withdrawn = bool(wanted.get("withdrawn"))
    state = Q(withdrawal__isnull=False, version=F("slot__versions")) if is_withdrawn else Q(is_current=True)
    rows = Preference.objects.filter(state, project=project)
    if withheld:
        rows = rows.exclude(pair__in=withheld)
    rows = rows.select_related("annotator", "pair__prompt", "rewrite__response").only(*OWN_FIELDS, *RELATED_FIELDS)
    if wanted.get("person"):
        rows = rows.filter(annotator=wanted["person"])
    if wanted.get("since"):
        rows = rows.filter(created_at__gte=_midnight(wanted["since"]))
    if wanted.get("until"):
        rows = rows.filter(created_at__lt=_midnight(wanted["until"] + timedelta(days=1)))
    text = wanted.get("text") or ""
    return Search(rows, ("-created_at", "-pk"), _conditions(wanted), text, "pair__prompt__messages")


def _conditions(wanted: dict[str, Any]) -> Q:
    said_else = Preference.objects.counted().filter(pair=OuterRef("pair")).exclude(choice=OuterRef("choice"))
    decided = Q(choice__in=[Choice.A, Choice.B])
    asked = {
        "choice": Q(choice=wanted.get("choice")),
        "strong": Q(is_strong=True),
        "comment": ~Q(comment=""),
        "rewrite": Q(rewrite__isnull=False),
        "repeat": Q(is_repeat=True),
        "gold": ~Q(pair__gold_choice=""),
        "conflict": Q(Exists(said_else)),
    }
    conditions = Q()
    for name, condition in asked.items():
        if wanted.get(name):
            conditions &= condition
    if wanted.get("side") == "left":
        conditions &= decided & Q(choice=F("shown_left"))
    elif wanted.get("side") == "right":
        conditions &= decided & ~Q(choice=F("shown_left"))
    return conditions


def _midnight(day: Any) -> datetime:
    return timezone.make_aware(datetime.combine(day, time()))


def _value(row: Model, path: str) -> Any:
    value: Any = row
    for name in path.split("__"):
        value = getattr(value, name)
    return value
