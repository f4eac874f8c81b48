"""The annotate page over HTTP: one key, one request, the next pair."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from labeling import queue
from labeling.models import Preference, Prompt, Skip, Slot
from labeling.services import add_prompts

HTMX = {"HX-Request": "true"}


@pytest.fixture
def url(project):
    return lambda name: reverse(f"labeling:{name}", args=[project.slug])


@pytest.fixture
def client(sign_in, annotator):
    return sign_in(annotator)


def _token(response) -> str:
    return _token_of(response.content.decode())


def _token_of(page: str) -> str:
    return re.search(r'name="token" value="([^"]+)"', page).group(1)


def test_the_page_shows_prompt_and_both_answers(client, url, make_pair):
    pair = make_pair("Answer **one**", "Answer two")
    page = client.get(url("annotate")).content.decode()
    assert str(pair.prompt) in page
    assert "Answer <strong>one</strong>" in page
    assert "Answer two" in page


def test_a_conversation_shows_every_turn_with_its_role(client, url, project, make_pair):
    chat = [
        {"role": "system", "content": "Be a pirate."},
        {"role": "user", "content": "First question"},
        {"role": "assistant", "content": "First answer"},
        {"role": "user", "content": "Second question"},
    ]
    add_prompts(project=project, prompts=[chat])
    make_pair(prompt=Prompt.objects.get())
    page = client.get(url("annotate")).content.decode()
    places = [page.index(message["content"]) for message in chat]
    assert places == sorted(places)
    assert "3 earlier messages" in page


@pytest.mark.parametrize(("side", "is_left"), [("left", True), ("right", False)])
def test_a_vote_by_side_is_stored_by_response(client, url, make_pair, side, is_left):
    make_pair()
    response = client.post(url("submit"), {"token": _token(client.get(url("annotate"))), "choice": side}, headers=HTMX)
    assert response.status_code == 200
    preference = Preference.objects.get()
    assert (preference.choice == preference.shown_left) == is_left


def test_a_vote_answers_with_the_next_pair_as_a_fragment(client, url, make_pair):
    make_pair("One", "Two")
    make_pair("Three", "Four")
    first = _token(client.get(url("annotate")))
    response = client.post(url("submit"), {"token": first, "choice": "tie"}, headers=HTMX)
    assert b"<html" not in response.content
    assert _token(response) != first


def test_without_javascript_a_vote_leads_back_to_the_page(client, url, make_pair):
    make_pair()
    response = client.post(url("submit"), {"token": _token(client.get(url("annotate"))), "choice": "both_bad"})
    assert response.status_code == 302
    assert Preference.objects.get().choice == "both_bad"


def test_a_second_submit_of_the_same_pair_says_so_and_counts_once(client, url, make_pair):
    make_pair()
    token = _token(client.get(url("annotate")))
    for choice in ("left", "right"):
        response = client.post(url("submit"), {"token": token, "choice": choice}, headers=HTMX)
    assert "counts once" in response.content.decode()
    assert Preference.objects.count() == 1


def test_a_tampered_token_is_an_error_on_the_page_and_nothing_is_stored(client, url, make_pair):
    make_pair()
    response = client.post(url("submit"), {"token": "nonsense", "choice": "left"}, headers=HTMX)
    assert "could not be recognised" in response.content.decode()
    assert not Preference.objects.exists()


def test_skip_brings_the_next_pair(client, url, make_pair):
    make_pair()
    response = client.post(url("skip"), {"token": _token(client.get(url("annotate")))}, headers=HTMX)
    assert "every pair" in response.content.decode()
    assert Skip.objects.count() == 1


def test_skip_in_an_old_tab_keeps_the_answer_and_says_so(client, url, make_pair):
    make_pair()
    token = _token(client.get(url("annotate")))
    client.post(url("submit"), {"token": token, "choice": "left"}, headers=HTMX)
    assert "answered that pair already" in client.post(url("skip"), {"token": token}, headers=HTMX).content.decode()
    assert "Nothing was skipped" in client.post(url("skip"), headers=HTMX).content.decode()
    assert Preference.objects.filter(is_current=True).count() == 1
    assert not Skip.objects.exists()


def test_waiting_does_not_promise_a_pair_that_was_skipped(client, url, project, other_annotator, make_pair):
    make_pair()
    client.post(url("skip"), {"token": _token(client.get(url("annotate")))}, headers=HTMX)
    queue.lease_next(project, other_annotator.pk)
    assert "every pair" in client.get(url("annotate")).content.decode()


def test_undo_shows_the_old_answer(client, url, make_pair):
    make_pair()
    client.post(url("submit"), {"token": _token(client.get(url("annotate"))), "choice": "right"}, headers=HTMX)
    page = client.post(url("undo"), headers=HTMX).content.decode()
    assert 'data-previous="right"' in page
    assert "You chose right." in page
    whole = client.get(url("annotate")).content.decode()
    assert re.search(r'value="right"[^>]*aria-pressed="true"', whole), "without JavaScript the button says it"
    assert client.post(url("undo"), headers=HTMX).status_code == 200


def test_undo_with_nothing_to_undo_says_so(client, url):
    assert "no judgement" in client.post(url("undo"), headers=HTMX).content.decode()


def test_renewing_a_lease(client, url, project, other_annotator, annotator, make_pair):
    make_pair()
    token = _token(client.get(url("annotate")))
    assert client.post(url("renew"), {"token": token}).status_code == 204
    Slot.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    queue.lease_next(project, other_annotator.pk)
    taken = client.post(url("renew"), {"token": token})
    assert (taken.status_code, "Somebody else has this pair" in taken.content.decode()) == (409, True)
    assert client.post(url("renew"), {"token": "nonsense"}).status_code == 410
    assert client.post(url("renew")).status_code == 410


def test_renewing_says_that_another_tab_has_answered(client, url, make_pair):
    make_pair()
    token = _token(client.get(url("annotate")))
    client.post(url("submit"), {"token": token, "choice": "tie"}, headers=HTMX)
    renewed = client.post(url("renew"), {"token": token})
    assert (renewed.status_code, "in another tab" in renewed.content.decode()) == (409, True)
    assert renewed.headers["Content-Type"].startswith("text/plain")


def test_waiting_says_why(client, url, project, other_annotator, make_prompt, make_pair):
    assert "No prompts yet" in client.get(url("annotate")).content.decode()
    make_prompt()
    assert "No pairs yet" in client.get(url("annotate")).content.decode()
    make_pair()
    queue.lease_next(project, other_annotator.pk)
    assert "with other people" in client.get(url("annotate")).content.decode()
    project.is_paused = True
    project.save()
    assert "paused" in client.get(url("annotate")).content.decode()


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "[x](javascript:alert(1)) ![](https://example.org/track.png)",
        '<div hx-get="/sign-out/" hx-trigger="load">x</div>',
        "مرحبا بالعالم 👋🏽 日本語",
        "control \x07 and bidi \u202e characters",
        "word " * 40_000,
    ],
)
def test_hostile_and_unusual_text_is_shown_safely(client, url, make_pair, text):
    make_pair(text, "Plain")
    page = client.get(url("annotate"))
    assert page.status_code == 200
    desk = page.content.decode().split('id="desk"', 1)[1]
    assert "<script>alert" not in desk
    assert "<img" not in desk
    assert "javascript:alert" not in re.sub(r"\[x\]\(javascript:alert\(1\)\)", "", desk)
    assert '<div hx-get="/sign-out/"' not in desk
    assert "\u202e" not in desk
    assert "\x07" not in desk


def test_access(client, url, sign_in, stranger, anonymous_client, make_pair):
    make_pair()
    assert sign_in(stranger).get(url("annotate")).status_code == 404
    assert anonymous_client.get(url("annotate")).status_code == 302
    fragment = anonymous_client.get(url("annotate"), headers=HTMX)
    assert fragment.headers["HX-Redirect"] == reverse("login")
    assert client.get(url("submit")).status_code == 405


def test_the_bar_stays_while_the_pairs_change_and_keeps_the_keyboard_focus(client, url, make_pair):
    make_pair()
    assert "data-action" not in client.get(url("annotate"), headers=HTMX).content.decode()
    page = client.get(url("annotate")).content.decode()
    assert len(re.findall(r"<button[^>]*data-action", page)) == 6


def test_a_fragment_brings_the_pair_after_it_and_leaves_out_what_the_page_shows(client, url, make_pair):
    for _ in range(3):
        make_pair()
    whole = client.get(url("annotate")).content.decode()
    shown = re.search(r'data-key="([0-9a-f]{16})"', whole).group(1)
    turn = client.get(url("annotate"), {"shown": shown}, headers=HTMX).content.decode()
    ahead = re.findall(r'data-key="([0-9a-f]{16})"', turn)
    assert len(ahead) == 1
    assert ahead[0] != shown
    voted = client.post(url("submit"), {"token": _token_of(whole), "choice": "left", "shown": ahead[0]}, headers=HTMX)
    following = re.findall(r'data-key="([0-9a-f]{16})"', voted.content.decode())
    assert len(following) == 1
    assert following[0] not in (shown, ahead[0])
    assert sorted(Slot.objects.filter(state="leased").values_list("is_ahead", flat=True)) == [False, True]


def test_a_page_that_goes_gives_back_what_it_held_unseen(client, url, make_pair):
    make_pair()
    make_pair()
    client.get(url("annotate"), headers=HTMX)
    assert client.post(url("give-back")).status_code == 204
    assert sorted(Slot.objects.values_list("state", flat=True)) == ["leased", "open"]


def test_a_vote_carries_what_the_project_asks_for(client, url, project, make_pair):
    project.criteria = ["Correct", "Kind"]
    project.save()
    make_pair()
    said = {"is_strong": "on", "criterion-0": "right", "reasons": ["Clearer", "Safer"], "comment": " Why not. "}
    token = _token(client.get(url("annotate")))
    vote = {"token": token, "choice": "left", "rewrite": "Better still.", "seconds": "0.001", **said}
    client.post(url("submit"), vote, headers=HTMX)
    preference = Preference.objects.get()
    other = "b" if preference.choice == "a" else "a"
    assert (preference.is_strong, preference.criteria) == (True, {"Correct": other})
    assert (preference.reasons, preference.comment) == (["Clearer", "Safer"], "Why not.")
    assert preference.rewrite.response.text == "Better still."
    assert preference.seconds == 0.001
    reopened = client.post(url("undo"), headers=HTMX).content.decode()
    assert "Better still.</textarea>" in reopened
    assert re.search(r'name="criterion-0" value="right" checked', reopened)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"choice": "tie", "rewrite": "Better."}, "say which one is better"),
        ({"choice": "left", "reasons": "Because"}, "is not a reason of this project"),
        ({"choice": "left", "comment": "x" * 5001}, "not a vote this page knows"),
        ({"choice": "left", "comment": "half \ud800".encode("utf-8", "surrogatepass").decode("latin-1")}, ""),
    ],
)
def test_what_cannot_be_stored_is_said_and_nothing_is(client, url, make_pair, said, why):
    make_pair()
    token = _token(client.get(url("annotate")))
    response = client.post(url("submit"), {"token": token, **said}, headers=HTMX)
    if why:
        assert response.status_code == 409
        assert why in response.content.decode()
        assert not Preference.objects.exists()
    else:
        assert response.status_code == 200, "odd text is text"


def test_a_rewrite_that_changes_nothing_is_refused(client, url, make_pair):
    make_pair("The same", "Another")
    page = client.get(url("annotate"))
    side = "left" if Slot.objects.get().shown_left == "a" else "right"
    vote = {"token": _token(page), "choice": side, "rewrite": "the  SAME"}
    assert "same as the response" in client.post(url("submit"), vote, headers=HTMX).content.decode()
    assert not Preference.objects.exists()


def test_reasons_can_be_said_after_the_vote(client, url, make_pair):
    make_pair()
    token = _token(client.get(url("annotate")))
    client.post(url("submit"), {"token": token, "choice": "left"}, headers=HTMX)
    assert client.post(url("reasons"), {"token": token, "reasons": ["Safer"]}).status_code == 204
    assert Preference.objects.get().reasons == ["Safer"]
    assert client.post(url("reasons"), {"token": token, "reasons": ["Because"]}).status_code == 409
    assert client.post(url("reasons")).status_code == 400
    client.post(url("undo"), headers=HTMX)
    again = _token(client.get(url("annotate")))
    assert client.post(url("reasons"), {"token": again, "reasons": ["Safer"]}).status_code == 409, "not judged yet"


def test_a_share_of_the_votes_must_say_why(client, url, project, make_pair):
    project.reasons_percent = 100
    project.save()
    make_pair()
    page = client.get(url("annotate"))
    assert "data-asks-reason" in page.content.decode()
    vote = {"token": _token(page), "choice": "left"}
    assert "needs a reason" in client.post(url("submit"), vote, headers=HTMX).content.decode()
    assert client.post(url("submit"), {**vote, "reasons": "Safer"}, headers=HTMX).status_code == 200
    assert Preference.objects.get().reasons == ["Safer"]


def test_the_difference_shows_the_sides_of_the_page(client, url, make_pair):
    make_pair("One red apple", "One green apple")
    page = client.get(url("annotate"))
    left = client.get(url("difference"), {"token": _token(page)}).json()["left"]
    assert ("red" if Slot.objects.get().shown_left == "a" else "green") in left
    assert client.get(url("difference"), {"token": "nonsense"}).status_code == 410
    assert client.get(url("difference")).status_code == 400


def test_a_skip_says_why_and_a_problem_calls_a_reviewer(client, url, make_pair):
    pair = make_pair()
    skip = {"token": _token(client.get(url("annotate"))), "reason": "broken", "note": "It is empty."}
    client.post(url("skip"), skip, headers=HTMX)
    assert Skip.objects.values_list("reason", "note").get() == ("broken", "It is empty.")
    pair.refresh_from_db()
    assert (pair.review, pair.skips_count) == ("flag", 1)
    assert _token(client.post(url("undo"), headers=HTMX)), "an undo brings the skipped pair back"
    pair.refresh_from_db()
    assert (Skip.objects.count(), pair.skips_count) == (0, 0)


def test_a_request_that_hangs_ends(client, url):
    config = re.search(r"name=\"htmx-config\"\s+content='([^']+)'", client.get(url("annotate")).content.decode())
    assert 5_000 <= json.loads(config.group(1))["timeout"] <= 60_000


def test_pages_are_not_kept_by_caches(client, url, make_pair):
    make_pair()
    assert "no-store" in client.get(url("annotate")).headers["Cache-Control"]
