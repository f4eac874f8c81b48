"""The dashboard says what side and length do, each without the other; how far the work is, and when it ended."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from labeling import queue
from labeling.measure import measure_all
from labeling.models import Preference, Project, QualityReport, Response
from labeling.progress import progress
from tests.conftest import MakePair
from tests.labeling import crowd


@pytest.fixture
def dashboard(project: Project, reviewer: User, sign_in: Callable[[User], Client]) -> Callable[[], str]:
    client = sign_in(reviewer)
    return lambda: client.get(reverse("labeling:dashboard", args=[project.slug])).content.decode()


def _figures(page: str) -> dict[str, str]:
    """What stands beside each label of the pulls, as text."""
    section = page.split('id="pulls-title"')[1].split("</section>")[0]
    rows = re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", section, re.DOTALL)
    return {label.strip(): " ".join(re.sub(r"<[^>]+>", " ", said).split()) for label, said in rows}


def test_a_longer_response_that_stood_left_more_often(dashboard, project: Project) -> None:
    """It wins 75 % on the left and 25 % on the right: the side decides, and its length does nothing."""
    crowd.judge(project, crowd.people(project, 1), 100, each=1)
    for place, one in enumerate(Preference.objects.order_by("pk")):
        is_left, wins = place < 80, place % 4 > 0 if place < 80 else place % 4 == 0
        Preference.objects.filter(pk=one.pk).update(shown_left="a" if is_left else "b", choice="a" if wins else "b")
    measure_all()
    figures = _figures(dashboard())
    assert figures["Longer wins, as counted"].startswith("65 % ")
    assert figures["Longer wins, sides taken out"].startswith("50 % ")
    assert figures["Left wins, as counted"].startswith("75 % ")
    assert figures["… more than that"].endswith("nothing to count yet"), "it is less than four times as long"
    twice = QualityReport.objects.get().data["pulls"]["length"]
    assert twice["low"] < 0.5 < twice["high"]


def test_lengths_that_are_equal_have_no_pull(dashboard, project: Project) -> None:
    crowd.judge(project, crowd.people(project, 2), 40)
    Response.objects.update(text="Of one length.")
    measure_all()
    figures = _figures(dashboard())
    assert figures["Twice as long wins, sides taken out"] == "0 decided judgements so far; a figure needs 30."
    assert "of 80" in figures["Left wins, lengths taken out"]


def test_a_report_from_before_these_figures_is_read(dashboard, project: Project) -> None:
    crowd.judge(project, crowd.people(project, 2), 40)
    measure_all()
    report = QualityReport.objects.get()
    del report.data["pulls"]
    report.save()
    assert _figures(dashboard())["Longer wins, sides taken out"] == "nothing to count yet"


def test_a_person_shows_what_the_side_alone_does(project: Project, reviewer: User, sign_in) -> None:
    (user,) = crowd.people(project, 1)
    crowd.judge(project, [user], 60, each=1)
    Preference.objects.filter(shown_left="a").update(choice="a")
    Preference.objects.filter(shown_left="b").update(choice="b")
    measure_all()
    url = reverse("labeling:person", args=[project.slug, user.pk])
    figures = sign_in(reviewer).get(url).context["figures"]
    assert figures.pull.low > 0.8
    assert "Left, seeing no difference" in sign_in(reviewer).get(url).content.decode()


def test_the_pages_of_pairs_tell_them_apart_as_well(
    project: Project, annotator: User, reviewer: User, make_pair: MakePair, sign_in
) -> None:
    for _ in range(2):
        make_pair()
    now, ahead = queue.lease_next(project, annotator.pk), queue.lease_ahead(project, annotator.pk)
    client = sign_in(reviewer)
    shown = [
        client.get(reverse("labeling:pair", args=[project.slug, lease.slot.pair_id])).content.decode()
        for lease in (now, ahead)
    ]
    assert ["somebody reads it now" in page for page in shown] == [True, False]


def test_a_pair_that_is_held_unseen_is_not_being_read(project: Project, annotator: User, make_pair: MakePair) -> None:
    for _ in range(3):
        make_pair()
    lease = queue.lease_next(project, annotator.pk)
    assert queue.lease_ahead(project, annotator.pk)
    now = progress(project)
    assert (now.open, now.leased, now.reading) == (1, 2, 1)
    lease.slot.lease_until = timezone.now()
    lease.slot.save()
    assert progress(project).reading == 0, "its reader has gone"


def test_when_everything_is_judged_it_says_so(dashboard, project: Project, annotator: User, make_pair) -> None:
    for _ in range(2):
        make_pair()
    queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
    assert "every judgement that was wanted is in" not in dashboard()
    queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
    assert "every judgement that was wanted is in" in dashboard()


def test_without_pairs_nothing_is_done(dashboard) -> None:
    assert "every judgement that was wanted is in" not in dashboard()


def test_one_day_is_no_line_and_says_so(dashboard, project: Project) -> None:
    crowd.judge(project, crowd.people(project, 2), 40)
    assert "from the second day on" not in dashboard(), "nothing is measured yet"
    measure_all()
    assert "from the second day on" in dashboard()
