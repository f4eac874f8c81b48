"""The prompts of a project: what is there, and import."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.formats import number_format
from django.utils.translation import gettext
from django.views.decorators.http import require_http_methods

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.exceptions import ImportRejected
from labeling.forms import PromptImportForm
from labeling.importers import import_prompts
from labeling.models import Prompt
from labeling.views.projects import project_context

PROMPTS_PER_PAGE = 50


@require_http_methods(["GET", "POST"])
@login_required
def prompts(request: SignedInRequest, slug: str) -> HttpResponse:
    roles = REVIEWERS if request.method == "GET" else ADMINS
    project = project_or_404(request.user, slug, roles)
    form = PromptImportForm(request.POST or None, request.FILES or None)
    problems: list[str] = []
    if request.method == "POST" and form.is_valid():
        try:
            report = import_prompts(project=project, file=form.cleaned_data["file"])
        except ImportRejected as error:
            problems = [str(problem) for problem in error.problems]
        else:
            told = {
                name: number_format(count, force_grouping=True)
                for name, count in (("added", report.added), ("known", report.duplicates))
            }
            messages.success(request, gettext("%(added)s prompts imported, %(known)s were here already.") % told)
            return redirect("labeling:prompts", slug=slug)
    page = Paginator(Prompt.objects.filter(project=project).order_by("-pk"), PROMPTS_PER_PAGE).get_page(
        request.GET.get("page")
    )
    context = project_context(request, project) | {"form": form, "problems": problems, "page": page}
    status = 400 if problems or form.errors else 200
    return render(request, "labeling/prompts.html", context, status=status)
