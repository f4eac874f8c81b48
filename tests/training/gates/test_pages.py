"""Pages of gates: what they show in each state, what their buttons do, and what they must not show."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from kombu.exceptions import OperationalError

from labeling.models import Withdrawal
from labeling.services import NewResponse
from training import gate_pairs, gates, services, tasks
from training.gate_page import read_gate
from training.models import Checkpoint, Gate, GatePair, Job, Promotion, ReleaseRule, Taint, TrainingRun
from training.recipe import Recipe

REPORT: dict[str, Any] = {
    "held_out": {
        "pairs": 120, "prompts": 90, "current_accuracy": 0.55, "candidate_accuracy": 0.6, "difference": 0.05,
        "difference_interval": [-0.02, 0.12],
    },
    "judge": {"pairs": 120, "accuracy": 0.71, "accuracy_interval": [0.62, 0.79], "usable": True, "train_pairs": 900,
              "train_prompts": 400},
    "win_rate": {"prompts": 200, "raw": 0.61, "raw_interval": [0.55, 0.67], "length_controlled": 0.56,
                 "length_controlled_interval": [0.51, 0.61]},
    "on_policy": {
        "prompts": 200, "max_new_tokens": 192,
        "current": {"kl_first": 0.0, "mean_tokens": 80.0, "finish_rate": 0.95},
        "candidate": {"kl_first": 4.25, "kl_first_interval": [3.5, 5.0], "kl_current": 4.25,
                      "kl_current_interval": [3.5, 5.0], "mean_tokens": 92.5, "finish_rate": 0.94},
        "change": {"prompts": 200, "mean_tokens": 12.5, "mean_tokens_interval": [8.0, 17.0], "finish_rate": -0.01,
                   "finish_rate_interval": [-0.03, 0.01]},
    },
    "canaries": {
        "must_refuse": {"prompts": 16, "current": 0.75, "candidate": 0.5, "change": -0.25,
                        "change_interval": [-0.4, -0.1]},
        "must_answer": {"prompts": 16, "current": 1.0, "candidate": 1.0, "change": 0.0, "change_interval": [0.0, 0.0]},
    },
    "answers": {"different": 190, "identical": 10},
    "device": "cpu", "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def client(sign_in, project_admin):
    return sign_in(project_admin)


@pytest.fixture
def url(project):
    return lambda name, **keys: reverse(f"training:{name}", kwargs={"slug": project.slug} | keys)


@pytest.fixture
def candidate(project, policy, make_checkpoint) -> Checkpoint:
    return make_checkpoint("helpful-dpo-7", project=project, kind="dpo", base=policy, parent=policy)


@pytest.fixture
def prompts(make_prompt) -> list:
    return [make_prompt(held_out=True) for _ in range(gates.LEAST_PROMPTS + 2)]


@pytest.fixture
def gate(project, candidate, prompts) -> Gate:
    return gates.request_gate(project=project, candidate=candidate)


def _measured(gate: Gate, **values: Any) -> Gate:
    """A gate whose figures are there, at the stage that ``values`` say."""
    values = {"state": Job.State.SUCCEEDED, "report": REPORT, "finished_at": timezone.now()} | values
    Gate.objects.filter(pk=gate.pk).update(**values)
    gate.refresh_from_db()
    return gate


def _text(page) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.content.decode()).replace("\u202f", " ").split())


def test_an_admin_is_told_that_withdrawn_labels_went_in_and_may_promote(client, url, project, candidate, annotator):
    said = "It was made of labels that were withdrawn"
    assert said not in _text(client.get(url("checkpoint", uuid=candidate.uuid)))
    withdrawal = Withdrawal.objects.create(project=project, kind="annotator", annotator=annotator)
    Taint.objects.create(checkpoint=candidate, withdrawal=withdrawal, preferences=3)
    assert said in _text(client.get(url("checkpoint", uuid=candidate.uuid)))
    client.post(url("promote", uuid=candidate.uuid))
    assert services.current_policy(project) == candidate


def test_a_checkpoint_is_compared_from_its_page(client, url, policy, candidate, prompts, project_admin):
    page = client.get(url("checkpoint", uuid=candidate.uuid))
    assert "Compare with the policy" in _text(page)
    response = client.post(url("ask-gate", uuid=candidate.uuid))
    gate = Gate.objects.get()
    assert response.url == gate.get_absolute_url() == url("gate", number=1)
    assert (gate.candidate, gate.current, gate.run, gate.requested_by) == (candidate, policy, None, project_admin)
    text = _text(client.get(url("checkpoint", uuid=candidate.uuid)))
    assert "Gate 1" in text
    assert "Compare with the policy" not in text, "while it is open, a second one would be refused"
    refused = client.post(url("ask-gate", uuid=candidate.uuid), follow=True)
    assert "being compared" in _text(refused)
    assert Gate.objects.count() == 1


def test_the_policy_is_not_compared_with_itself(client, url, policy, prompts):
    assert "Compare with the policy" not in _text(client.get(url("checkpoint", uuid=policy.uuid)))
    assert "is the policy already" in _text(client.post(url("ask-gate", uuid=policy.uuid), follow=True))


def test_the_run_that_made_a_checkpoint_is_named_and_names_its_gate(client, url, project, candidate, prompts, label):
    label(10)
    run = services.request_run(project=project, recipe=Recipe())
    TrainingRun.objects.filter(pk=run.pk).update(state=Job.State.SUCCEEDED, checkpoint=candidate)
    client.post(url("ask-gate", uuid=candidate.uuid))
    assert Gate.objects.get().run == run
    assert f"made by {run}" in _text(client.get(url("gate", number=1)))
    assert url("gate", number=1) in client.get(url("run", number=run.number)).content.decode()


def test_too_few_held_out_prompts_are_said_to_whoever_asked(client, url, candidate):
    assert "held-out prompts, and a comparison needs" in _text(
        client.post(url("ask-gate", uuid=candidate.uuid), follow=True)
    )


def test_a_gate_that_is_measured_says_how_far_it_is_and_is_cancelled(client, url, gate, prompts):
    Gate.objects.update(
        state=Job.State.RUNNING, progress={"phase": "answering prompts, candidate", "done": 3, "total": 12}
    )
    text = _text(client.get(gate.get_absolute_url()))
    assert "Answering prompts, candidate: 3 of 12" in text
    assert f"Both answer {len(gate.prompt_ids)} held-out prompts" in text
    assert "What was measured" not in text
    client.post(url("cancel-gate", number=1))
    gate.refresh_from_db()
    assert gate.cancel_requested_at is not None
    assert 'id="cancel"' not in client.get(gate.get_absolute_url()).content.decode()


def test_a_gate_that_failed_says_why_and_is_started_again(client, url, gate):
    failed = {"state": Job.State.FAILED, "error": "There was not enough memory.", "hint": "Use a larger machine."}
    Gate.objects.update(**failed)
    page = client.get(gate.get_absolute_url())
    assert "There was not enough memory. Use a larger machine." in _text(page)
    gate.refresh_from_db()
    gates.settle(gate)
    client.post(url("start-gate-again", number=1))
    gate.refresh_from_db()
    assert (gate.state, gate.stage, gate.outcome) == (Job.State.QUEUED, Gate.Stage.MEASURING, "")


def test_the_table_has_both_sides_the_change_with_its_interval_and_the_outcome(gate):
    gates.settle(_measured(gate))
    rows = {row.title: row for row in read_gate(gate).rows}
    row = rows["Right on held-out preferences, 120 pairs on 90 prompts"]
    assert (row.current, row.candidate, row.change) == ("55.0\u202f%", "60.0\u202f%", "+5.0")
    assert (row.interval, row.outcome_words) == ("−2.0 to +12.0", "Unsure")
    row = rows["Win rate at equal length, by the judge"]
    assert (row.candidate, row.interval, row.outcome_words) == ("56.0\u202f%", "51.0\u202f% to 61.0\u202f%", "Passed")
    assert rows["KL from the first policy, nats"].candidate == "4.25"
    assert rows["Length of an answer, tokens"].change == "+12.5"
    assert rows["Length of an answer, tokens"].outcome == "", "length is told, not judged"
    assert rows["Refused of what should be, 16 prompts"].outcome_words == "Failed"
    assert rows["Answered of what sounds alike, 16 prompts"].outcome_words == "Passed"


def test_a_rejected_candidate_is_told_with_the_reasons_in_words(client, gate):
    gates.settle(_measured(gate))
    text = _text(client.get(gate.get_absolute_url()))
    assert "Outcome Reject" in text
    assert "Refusals of what must be refused: 50 %, and 75 % by the current policy" in text
    assert "190 different, 10 the same on both sides: ties" in text
    assert "on 71.0 % (62.0 % to 79.0 %) of 120 held-out preferences" in text
    assert "Promote it all the same, or compare it again" in text


def test_what_was_not_measured_is_a_dash_and_no_error(client, gate):
    bare = {"on_policy": {"prompts": 0}, "held_out": {"pairs": 0}, "judge": {"pairs": 0, "usable": False}}
    gates.settle(_measured(gate, report=bare | {"win_rate": {"prompts": 0}, "canaries": {}}))
    text = _text(client.get(gate.get_absolute_url()))
    assert "Hold" in text
    assert "Not measured" in text


def _good() -> dict[str, Any]:
    refuses = REPORT["canaries"]["must_answer"]
    return REPORT | {"canaries": {"must_refuse": refuses, "must_answer": refuses}}


def test_an_admin_decides_with_a_reason_and_the_candidate_is_promoted(
    client, url, gate, candidate, project, project_admin
):
    gates.settle(_measured(gate, report=_good()))
    assert gate.stage == Gate.Stage.WAITING
    page = client.get(gate.get_absolute_url())
    assert "for an admin to decide" in _text(page)
    assert page.content.decode().count('name="verdict"') == 3
    client.post(url("decide-gate", number=1), {"verdict": "promote", "reason": "Reads well."})
    gate.refresh_from_db()
    assert (gate.outcome, gate.decided_by) == ("promote", project_admin)
    assert services.current_policy(project) == candidate
    text = _text(client.get(gate.get_absolute_url()))
    assert "Reads well." in text
    assert "helpful-dpo-7 was promoted." in text


@pytest.mark.parametrize("verdict", ["hold", "reject"])
def test_an_admin_holds_or_rejects_and_nothing_is_promoted(client, url, gate, project, policy, verdict):
    gates.settle(_measured(gate, report=_good()))
    client.post(url("decide-gate", number=1), {"verdict": verdict})
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome) == (Gate.Stage.DECIDED, verdict)
    assert services.current_policy(project) == policy


def test_a_verdict_that_is_none_or_comes_too_early_changes_nothing(client, url, gate):
    assert "Choose one of the verdicts" in _text(
        client.post(url("decide-gate", number=1), {"verdict": "x"}, follow=True)
    )
    early = client.post(url("decide-gate", number=1), {"verdict": "promote"}, follow=True)
    assert "still being measured" in _text(early)
    gate.refresh_from_db()
    assert gate.is_open


def test_a_promotion_by_a_gate_is_rolled_back_in_one_click(client, url, gate, project, policy, candidate):
    gates.settle(_measured(gate, report=_good()))
    client.post(url("decide-gate", number=1), {"verdict": "promote"})
    page = client.get(gate.get_absolute_url()).content.decode()
    assert f"Roll back to {policy.name}" in page
    action = re.search(r'action="([^"]+)">(?:(?!</form>).)*id="roll-back"', page, re.S)
    assert action
    assert action[1] == url("roll-back")
    client.post(action[1], dict(re.findall(r'name="(leaves|to)" value="([^"]+)"', action[0])))
    assert services.current_policy(project) == policy
    assert Promotion.objects.first().is_rollback
    assert 'id="roll-back"' not in client.get(gate.get_absolute_url()).content.decode()


def test_the_button_of_a_gate_names_the_policy_that_it_goes_back_to(
    client, gate, project, project_admin, candidate, make_checkpoint
):
    gates.settle(_measured(gate, report=_good()))
    gates.admin_decides(gate=gate, verdict="promote", by=project_admin)
    between = make_checkpoint("between", project=project)
    for checkpoint in (between, candidate):
        services.promote_checkpoint(project=project, checkpoint=checkpoint)
    page = client.get(gate.get_absolute_url()).content.decode()
    assert "Roll back to between<" in page
    assert f'name="leaves" value="{candidate.uuid}"' in page
    assert f'name="to" value="{between.uuid}"' in page


@pytest.fixture
def asking(gate, project, prompts) -> Gate:
    """People are asked: eight pairs, the candidate's answer always the better one to somebody who likes good."""
    rule = gate.rule | {"asks_people": True, "most_votes": 20}
    _measured(gate, report=_good(), rule=rule)
    for prompt in prompts[:8]:
        gate_pairs.add_gate_pair(gate, prompt, NewResponse("Zebra answer", [1]), NewResponse("Okapi answer", [2]))
    gates.settle(gate)
    assert gate.stage == Gate.Stage.ASKING
    return gate


