"""The background job: what it finds, what it writes, and when it reads everything again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling import measure, posterior, queue
from labeling.measure import measure_all
from labeling.models import Pair, Preference, QualityReport, Seat, Slot
from labeling.review import adjudicate, end_gold, make_gold
from labeling.services import create_project
from labeling.tasks import measure_quality
from labeling.tokens import make_token
from tests.labeling import crowd


@pytest.fixture
def users(project):
    return crowd.people(project, 4)


@pytest.fixture
def count_everything(monkeypatch):
    """How often everything was measured."""
    calls = []
    whole = measure._measure_everything
    monkeypatch.setattr(measure, "_measure_everything", lambda *given: calls.append(given) or whole(*given))
    return calls


def _report(project) -> QualityReport:
    return QualityReport.objects.get(project=project)


def test_the_task_writes_probabilities_seats_and_todays_report(project, users):
    pairs = crowd.judge(project, users, 60)
    measure_quality()
    report = _report(project)
    assert report.day == timezone.localdate()
    assert report.last_preference_id == Preference.objects.order_by("-pk")[0].pk
    data = report.data
    assert (data["judgements"], data["pairs"]) == (120, 60)
    assert {reading["pairs"] for reading in data["agreement"].values()} == {60}
    agreed = data["agreement"]["equal"]
    assert agreed["low"] < agreed["value"] < agreed["high"]
    assert set(data["annotators"]) == {str(user.pk) for user in users}
    assert data["longer_won"]["of"] == 120
    both_for_a = [pair for pair in pairs if set(pair.preferences.values_list("choice", flat=True)) == {"a"}]
    assert both_for_a
    assert min(Pair.objects.get(pk=pair.pk).p_a for pair in both_for_a) > 0.8
    seat = Seat.objects.get(project=project, annotator=users[0])
    assert seat.reliability is not None and seat.left_bias is not None  # noqa: PT018
    assert 0.6 < seat.reliability < 1


def test_before_there_is_enough_nothing_is_claimed_of_anybody(project, users):
    crowd.judge(project, users, 3)
    measure_all()
    seat = Seat.objects.get(project=project, annotator=users[0])
    assert (seat.reliability, seat.left_bias) == (None, None)
    own = _report(project).data["annotators"][str(users[0].pk)]
    assert (own["reliability"], own["pull"], own["band"]) == (None, None, "too few")
    assert own["agreement"]["value"] is None
    assert "needs" in own["agreement"]["template"]


def test_without_anything_new_nothing_is_measured_or_written(project, users, django_assert_num_queries):
    crowd.judge(project, users, 20)
    measure_all()
    before = _report(project).computed_at
    with django_assert_num_queries(6):  # the projects, and five of this one
        assert measure_all() == 0
    assert _report(project).computed_at == before


def test_figures_are_as_old_as_they_are(project, users, reviewer, sign_in):
    pairs = crowd.judge(project, users, 30, each=1)
    measure_all()
    first = _report(project)
    assert (first.as_of - first.computed_at).total_seconds() < 1
    earlier = first.as_of - timedelta(minutes=9)
    first.data["reach"]["whole"]["at"] = earlier.isoformat()
    first.save()
    crowd.add(pairs[0], users[2], "a", place=2)
    assert measure_all() == 1
    report = _report(project)
    assert (report.data["judgements"], report.as_of) == (30, earlier)
    page = sign_in(reviewer).get(reverse("labeling:people", args=[project.slug])).content.decode()
    assert "From 30 judgements, 9" in " ".join(page.split()).replace("\u202f", " ").replace("\xa0", " ")
    assert QualityReport(project=project, computed_at=earlier).as_of == earlier, "a report of an earlier version"


def test_a_change_of_the_known_answer_is_new(project, users, count_everything, monkeypatch):
    pairs = crowd.judge(project, users, 30)
    crowd.add(pairs[0], users[2], "b", place=9, as_gold=True)
    measure_all()
    assert _report(project).data["gold"]["of"] == 0
    make_gold(pair=pairs[0], choice="b")
    assert measure_all() == 1
    monkeypatch.setattr(measure, "PATIENCE", timedelta(0))
    assert measure_all() == 1
    assert (_report(project).data["gold"]["hits"], _report(project).data["gold"]["of"]) == (1, 1)
    end_gold(pair=pairs[0])
    assert measure_all() == 1
    assert _report(project).data["gold"]["of"] == 0
    assert measure_all() == 0


# A probability is of the judgements that its pair has now


@pytest.fixture
def asked_twice(project):
    project.judgements_per_pair = 2
    project.save()


def _measured_pair(project, make_pair, judge, person, choice="a") -> Pair:
    pair = make_pair()
    judge(pair, person, choice)
    measure_all()
    pair.refresh_from_db()
    assert pair.p_a is not None
    return pair


def test_a_new_judgement_takes_the_probability_away_until_it_is_measured(
    project, asked_twice, make_pair, judge, annotator, other_annotator
):
    pair = _measured_pair(project, make_pair, judge, annotator)
    judge(pair, other_annotator, "b")
    pair.refresh_from_db()
    assert pair.p_a is None
    assert measure_all() == 1
    pair.refresh_from_db()
    assert pair.p_a == pytest.approx(0.5, abs=0.1)


def test_a_change_of_mind_takes_the_probability_away_until_it_is_measured(project, make_pair, judge, annotator):
    pair = _measured_pair(project, make_pair, judge, annotator, "a")
    lease = queue.undo(project, annotator.pk)
    queue.submit(project, lease.token, annotator.pk, "b")
    pair.refresh_from_db()
    assert (pair.p_a, pair.judgements_count) == (None, 1)
    measure_all()
    pair.refresh_from_db()
    assert pair.p_a < 0.4


def test_a_second_look_changes_nothing_of_the_pair(project, make_pair, judge, annotator):
    pair = _measured_pair(project, make_pair, judge, annotator)
    again = Slot.objects.create(
        project=project, pair=pair, place=9, kind="repeat", state="leased", annotator=annotator, shown_left="b",
        lease_number=1, leased_at=timezone.now(), lease_until=timezone.now() + timedelta(minutes=9),
    )  # fmt: skip
    queue.submit(project, make_token(again), annotator.pk, "b")
    assert Pair.objects.get(pk=pair.pk).p_a == pair.p_a


def test_a_withdrawal_is_measured_though_it_leaves_no_newer_row(
    project, asked_twice, make_pair, judge, annotator, other_annotator
):
    pair = make_pair()
    judge(pair, annotator, "a")
    judge(pair, other_annotator, "a")
    measure_all()
    sure = Pair.objects.get(pk=pair.pk).p_a
    queue.skip(project, queue.undo(project, other_annotator.pk).token, other_annotator.pk)
    assert Pair.objects.get(pk=pair.pk).p_a is None
    assert measure_all() == 1, "no row is newer than what the report knows"
    assert 0.5 < Pair.objects.get(pk=pair.pk).p_a < sure - 0.05
    assert measure_all() == 0


def test_the_figures_learn_of_a_withdrawal_when_patience_ends(
    project, make_pair, judge, annotator, count_everything, monkeypatch
):
    _measured_pair(project, make_pair, judge, annotator)
    other = _measured_pair(project, make_pair, judge, annotator)
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk)
    crowd.add(other, crowd.people(project, 1)[0], "a", place=9)
    measure_all()
    monkeypatch.setattr(measure, "PATIENCE", timedelta(0))
    assert measure_all() == 1
    assert _report(project).data["judgements"] == 2
    assert measure_all() == 0


def test_a_judgement_that_was_committed_behind_a_newer_one_is_measured(project, users):
    """Its number is smaller than what the report knows; on PostgreSQL it may come to light after it."""
    pairs = crowd.judge(project, users, 20, each=1)
    measure_all()
    QualityReport.objects.update(last_preference_id=10**9)
    Preference.objects.filter(pair=pairs[0]).update(choice="b")
    Pair.objects.filter(pk=pairs[0].pk).update(p_a=None)
    newest = measure._newest(project)
    QualityReport.objects.update(last_preference_id=newest.preference_id)
    assert measure_all() == 1
    assert Pair.objects.get(pk=pairs[0].pk).p_a < 0.5


def test_what_is_judged_while_it_is_measured_keeps_no_probability_of_before(
    project, asked_twice, make_pair, judge, annotator, other_annotator, monkeypatch
):
    pair = _measured_pair(project, make_pair, judge, annotator)
    judge(pair, other_annotator, "a")
    write, meanwhile = measure._write_probabilities, [lambda: queue.undo(project, other_annotator.pk)]

    def slow(columns) -> None:
        if meanwhile:
            lease = meanwhile.pop()()
            queue.skip(project, lease.token, other_annotator.pk)
        write(columns)

    monkeypatch.setattr(measure, "_write_probabilities", slow)
    measure_all()
    assert Pair.objects.get(pk=pair.pk).p_a is None, "two votes for A were read, and one is left"
    measure_all()
    assert 0.6 < Pair.objects.get(pk=pair.pk).p_a < 0.85


def test_pairs_that_wait_are_found_by_their_index(project, users):
    pairs = crowd.judge(project, users, 60)
    Pair.objects.filter(pk__in=[pair.pk for pair in pairs[5:]]).update(p_a=0.5)  # few of many wait
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE labeling_pair")  # of a small table it would guess, and another index may do as well
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
    assert "pair_to_measure" in Pair.objects.filter(project=project).to_measure().values_list("pk").explain()


def test_a_project_without_judgements_has_no_report(project, make_pair):
    make_pair()
    assert measure_all() == 0
    assert not QualityReport.objects.exists()


def test_a_few_new_judgements_change_their_pairs_alone(project, users, count_everything):
    pairs = crowd.judge(project, users, 60, each=1)
    measure_all()
    before = dict(Pair.objects.values_list("pk", "p_a"))
    crowd.add(pairs[0], users[2], "a", place=2)
    assert measure_all() == 1
    after = dict(Pair.objects.values_list("pk", "p_a"))
    assert len(count_everything) == 1
    assert after.pop(pairs[0].pk) != before.pop(pairs[0].pk)
    assert after == before
    assert measure_all() == 0, "and they are known now"


def test_enough_of_them_and_everything_is_measured_again(project, users, count_everything):
    crowd.judge(project, users, 60, each=1)
    measure_all()
    crowd.judge(project, users, measure.LEAST_NEW - 1, each=1)
    measure_all()
    assert len(count_everything) == 1
    crowd.judge(project, users, 1, each=1)
    measure_all()
    assert len(count_everything) == 2
    assert _report(project).data["judgements"] == 60 + measure.LEAST_NEW


def test_few_of_them_are_waited_for_no_longer_than_patience(project, users, count_everything, monkeypatch):
    pairs = crowd.judge(project, users, 30, each=1)
    measure_all()
    crowd.add(pairs[0], users[2], "b", place=2)
    measure_all()
    assert len(count_everything) == 1
    monkeypatch.setattr(measure, "PATIENCE", timedelta(0))
    assert measure_all() == 1
    assert len(count_everything) == 2
    assert measure_all() == 0, "it knows everything now"


def test_each_day_has_its_row(project, users):
    pairs = crowd.judge(project, users, 30)
    measure_all()
    yesterday = timezone.localdate() - timedelta(days=1)
    QualityReport.objects.update(day=yesterday)
    assert measure_all() == 0, "a day on which nobody judged has none"
    crowd.add(pairs[0], users[2], "b", place=3)
    measure_all()
    assert [report.day for report in QualityReport.objects.all()] == [timezone.localdate(), yesterday]


def test_doing_it_again_from_the_start_finds_the_same(project, users):
    crowd.judge(project, users, 60)
    measure_all()
    first, p_first = _report(project).data, list(Pair.objects.order_by("pk").values_list("p_a", flat=True))
    QualityReport.objects.all().delete()
    measure_all()
    second, p_second = _report(project).data, list(Pair.objects.order_by("pk").values_list("p_a", flat=True))
    assert p_second == pytest.approx(p_first, abs=1e-3)
    for data in (first, second):
        del data["reach"]["whole"]["at"]
    assert second == first


def test_who_finds_a_newer_report_than_theirs_measures_again(project, users, monkeypatch):
    crowd.judge(project, users, 30)
    measure_all()
    report = _report(project)
    pairs = crowd.judge(project, users, 30)
    write = measure._write_probabilities
    meanwhile = [lambda: QualityReport.objects.filter(pk=report.pk).update(computed_at=timezone.now())]

    def slow(columns) -> None:
        write(columns)
        if meanwhile:
            meanwhile.pop()()
            crowd.add(pairs[0], users[3], "b", place=9)

    monkeypatch.setattr(measure, "_write_probabilities", slow)
    assert measure_all() == 1
    assert _report(project).last_preference_id == Preference.objects.order_by("-pk")[0].pk
    assert _report(project).data["judgements"] == 121


def test_a_project_in_trouble_does_not_stop_the_others(project, users, monkeypatch, caplog):
    other = create_project(name="Another", slug="another")
    crowd.judge(project, users, 5)
    crowd.judge(other, users, 5)
    whole = measure.measure

    def measure_one(one) -> bool:
        if one == project:
            raise RuntimeError("the disk is full")
        return whole(one)

    monkeypatch.setattr(measure, "measure", measure_one)
    assert measure_all() == 1
    assert QualityReport.objects.get().project == other
    assert "the disk is full" in caplog.text


def test_a_decision_moves_its_pair_and_a_retired_one_has_no_probability(project, users, reviewer):
    first, second, *_ = crowd.judge(project, users, 30, each=1, right=1)
    measure_all()
    adjudicate(pair=first, reviewer=reviewer, verdict="b")
    adjudicate(pair=second, reviewer=reviewer, verdict="retire")
    assert measure_all() == 1
    first.refresh_from_db()
    second.refresh_from_db()
    assert first.p_a < 0.2
    assert second.p_a is None


def test_second_looks_count_for_self_agreement_alone(project, users):
    pairs = crowd.judge(project, users, 30, each=1, right=1)
    for pair in pairs:
        first = pair.preferences.get()
        other = crowd.OTHER[first.shown_left]
        crowd.add(pair, first.annotator, first.shown_left, shown_left=other, place=5, is_repeat=True)
    measure_all()
    data = _report(project).data
    assert data["judgements"] == 30
    same = sum(pair.preferences.get(is_repeat=False).shown_left == "a" for pair in pairs)
    assert data["self_agreement"]["hits"] == same
    assert data["self_agreement"]["of"] == 30


def test_arms_and_criteria_stand_side_by_side(project, users):
    project.criteria = ["Correct"]
    project.save()
    crowd.judge(project, users, 40, each=3)
    control = crowd.judge(project, users, 30, each=3, right=0.5, is_control=True)
    Preference.objects.filter(pair=control[0]).update(criteria={"Correct": "b"}, choice="b")
    measure_all()
    data = _report(project).data
    ordered, by_chance = data["arms"]["ordered"], data["arms"]["control"]
    assert (ordered["judgements"], by_chance["judgements"]) == (120, 90)
    assert ordered["conflicts"]["value"] < by_chance["conflicts"]["value"]
    assert data["criteria"][0]["agrees"]["hits"] == data["criteria"][0]["agrees"]["of"] == 3


def test_gold_scores_what_was_served_as_gold_and_speaks_of_nothing_else(project, users):
    crowd.judge(project, users, 40)
    measure_all()
    before = _report(project).data
    QualityReport.objects.all().delete()
    gold = crowd.judge(project, users[:3], 30, each=2, right=1, gold_choice="b")
    for number, pair in enumerate(gold):
        crowd.add(pair, users[3], "b" if number else "a", place=9, as_gold=True)
    ended = crowd.judge(project, users[:3], 1, each=0, judgements_count=1)
    crowd.add(ended[0], users[3], "b", as_gold=True)
    measure_all()
    data = _report(project).data
    assert (data["gold"]["hits"], data["gold"]["of"]) == (29, 30), "who judged before it was gold is not tested by it"
    assert data["annotators"][str(users[0].pk)]["gold"]["of"] == 0
    for figure in ("agreement", "arms", "longer_won"):
        assert data[figure] == before[figure]
    for user in users:
        old, new = (one["annotators"][str(user.pk)] for one in (before, data))
        assert [new[name] for name in ("agreement", "band")] == [old[name] for name in ("agreement", "band")]


def test_whoever_votes_left_or_faster_than_reading_is_pointed_out_with_why(project, users):
    crowd.judge(project, users, 60)
    lefty = users[0]
    Preference.objects.filter(annotator=lefty).update(choice="a", shown_left="a", seconds=0.4)
    measure_all()
    own = _report(project).data["annotators"][str(lefty.pk)]
    kinds = {signal["kind"]: signal for signal in own["signals"]}
    assert {"side", "speed"} <= set(kinds)
    assert "half should" in kinds["side"]["template"] % kinds["side"]["figures"]
    assert own["left_verdict"] == "left"
    assert Seat.objects.filter(annotator=lefty).exists(), "and nobody is excluded"


def test_whose_votes_are_worth_less_than_a_coins_is_pointed_out(project, users):
    pairs = crowd.judge(project, users[:3], 90, each=2, right=0.95)
    for number, pair in enumerate(pairs):
        crowd.add(pair, users[3], "abb"[number % 3], place=9, shown_left="ab"[number % 2])
    measure_all()
    people = _report(project).data["annotators"]
    own = {who: [signal["kind"] for signal in one["signals"]] for who, one in people.items()}
    assert "reliability" in own[str(users[3].pk)]
    assert all("reliability" not in own[str(user.pk)] for user in users[:3])


def test_known_answers_show_who_is_able_where_nothing_is_shared(project, users):
    """A quarter of the project's single judgements are of gold pairs; nobody else has judged any of them."""
    able, careless = users[:2]
    crowd.judge(project, users, 40, each=1, right=1)
    for who, right in ((able, 1), (careless, 0)):
        crowd.judge(project, [who], 30, each=1, right=right, gold_choice="a")
    decided = crowd.judge(project, users[2:3], 1, each=1, right=1, gold_choice="a", adjudicated_choice="b")
    measure_all()
    data = _report(project).data["annotators"]
    assert data[str(able.pk)]["reliability"]["low"] > 0.7
    assert data[str(careless.pk)]["reliability"]["high"] < 0.4
    assert data[str(users[3].pk)]["reliability"] is None
    assert Pair.objects.get(pk=decided[0].pk).p_a < 0.1, "a reviewer's decision stands over it"


