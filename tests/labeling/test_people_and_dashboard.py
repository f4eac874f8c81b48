"""Figures of people and of the project as pages show them; one's own page knows nobody else."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest
from django.db import connection
from django.template.loader import render_to_string
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone, translation

from labeling import queue
from labeling.charts import bar_chart
from labeling.figures import Figure
from labeling.measure import measure_all
from labeling.models import Preference, QualityReport, Seat, Slot
from labeling.progress import agreement_by_day, labels_per_day, pace_days, progress, since_first
from labeling.review import send_back
from tests.labeling import crowd


@pytest.fixture
def users(project):
    return crowd.people(project, 4)


@pytest.fixture
def at(project):
    def at(name: str, *rest: object) -> str:
        return reverse(f"labeling:{name}", args=[project.slug, *rest])

    return at


def _text(response) -> str:
    assert response.status_code == 200
    return response.content.decode()


# People


def test_people_stand_by_name_with_intervals_and_signals_with_why(sign_in, reviewer, at, project, users):
    crowd.judge(project, users, 60)
    Preference.objects.filter(annotator=users[2]).update(seconds=0.5)
    measure_all()
    page = _text(sign_in(reviewer).get(at("people")))
    places = [page.index(f">{user.username}</a>") for user in users]
    assert places == sorted(places)
    assert "came faster than both texts can be read" in page
    assert page.count("figure-interval") >= 8


def test_order_is_by_name_whatever_anybody_judged(sign_in, reviewer, at, project, users):
    Seat.objects.filter(annotator=users[3]).update(judged=900)
    rows = sign_in(reviewer).get(at("people")).context["rows"]
    assert [user for user, _ in rows] == users


def test_a_person_has_a_page_of_their_own(sign_in, reviewer, at, project, users):
    pairs = crowd.judge(project, users, 40)
    send_back(preference=pairs[0].preferences.get(annotator=users[0]), reviewer=reviewer, note="Read it again.")
    measure_all()
    page = _text(sign_in(reviewer).get(at("person", users[0].pk)))
    assert "Read it again." in page
    assert f"?person={users[0].pk}" in page
    assert "in line with the others" in page
    assert "Judgements a day: 20" in page


def test_before_anything_is_measured_pages_say_when(sign_in, reviewer, at, users):
    client = sign_in(reviewer)
    for url in (at("people"), at("person", users[0].pk)):
        assert "about a minute after the first judgements" in _text(client.get(url))


def test_nobody_has_sat_down_yet(sign_in, reviewer, at):
    assert "Nobody has sat down yet" in _text(sign_in(reviewer).get(at("people")))


# Mine


def test_ones_own_page_knows_nobody_else(sign_in, at, project, users, reviewer):
    pairs = crowd.judge(project, users, 60)
    Preference.objects.filter(annotator=users[1]).update(choice="a", shown_left="a", seconds=3)
    send_back(preference=pairs[0].preferences.get(annotator=users[1]), reviewer=reviewer, note="Not for you.")
    measure_all()
    response = sign_in(users[0]).get(at("me"))
    page = _text(response)
    for user in users[1:]:
        assert user.username not in page
    assert "Not for you." not in page
    assert response.context["today"] == 30
    assert "40 s" in page
    assert "in line with the others" in page
    assert "gold" not in page.lower()
    assert "reliab" not in page.lower()


def test_what_was_sent_back_goes_onto_the_desk_with_its_answer(sign_in, at, project, annotator, make_pair, reviewer):
    pair = make_pair()
    judgement = queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a").preference
    send_back(preference=judgement, reviewer=reviewer, note="Please read the end.")
    client = sign_in(annotator)
    page = _text(client.get(at("me")))
    assert "Please read the end." in page
    assert client.post(at("reopen", judgement.pk)).headers["Location"] == at("annotate")
    assert Slot.objects.get(pair=pair).state == "leased"
    lease = queue.lease_next(project, annotator.pk)
    assert lease.previous == judgement
    queue.submit(project, lease.token, annotator.pk, "b")
    assert "Nothing was sent back to you" in _text(client.get(at("me")))
    assert "newer version" in _text(client.post(at("reopen", judgement.pk), follow=True))


def test_nobody_reopens_the_judgement_of_somebody_else(sign_in, at, project, users, annotator):
    (pair,) = crowd.judge(project, users, 1)
    judgement = pair.preferences.first()
    page = _text(sign_in(annotator).post(at("reopen", judgement.pk), follow=True))
    assert "not yours" in page
    assert judgement.slot.state == "done"


# Dashboard


def test_the_dashboard_has_progress_quality_and_both_orders(sign_in, reviewer, at, project, users, make_pair):
    project.criteria = ["Correct"]
    project.save()
    crowd.judge(project, users, 40)
    crowd.judge(project, users, 20, is_control=True)
    Seat.objects.update(judged=30)
    Preference.objects.update(criteria={"Correct": "a"})
    for _ in range(3):
        make_pair()
    measure_all()
    response = sign_in(reviewer).get(at("dashboard"))
    page = _text(response)
    now = response.context["progress"]
    assert (now.judged, now.open, now.leased, now.wanted, now.percent) == (120, 3, 0, 123, 97)
    assert response.context["ready"]["day"] == timezone.localdate()
    for said in ("of 123 judgements", "Krippendorff", "left side wins", "longer response wins", "At random", "Correct"):
        assert said in page
    assert "Judgements a day: 120 in 14 days, 120 today" in page


def test_the_dashboard_reads_agreement_with_ties_as_answers_and_as_between_two(sign_in, reviewer, at, project, users):
    """Of 40 pairs 10 have a choice beside a tie, 10 a choice beside both bad, 20 two votes for A."""
    for number, pair in enumerate(crowd.judge(project, users, 40)):
        first, second = pair.preferences.order_by("pk")
        Preference.objects.filter(pk=first.pk).update(choice="a")
        Preference.objects.filter(pk=second.pk).update(choice=["tie", "both_bad", "a", "a"][number % 4])
    measure_all()
    response = sign_in(reviewer).get(at("dashboard"))
    (_, _, shares), (_, _, alphas) = response.context["quality"]["agreement"]
    assert [(round(figure.value, 3), figure.of) for _label, figure in shares] == [(0.5, 40), (0.833, 30)]
    assert [figure.of for _label, figure in alphas] == [40, 30]
    for reading in response.context["report"].data["agreement"].values():
        assert reading["low"] < reading["value"] < reading["high"]
    page = _text(response)
    assert "“Equally good” agrees by half with a choice" in page
    assert "of 30" in page


def test_an_empty_dashboard_says_what_will_come(sign_in, reviewer, at):
    page = _text(sign_in(reviewer).get(at("dashboard")))
    assert "Nothing is measured yet" in page
    assert '<svg viewBox="0 0 640' not in page


def test_agreement_is_drawn_over_the_days_that_have_a_figure(sign_in, reviewer, at, project, users):
    crowd.judge(project, users, 40)
    measure_all()
    report = QualityReport.objects.get()
    earlier = report.day - timedelta(days=3)
    QualityReport.objects.create(project=project, day=earlier, data=report.data)
    empty = {"agreement": {"equal": {"value": None, "low": None, "high": None}}}
    QualityReport.objects.create(project=project, day=report.day - timedelta(days=1), data=empty)
    assert [row.day for row in agreement_by_day(project)] == [earlier, report.day]
    chart = sign_in(reviewer).get(at("dashboard")).context["agreement_chart"]
    assert [line.label for line in chart.lines] == ["at most", "agree", "at least"]
    assert f"{earlier:%-d %b}" in chart.lines[1].dots[0].title


def test_days_are_counted_on_their_day(project, users, django_assert_num_queries):
    crowd.judge(project, users, 5, each=1)
    now = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    newest = list(Preference.objects.order_by("pk").values_list("pk", flat=True))
    Preference.objects.filter(pk=newest[0]).update(created_at=now - timedelta(microseconds=1))
    Preference.objects.filter(pk=newest[1]).update(created_at=now)
    Preference.objects.filter(pk=newest[2]).update(created_at=now - timedelta(days=59))
    Preference.objects.filter(pk=newest[3]).update(created_at=now - timedelta(days=60))
    with django_assert_num_queries(1):
        days = labels_per_day(Preference.objects.filter(project=project))
    today = timezone.localdate()
    assert len(days) == 60
    assert {day: number for day, number in days if number} == {
        today: 2,
        today - timedelta(days=1): 1,
        today - timedelta(days=59): 1,
    }


def _days(*counts: int) -> list[tuple[date, int]]:
    return [(date(2026, 1, 1) + timedelta(days=place), number) for place, number in enumerate(counts)]


def test_the_pace_is_that_of_full_days_since_the_first():
    assert pace_days(_days(0, 0, 4, 0, 6, 1)) == [4, 0, 6]
    assert pace_days(_days(0, 0, 3)) == [3], "today alone, where there is no other"
    assert pace_days(_days(*range(1, 20))) == list(range(12, 19))


def test_a_chart_begins_with_the_first_judgement():
    assert since_first(_days(0, 0, 0, 5, 0, 1), least=2) == _days(0, 0, 0, 5, 0, 1)[3:]
    assert since_first(_days(0, 0, 0, 0, 0, 1), least=4) == _days(0, 0, 0, 0, 0, 1)[2:]
    assert len(since_first(_days(0, 0), least=14)) == 2


def test_progress_of_nothing(project):
    now = progress(project)
    assert (now.wanted, now.percent, now.eta) == (0, 0, None)


@pytest.mark.parametrize("name", ["people", "dashboard", "me"])
def test_queries_do_not_grow_with_people_and_judgements(sign_in, reviewer, at, project, name):
    def queries() -> int:
        measure_all()
        client = sign_in(reviewer)
        with CaptureQueriesContext(connection) as captured:
            assert client.get(at(name)).status_code == 200
        return len(captured)

    crowd.judge(project, crowd.people(project, 3), 10)
    few = queries()
    crowd.judge(project, crowd.people(project, 12, name="more"), 60)
    assert queries() <= few
    assert few <= 14


def test_drawings_hold_in_languages_with_a_decimal_comma():
    with translation.override("de"):
        drawn = render_to_string("_bars.html", {"chart": bar_chart("a", [("x", 1), ("y", 3)])})
        drawn += render_to_string("labeling/_interval.html", {"figure": Figure(0.512, 0.493, 0.53, 9)})
    assert 'cx="51.2"' in drawn
    assert not re.search(r'="\d+,\d+"', drawn)
