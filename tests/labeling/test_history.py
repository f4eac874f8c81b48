"""One's own judgements: seen by nobody else, open to change until a dataset has used them."""

from __future__ import annotations

import pytest
from django.urls import reverse

from labeling import queue
from labeling.answers import Details
from labeling.models import Preference, Slot
from labeling.review import send_back
from labeling.services import freeze_preferences


@pytest.fixture
def history(project):
    return reverse("labeling:history", args=[project.slug])


@pytest.fixture
def judge_next(project):
    def judge_next(user, choice: str = "a") -> Preference:
        return queue.submit(project, queue.lease_next(project, user.pk).token, user.pk, choice).preference

    return judge_next


def _reopen(client, project, preference):
    return client.post(reverse("labeling:reopen", args=[project.slug, preference.pk]), follow=True)


def test_the_newest_comes_first_with_its_side(project, annotator, sign_in, history, make_pair, judge_next):
    for _ in range(2):
        make_pair("Text of A", "Text of B")
    judge_next(annotator)
    newest = judge_next(annotator, "tie")
    page = sign_in(annotator).get(history)
    assert page.context["rows"][0]["preference"] == newest
    assert page.content.decode().count("Text of A") == 2
    assert "Equally good" in page.content.decode()


def test_another_person_sees_none_of_it(annotator, other_annotator, sign_in, history, project, make_pair, judge_next):
    make_pair()
    preference = judge_next(annotator)
    client = sign_in(other_annotator)
    assert "judged nothing here yet" in client.get(history).content.decode()
    assert "is not yours" in _reopen(client, project, preference).content.decode()


def test_an_older_judgement_opens_again_and_the_pair_on_the_screen_comes_after_it(
    project, annotator, sign_in, make_pair, judge_next
):
    for _ in range(3):
        make_pair()
    older = judge_next(annotator)
    judge_next(annotator)
    shown = queue.lease_next(project, annotator.pk)
    page = _reopen(sign_in(annotator), project, older)
    assert "Choose again to change it" in page.content.decode()
    changed = queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "b")
    assert (changed.preference.pair_id, changed.preference.version) == (older.pair_id, 2)
    assert queue.lease_next(project, annotator.pk).slot.pk == shown.slot.pk
    assert Preference.objects.filter(is_current=True).count() == 2


def test_what_a_dataset_has_used_stays_as_it_is(project, annotator, sign_in, history, make_pair, judge_next):
    make_pair()
    preference = judge_next(annotator)
    freeze_preferences([preference.pk])
    client = sign_in(annotator)
    assert "so it stays as it is" in client.get(history).content.decode()
    assert "went into a dataset" in _reopen(client, project, preference).content.decode()
    assert (
        "went into a dataset"
        in client.post(reverse("labeling:undo", args=[project.slug]), headers={"HX-Request": "true"}).content.decode()
    )
    assert Slot.objects.get().state == Slot.State.DONE


def test_an_old_version_does_not_open(project, annotator, sign_in, make_pair, judge_next):
    make_pair()
    first = judge_next(annotator)
    queue.submit(project, queue.undo(project, annotator.pk).token, annotator.pk, "b")
    assert "has a newer version" in _reopen(sign_in(annotator), project, first).content.decode()


def test_the_page_does_not_grow_in_queries(
    annotator, sign_in, history, make_pair, judge_next, django_assert_max_num_queries
):
    for _ in range(12):
        make_pair()
        judge_next(annotator)
    client = sign_in(annotator)
    client.get(history)
    with django_assert_max_num_queries(9):
        client.get(history)


def test_it_shows_all_that_was_said(project, annotator, sign_in, history, make_pair):
    project.reason_chips, project.criteria, project.allows_rewrites = ["Clearer", "Safer"], ["Correct"], True
    project.save()
    make_pair("Text of A", "Text of B")
    lease = queue.lease_next(project, annotator.pk)
    details = Details(
        reasons=("Safer",), criteria={"Correct": lease.slot.shown_left}, comment="Short.", rewrite="Text of <A>, better"
    )
    queue.submit(project, lease.token, annotator.pk, "a", details)
    page = " ".join(sign_in(annotator).get(history).content.decode().split())
    for said in ("Safer", "<bdi>Correct</bdi>: Left", "Short.", "Text of &lt;A&gt;, better"):
        assert said in page
    assert "Clearer" not in page


def test_it_says_what_was_sent_back_and_why(project, annotator, reviewer, sign_in, history, make_pair, judge_next):
    for _ in range(2):
        make_pair()
    judge_next(annotator)
    back = judge_next(annotator)
    send_back(preference=back, reviewer=reviewer, note="Read the <end>.")
    client = sign_in(annotator)
    assert client.get(history).content.decode().count("Read the &lt;end&gt;.") == 1
    assert [row["note"] for row in client.get(history).context["rows"]] == ["Read the <end>.", ""]
    freeze_preferences([back.pk])
    assert "Read the" not in client.get(history).content.decode(), "it can be changed no more"


def test_ones_own_page_leads_there(project, annotator, sign_in, history):
    me = sign_in(annotator).get(reverse("labeling:me", args=[project.slug])).content.decode()
    assert f'href="{history}"' in me.split("<main")[1]
