"""The annotators of the loop's benchmark read the page that people read, and their votes arrive."""

from __future__ import annotations

import pytest

from benchmarks.loop_arm import Arm, Plan, Sizes
from benchmarks.taste import Annotator, plainness
from benchmarks.visitors import Refused, Visitor, reading
from labeling.models import Choice, Preference
from training import services

pytestmark = pytest.mark.django_db(transaction=True)

PLAIN, HEAVY = "The sea is\n\n* big & <blue>", "Considerable sophistication characterises architecture"


@pytest.fixture
def visit(live_server):
    def visit(user):
        visitor = Visitor(live_server.url)
        visitor.sign_in(user.username, "secret-password")
        return visitor

    return visit


def arm(project, people, admin=None, labels=10):
    plan = Plan("an arm", project.slug, {"control_percent": 100}, {})
    return Arm(plan, admin, people, Sizes(labels, pairs=10, tokens=8), {})


def test_texts_are_read_as_they_were_written(visit, annotator, project, make_pair):
    make_pair(PLAIN, HEAVY)
    read = reading(visit(annotator).get(f"/p/{project.slug}/annotate/"))
    assert {read.left, read.right} == {PLAIN, HEAVY}
    assert not read.is_second_look


def test_every_vote_arrives_for_the_response_that_was_meant(visit, annotator, other_annotator, project, make_pair):
    for number in range(6):
        make_pair(*([PLAIN, HEAVY] if number % 2 else [HEAVY, PLAIN]))
    people = [(Annotator(user.username, 0.0), visit(user)) for user in (annotator, other_annotator)]
    ours = arm(project, people, labels=4)
    ours.label("a seed")
    assert (ours.labels, Preference.objects.count()) == (4, 4)
    ours.label("another seed")
    assert (ours.labels, Preference.objects.count()) == (6, 6), "nothing is open any more"
    assert set(Preference.objects.values_list("annotator__username", flat=True)) == {"annotator", "other"}
    for vote in Preference.objects.select_related("pair__response_a", "pair__response_b"):
        a_is_plainer = plainness(vote.pair.response_a.text) > plainness(vote.pair.response_b.text)
        assert vote.choice == (Choice.A if a_is_plainer else Choice.B)


def test_an_arm_begins_with_its_settings_its_prompts_and_the_first_policy(
    visit, project_admin, project, make_checkpoint
):
    base = make_checkpoint("base")
    arm(project, [], visit(project_admin)).begin(["One?", "Two?"], base)
    project.refresh_from_db()
    assert (project.control_percent, project.prompts.count()) == (100, 2)
    assert services.current_policy(project) == base
    assert not project.batches.exists(), "pairs are asked for by the round alone"
    assert not project.release_rule.compares


def test_how_many_labels_are_right_is_counted_on_what_is_trained_on(
    visit, annotator, project_admin, project, make_pair
):
    for _ in range(3):
        make_pair(PLAIN, HEAVY, held_out=False)
    make_pair(PLAIN, HEAVY, held_out=True)
    always_wrong = Annotator("annotator", 1.0)
    ours = arm(project, [(always_wrong, visit(annotator))], visit(project_admin))
    ours.label("a seed")
    assert ours.label_accuracy() == 0


def test_what_is_refused_is_said(visit, annotator, project):
    with pytest.raises(Refused, match="403"):
        visit(annotator).api("POST", f"{project.slug}/batches/", {"pairs": 1})
    with pytest.raises(Refused, match="could not sign in"):
        Visitor(visit(annotator).url).sign_in("annotator", "another-password")
