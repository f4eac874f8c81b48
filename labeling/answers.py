"""What an annotator may say beside the choice, and its checks. Pure but for the project whose rules it reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from django.utils.formats import number_format
from django.utils.translation import gettext

from labeling.exceptions import LabelingError
from labeling.models import Choice, Project
from labeling.prompts import InvalidPrompt, clean_text, normalise

MAX_COMMENT_CHARACTERS = 5_000
MAX_REWRITE_CHARACTERS = 100_000
CRITERION_CHOICES = (Choice.A, Choice.B, Choice.TIE)


class AnswerRejected(LabelingError):
    """An answer that cannot be stored as it is; the sentence says what to change. Nothing of it was stored."""


@dataclass(frozen=True)
class Details:
    """What goes with a choice. ``criteria``: by name "a", "b" or "tie"; ``seconds``: the pair's time on the screen.

    ``guidelines_version``: the version that the page showed; ``None`` means the current one.
    """

    is_strong: bool = False
    criteria: dict[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    comment: str = ""
    rewrite: str = ""
    seconds: float | None = None
    guidelines_version: int | None = None


NOTHING_MORE = Details()


def check_answer(project: Project, choice: str, details: Details) -> Details:
    """Return the details as they are stored, or raise ``AnswerRejected``."""
    if choice not in Choice.values:
        told = {"choice": choice[:40], "known": ", ".join(Choice.values)}
        raise AnswerRejected(gettext("“%(choice)s” is not a choice; use one of %(known)s.") % told)
    if details == NOTHING_MORE:
        return details
    _check_criteria(project, details.criteria)
    check_reasons(project, details.reasons)
    rewrite = _cleaned(gettext("rewrite"), details.rewrite, MAX_REWRITE_CHARACTERS)
    if rewrite and not project.allows_rewrites:
        raise AnswerRejected(gettext("This project takes no rewrites. Remove it, or ask an admin to allow them."))
    if rewrite and choice not in (Choice.A, Choice.B):
        raise AnswerRejected(gettext("A rewrite improves one of the two responses; say which one is better."))
    return Details(
        is_strong=details.is_strong and project.asks_strength and choice in (Choice.A, Choice.B),
        criteria=details.criteria,
        reasons=details.reasons,
        comment=clean_comment(details.comment),
        rewrite=rewrite,
        seconds=details.seconds,
        guidelines_version=details.guidelines_version,
    )


def check_reasons(project: Project, reasons: tuple[str, ...]) -> None:
    if unknown := next((reason for reason in reasons if reason not in project.reason_chips), None):
        told = {"reason": unknown[:40], "known": ", ".join(project.reason_chips)}
        raise AnswerRejected(gettext("“%(reason)s” is not a reason of this project; its are: %(known)s") % told)


def clean_comment(comment: str) -> str:
    return _cleaned(gettext("comment"), comment, MAX_COMMENT_CHARACTERS)


def is_same_text(first: str, second: str) -> bool:
    """Whether a reader could not tell the two apart."""
    return normalise(first) == normalise(second)


def _check_criteria(project: Project, criteria: dict[str, str]) -> None:
    for name, choice in criteria.items():
        if name not in project.criteria:
            told = {"name": name[:40], "known": ", ".join(project.criteria) or gettext("none")}
            raise AnswerRejected(gettext("“%(name)s” is not a criterion of this project; it has %(known)s.") % told)
        if choice not in CRITERION_CHOICES:
            told = {"name": name[:40], "known": ", ".join(CRITERION_CHOICES)}
            raise AnswerRejected(gettext("“%(name)s” takes one of %(known)s.") % told)


def _cleaned(what: str, text: str, most: int) -> str:
    if len(text) > most:
        told = {"what": what, "count": number_format(len(text), force_grouping=True), "most": most}
        raise AnswerRejected(
            gettext("Too long: %(what)s, with %(count)s characters; at most %(most)d are kept.") % told
        )
    try:
        return clean_text(text)
    except InvalidPrompt as error:
        told = {"what": what, "why": error}
        raise AnswerRejected(gettext("This cannot be kept: %(what)s. %(why)s") % told) from None
