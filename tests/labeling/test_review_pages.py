"""The reviewer's pages: the desk, one pair, the tables and what they export."""

from __future__ import annotations

import csv
import io
import json

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling import filters
from labeling.models import Adjudication, Pair, Preference, SentBack, Skip
from labeling.services import create_project
from tests.labeling import crowd


@pytest.fixture
def users(project):
    return crowd.people(project, 4)


@pytest.fixture
def client(sign_in, reviewer):
    return sign_in(reviewer)


@pytest.fixture
def at(project):
    def at(name: str, *rest: object) -> str:
        return reverse(f"labeling:{name}", args=[project.slug, *rest])

    return at


def _text(response) -> str:
    assert response.status_code == 200
    return response.content.decode()


def _to_review(pairs, why="conflict") -> None:
    Pair.objects.filter(pk__in=[pair.pk for pair in pairs]).update(review=why)


# The desk


def test_the_desk_shows_the_oldest_pair_with_everything_said_of_it(client, at, project, users):
    first, second, _ = crowd.judge(project, users, 3, each=1)
    _to_review([first, second])
    Preference.objects.filter(pair=first).update(
        choice="b", shown_left="b", seconds=75, comment="It <b>invents</b> a source.", reasons=["Clearer"]
    )
    Skip.objects.create(pair=first, annotator=users[3], reason="broken", note="It stops.")
    Pair.objects.filter(pk=first.pk).update(p_a=0.234)
    page = _text(client.get(at("review")))
    assert f"Pair {first.pk}<" in page and f"Pair {second.pk}<" not in page  # noqa: PT018
    for said in ("person-00", "B better", "shown left", "1 min 15 s", "Clearer", "Broken or empty text", "It stops."):
        assert said in page
    assert "It &lt;b&gt;invents&lt;/b&gt; a source." in page
    assert "23\N{NARROW NO-BREAK SPACE}%" in page
    assert "2 pairs wait" in page


def test_next_passes_over_and_the_end_says_so(client, at, project, users):
    first, second = crowd.judge(project, users, 2)
    _to_review([first, second])
    assert f"Pair {second.pk}<" in _text(client.get(at("review"), {"after": first.pk}))
    page = _text(client.get(at("review"), {"after": second.pk}))
    assert "2 pairs that you passed over still wait" in page
    assert f"Pair {first.pk}<" in _text(client.get(at("review"), {"after": "x' OR 1"}))


def test_an_empty_desk_says_why(client, at, project):
    page = _text(client.get(at("review")))
    assert "Nothing to review" in page
    assert "flags a broken, harmful or private text" in page


def test_a_decision_leads_to_the_next_pair(client, at, project, users):
    first, second = crowd.judge(project, users, 2)
    _to_review([first, second])
    back = f"{at('review')}?after={first.pk}"
    response = client.post(at("decide", first.pk), {"verdict": "b", "note": "B answers.", "back": back}, follow=True)
    assert response.redirect_chain == [(back, 302)]
    page = _text(response)
    assert "counts as “B is better” from now on" in page
    assert f"Pair {second.pk}<" in page
    first.refresh_from_db()
    assert (first.adjudicated_choice, first.review) == ("b", "")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("retire", "was taken out; its 2 judgements"), ("leave", "stays as its 2"), ("nonsense", "is not a verdict")],
)
def test_what_a_decision_has_done_is_said(client, at, project, users, verdict, said):
    (pair,) = crowd.judge(project, users, 1)
    assert said in _text(client.post(at("decide", pair.pk), {"verdict": verdict}, follow=True))


def test_a_retired_pair_can_be_brought_back_from_its_page(client, at, project, users):
    (pair,) = crowd.judge(project, users, 1)
    client.post(at("decide", pair.pk), {"verdict": "retire"})
    page = _text(client.get(at("pair", pair.pk)))
    assert "Bring back" in page
    assert 'data-keys="Digit1"' not in page
    assert "is back" in _text(client.post(at("decide", pair.pk), {"verdict": "leave"}, follow=True))
    pair.refresh_from_db()
    assert not pair.is_retired


