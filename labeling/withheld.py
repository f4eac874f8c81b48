"""What is not told to reviewers who label: what others said of a pair that they themselves have still to judge."""

from __future__ import annotations

from django.db.models import Exists, OuterRef

from labeling.models import Preference, Project, Slot


def withheld_from(project: Project, reader_id: int) -> frozenset[int]:
    """The pairs that this person holds to judge: the one before them, and the next one. A second look is one as well.

    A lease that ran out counts until it is swept, for its page may still be open. One that an undo has reopened holds
    an answer, so nothing can sway it that its author has not been free to read before.
    """
    answered = Preference.objects.filter(slot=OuterRef("pk"), is_current=True)
    held = Slot.objects.filter(project=project, annotator_id=reader_id, state=Slot.State.LEASED)
    return frozenset(held.exclude(Exists(answered)).values_list("pair_id", flat=True))
