"""Gates and the release rule for programs: what admins do on the pages, and no more than the pages tell."""

from __future__ import annotations

import json

import pytest

from training import gate_pairs, gates, services
from training.models import Gate, Job, ReleaseRule


@pytest.fixture
def call(project, project_admin, api):
    asked = api(project_admin)
    return lambda method, path, body=None: asked(method, f"{project.slug}/{path}", body)


@pytest.fixture
def candidate(project, policy, make_checkpoint, make_prompt):
    for _ in range(gates.LEAST_PROMPTS):
        make_prompt(held_out=True)
    return make_checkpoint("helpful-dpo-7", project=project, kind="dpo", base=policy, parent=policy)


@pytest.fixture
def gate(project, candidate) -> Gate:
    return gates.request_gate(project=project, candidate=candidate)


def _waiting(gate: Gate) -> None:
    Gate.objects.filter(pk=gate.pk).update(state=Job.State.SUCCEEDED, stage=Gate.Stage.WAITING)


def test_a_checkpoint_is_compared_and_promoted(project, policy, candidate, project_admin, call):
    asked = call("post", "gates/", {"checkpoint": str(candidate.uuid)})
    assert asked.status_code == 201
    told = asked.json()
    assert (told["number"], told["kind"], told["stage"], told["state"]) == (1, "release", "measuring", "queued")
    assert (told["candidate"], told["current"]) == (str(candidate.uuid), str(policy.uuid))
    early = call("post", "gates/1/decide/", {"verdict": "promote"})
    assert early.status_code == 409
    assert "still being measured" in early.json()["detail"]
    again = call("post", "gates/", {"checkpoint": str(candidate.uuid)})
    assert again.status_code == 409
    assert "being compared" in again.json()["detail"]
    _waiting(Gate.objects.get())
    decided = call("post", "gates/1/decide/", {"verdict": "promote", "reason": "Good enough"}).json()
    assert (decided["stage"], decided["outcome"], decided["decided_by"]) == ("decided", "promote", "boss")
    assert decided["reasons"] == ["boss decided: promote. Good enough"]
    assert services.current_policy(project) == candidate
    assert [row["number"] for row in call("get", "gates/").json()["results"]] == [1]
    watched = call("post", "gates/watch/")
    assert (watched.status_code, watched.json()["kind"]) == (201, "watch")


def test_what_cannot_be_is_refused_with_the_reason(policy, candidate, gate, call):
    assert call("post", "gates/", {}).json() == {"checkpoint": ["This field is required."]}
    assert call("post", "gates/", {"checkpoint": str(gate.uuid)}).status_code == 404
    assert "is the policy already" in call("post", "gates/", {"checkpoint": str(policy.uuid)}).json()["detail"]
    assert "there is none to watch" in call("post", "gates/watch/").json()["detail"]
    assert "verdict" in call("post", "gates/1/decide/", {"verdict": "maybe"}).json()
    for missing in (2, 10**30):
        assert call("get", f"gates/{missing}/").status_code == 404


def test_a_measurement_is_cancelled_and_started_again(gate, call):
    assert call("post", "gates/1/cancel/").json()["state"] == "cancelled"
    assert "nothing to cancel" in call("post", "gates/1/cancel/").json()["detail"]
    again = call("post", "gates/1/start-again/")
    assert (again.status_code, again.json()["state"], again.json()["stage"]) == (202, "queued", "measuring")


def test_votes_are_told_in_total_and_never_one_by_one(gate, call):
    told = call("get", "gates/1/").json()
    assert told["votes"] == {
        "asked": 0,
        "votes": 0,
        "for_candidate": 0,
        "for_current": 0,
        "ties": 0,
        "win_rate": None,
        "interval": None,
        "withdrawn": 0,
    }
    gates_votes = gates.sequential.read_votes([1.0, 0.0, 0.5, 1.0]).as_json() | {"asked": 9, "seen": [4, 7, False]}
    gates_votes["preferences"] = [901, 902, 903, 904]
    checks = gate_pairs.decide_by_figures(gate, {}).checks_as_json
    Gate.objects.filter(pk=gate.pk).update(votes=gates_votes, checks=checks)
    told = call("get", "gates/1/").json()
    assert "series" not in json.dumps(told)
    assert "preferences" not in told["votes"]
    assert {name: told["votes"][name] for name in ("asked", "votes", "for_candidate", "for_current", "ties")} == {
        "asked": 9,
        "votes": 4,
        "for_candidate": 2,
        "for_current": 1,
        "ties": 1,
    }
    assert [check["name"] for check in told["checks"]][:2] == ["held_out", "win_rate"]
    assert all(check["outcome"] == "not_measured" for check in told["checks"])


def test_who_labels_is_not_told_what_comes_in(project, gate, call, make_pair, judge, project_admin):
    votes = gates.sequential.read_votes([1.0, 0.0]).as_json() | {"asked": 9}
    checks = [{"name": name, "title": "T", "outcome": "pass", "words": "W", "figures": {}} for name in ("people", "kl")]
    asking = {"stage": Gate.Stage.ASKING, "reasons": ["People have shown nothing."], "votes": votes, "checks": checks}
    Gate.objects.filter(pk=gate.pk).update(**asking)
    assert call("get", "gates/1/").json()["votes"]["votes"] == 2
    judge(make_pair(), project_admin, "a")
    told = call("get", "gates/1/").json()
    assert (told["votes"], [check["name"] for check in told["checks"]]) == (None, ["kl"])
    assert "You label here as well" in told["reasons"][0] == call("get", "gates/").json()["results"][0]["reasons"][0]
    Gate.objects.filter(pk=gate.pk).update(stage=Gate.Stage.DECIDED)
    assert call("get", "gates/1/").json()["reasons"] == ["People have shown nothing."]


def test_the_release_rule_is_read_and_changed_in_part(project, call):
    assert call("get", "release-rule/").json()["decides"] == "admin"
    changed = call("patch", "release-rule/", {"decides": "gate", "most_votes": 120}).json()
    assert (changed["decides"], changed["most_votes"], changed["compares"]) == ("gate", 120, True)
    refused = call("patch", "release-rule/", {"most_votes": 3, "asks_people": True})
    assert refused.status_code == 400
    assert "most_votes" in refused.json()
    rule = ReleaseRule.objects.get(project=project)
    assert (rule.most_votes, rule.asks_people) == (120, False), "all of it or nothing"