def test_the_way_back_leads_nowhere_else(client, at, project, users):
    (pair,) = crowd.judge(project, users, 1)
    response = client.post(at("decide", pair.pk), {"verdict": "leave", "back": "https://elsewhere.example/"})
    assert response.headers["Location"] == at("review")


def test_a_judgement_goes_back_from_the_desk(client, at, project, users):
    (pair,) = crowd.judge(project, users, 1)
    judgement = pair.preferences.first()
    page = _text(client.post(at("send-back", judgement.pk), {"note": "Look at the date."}, follow=True))
    assert "person-00 sees this pair again" in page
    assert SentBack.objects.get().note == "Look at the date."
    assert "Look at the date." in _text(client.get(at("pair", pair.pk)))
    assert "sent back already" in _text(client.post(at("send-back", judgement.pk), {"note": "Again."}, follow=True))


def test_gold_begins_and_ends(client, at, project, users):
    (pair,) = crowd.judge(project, users, 1)
    assert "is gold now" in _text(client.post(at("gold", pair.pk), {"choice": "tie"}, follow=True))
    assert "“Equally good” is expected" in _text(client.get(at("pair", pair.pk)))
    assert "like the others again" in _text(client.post(at("gold", pair.pk), follow=True))
    assert "is not a choice" in _text(client.post(at("gold", pair.pk), {"choice": "left"}, follow=True))


def test_a_pair_has_its_versions_and_decisions_on_its_page(client, at, project, users, reviewer):
    (pair,) = crowd.judge(project, users, 1)
    changed = pair.preferences.first()
    Preference.objects.filter(pk=changed.pk).update(is_current=False)
    Preference.objects.create(
        project=project,
        pair=pair,
        slot=changed.slot,
        annotator=changed.annotator,
        choice="tie",
        shown_left="a",
        seconds=5,
        version=2,
        lease_number=2,
    )
    Adjudication.objects.create(pair=pair, reviewer=reviewer, verdict="leave", note="Both read it.")
    page = _text(client.get(at("pair", pair.pk)))
    assert "Changed or withdrawn" in page
    assert "version 2" in page
    assert "Both read it." in page


def test_rows_of_another_project_are_not_there(client, at, project, users):
    other = create_project(name="Another", slug="another")
    (pair,) = crowd.judge(other, users, 1)
    judgement = pair.preferences.first()
    assert client.get(at("pair", pair.pk)).status_code == 404
    assert client.post(at("decide", pair.pk), {"verdict": "a"}).status_code == 404
    assert client.post(at("gold", pair.pk), {"choice": "a"}).status_code == 404
    assert client.post(at("send-back", judgement.pk), {"note": "x"}).status_code == 404
    assert client.get(at("person", users[0].pk + 100)).status_code == 404


# The tables


def _pairs_of(response) -> list[int]:
    return [judgement.pair_id for judgement, _ in response.context["rows"]]


@pytest.mark.parametrize(
    ("asked", "changed"),
    [
        ({"choice": "both_bad"}, {"choice": "both_bad"}),
        ({"strong": "on"}, {"is_strong": True, "choice": "a"}),
        ({"comment": "on"}, {"comment": "Because."}),
        ({"repeat": "on"}, {"is_repeat": True}),
        ({"side": "left", "choice": "b"}, {"choice": "b", "shown_left": "b"}),
        ({"side": "right", "choice": "b"}, {"choice": "b", "shown_left": "a"}),
        ({"until": "2020-05-05", "since": "2020-05-05"}, {"created_at": "2020-05-05T12:00Z"}),
    ],
)
def test_each_filter_finds_its_judgements(client, at, project, users, asked, changed):
    pairs = crowd.judge(project, users, 6, each=1, right=1)
    Preference.objects.filter(pair=pairs[2]).update(**changed)
    assert _pairs_of(client.get(at("judgements"), asked)) == [pairs[2].pk]


