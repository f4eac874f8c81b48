"""Old checkpoints: the rule, what it would delete now and what it keeps, and the button that does it."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.template.defaultfilters import filesizeformat
from django.views.decorators.http import require_http_methods, require_POST

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from training import retention as rules
from training.forms import RetentionForm
from training.views.frame import frame

KEPT_SHOWN = 50


@require_http_methods(["GET", "POST"])
@login_required
def retention(request: SignedInRequest, slug: str) -> HttpResponse:
    """The rule and its preview; saving needs an admin. The preview is always of the rule that is saved."""
    project = project_or_404(request.user, slug, ADMINS if request.method == "POST" else REVIEWERS)
    form = RetentionForm(request.POST or None, instance=rules.rule_of(project))
    if request.method == "POST" and form.is_valid():
        rule = form.save()
        messages.success(request, "Saved. The rule is looked at once a day." if rule.is_on else "Saved, and off.")
        return redirect("training:retention", slug=slug)
    rule = rules.rule_of(project)
    plan = rules.preview(project, rule)
    context = frame(request, project) | {
        "form": form,
        "rule": rule,
        "plan": plan,
        "kept": plan.kept[:KEPT_SHOWN],
        "kept_more": max(0, len(plan.kept) - KEPT_SHOWN),
    }
    return render(request, "training/retention.html", context, status=400 if form.errors else 200)


@require_POST
@login_required
def delete_now(request: SignedInRequest, slug: str) -> HttpResponse:
    """What the saved rule says, at once, whether it is on or not. What has come to be needed meanwhile is kept."""
    project = project_or_404(request.user, slug, ADMINS)
    rule = rules.rule_of(project)
    expected = rules.preview(project, rule)
    gone = rules.clear(project, rule)
    if not gone:
        messages.error(
            request,
            "Nothing was deleted: all checkpoints are needed, new, or without weights already, or the files cannot be "
            "deleted; then the log says why.",
        )
    else:
        freed = sum(expected.sizes.get(checkpoint.pk, 0) for checkpoint in gone)
        names = ", ".join(checkpoint.name for checkpoint in gone)
        messages.success(request, f"Deleted the weights of {names}: {filesizeformat(freed)}.")
    return redirect("training:retention", slug=slug)