def test_a_model_that_took_the_wrong_way_is_found_out_with_the_next_day(project, users):
    """Two of three agree; that both are wrong and the third alone is right explains the votes less well."""
    pairs = crowd.judge(project, users[:2], 60, right=0.95)
    for pair in pairs:
        crowd.add(pair, users[2], "b", place=9, shown_left="ab"[pair.pk % 2])
    measure_all()
    report, right = _report(project), pairs[0]
    assert report.data["model"]["has_converged"]
    places = report.data["parameters"]["annotator_ids"]
    mirrored = {users[0].pk: -3.0, users[1].pk: -3.0, users[2].pk: 3.0}
    report.data["parameters"] |= {"ability": [mirrored[who] for who in places], "mean": 0.25}
    report.save()
    crowd.judge(project, users[:2], measure.LEAST_NEW, right=0.95)
    measure_all()
    assert Pair.objects.get(pk=right.pk).p_a < 0.5, "from there it does not find back"
    QualityReport.objects.update(day=timezone.localdate() - timedelta(days=1))
    crowd.add(pairs[1], users[3], "a", place=10)
    measure_all()
    assert Pair.objects.get(pk=right.pk).p_a > 0.9


def test_a_model_that_has_not_come_to_rest_is_told(project, users, monkeypatch, caplog):
    crowd.judge(project, users, 20)
    monkeypatch.setattr(posterior, "MOST_STEPS", 2)
    measure_all()
    assert _report(project).data["model"] == {"has_converged": False, "steps": 2}
    assert "has not come to rest" in caplog.text


