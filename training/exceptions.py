"""What can go wrong between a request and a checkpoint. ``Rejected`` is for the person who asked."""

from __future__ import annotations


class Rejected(Exception):
    """A request that is refused, with the reason and what to do about it, for the person who made it."""


class Overtaken(Rejected):
    """What was decided on has changed meanwhile; whoever looks again decides anew."""


class ModelRejected(Rejected):
    """A model that cannot be added; the message lists every problem found."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class CheckpointDamaged(Rejected):
    """Files on disk that are no longer what the manifest says."""


class CheckpointRemoved(Rejected):
    """Weights that the retention rule has deleted; the row, the manifest and the card are still there."""


class LeaseLost(Exception):
    """Another worker, or nobody, owns the job now: this one must stop and write nothing more."""


class JobFailed(Exception):
    """A job that cannot succeed by being tried again; carries what to show."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code = code
        self.hint = hint
        super().__init__(message)
