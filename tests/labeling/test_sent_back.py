"""What a reviewer sends back reaches its author: in the navigation, on the desk, and with the note on the pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from labeling import queue, sent_back
from labeling.models import Pair, Preference, Project
from labeling.review import send_back
from tests.conftest import MakePair

NOTE = "Is the <b>second</b> source real?"


@pytest.fixture
def judged(project: Project, annotator: User, make_pair: MakePair) -> list[Preference]:
    """Two judgements; a third pair is open."""
    found = []
    for _ in range(2):
        make_pair()
        token = queue.lease_next(project, annotator.pk).token
        found.append(queue.submit(project, token, annotator.pk, "a").preference)
    make_pair()
    return found


@pytest.fixture
def page(project: Project, annotator: User, sign_in: Callable[[User], Client]) -> Callable[..., str]:
    client = sign_in(annotator)
    return lambda name, **extra: client.get(reverse(f"labeling:{name}", args=[project.slug]), **extra).content.decode()


def _send(reviewer: User, *preferences: Preference) -> None:
    for preference in preferences:
        send_back(preference=preference, reviewer=reviewer, note=NOTE)


def _nav(page: str) -> str:
    return page.split('<nav class="project-nav"')[1].split("</nav>")[0]


def test_the_navigation_counts(page, judged: list[Preference], reviewer: User) -> None:
    assert "nav-count" not in _nav(page("project"))
    _send(reviewer, *judged)
    assert '<span class="nav-count">2<' in _nav(page("project"))


def test_pages_of_training_count_as_well(project: Project, reviewer: User, sign_in, make_pair) -> None:
    make_pair()
    own = queue.submit(project, queue.lease_next(project, reviewer.pk).token, reviewer.pk, "a").preference
    _send(reviewer, own)
    shown = sign_in(reviewer).get(reverse("training:overview", args=[project.slug])).content.decode()
    assert '<span class="nav-count">1<' in _nav(shown)


def test_the_desk_says_so_with_the_next_pair(page, judged: list[Preference], reviewer: User) -> None:
    fragment = {"headers": {"HX-Request": "true"}}
    assert "to look at again" not in page("annotate", **fragment)
    _send(reviewer, judged[0])
    assert "1 to look at again" in page("annotate", **fragment)


def test_the_pair_on_the_desk_shows_the_note(
    page, project: Project, annotator: User, judged: list[Preference], reviewer: User
) -> None:
    _send(reviewer, *judged)
    queue.reopen(project, annotator.pk, judged[0].pk)
    desk = page("annotate")
    assert "Is the &lt;b&gt;second&lt;/b&gt; source real?" in desk
    assert "1 to look at again" in desk, "the other one"


def test_a_judgement_that_is_opened_for_another_reason_shows_none(
    page, project: Project, annotator: User, judged: list[Preference], reviewer: User
) -> None:
    _send(reviewer, judged[1])
    queue.reopen(project, annotator.pk, judged[0].pk)
    assert "A reviewer asks you" not in page("annotate")


def test_looking_again_settles_it(
    page, project: Project, annotator: User, judged: list[Preference], reviewer: User
) -> None:
    _send(reviewer, judged[0])
    token = queue.reopen(project, annotator.pk, judged[0].pk).token
    queue.submit(project, token, annotator.pk, "a")
    assert sent_back.count_of(project.pk, annotator.pk) == 0
    assert "to look at again" not in page("annotate")


@pytest.mark.parametrize("gone", [{"frozen_at": timezone.now()}, {"is_current": False}])
def test_what_can_be_changed_no_more_is_not_asked_for(
    page, project: Project, annotator: User, judged: list[Preference], reviewer: User, gone: dict[str, object]
) -> None:
    _send(reviewer, *judged)
    Preference.objects.filter(pk=judged[0].pk).update(**gone)
    assert sent_back.count_of(project.pk, annotator.pk) == 1
    assert [back.preference for back in sent_back.waiting_for(project, annotator.pk, 9)] == [judged[1]]
    assert page("me").count("Look again") == 1


def test_nobody_else_is_told(page, project: Project, annotator: User, other_annotator: User, reviewer, make_pair):
    make_pair()
    theirs = queue.submit(project, queue.lease_next(project, other_annotator.pk).token, other_annotator.pk, "a")
    _send(reviewer, theirs.preference)
    for name in ("project", "annotate", "me", "history"):
        assert "nav-count" not in page(name)
        assert "source real" not in page(name)


def test_while_there_is_no_pair_the_page_leads_there(page, judged: list[Preference], reviewer: User) -> None:
    Pair.objects.order_by("-pk")[0].slots.update(state="closed")
    history = 'href="/p/helpful/history/">Your judgements</a>'
    assert history in page("annotate").split('class="waiting"')[1]
    _send(reviewer, *judged)
    assert 'href="/p/helpful/me/">2 to look at again</a>' in page("annotate").split('class="waiting"')[1]