def test_judgements_of_a_person_of_gold_in_conflict_and_by_text(client, at, project, users):
    pairs = crowd.judge(project, users, 6, each=2, right=1)
    own = _pairs_of(client.get(at("judgements"), {"person": users[1].pk}))
    assert own == [pairs[5].pk, pairs[4].pk, pairs[1].pk, pairs[0].pk]
    Pair.objects.filter(pk=pairs[3].pk).update(gold_choice="a")
    assert set(_pairs_of(client.get(at("judgements"), {"gold": "on"}))) == {pairs[3].pk}
    Preference.objects.filter(pk=pairs[4].preferences.first().pk).update(choice="b")
    assert _pairs_of(client.get(at("judgements"), {"conflict": "on"})) == [pairs[4].pk, pairs[4].pk]
    pairs[1].prompt.messages = [{"role": "user", "content": "Wie heißt die GRÖSSTE Stadt?"}]
    pairs[1].prompt.save()
    assert set(_pairs_of(client.get(at("judgements"), {"text": "größte"}))) == {pairs[1].pk}


def test_a_filter_that_cannot_be_says_so(client, at, project):
    response = client.get(at("judgements"), {"since": "yesterday"})
    assert response.status_code == 400
    assert "Enter a valid date." in response.content.decode()
    assert client.get(at("export-csv"), {"since": "yesterday"}).status_code == 400
    assert client.get(at("pairs"), {"state": "lost"}).status_code == 400


@pytest.mark.parametrize("asked", [{}, {"comment": "on"}, {"text": "what"}])
def test_pages_meet_and_lose_nobody(client, at, project, users, monkeypatch, asked):
    monkeypatch.setattr(filters, "ROWS_PER_PAGE", 7)
    monkeypatch.setattr(filters, "SEARCHED", 10)
    monkeypatch.setattr(filters, "TEXTS_SEARCHED", 10)
    crowd.judge(project, users, 24, each=1)
    Preference.objects.update(comment="Because.", created_at=timezone.now())  # equal times: the id decides
    seen, before = [], ""
    while before is not None:
        response = client.get(at("judgements"), asked | {"before": before})
        seen += [judgement.pk for judgement, _ in response.context["rows"]]
        before = response.context["found"].older
    assert seen == list(Preference.objects.order_by("-pk").values_list("pk", flat=True))


def test_a_search_that_found_nothing_near_leads_further_back(client, at, project, users, monkeypatch):
    monkeypatch.setattr(filters, "SEARCHED", 5)
    pairs = crowd.judge(project, users, 12, each=1)
    Preference.objects.filter(pair=pairs[0]).update(comment="The oldest.")
    response = client.get(at("judgements"), {"comment": "on"})
    assert "None among the newest" in _text(response)
    assert "Look further back" in _text(response)
    for _ in range(2):
        response = client.get(f"{at('judgements')}?{response.context['older']}")
    assert _pairs_of(response) == [pairs[0].pk]


def test_empty_tables_say_why(client, at, project, users):
    assert "No judgements yet" in _text(client.get(at("judgements")))
    assert "None is like that" in _text(client.get(at("judgements"), {"strong": "on"}))
    assert "No pairs yet" in _text(client.get(at("pairs")))
    assert "None is like that" in _text(client.get(at("pairs"), {"state": "gold"}))


@pytest.mark.parametrize(
    ("state", "changed"),
    [
        ("review", {"review": "flag"}),
        ("flag", {"review": "flag"}),
        ("conflict", {"review": "conflict"}),
        ("skips", {"review": "skips"}),
        ("open", {"judgements_count": 0}),
        ("gold", {"gold_choice": "a"}),
        ("decided", {"adjudicated_choice": "a"}),
        ("retired", {"is_retired": True}),
    ],
)
def test_pairs_by_state(client, at, project, users, state, changed):
    pairs = crowd.judge(project, users, 5)
    Pair.objects.filter(pk=pairs[1].pk).update(**changed)
    found = client.get(at("pairs"), {"state": state}).context["found"].rows
    assert [pair.pk for pair in found] == [pairs[1].pk]


