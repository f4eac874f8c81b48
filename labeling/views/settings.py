"""What the admins of a project decide: its settings, its members; and new projects, by staff."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext
from django.views.decorators.http import require_http_methods, require_POST

from labeling.access import ADMINS, SignedInRequest, project_or_404
from labeling.exceptions import LabelingError
from labeling.models import Membership, Project
from labeling.onboarding import set_of
from labeling.project_forms import MemberForm, NewProjectForm, SettingsForm
from labeling.project_settings import add_person, change_role, change_settings, remove_member
from labeling.services import create_project
from labeling.views.projects import project_context

MEMBERS_PER_PAGE = 50


@require_http_methods(["GET", "POST"])
@login_required
def project_settings(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    if request.method == "GET":
        return _settings_page(request, project, SettingsForm(instance=project), MemberForm())
    shown = project_or_404(request.user, slug, ADMINS)  # a form writes into the row it is given
    form = SettingsForm(request.POST, instance=shown)
    if form.is_valid():
        try:
            change_settings(project=project, changes=form.changes())
        except ValidationError as error:
            form.add_error(None, error)
        else:
            messages.success(request, gettext("The settings were saved."))
            return redirect("labeling:settings", slug=slug)
    return _settings_page(request, project, form, MemberForm())


@require_POST
@login_required
def add_project_member(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    form = MemberForm(request.POST)
    if form.is_valid():
        try:
            member = add_person(project=project, **form.cleaned_data)
        except LabelingError as error:
            form.add_error("username", str(error))
        else:
            told = {"name": member.user.get_username(), "role": member.get_role_display()}
            messages.success(request, gettext("%(name)s is in the project now. Role: %(role)s.") % told)
            return redirect("labeling:settings", slug=slug)
    return _settings_page(request, project, SettingsForm(instance=project), form)


@require_POST
@login_required
def change_member(request: SignedInRequest, slug: str, user_id: int) -> HttpResponse:
    """Give a member another role, or take them out."""
    project = project_or_404(request.user, slug, ADMINS)
    try:
        if request.POST.get("do") == "remove":
            remove_member(project=project, user_id=user_id)
            told = gettext("That person is out of the project. What they judged stays.")
        else:
            member = change_role(project=project, user_id=user_id, role=request.POST.get("role", ""))
            names = {"name": member.user.get_username(), "role": member.get_role_display()}
            told = gettext("%(name)s has another role now: %(role)s.") % names
    except LabelingError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, told)
    if user_id == request.user.pk and not request.user.is_superuser:
        return redirect("home")  # this page may not be theirs any more
    return redirect("labeling:settings", slug=slug)


@require_http_methods(["GET", "POST"])
@login_required
def new_project(request: SignedInRequest) -> HttpResponse:
    if not request.user.is_staff:
        raise PermissionDenied(gettext("Projects are made by the people who run this installation."))
    form = NewProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        made = create_project(**form.cleaned_data, admin=request.user)
        messages.success(request, gettext("The project is there, and you are its admin. Next: guidelines and prompts."))
        return redirect("labeling:settings", slug=made.slug)
    return render(request, "labeling/new_project.html", {"form": form}, status=400 if form.errors else 200)


def _settings_page(request: SignedInRequest, project: Project, form: SettingsForm, new: MemberForm) -> HttpResponse:
    members = Membership.objects.filter(project=project).select_related("user").order_by("user__username")
    context = project_context(request, project) | {
        "form": form,
        "member_form": new,
        "page": Paginator(members, MEMBERS_PER_PAGE).get_page(request.GET.get("page")),
        "roles": Membership.Role.choices,
        "items": set_of(project).count(),
    }
    return render(request, "labeling/settings.html", context, status=400 if form.errors or new.errors else 200)
