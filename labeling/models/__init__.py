"""The rows of labeling. Which model wrote a response is not known here, so annotators are blind by construction."""

from labeling.models.judgements import Adjudication, Preference, Rewrite, SentBack, Skip, Slot, SlotQuerySet
from labeling.models.onboarding import QualificationAnswer, QualificationItem, QualificationResult
from labeling.models.pairs import Choice, Pair, Prompt, Response
from labeling.models.projects import Guidelines, KeyMap, Membership, Project, Seat
from labeling.models.reports import QualityReport
from labeling.models.withdrawals import Withdrawal

__all__ = [
    "Adjudication",
    "Choice",
    "Guidelines",
    "KeyMap",
    "Membership",
    "Pair",
    "Preference",
    "Project",
    "Prompt",
    "QualificationAnswer",
    "QualificationItem",
    "QualificationResult",
    "QualityReport",
    "Response",
    "Rewrite",
    "Seat",
    "SentBack",
    "Skip",
    "Slot",
    "SlotQuerySet",
    "Withdrawal",
]
