"""What reviewers sent back to somebody and they have not looked at yet.

A judgement that a dataset has used meanwhile is not among it: its author can change it no more.
"""

from __future__ import annotations

from labeling import rows
from labeling.models import Preference, Project, SentBack

COUNT = """
SELECT COUNT(*) FROM labeling_sentback back
JOIN labeling_preference mine ON mine.id = back.preference_id
WHERE back.settled_at IS NULL AND mine.annotator_id = %s AND mine.project_id = %s
AND mine.is_current AND mine.frozen_at IS NULL
"""
NOTE = "SELECT note FROM labeling_sentback WHERE settled_at IS NULL AND preference_id = %s"


def count_of(project_id: int, annotator_id: int) -> int:
    """How many wait: every page of the project says so, and every turn of the desk."""
    return int(rows.scalar(COUNT, [annotator_id, project_id]))


def waiting_for(project: Project, annotator_id: int, most: int) -> list[SentBack]:
    """The oldest ``most`` of them."""
    waiting = SentBack.objects.filter(
        settled_at=None,
        preference__annotator=annotator_id,
        preference__project=project,
        preference__is_current=True,
        preference__frozen_at=None,
    )
    return list(waiting.select_related("reviewer", "preference__pair__prompt").order_by("pk")[:most])


def note_of(preference: Preference) -> str:
    """Why this judgement was sent back; empty where it was not, or has been looked at since."""
    return str(rows.scalar(NOTE, [preference.pk]) or "")
