"""Votes that are withdrawn after a gate has come to something by them: what is said before, and where it is marked."""

from __future__ import annotations

import re

import pytest
from django.urls import reverse

from labeling import withdrawals
from labeling.models import Preference, Withdrawal
from tests.training.gates.steps import measure, turned
from training import gates, services, withdrawing, withdrawn_votes
from training.models import Checkpoint, Gate, GatePair, Taint
from training.withdrawing import preview, withdraw

pytestmark = pytest.mark.usefixtures("nobody_measures")


@pytest.fixture
def promoted(ask, vote) -> Gate:
    """A gate that people have promoted by: 28 votes for the candidate and 2 against it, all of one person."""
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 2, "current")
    vote(gate, 28, "candidate")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    return gate


@pytest.fixture
def admin(sign_in, project_admin):
    return sign_in(project_admin)


def _text(page) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.content.decode()).split()).replace(" ,", ",").replace(" .", ".")


def _url(name: str, project, *rest: object) -> str:
    return reverse(f"training:{name}", args=[project.slug, *rest])


def _first_vote(gate: Gate) -> Preference:
    return Preference.objects.filter(pk__in=gate.votes["preferences"]).earliest("pk")


# Before


def test_a_gate_whose_votes_would_go_is_named_before(project, promoted, annotator, candidate):
    assert preview(project, annotator).sentences == [
        "Withdraws 30 judgements of annotator, on 30 pairs.",
        "No run has used any of them.",
        f"Gate 1, which promoted {candidate}, rests on 30 votes; 30 of them would go.",
        "What was decided stays so. Compare again, or roll back, where it matters.",
        f"{candidate} is the policy of now: it stays so until another is promoted.",
    ]


@pytest.mark.parametrize("kind", ["prompt", "preference"])
def test_of_a_prompt_and_of_one_vote_it_is_told_alike(project, promoted, candidate, kind):
    one = _first_vote(promoted)
    said = preview(project, one.pair.prompt if kind == "prompt" else one).sentences
    assert f"Gate 1, which promoted {candidate}, rests on 30 votes; 1 of them would go." in said


def test_what_a_gate_does_not_rest_on_says_nothing_of_it(
    project, promoted, judge, make_pair, annotator, other_annotator
):
    judge(make_pair(), other_annotator, "a")
    late = GatePair.objects.filter(gate=promoted, pair__judgements_count=0).first()
    said = _first_vote(promoted)
    said.pk, said.pair, said.slot, said.annotator = None, late.pair, late.pair.slots.first(), other_annotator
    said.save()
    assert not preview(project, other_annotator).gates, "it was said after the decision"
    assert preview(project, annotator).gates


def test_of_a_gate_that_people_are_asked_about_it_is_told_in_general_alone(project, ask, vote, annotator):
    """Which pairs are its own must not show, not even by their number."""
    gate = turned(ask(asks_people=True))
    vote(gate, 3, "candidate")
    turned(gate)
    said = preview(project, annotator).sentences
    assert said == [
        "Withdraws 3 judgements of annotator, on 3 pairs.",
        "No run has used any of them.",
        "A gate that people are still asked about counts none of them from then on.",
    ]
    withdraw(project=project, target=annotator)
    turned(gate)
    assert gate.votes["votes"] == 0
    assert withdrawn_votes.of_gate(gate) is None
    assert withdrawn_votes.reached_by(Withdrawal.objects.get()) == []


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("hold", "held candidate"), ("reject", "rejected candidate"), ("", "waits for an admin")],
)
def test_what_came_of_a_gate_is_said(project, ask, vote, annotator, project_admin, verdict, said):
    gate = turned(ask(asks_people=True, decides="admin"))
    vote(gate, 30, "candidate")
    assert turned(gate).stage == Gate.Stage.WAITING
    if verdict:
        gates.admin_decides(gate=gate, verdict=verdict, by=project_admin)
    (loss,) = preview(project, annotator).gates
    assert (loss.did, loss.votes, loss.gone) == (said, 30, 30)


def test_a_gate_that_another_promotion_ended_rests_on_no_votes(project, ask, vote, annotator, make_checkpoint):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 5, "current")
    turned(gate)
    services.promote_checkpoint(project=project, checkpoint=make_checkpoint("another", project=project))
    assert turned(gate).outcome == "hold"
    assert gate.votes["preferences"]
    assert preview(project, annotator).gates == []


# After


def test_what_was_withdrawn_since_is_counted_and_what_was_before_is_not(project, ask, vote, candidate):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 4, "current")
    turned(gate)
    early = _first_vote(gate)
    withdraw(project=project, target=early)
    vote(gate, 28, "candidate")
    turned(gate)
    assert gate.outcome == "promote"
    assert early.pk not in gate.votes["preferences"]
    assert len(gate.votes["preferences"]) == gate.votes["votes"]
    assert withdrawn_votes.of_gate(gate) is None
    withdraw(project=project, target=_first_vote(gate))
    loss = withdrawn_votes.of_gate(gate)
    assert (loss.votes, loss.gone) == (gate.votes["votes"], 1)
    assert services.current_policy(project) == candidate, "what was decided stays so"
    (told,) = withdrawn_votes.by_withdrawal(list(Withdrawal.objects.all())).values()
    assert [(one.gate, one.gone) for one in told] == [(gate, 1)]


