"""With which version of the guidelines somebody judged last, and whether there is a newer one."""

from __future__ import annotations

from labeling.models import Preference, Project


def version_last_judged_with(project: Project, annotator_id: int) -> int | None:
    """Which version of the guidelines this person had at their newest judgement; ``None`` before their first.

    One look into the index by person and time.
    """
    mine = Preference.objects.filter(project=project, annotator_id=annotator_id).order_by("-created_at")
    return mine.values_list("guidelines_version", flat=True).first()


def newer_version_for(project: Project, annotator_id: int) -> int | None:
    """The current version, if this person has judged with an older one and with none since."""
    last = version_last_judged_with(project, annotator_id)
    return project.guidelines_version if last is not None and last < project.guidelines_version else None
