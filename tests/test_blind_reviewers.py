"""Reviewers and admins who label are blind too: what others said of a pair is kept from whoever has still to judge it.

Not in a page of the pair, nor at the review desk, nor in a table, nor by what a filter finds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling import own_places, queue
from labeling.models import Pair, Preference, Skip, Slot
from labeling.own_places import reserve
from labeling.review import adjudicate, send_back
from labeling.withheld import withheld_from
from tests.labeling import crowd

SENTENCE = "What others said appears once you have judged it."
COMMENT, REASON, NOTE = "comment-lynx", "reason-tapir", "decided-vicuna"
SKIP_NOTE, SENT_BACK = "skip-dingo", "back-ibex"
SAID = (COMMENT, REASON, NOTE, SKIP_NOTE, SENT_BACK)
# What else tells how it was judged: the probability, the review's cause, a choice in a cell.
STATE = ("83.7", "84 %", "84&nbsp;%", "84\N{NO-BREAK SPACE}%", "Judgements conflict</span>", '<span class="choice')


@pytest.fixture(params=["reviewer", "project_admin"])
def reader(request) -> User:
    return request.getfixturevalue(request.param)


@pytest.fixture
def voters(project) -> list[User]:
    return crowd.people(project, 3, name="voter")


@pytest.fixture
def talked_about(project, voters, project_admin) -> Pair:
    """A pair of which everything has been said that can be, and which one more person has still to judge."""
    (pair,) = crowd.judge(project, voters, 1, judgements_wanted=3)
    Slot.objects.create(project=project, pair=pair, place=3, is_shared=True, priority=9.0)
    first, second = pair.preferences.order_by("pk")
    Preference.objects.filter(pk=first.pk).update(choice="a", comment=COMMENT, reasons=[REASON], is_strong=True)
    Preference.objects.filter(pk=second.pk).update(choice="b")
    send_back(preference=first, reviewer=project_admin, note=SENT_BACK)
    Skip.objects.create(pair=pair, annotator=voters[2], note=SKIP_NOTE)
    adjudicate(pair=pair, reviewer=project_admin, verdict="leave", note=NOTE)
    Pair.objects.filter(pk=pair.pk).update(p_a=0.8371625, review=Pair.Review.CONFLICT, skips_count=1)
    return pair


@pytest.fixture
def pages(project, talked_about, voters) -> list[str]:
    """Where reviewers read what was said of a pair."""

    def at(name: str, *rest: object, query: str = "") -> str:
        return reverse(f"labeling:{name}", args=[project.slug, *rest]) + query

    queries = ("", "?choice=a", "?strong=on", "?comment=on", "?conflict=on", f"?person={voters[0].pk}")
    return [
        at("pair", talked_about.pk),
        at("review"),
        at("person", voters[0].pk),
        *[at("pairs", query=query) for query in ("", "?state=conflict", "?state=review")],
        *[at("judgements", query=query) for query in queries],
    ]


@pytest.fixture
def read(sign_in, reader, pages) -> Callable[[], dict[str, str]]:
    def read() -> dict[str, str]:
        client = sign_in(reader)
        found = {page: client.get(page).content.decode() for page in pages}
        return {page: content.split("<main", 1)[1] for page, content in found.items()}

    return read


def _told(found: dict[str, str]) -> set[tuple[str, str]]:
    return {(page, mark) for page, content in found.items() for mark in SAID + STATE if mark in content}


@pytest.mark.parametrize("is_ahead", [False, True])
def test_nothing_is_told_of_a_pair_that_its_reader_has_still_to_judge(
    project, reader, talked_about, make_pair, pages, read, is_ahead
):
    before = _told(read())
    assert {mark for _, mark in before} >= set(SAID), "the marks are where reviewers look"
    assert len({page for page, _ in before}) == len(pages), "and every page has some"
    if is_ahead:
        make_pair(priority=10.0)
    lease = queue.lease_next(project, reader.pk)
    lease = queue.lease_ahead(project, reader.pk) if is_ahead else lease
    assert lease.slot.pair == talked_about
    found = read()
    assert _told(found) == set()
    assert SENTENCE in found[pages[0]]
    assert reverse("labeling:annotate", args=[project.slug]) in found[pages[0]]
    assert "Nothing to review" in found[pages[1]], "that it waits there would say what others have done"
    assert "You have it to judge" in found[pages[3]]
    queue.submit(project, lease.token, reader.pk, "tie")
    assert {(page, mark) for page, mark in before if mark in SAID} <= _told(read()), "now they may know"


def test_a_pair_that_was_given_back_or_reopened_is_not_withheld(project, reader, make_pair):
    pair = make_pair()
    lease = queue.lease_next(project, reader.pk)
    assert withheld_from(project, reader.pk) == {pair.pk}
    queue.submit(project, lease.token, reader.pk, "a")
    assert withheld_from(project, reader.pk) == set()
    queue.undo(project, reader.pk)
    assert withheld_from(project, reader.pk) == set(), "what was said may have been read since the first answer"
    make_pair()
    queue.skip(project, queue.undo(project, reader.pk).token, reader.pk)
    queue.skip(project, queue.lease_next(project, reader.pk).token, reader.pk)
    assert withheld_from(project, reader.pk) == set()


def test_a_second_look_is_taken_without_the_first(project, reader, make_pair, monkeypatch):
    monkeypatch.setattr(own_places, "REPEAT_AFTER", 0)
    pair = make_pair()
    queue.submit(project, queue.lease_next(project, reader.pk).token, reader.pk, "a")
    project.repeat_percent = 100
    project.save()
    reserve(project, reader.pk)
    assert queue.lease_next(project, reader.pk).slot.kind == "repeat"
    assert withheld_from(project, reader.pk) == {pair.pk}


def test_what_others_hold_is_not_withheld(project, reader, annotator, talked_about):
    assert queue.lease_next(project, annotator.pk).slot.pair == talked_about
    assert withheld_from(project, reader.pk) == set()


def test_exports_are_whole(project, reader, talked_about, sign_in):
    """They are for files, and a file without some rows is worse than a reviewer who looks them up in one."""
    queue.lease_next(project, reader.pk)
    response = sign_in(reader).get(reverse("labeling:export-csv", args=[project.slug]))
    assert COMMENT in b"".join(response.streaming_content).decode()


def test_it_costs_one_query_a_page(project, reader, talked_about, pages, sign_in):
    client = sign_in(reader)

    def asked(page: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            client.get(page)
        return sum('"labeling_slot"."state" = ' in query["sql"] and "NOT (EXISTS" in query["sql"] for query in captured)

    queue.lease_next(project, reader.pk)
    assert {asked(page) for page in pages} == {1}
