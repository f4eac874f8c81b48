"""The keys of the annotate page, as somebody likes them."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext
from django.views.decorators.http import require_http_methods

from labeling.access import SignedInRequest
from labeling.keys import ACTIONS, MOST_KEYS, USUAL, KeysRejected, keys_of, name_of, reset_keys, save_keys


@require_http_methods(["GET", "POST"])
@login_required
def keys(request: SignedInRequest) -> HttpResponse:
    if request.method == "GET":
        return _page(request, keys_of(request.user), {})
    if request.POST.get("do") == "reset":
        reset_keys(user=request.user)
        messages.success(request, gettext("The usual keys are back."))
        return redirect("keys")
    typed = {action: request.POST.getlist(action)[:MOST_KEYS] for action in USUAL}
    try:
        save_keys(user=request.user, keys=typed)
    except KeysRejected as error:
        return _page(request, typed, error.problems)
    messages.success(request, gettext("Your keys were saved. They hold from the next page on."))
    return redirect("keys")


def _page(request: SignedInRequest, chosen: dict[str, list[str]], problems: dict[str, str]) -> HttpResponse:
    rows = [
        {
            "action": action,
            "label": label,
            "fields": [_field(chosen, action, place, is_wrong=action in problems) for place in range(MOST_KEYS)],
            "usual": [name_of(key) for key in USUAL[action]],
            "problem": problems.get(action, ""),
        }
        for action, label in ACTIONS.items()
    ]
    context = {"rows": rows, "problems": problems}
    return render(request, "labeling/keys.html", context, status=400 if problems else 200)


def _field(chosen: dict[str, list[str]], action: str, place: int, *, is_wrong: bool) -> dict[str, Any]:
    """One of an action's keys; what could not be read stays as it was typed."""
    keys_of_action = chosen.get(action, [])
    value = keys_of_action[place] if place < len(keys_of_action) else ""
    return {
        "id": f"key-{action}-{place + 1}",
        "number": place + 1,
        "value": value if is_wrong else name_of(value) if value else "",
    }