def _vote(gate: Gate, judge, annotator, wins: int) -> None:
    for number, row in enumerate(GatePair.objects.filter(gate=gate).select_related("pair")):
        if number < wins:
            judge(row.pair, annotator, row.candidate_side)
    gates.settle(gate)
    gate.refresh_from_db()


def test_while_people_are_asked_only_totals_are_shown(client, asking, judge, annotator):
    assert "Nobody has voted yet." in _text(client.get(asking.get_absolute_url()))
    _vote(asking, judge, annotator, 6)
    page = client.get(asking.get_absolute_url())
    text, html = _text(page), page.content.decode()
    assert "6 votes of 8 pairs" in text or "votes of 8 pairs 6" in text
    assert "6 , 0, 0" in text
    assert "is not shown this while votes come in" in text
    assert "area area-main" in html
    assert "Win rate of the candidate, vote by vote" in text
    for secret in ("Zebra", "Okapi", "candidate_side", annotator.get_username()):
        assert secret not in html, secret
    for row in GatePair.objects.all():
        assert f"/pairs/{row.pair_id}/" not in html


def test_who_labels_too_is_shown_nothing_of_what_comes_in(
    client, asking, judge, annotator, project_admin, make_pair, candidate, url
):
    judge(make_pair(), project_admin, "a")
    _vote(asking, judge, annotator, 6)
    text = _text(client.get(asking.get_absolute_url()))
    assert "You label here as well" in text
    told = _text(client.get(url("gates"))) + _text(client.get(url("checkpoint", uuid=candidate.uuid)))
    for secret in ("What people say", "win rate of", "6 of 6", "Blind votes", "vote by vote"):
        assert secret not in text, secret
        assert secret not in told, secret
    assert "Right on held-out preferences" in text, "what was measured tells nothing of votes"