def _agrees(project) -> dict:
    QualityReport.objects.all().delete()
    measure_all()
    return _report(project).data["agreement"]["equal"]


def test_of_each_pair_so_many_judgements_count_as_it_was_asked_for_when_it_was_made(project, users):
    """Pairs of two grew a third where the two differ; that the project asks for three by now changes nothing."""
    pairs = crowd.judge(project, users[:2], 40, right=0.7, judgements_asked=2)
    before = _agrees(project)
    assert before["value"] < 1
    for pair in pairs:
        if len(set(pair.preferences.values_list("choice", flat=True))) > 1:
            crowd.add(pair, users[2], "a", place=9)
    project.judgements_per_pair = 3
    project.save()
    assert _agrees(project) == before
    Pair.objects.update(judgements_asked=None)
    assert _agrees(project) == before, "a pair from before this was kept"
    Pair.objects.update(judgements_asked=3)
    assert _agrees(project)["value"] < before["value"]


def test_who_says_it_again_has_not_come_later(project, users):
    """Two who differ and a third who agrees with the second; then the first affirms what they said."""
    pairs = crowd.judge(project, users[:2], 20, each=1, right=1, judgements_asked=2)
    for pair in pairs:
        crowd.add(pair, users[2], "b", place=2)
        crowd.add(pair, users[3], "b", place=3)
    assert _agrees(project)["value"] == 0
    for pair in pairs:
        first = pair.preferences.get(choice="a")
        Preference.objects.filter(pk=first.pk).update(is_current=False)
        first.pk, first.version, first._state.adding = None, 2, True
        first.save()
    assert _agrees(project)["value"] == 0


def test_queries_do_not_grow_with_judgements(project, users):
    def queries() -> int:
        QualityReport.objects.all().delete()
        Pair.objects.update(p_a=None)
        with CaptureQueriesContext(connection) as captured:
            measure_all()
        return len([query for query in captured if not query["sql"].startswith("UPDATE labeling_pair")])

    crowd.judge(project, users, 20)
    few = queries()
    crowd.judge(project, users, 200)
    assert queries() == few
