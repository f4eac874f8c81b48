"""The guidelines of a project: the current ones, their versions and what changed between two, and writing new ones."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.access import ADMINS, SignedInRequest, project_or_404
from labeling.difference import difference
from labeling.exceptions import GuidelinesChanged, LabelingError
from labeling.models import Guidelines, Project
from labeling.models.projects import MAX_GUIDELINES_CHARACTERS
from labeling.project_forms import GuidelinesForm
from labeling.rendering import render_text
from labeling.services import set_guidelines
from labeling.views.projects import project_context

VERSIONS_PER_PAGE = 20


@require_GET
@login_required
def guidelines(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    versions = Guidelines.objects.filter(project=project).select_related("author").defer("text")
    page = Paginator(versions, VERSIONS_PER_PAGE).get_page(request.GET.get("page"))
    context = project_context(request, project) | {
        "current": _version(project, project.guidelines_version),
        "guidelines_html": render_text(project.guidelines),
        "page": page,
    }
    return render(request, "labeling/guidelines.html", context)


@require_GET
@login_required
def guidelines_version(request: SignedInRequest, slug: str, version: int) -> HttpResponse:
    """One version, and what is different from another one: ``against``, else the one before it."""
    project = project_or_404(request.user, slug)
    newer = _version(project, version)
    older = _version(project, _number(request.GET.get("against"), version - 1))
    if newer is None:
        messages.error(request, gettext("There is no version %(version)d of these guidelines.") % {"version": version})
        return redirect("labeling:guidelines", slug=slug)
    if older and older.version > newer.version:
        older, newer = newer, older
    context = project_context(request, project) | {
        "version": newer,
        "older": older,
        "difference": difference(older.text, newer.text) if older else None,
        "version_html": render_text(newer.text),
        "others": Guidelines.objects.filter(project=project).exclude(pk=newer.pk).values_list("version", flat=True),
    }
    return render(request, "labeling/guidelines_version.html", context)


@require_http_methods(["GET", "POST"])
@login_required
def edit_guidelines(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    if request.method == "GET":
        first = {"text": project.guidelines, "based_on": project.guidelines_version}
        return _edit_page(request, project, GuidelinesForm(initial=first))
    form = GuidelinesForm(request.POST)
    if form.is_valid():
        try:
            written = set_guidelines(project=project, author=request.user, **form.cleaned_data)
        except GuidelinesChanged as conflict:
            return _conflict_page(request, project, form, conflict)
        except LabelingError as error:
            form.add_error("text", str(error))
        else:
            told = {"version": written.version}
            messages.success(request, gettext("Version %(version)d is what everybody reads now.") % told)
            return redirect("labeling:guidelines", slug=slug)
    return _edit_page(request, project, form)


@require_POST
@login_required
def preview_guidelines(request: SignedInRequest, slug: str) -> HttpResponse:
    """The text that somebody is writing, as it will be read. Stores nothing."""
    project_or_404(request.user, slug, ADMINS)
    html = render_text(request.POST.get("text", "")[:MAX_GUIDELINES_CHARACTERS])
    return render(request, "labeling/guidelines_edit.html#preview", {"preview_html": html})


def _conflict_page(
    request: SignedInRequest, project: Project, form: GuidelinesForm, conflict: GuidelinesChanged
) -> HttpResponse:
    """The author's text stays in the form, beside what somebody else has written; saving again means it."""
    theirs = _version(project, conflict.newest)
    before = _version(project, form.cleaned_data["based_on"])
    again = GuidelinesForm(initial=form.cleaned_data | {"based_on": conflict.newest})
    context = {
        "conflict": str(conflict),
        "theirs": theirs,
        "before": before,
        "difference": difference(before.text, theirs.text) if before and theirs else None,
    }
    return _edit_page(request, project, again, context, status=409)


def _edit_page(
    request: SignedInRequest,
    project: Project,
    form: GuidelinesForm,
    more: dict[str, Any] | None = None,
    *,
    status: int = 200,
) -> HttpResponse:
    text = form["text"].value() or ""
    context = project_context(request, project) | {"form": form, "preview_html": render_text(text)} | (more or {})
    return render(request, "labeling/guidelines_edit.html", context, status=400 if form.errors else status)


def _version(project: Project, version: int) -> Guidelines | None:
    return Guidelines.objects.filter(project=project, version=version).select_related("author").first()


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 6 else otherwise