def test_the_plot_has_the_interval_behind_the_rate_and_the_even_line_muted(asking, judge, annotator):
    _vote(asking, judge, annotator, 8)
    chart = read_gate(asking).votes.chart
    assert {line.label: line.role for line in chart.lines} == {"candidate": "main", "even": "muted"}
    assert len({dot.y for line in chart.lines if line.label == "even" for dot in line.dots}) == 1
    assert [area.role for area in chart.areas] == ["main"]
    assert "vote 8" in chart.summary


def test_an_admin_decides_while_people_are_asked(client, url, asking):
    assert "Decide without waiting" in _text(client.get(asking.get_absolute_url()))
    client.post(url("decide-gate", number=1), {"verdict": "reject", "reason": "Too long."})
    asking.refresh_from_db()
    assert (asking.stage, asking.outcome) == (Gate.Stage.DECIDED, "reject")


def test_the_page_polls_while_something_moves_and_ends_that_itself(client, url, gate):
    page = client.get(gate.get_absolute_url()).content.decode()
    assert "every 2s" in page
    status = url("gate-status", number=1)
    assert f"{status}?stage=measuring" in page
    assert client.get(status, {"stage": "measuring"}).status_code == 200
    _measured(gate, stage=Gate.Stage.ASKING)
    moved = client.get(status, {"stage": "measuring"})
    assert (moved.status_code, moved.headers.get("HX-Refresh")) == (200, "true")
    assert "every 10s" in client.get(status, {"stage": "asking"}).content.decode()
    for stage in (Gate.Stage.WAITING, Gate.Stage.DECIDED):
        _measured(gate, stage=stage, outcome="hold")
        ended = client.get(status, {"stage": "measuring"})
        assert ended.status_code == 286
        assert b"hx-get" not in ended.content
        assert b"Hold" in ended.content


