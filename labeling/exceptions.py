"""What can go wrong in labeling, said so that a person knows what to do. Views, API and commands translate these."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.translation import gettext


class LabelingError(Exception):
    """A request that cannot be carried out; the message is for the person who made it."""


class LeaseGone(LabelingError):
    """The lease is not this person's, was tampered with, or belongs to a pair that no longer exists."""


class AlreadyAnswered(LabelingError):
    """The annotator has answered this pair from another page since this one was opened; that answer stays."""


class NothingToUndo(LabelingError):
    """The annotator has no judgement in this project that could be reopened."""


class Frozen(LabelingError):
    """The judgement is part of a dataset by now, so nobody changes it."""


class NotQualified(LabelingError):
    """The person has still to pass the project's qualification set."""


class GuidelinesChanged(LabelingError):
    """Somebody else has written a version of the guidelines since this author began; theirs is not written."""

    def __init__(self, newest: int) -> None:
        self.newest = newest
        super().__init__(
            gettext("Somebody has saved version %(version)d meanwhile, so yours was not written over it.")
            % {"version": newest}
        )


@dataclass(frozen=True)
class LineProblem:
    """One thing wrong with one line of an import; ``line`` counts from 1."""

    line: int
    message: str

    def __str__(self) -> str:
        return gettext("Line %(line)d: %(message)s") % {"line": self.line, "message": self.message}


class ImportRejected(LabelingError):
    """An import with at least one bad line; nothing of it was stored."""

    def __init__(self, problems: list[LineProblem], more: bool = False) -> None:
        self.problems = problems
        self.more = more
        lines = "\n".join(str(problem) for problem in problems)
        tail = "\n" + gettext("… and more; only the first problems are listed.") if more else ""
        told = gettext("Nothing was imported. Mend these lines and import the file again:")
        super().__init__(f"{told}\n{lines}{tail}")