# Export


def test_the_export_holds_what_the_filter_finds_line_by_line(client, at, project, users):
    pairs = crowd.judge(project, users, 8, each=1, right=1)
    Preference.objects.filter(pair=pairs[2]).update(comment='=1+1, "quoted"', criteria={"Clear": "a"}, shown_left="a")
    response = client.get(at("export-jsonl"), {"comment": "on"})
    assert response.streaming
    (row,) = [json.loads(line) for line in b"".join(response).decode().splitlines()]
    assert (row["pair"], row["choice"], row["side"], row["comment"]) == (pairs[2].pk, "a", "left", '=1+1, "quoted"')
    assert row["prompt"] == pairs[2].prompt.messages
    (row,) = csv.DictReader(io.StringIO(b"".join(client.get(at("export-csv"), {"comment": "on"})).decode()))
    assert row["comment"] == '\'=1+1, "quoted"', "a spreadsheet runs no formula"
    assert json.loads(row["criteria"]) == {"Clear": "a"}
    assert len(b"".join(client.get(at("export-csv"))).decode().splitlines()) == 9
    texts = b"".join(client.get(at("export-jsonl"), {"text": "What is 3?"})).decode()
    assert [json.loads(line)["pair"] for line in texts.splitlines()] == [pairs[3].pk]


# Costs


@pytest.mark.parametrize(
    "url",
    ["judgements/", "judgements/?comment=on", "judgements/?text=what", "pairs/", "pairs/?state=review", "review/"],
)
def test_queries_do_not_grow_with_rows(client, project, users, url):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get(f"/p/{project.slug}/{url}").status_code == 200
        return len(captured)

    crowd.judge(project, users, 3)
    Preference.objects.update(comment="Because.")
    _to_review(Pair.objects.all())
    few = queries()
    crowd.judge(project, users, 20, each=3)
    Preference.objects.update(comment="Because.")
    _to_review(Pair.objects.all())
    assert queries() <= few
    assert few <= 15


def test_annotators_find_none_of_it(sign_in, annotator, at, project, users):
    (pair,) = crowd.judge(project, users, 1)
    client = sign_in(annotator)
    page = _text(client.get(at("project")))
    for name in ("review", "judgements", "pairs", "people", "dashboard", "export-csv", "export-jsonl"):
        assert client.get(at(name)).status_code == 403
        assert at(name) not in page
    for name in ("decide", "gold"):
        assert client.post(at(name, pair.pk)).status_code == 403
    assert client.post(at("send-back", pair.preferences.first().pk), {"note": "x"}).status_code == 403
    pair.refresh_from_db()
    assert (pair.adjudicated_choice, pair.gold_choice) == ("", "")


# Taking a decision back


def test_a_decision_can_be_taken_back_from_the_pair_that_the_message_links(client, at, project, users):
    (pair,) = crowd.judge(project, users, 1, each=2)
    _to_review([pair])
    assert "Take the decision back" not in _text(client.get(at("review")))
    page = _text(client.post(at("decide", pair.pk), {"verdict": "a"}, follow=True))
    assert f'<a href="{at("pair", pair.pk)}">Pair {pair.pk}</a>' in page
    page = _text(client.get(at("pair", pair.pk)))
    assert 'value="leave"' in page
    assert "Take the decision back" in page
    client.post(at("decide", pair.pk), {"verdict": "leave"})
    pair.refresh_from_db()
    assert pair.adjudicated_choice == ""
    assert 'value="leave"' not in _text(client.get(at("pair", pair.pk))), "nothing to take back"