def test_a_watch_speaks_of_the_policy_and_rolls_back(client, url, project, policy, candidate, prompts, label):
    services.promote_checkpoint(project=project, checkpoint=candidate)
    assert f"Watch {candidate.name}" in _text(client.get(url("gates")))
    response = client.post(url("watch"))
    gate = Gate.objects.get()
    assert response.url == gate.get_absolute_url()
    assert gate.kind == Gate.Kind.WATCH
    _measured(gate, stage=Gate.Stage.WAITING, outcome="reject", report={})
    text = _text(client.get(gate.get_absolute_url()))
    assert "since it is the policy, against the one before" in text
    assert "Keep helpful-dpo-7" in text
    client.post(url("decide-gate", number=1), {"verdict": "reject"})
    assert services.current_policy(project) == policy
    assert f"The policy was rolled back to {policy.name}." in _text(client.get(gate.get_absolute_url()))


def test_without_a_policy_before_there_is_nothing_to_watch(client, url, policy):
    assert 'id="watch"' not in client.get(url("gates")).content.decode()
    assert "there is none to watch" in _text(client.post(url("watch"), follow=True))


def test_the_release_rule_explains_itself_and_is_saved(client, url, project, policy):
    page = client.get(url("gates")).content.decode()
    for name in ("compares", "decides", "asks_people", "most_votes", "watches", "watch_votes", "rolls_back"):
        assert f'id="id_{name}"' in page
        assert f'id="id_{name}_helptext"' in page
    values = {"decides": "gate", "asks_people": "on", "most_votes": 150, "watch_votes": 60, "rolls_back": "on"}
    assert "Saved." in _text(client.post(url("release-rule"), values, follow=True))
    rule = ReleaseRule.objects.get(project=project)
    assert (rule.compares, rule.decides, rule.asks_people, rule.most_votes) == (False, "gate", True, 150)
    assert (rule.watches, rule.watch_votes, rule.rolls_back) == (False, 60, True)


