"""Which version of the guidelines somebody has read."""

from __future__ import annotations

from labeling.models import Preference, Project


def version_last_judged_with(project: Project, annotator_id: int) -> int | None:
    """Which version of the guidelines this person had at their newest judgement; ``None`` before their first.

    One look into the index by person and time.
    """
    mine = Preference.objects.filter(project=project, annotator_id=annotator_id).order_by("-created_at")
    return mine.values_list("guidelines_version", flat=True).first()


def version_read_by(project: Project, annotator_id: int) -> int:
    """What a page that opens takes as read: the version they judged with last. Newcomers start with the current one."""
    return version_last_judged_with(project, annotator_id) or project.guidelines_version
