"""What the newest promotion has changed on pairs that the reader has judged. For everybody, and of nobody else.

It names no model and says nothing of when one was trained: who reads this has pairs still to judge.
"""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from labeling.access import SignedInRequest, project_or_404, role_of
from training.models import LabelEffects
from training.own_effects import is_past, newest_effects, own_moves
from training.rule_changes import loop_rule


@require_GET
@login_required
def what_changed(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    effects = newest_effects(project)
    moves = own_moves(effects, request.user.pk) if effects else []
    context = {
        "project": project,
        "role": role_of(request.user, project),
        "moves": moves,
        "towards": sum(move.way == "towards" for move in moves),
        "away": sum(move.way == "away" for move in moves),
        "is_rollback": bool(effects and effects.promotion.is_rollback),
        "is_past": bool(effects and is_past(effects)),
        "is_off": not loop_rule(project).effects_per_person,
        "is_computing": LabelEffects.objects.active().filter(project=project).exists(),
    }
    return render(request, "training/my_labels.html", context)