def test_a_withdrawal_that_is_not_done_yet_counts_already(project, promoted, annotator):
    begun = withdrawals.begin(Withdrawal(project=project, kind="annotator", annotator=annotator))
    assert begun.finished_at is None
    assert withdrawn_votes.of_gate(promoted).gone == 30
    assert [loss.gone for loss in withdrawn_votes.by_withdrawal([begun])[begun.pk]] == [30]


def test_a_vote_that_was_changed_after_the_decision_and_then_withdrawn_is_gone(project, promoted, annotator):
    vote = _first_vote(promoted)
    Preference.objects.filter(pk=vote.pk).update(is_current=False)
    newer = Preference.objects.get(pk=vote.pk)
    newer.pk, newer.is_current, newer.version = None, True, vote.version + 1
    newer.save()
    assert withdrawn_votes.of_gate(promoted) is None, "changed, not withdrawn"
    withdraw(project=project, target=newer)
    assert withdrawn_votes.of_gate(promoted).gone == 1


def test_the_confirmation_and_the_record_name_the_gate(project, promoted, annotator, admin, candidate):
    url = _url("withdraw-annotator", project, annotator.pk)
    said = f"Gate 1, which promoted {candidate}, rests on 30 votes; 30 of them would go."
    assert said in _text(admin.get(url))
    done = admin.post(url, follow=True)
    assert f"Gate 1, which promoted {candidate}, rests on 30 votes; 30 of them went with this." in _text(done)
    assert f'href="{promoted.get_absolute_url()}"' in done.content.decode()
    assert not Taint.objects.exists(), "no run has used them"


def test_the_gate_says_how_many_of_its_votes_are_gone_and_what_can_be_done(
    project, promoted, admin, api, project_admin, candidate, policy
):
    url = promoted.get_absolute_url()
    assert "withdrawn since" not in _text(admin.get(url))
    for vote in Preference.objects.filter(pk__in=promoted.votes["preferences"][:12]):
        withdraw(project=project, target=vote)
    page = admin.get(url)
    assert "It rests on 30 votes; 12 of them were withdrawn since." in _text(page)
    assert f"{candidate} is the policy. Ask people anew by a watch, or roll back." in _text(page)
    assert f'href="{_url("checkpoints", project)}">roll back' in page.content.decode()
    told = api(project_admin)("get", f"{project.slug}/gates/1/").json()
    assert (told["votes"]["votes"], told["votes"]["withdrawn"]) == (30, 12)
    services.roll_back(project=project)
    text = _text(admin.get(url))
    assert f"Compare {candidate} again without them." in text
    assert "is the policy." not in text


def test_a_gate_that_waits_says_so_too(project, ask, vote, admin):
    gate = turned(ask(asks_people=True, decides="admin"))
    vote(gate, 30, "candidate")
    assert turned(gate).stage == Gate.Stage.WAITING
    withdraw(project=project, target=_first_vote(gate))
    text = _text(admin.get(gate.get_absolute_url()))
    assert "It rests on 30 votes; 1 of them was withdrawn since. What it advises was counted with them." in text


def test_a_checkpoint_that_was_promoted_by_such_a_gate_says_so(project, promoted, annotator, admin, candidate, policy):
    urls = [_url("checkpoint", project, candidate.uuid), _url("checkpoint-lineage", project, candidate.uuid)]
    warning = "Votes of a gate at which it became the policy were withdrawn."
    for url in urls:
        assert warning not in _text(admin.get(url))
    withdraw(project=project, target=annotator)
    for url in urls:
        text = _text(admin.get(url))
        assert warning in text
        assert f"Gate 1, which promoted {candidate}, rests on 30 votes; 30 of them went since." in text
    assert warning not in _text(admin.get(_url("checkpoint", project, policy.uuid)))


def test_a_rollback_by_votes_that_are_gone_is_marked_on_what_it_went_back_to(
    project, candidate, prompts, policy, vote, annotator
):
    services.promote_checkpoint(project=project, checkpoint=candidate)
    gates.change_release_rule(project=project, rolls_back=True, watch_votes=40)
    gate = gates.request_watch(project=project)
    measure(gate, {})
    turned(gate)
    vote(gate, 25, "current")
    turned(gate)
    assert services.current_policy(project) == policy
    withdraw(project=project, target=annotator)
    (loss,) = withdrawn_votes.behind(Checkpoint.objects.get(pk=policy.pk), project)
    assert loss.did == f"rolled back to {policy}"
    assert withdrawn_votes.behind(candidate, project) == []
    assert withdrawing.preview(project, prompts[0]).gates == []


def test_the_list_of_withdrawals_asks_no_more_of_the_database_for_more_of_them(
    project, promoted, django_assert_num_queries
):
    votes = list(Preference.objects.filter(pk__in=promoted.votes["preferences"][:6]))
    for vote in votes:
        withdraw(project=project, target=vote)
    rows = list(Withdrawal.objects.all())
    with django_assert_num_queries(2):
        assert len(withdrawn_votes.by_withdrawal(rows)) == 6
