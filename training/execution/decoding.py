"""How pairs of a project are decoded now."""

from __future__ import annotations

from labeling.models import Project
from training.models import SampleBatch
from training.recipe import Decoding


def decoding_in_use(project: Project) -> Decoding:
    """As of the newest batch, so that whatever people are shown beside its pairs reads like them."""
    newest = SampleBatch.objects.filter(project=project).order_by("pk").last()
    return Decoding.from_dict(newest.decoding) if newest else Decoding()
