"""The qualification set: where newcomers take it, and where admins write it."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext, ngettext
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import onboarding
from labeling.access import ADMINS, SignedInRequest, project_or_404
from labeling.desk import BOTH_BAD, LEFT, RIGHT, TIE, choice_of, side_of
from labeling.exceptions import ImportRejected, LabelingError
from labeling.keys import keys_of, name_of
from labeling.models import Choice, Membership, Project, QualificationAnswer, QualificationItem, Slot
from labeling.pair_page import pair_or_404
from labeling.qualification_forms import MAX_ID, AnswerForm, ItemForm, ItemsFileForm
from labeling.qualification_items import add_item_of_pair, add_items, change_item, import_items, move_item, remove_item
from labeling.rendering import render_text
from labeling.views.projects import project_context

PEOPLE_PER_PAGE = 50


@require_GET
@login_required
def qualify(request: SignedInRequest, slug: str) -> HttpResponse:
    """The next comparison; what became of the last one (``after``); or how the set stands with this person."""
    project = project_or_404(request.user, slug)
    given = _given(request, project)
    standing = onboarding.arrive(project=project, annotator_id=request.user.pk)
    context = project_context(request, project) | {"standing": standing}
    if given:
        context |= _item_context(given.item, given.shown_left) | _feedback_context(given)
        return render(request, "labeling/qualify.html", context)
    if standing.is_qualified and not standing.items:
        return redirect("labeling:annotate", slug=slug)
    is_between = not standing.answered and "start" not in request.GET
    if standing.is_qualified or standing.is_out or standing.item is None or is_between:
        context["admins"] = _admins(project) if standing.is_out else []
        return render(request, "labeling/qualify_standing.html", context)
    side = onboarding.shown_left(standing.item.pk, request.user.pk, standing.attempt)
    context |= _item_context(standing.item, side) | {"votes": _votes(request)}
    return render(request, "labeling/qualify.html", context)


@require_POST
@login_required
def answer_item(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    form = AnswerForm(request.POST)
    try:
        if not form.is_valid():
            raise LabelingError(gettext("That is no answer this page knows. Please choose again."))
        item_id, attempt = form.cleaned_data["item"], form.cleaned_data["attempt"]
        side = onboarding.shown_left(item_id, request.user.pk, attempt)
        onboarding.answer(
            project=project,
            annotator_id=request.user.pk,
            item_id=item_id,
            attempt=attempt,
            choice=choice_of(form.cleaned_data["choice"], side),
        )
    except LabelingError as error:
        messages.error(request, str(error))
        return redirect("labeling:qualify", slug=slug)
    return redirect(f"{reverse('labeling:qualify', args=[slug])}?after={item_id}")


@require_GET
@login_required
def qualification(request: SignedInRequest, slug: str) -> HttpResponse:
    """The set and who has taken it, for admins."""
    project = project_or_404(request.user, slug, ADMINS)
    return _qualification_page(request, project, ItemsFileForm())


@require_POST
@login_required
def import_qualification(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    form = ItemsFileForm(request.POST, request.FILES)
    problems: list[str] = []
    if form.is_valid():
        try:
            count = import_items(project=project, file=form.cleaned_data["file"])
        except ImportRejected as error:
            problems = [str(problem) for problem in error.problems]
        except LabelingError as error:
            problems = [str(error)]
        else:
            told = ngettext("%(count)d item imported.", "%(count)d items imported.", count) % {"count": count}
            messages.success(request, told)
            return redirect("labeling:qualification", slug=slug)
    return _qualification_page(request, project, form, problems)


@require_http_methods(["GET", "POST"])
@login_required
def add_item(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    form = ItemForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            add_items(project=project, contents=[form.cleaned_data["content"]])
        except LabelingError as error:
            form.add_error(None, str(error))
        else:
            messages.success(request, gettext("The item was added at the end of the set."))
            return redirect("labeling:qualification", slug=slug)
    return _item_page(request, project, form, None)


@require_POST
@login_required
def item_of_pair(request: SignedInRequest, slug: str, pair_id: int) -> HttpResponse:
    """Copy a pair with its known answer into the set, and ask nobody else about it."""
    project = project_or_404(request.user, slug, ADMINS)
    pair = pair_or_404(project, pair_id)
    said = {name: request.POST.get(name, "") for name in ("choice", "explanation")}
    try:
        add_item_of_pair(pair=pair, **said, admin=request.user)
    except LabelingError as error:
        messages.error(request, str(error))
    else:
        told = gettext("The item was added at the end of the set. Nobody is asked about this pair any more.")
        messages.success(request, told)
    return redirect("labeling:pair", slug=slug, pair_id=pair.pk)


@require_http_methods(["GET", "POST"])
@login_required
def edit_item(request: SignedInRequest, slug: str, pk: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    item = _item_or_404(project, pk)
    form = ItemForm(request.POST or None, item=item)
    if request.method == "POST" and form.is_valid():
        try:
            change_item(item=item, content=form.cleaned_data["content"])
        except LabelingError as error:
            form.add_error(None, str(error))
        else:
            messages.success(request, gettext("The item was saved."))
            return redirect("labeling:qualification", slug=slug)
    return _item_page(request, project, form, item)


@require_POST
@login_required
def order_item(request: SignedInRequest, slug: str, pk: int) -> HttpResponse:
    """Move an item up or down, or take it out of the set."""
    project = project_or_404(request.user, slug, ADMINS)
    item = _item_or_404(project, pk)
    try:
        if request.POST.get("do") == "remove":
            remove_item(item=item)
            messages.success(request, gettext("The item was taken out of the set."))
        elif request.POST.get("do") in ("up", "down"):
            move_item(item=item, by=-1 if request.POST["do"] == "up" else 1)
    except LabelingError as error:
        messages.error(request, str(error))
    return redirect("labeling:qualification", slug=slug)


@require_POST
@login_required
def admit_person(request: SignedInRequest, slug: str, user_id: int) -> HttpResponse:
    """Let a member judge, or allow them one more try."""
    project = project_or_404(request.user, slug, ADMINS)
    member = _member_or_404(project, user_id)
    told = {"name": member.user.get_username()}
    try:
        if request.POST.get("do") == "admit":
            onboarding.admit(project=project, annotator_id=user_id)
            messages.success(request, gettext("%(name)s may judge now.") % told)
        elif request.POST.get("do") == "grant":
            told["left"] = str(onboarding.grant_try(project=project, annotator_id=user_id))
            messages.success(request, gettext("%(name)s has one more try; left now: %(left)s.") % told)
    except LabelingError as error:
        messages.error(request, str(error))
    return redirect("labeling:qualification", slug=slug)


def _votes(request: SignedInRequest) -> list[dict[str, str]]:
    """The answers with this person's keys, as on the annotate page."""
    keys = keys_of(request.user)
    labels = (
        (LEFT, gettext("Left is better"), gettext("First is better")),
        (RIGHT, gettext("Right is better"), gettext("Second is better")),
        (TIE, gettext("Equally good"), ""),
        (BOTH_BAD, gettext("Both bad"), ""),
    )
    return [
        {
            "value": value,
            "label": label,
            "stacked": stacked,
            "keys": " ".join(keys[value]),
            "cap": name_of(keys[value][0]) if keys[value] else "",
        }
        for value, label, stacked in labels
    ]


