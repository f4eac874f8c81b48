"""The door, the projects of a person, and one project's own page."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET

from labeling import places, rows
from labeling.access import SignedInRequest, project_or_404, role_of
from labeling.models import Project
from labeling.rendering import render_text

DONE_SINCE = """
SELECT COUNT(*) FROM labeling_preference
WHERE project_id = %s AND annotator_id = %s AND created_at >= %s AND is_current
"""


class SignIn(LoginView):
    """The door. Whoever is in already goes where they wanted to go, and not back to the door."""

    template_name = "sign_in.html"
    redirect_authenticated_user = True

    def get_redirect_url(self) -> str:  # type: ignore[override]  # the stubs are of a later Django
        wanted: str = super().get_redirect_url()
        return "" if wanted.startswith(self.request.path) else wanted


@require_GET
@login_required
def home(request: SignedInRequest) -> HttpResponse:
    projects = list(Project.objects.visible_to(request.user)[:200])
    if len(projects) == 1:
        return redirect(projects[0])
    return render(request, "labeling/home.html", {"projects": projects})


@require_GET
@login_required
def project(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    context = project_context(request, project) | {
        "guidelines_html": render_text(project.guidelines),
        "done_today": done_today(request, project),
        "open_pairs": places.open_at_least(project, request.user.pk),
    }
    return render(request, "labeling/project.html", context)


def project_context(request: SignedInRequest, project: Project) -> dict[str, Any]:
    """What the frame of every page of a project needs."""
    return {"project": project, "role": role_of(request.user, project)}


def done_today(request: SignedInRequest, project: Project) -> int:
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    return int(rows.scalar(DONE_SINCE, [project.pk, request.user.pk, rows.moment(midnight)]))
