"""What somebody was told, in all of their projects, and what of it also comes by e-mail."""

from __future__ import annotations

from dataclasses import dataclass

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from labeling.access import SignedInRequest
from labeling.models import Membership, Project
from training.models import Notice, NoticeSetting
from training.notices import choose_emails, mark_read

NOTICES_PER_PAGE = 25


class AddressForm(forms.Form):
    email = forms.EmailField(required=False, max_length=254)


@dataclass(frozen=True)
class EmailChoice:
    """One row of the table of what comes by e-mail: a project, and whether each kind of event does."""

    project: Project
    kinds: list[tuple[str, str, bool]]


@require_GET
@login_required
def notices(request: SignedInRequest) -> HttpResponse:
    mine = Notice.objects.filter(user=request.user).select_related("project")
    context = {
        "page": Paginator(mine, NOTICES_PER_PAGE).get_page(request.GET.get("page")),
        "choices": _choices(request),
        "kinds": Notice.Kind.labels,
        "sends_email": bool(settings.EMAIL_HOST),
    }
    return render(request, "training/notices.html", context)


def _choices(request: SignedInRequest) -> list[EmailChoice]:
    kept = NoticeSetting.objects.filter(user=request.user).values_list("project_id", "not_by_email")
    without: dict[int, list[str]] = dict(kept)
    return [
        EmailChoice(
            project,
            [(kind, label, kind not in without.get(project.pk, [])) for kind, label in Notice.Kind.choices],
        )
        for project in _administered(request)
    ]


def _administered(request: SignedInRequest) -> list[Project]:
    role = Membership.Role.ADMIN
    return list(Project.objects.filter(memberships__user=request.user, memberships__role=role))


@require_GET
@login_required
def notice(request: SignedInRequest, pk: int) -> HttpResponse:
    """Go to what the notice is about, and count it as read."""
    found = get_object_or_404(Notice, pk=pk, user=request.user)
    mark_read(request.user, found.pk)
    return redirect(found.url)


@require_POST
@login_required
def mark_all_read(request: SignedInRequest) -> HttpResponse:
    mark_read(request.user)
    return redirect("notices")


@require_POST
@login_required
def save_emails(request: SignedInRequest) -> HttpResponse:
    """Keep the address, and for each project the kinds whose boxes are ticked."""
    form = AddressForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Not saved: that is no e-mail address.")
        return redirect("notices")
    request.user.email = form.cleaned_data["email"]
    request.user.save(update_fields=["email"])
    for project in _administered(request):
        choose_emails(request.user, project, set(request.POST.getlist(f"kinds-{project.pk}")))
    messages.success(request, "Saved.")
    return redirect("notices")