def _admins(project: Project) -> list[str]:
    admins = Membership.objects.filter(project=project, role=Membership.Role.ADMIN, user__is_active=True)
    return list(admins.order_by("user__username").values_list("user__username", flat=True)[:5])


def _given(request: SignedInRequest, project: Project) -> QualificationAnswer | None:
    after = request.GET.get("after", "")
    if not (after.isascii() and after.isdecimal() and int(after) <= MAX_ID):
        return None
    return onboarding.answer_to(project=project, annotator_id=request.user.pk, item_id=int(after))


def _item_context(item: QualificationItem, shown_left: str) -> dict[str, Any]:
    left, right = item.response_a, item.response_b
    if shown_left == Slot.Side.B:
        left, right = right, left
    turns = [{"role": message["role"], "html": render_text(message["content"])} for message in item.messages]
    return {
        "item": item,
        "earlier_turns": turns[:-1],
        "last_turn": turns[-1],
        "left": {"html": render_text(left), "cut": False},
        "right": {"html": render_text(right), "cut": False},
    }


def _feedback_context(given: QualificationAnswer) -> dict[str, Any]:
    return {
        "given": given,
        "said": side_of(given.choice, given.shown_left),
        "expected": side_of(given.item.choice, given.shown_left),
        "explanation_html": render_text(given.item.explanation),
    }


def _qualification_page(
    request: SignedInRequest, project: Project, form: ItemsFileForm, problems: list[str] | None = None
) -> HttpResponse:
    items = list(onboarding.set_of(project))
    members = Membership.objects.filter(project=project).select_related("user").order_by("user__username")
    page = Paginator(members, PEOPLE_PER_PAGE).get_page(request.GET.get("page"))
    context = project_context(request, project) | {
        "items": [_preview(item) for item in items],
        "needed": onboarding.needed_of(project, len(items)),
        "form": form,
        "problems": problems or [],
        "page": page,
        "people": onboarding.results_of(project, list(page.object_list)),
    }
    return render(request, "labeling/qualification.html", context, status=400 if problems or form.errors else 200)


def _preview(item: QualificationItem) -> dict[str, Any]:
    """An item as admins see it: A on the left, with the expected answer."""
    return _item_context(item, Slot.Side.A) | {
        "summary": item.messages[-1]["content"][:160],
        "expected": Choice(item.choice).label,
        "explanation_html": render_text(item.explanation),
    }


def _item_page(
    request: SignedInRequest, project: Project, form: ItemForm, item: QualificationItem | None
) -> HttpResponse:
    context = project_context(request, project) | {
        "form": form,
        "item": item,
        "answers": item.answers.count() if item else 0,
        "earlier_turns": [
            {"role": message["role"], "html": render_text(message["content"])} for message in form.earlier
        ],
    }
    return render(request, "labeling/qualification_item.html", context, status=400 if form.errors else 200)


def _item_or_404(project: Project, pk: int) -> QualificationItem:
    item = onboarding.set_of(project).filter(pk=pk).first()
    if item is None:
        raise Http404("No such item")
    return item


def _member_or_404(project: Project, user_id: int) -> Membership:
    member = Membership.objects.filter(project=project, user_id=user_id).select_related("user").first()
    if member is None:
        raise Http404("No such member")
    return member