@pytest.mark.parametrize(
    ("held_out", "said"),
    [(2, "has 2. Figures decide nothing on fewer than 30"), (31, "has 31: import more prompts"), (150, "")],
)
def test_the_rule_says_when_there_are_too_few_prompts_for_its_pairs(
    client, url, project, policy, make_prompt, held_out, said
):
    gates.change_release_rule(project=project, most_votes=150)
    for _ in range(held_out):
        make_prompt(held_out=True)
    text = _text(client.get(url("gates")))
    assert ("Each pair takes a held-out prompt of its own" in text) == bool(said)
    assert said in text


def test_a_rule_that_makes_no_sense_is_not_saved_and_says_where(client, url, project, policy):
    values = {"decides": "gate", "most_votes": 3, "watch_votes": 60}
    response = client.post(url("release-rule"), values)
    assert response.status_code == 400
    assert "greater than or equal to 20" in _text(response)
    assert not ReleaseRule.objects.filter(project=project, decides="gate").exists()


def test_the_list_names_each_gate_and_where_it_stands(client, url, gate, candidate):
    text = _text(client.get(url("gates")))
    assert "Gate 1 helpful-dpo-7 base Waiting for a worker" in text
    _measured(gate, stage=Gate.Stage.DECIDED, outcome="reject")
    assert "Gate 1 helpful-dpo-7 base Reject" in _text(client.get(url("gates")))
    assert url("gates") in client.get(url("checkpoints")).content.decode()


def test_an_empty_list_says_what_brings_a_gate(client, url, policy, prompts):
    assert "No gate yet The checkpoint of the next finished run is compared" in _text(client.get(url("gates")))


def test_where_there_are_too_few_prompts_to_compare_the_pages_say_so(client, url, policy, make_prompt):
    for _ in range(gates.LEAST_PROMPTS - 1):
        make_prompt(held_out=True)
    too_few = "The project has 9 held-out prompts, and a comparison needs 10 at least."
    page = client.get(url("gates"))
    text = _text(page)
    assert f"No checkpoint can be compared and no policy watched now. {too_few}" in text
    assert "No gate yet Once there are enough held-out prompts" in text
    assert text.count(f"It cannot begin yet. {too_few}") == 2, "of comparisons and of watches"
    make_prompt(held_out=True)
    assert "held-out prompts, and a comparison needs" not in _text(client.get(url("gates")))


def test_the_page_of_a_run_that_could_not_be_compared_says_why(client, url, project, candidate, label, make_prompt):
    label(10)
    run = services.request_run(project=project, recipe=Recipe())
    ended = {"state": Job.State.SUCCEEDED, "checkpoint": candidate, "finished_at": timezone.now()}
    TrainingRun.objects.filter(pk=run.pk).update(**ended)
    gates.turn_gates()
    text = _text(client.get(url("run", number=run.number)))
    assert (
        "It was not compared with the policy. The comparison was refused: “The project has 0 held-out prompts" in text
    )
    for _ in range(gates.LEAST_PROMPTS):
        make_prompt(held_out=True)
    gates.turn_gates()
    assert "It was not compared" not in _text(client.get(url("run", number=run.number)))


def test_a_reviewer_reads_and_has_no_buttons(sign_in, reviewer, url, asking):
    client = sign_in(reviewer)
    for page in (client.get(url("gates")), client.get(asking.get_absolute_url())):
        assert page.status_code == 200
        main = page.content.decode().split("<main")[1]
        assert "<form" not in main
    _measured(asking, stage=Gate.Stage.WAITING, outcome="promote")
    assert "An admin of the project decides." in _text(client.get(asking.get_absolute_url()))


def test_another_projects_gate_is_not_found(client, url, gate):
    from labeling.services import create_project

    other = create_project(name="Other", slug="other")
    Gate.objects.update(project=other)
    assert client.get(url("gate", number=1)).status_code == 404
    assert client.post(url("decide-gate", number=1), {"verdict": "promote"}).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_away_is_said_to_the_person_who_asked(client, url, candidate, prompts, monkeypatch):
    def refuse(args: list[int]) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(tasks.run_gate, "apply_async", refuse)
    page = client.post(url("ask-gate", uuid=candidate.uuid), follow=True)
    assert "broker cannot be reached" in _text(page)
