"""Reviewers read what annotators wrote in place of a response: on the pair, in the table, in what they take home."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import pair_page, queue
from labeling.answers import Details
from labeling.models import Pair, Preference, Project
from tests.conftest import MakePair

BETTER = "The first and <i>better</i> answer."


@pytest.fixture
def rewritten(project: Project, annotator: User, make_pair: MakePair) -> Preference:
    """The first answer is chosen and improved; another pair is judged without."""
    project.allows_rewrites = True
    project.save()
    for details in (Details(rewrite=BETTER), Details()):
        make_pair("The first answer.", "The second answer.")
        token = queue.lease_next(project, annotator.pk).token
        queue.submit(project, token, annotator.pk, "a", details)
    return Preference.objects.get(rewrite__isnull=False)


@pytest.fixture
def page(project: Project, reviewer: User, sign_in: Callable[[User], Client]) -> Callable[..., str]:
    client = sign_in(reviewer)

    def page(name: str, *rest: object, **asked: str) -> str:
        response = client.get(reverse(f"labeling:{name}", args=[project.slug, *rest]), asked)
        assert response.status_code == 200
        return b"".join(response).decode()

    return page


def test_the_pair_shows_what_was_changed(rewritten: Preference, page: Callable[..., str]) -> None:
    shown = page("pair", rewritten.pair_id)
    assert "Rewrote response A" in shown
    assert "The first <ins>and &lt;i&gt;better&lt;/i&gt; </ins>answer." in shown


def test_beyond_a_few_the_texts_alone_are_shown(
    rewritten: Preference, page: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_page, "MOST_COMPARED", 0)
    shown = page("pair", rewritten.pair_id)
    assert "The first and &lt;i&gt;better&lt;/i&gt; answer." in shown
    assert "<ins>" not in shown


def test_what_counts_is_compared_before_older_versions(
    rewritten: Preference, project: Project, annotator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.reopen(project, annotator.pk, rewritten.pk)
    token = queue.lease_next(project, annotator.pk).token
    newest = queue.submit(project, token, annotator.pk, "b", Details(rewrite="Of the second.")).preference
    monkeypatch.setattr(pair_page, "MOST_COMPARED", 1)
    found = pair_page.read_pair(Pair.objects.get(pk=rewritten.pair_id), annotator.pk)
    assert [bool(one.compared) for one in (*found.judgements, *found.earlier)] == [True, False]
    assert found.judgements[0].preference == newest


def test_the_table_shows_them_and_finds_them(rewritten: Preference, page: Callable[..., str]) -> None:
    everything, found = page("judgements"), page("judgements", rewrite="on")
    for shown in (everything, found):
        assert "The first and &lt;i&gt;better&lt;/i&gt; answer." in shown
    of_both, of_one = (shown.count("<time ") for shown in (everything, found))
    assert (of_both, of_one) == (2, 1)


def test_the_export_holds_them(rewritten: Preference, page: Callable[..., str]) -> None:
    lines = [json.loads(line) for line in page("export-jsonl").splitlines()]
    assert {line["id"]: line["rewrite"] for line in lines}[rewritten.pk] == BETTER
    assert sorted(line["rewrite"] for line in lines) == ["", BETTER]
    assert [row["rewrite"] for row in csv.DictReader(io.StringIO(page("export-csv", rewrite="on")))] == [BETTER]
