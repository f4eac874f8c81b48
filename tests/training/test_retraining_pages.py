"""What happens by itself, as the page and the API show it and let it be changed."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from training import loop, services
from training.models import Job, LoopRule, TrainingRun


@pytest.fixture
def boss(sign_in, project_admin):
    return sign_in(project_admin)


@pytest.fixture
def url(project):
    return lambda name: reverse(f"training:{name}", args=[project.slug])


@pytest.fixture
def rule(project, policy) -> LoopRule:
    services.change_rule(project=project, retrains=True, min_new_triples=10, open_pairs_wanted=0)
    return LoopRule.objects.get()


@pytest.fixture
def api(project, boss):
    def call(method: str, path: str = "", body: dict | None = None):
        address = f"/api/v1/projects/{project.slug}/retraining/{path}"
        return getattr(boss, method)(address, *([] if body is None else [body]), content_type="application/json")

    return call


def _page(client, address: str) -> str:
    return " ".join(client.get(address).content.decode().split())


def _conditions(page: str) -> dict[str, bool]:
    found = re.findall(r'<li class="is-(met|unmet)"> <span class="visually-hidden">(.*?)</span> (.*?) </li>', page)
    assert all(said.strip() == ("Holds:" if state == "met" else "Does not hold:") for state, said, _ in found)
    return {words: state == "met" for state, _, words in found}


def test_the_page_says_what_would_happen_now_why_and_what_it_would_cost(rule, boss, url, label):
    label(9)
    label(2, held_out=True)
    loop.evaluate_rules()
    page = _page(boss, url("overview"))
    assert "<strong>No run would start now.</strong> 9 of 10 new triples; at today’s pace" in page
    conditions = _conditions(page)
    assert len(conditions) == 10
    assert [met for words, met in conditions.items() if words.startswith("9 of 10")] == [False]
    assert sum(conditions.values()) == 9
    assert "9 to train on, 2 held out" in page
    assert '<dt>Steps</dt> <dd> 6 <span class="muted">· at the learning rate 0.0005</span>' in page
    assert "11 pairs to compute" in page
    assert "not known yet: no run of this kind has told its pace" in page
    assert "The project’s first policy, as its rule says" in page
    assert "as soon as what does not hold above does" in page
    label(1)
    LoopRule.objects.update(evaluated_at=timezone.now() - timedelta(seconds=40))
    page = _page(boss, url("retraining-status"))
    assert "<strong>A run would start now.</strong> 10 triples are new, and nothing stands in the way." in page
    assert all(_conditions(page).values())
    assert "within ten seconds" in page


def test_the_part_that_moves_is_asked_for_slowly_and_is_a_part(rule, boss, url):
    response = boss.get(url("retraining-status"))
    part = response.content.decode()
    assert response.status_code == 200
    assert "<html" not in part
    assert 'hx-trigger="every 15s"' in part
    assert f'hx-get="{url("retraining-status")}"' in part
    assert "<form" not in part, "nobody types into what is replaced"


def test_a_scheduler_that_is_not_there_is_said(rule, boss, url):
    assert "The scheduler has not looked at this yet." in _page(boss, url("overview"))
    LoopRule.objects.update(evaluated_at=timezone.now() - timedelta(minutes=5))
    assert "The scheduler looked at this 5 min ago, and it should every ten seconds." in _page(boss, url("overview"))
    loop.evaluate_rules()
    page = _page(boss, url("overview"))
    assert "The scheduler looked just now: 0 of 10 new triples." in page
    assert "it should every ten seconds" not in page


def test_the_page_promises_no_run_that_would_be_refused(rule, project, boss, url, label, make_prompt):
    label(12, prompt=make_prompt(held_out=False))
    page = _page(boss, url("overview"))
    words = "There is not enough to train on: 12 triples on 1 prompt, and at least 8 triples on 2 prompts are needed."
    assert f"<strong>No run would start now.</strong> {words}" in page
    assert not _conditions(page)[words]
    assert "within ten seconds" not in page


def test_a_paused_project_is_said_to_be_paused_and_its_scheduler_not_to_be_late(rule, project, api, boss, url):
    type(project).objects.update(is_paused=True)
    loop.evaluate_rules()
    page = _page(boss, url("overview"))
    assert "The scheduler looked just now: The project is paused: an admin ends that in its settings." in page
    assert not api("get").json()["now"]["scheduler_is_late"]


@pytest.mark.parametrize(
    ("length", "words"), [("hour", "until "), ("midnight", "until 00:00"), ("open", "until somebody")]
)
def test_a_pause_is_one_click_and_so_is_its_end(rule, boss, url, project_admin, length, words):
    page = _page(boss, url("overview"))
    assert f'name="length" value="{length}"' in page
    boss.post(url("pause"), {"length": length})
    page = _page(boss, url("overview"))
    assert f"Paused by {project_admin.username} {words}" in page
    assert 'name="length"' not in page
    assert 'id="end-pause"' in page
    boss.post(url("end-pause"))
    assert "It is not paused." in _page(boss, url("overview"))


def test_an_unknown_pause_pauses_nothing(rule, boss, url):
    page = boss.post(url("pause"), {"length": "for ever"}, follow=True).content.decode()
    assert "There is no pause “for ever”" in page
    assert LoopRule.objects.get().paused_at is None


def test_another_recipe_is_shown_with_who_set_it_and_a_way_back(rule, project, boss, url, project_admin):
    assert "usual-recipe" not in _page(boss, url("overview"))
    services.use_recipe(project=project, recipe={"beta": 0.3, "mode": "fast"}, by=project_admin)
    page = _page(boss, url("overview"))
    assert re.search(r"the usual one, but Mode [^,]*, β 0\.3 <span class=\"muted\">· set by boss", page)
    boss.post(url("usual-recipe"))
    assert LoopRule.objects.get().recipe == {}
    assert 'id="usual-recipe"' not in _page(boss, url("overview"))


def test_a_recipe_of_another_version_does_not_break_the_page(rule, boss, url):
    LoopRule.objects.update(recipe={"gamma": 1})
    page = _page(boss, url("overview"))
    assert "The recipe of the rule is none that this version knows" in page
    assert 'id="usual-recipe"' in page


def test_reviewers_read_the_rule_and_cannot_change_it(rule, project, url, sign_in, reviewer):
    services.change_rule(project=project, fixed_times=["03:00"], most_runs_a_day=2)
    page = _page(sign_in(reviewer), url("overview"))
    assert "when 10 triples are new, at most once in 60 min and 2 times a day, only at 03:00 (UTC)" in page
    assert 'name="length"' not in page


def test_a_run_page_says_which_reference_and_why(rule, project, boss, label, policy):
    label(10)
    loop.evaluate_rules()
    page = _page(boss, TrainingRun.objects.get().get_absolute_url())
    reason = "· The project’s first policy, as its rule says: distances stay comparable from run to run."
    assert re.search(rf"<code [^>]*>{policy.short_hash}</code> <span class=\"muted\">{re.escape(reason)}", page)
    assert "10 of the reference" in page


def test_the_api_says_the_same_and_changes_what_it_names(rule, api, label, policy, project_admin):
    label(12)
    found = api("get").json()
    now = found["now"]
    assert (now["starts"], now["words"]) == (True, "12 triples are new, and nothing stands in the way.")
    assert [condition["is_met"] for condition in now["conditions"]] == [True] * 10
    assert (now["reference"], now["reference_hash"]) == (str(policy.uuid), policy.content_hash)
    assert found["expected"]["reference_forwards"] == 12
    assert found["expected"]["seconds"] is None
    assert (found["expected"]["steps"], found["expected"]["learning_rate"]) == (6, 0.0005)
    changed = api("patch", body={"fixed_times": ["3:00"], "most_runs_a_day": 2, "recipe": {"beta": 0.3}}).json()["rule"]
    assert (changed["fixed_times"], changed["most_runs_a_day"], changed["recipe"]) == (["03:00"], 2, {"beta": 0.3})
    assert changed["min_new_triples"] == 10
    rule.refresh_from_db()
    assert (rule.fixed_times, rule.recipe_by) == (["03:00"], project_admin)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"fixed_times": ["25:00"]}, "no time of day"),
        ({"recipe": {"beta": -1}}, "beta is -1"),
        ({"min_new_triples": 0, "recipe": {"beta": 0.2}}, "at least 1"),
        ({"reference": "newest", "recipe": {"beta": 0.2}}, "newest"),
    ],
)
def test_the_api_refuses_with_the_reason_and_changes_nothing(rule, api, body, words):
    response = api("patch", body=body)
    assert response.status_code in (400, 409)
    assert words in response.content.decode()
    rule.refresh_from_db()
    assert (rule.fixed_times, rule.recipe, rule.min_new_triples) == ([], {}, 10)


def test_the_api_pauses_and_goes_on(rule, api, project_admin):
    until = (timezone.now() + timedelta(hours=3)).isoformat()
    paused = api("post", "pause/", {"until": until}).json()
    assert (paused["now"]["is_paused"], paused["rule"]["paused_by"]) == (True, project_admin.username)
    assert api("post", "pause/", {}).json()["rule"]["paused_until"] is None
    assert api("post", "pause/", {"until": "2020-01-01T00:00:00Z"}).status_code == 409
    assert not api("post", "end-pause/").json()["now"]["is_paused"]


def test_a_project_without_a_policy_has_an_answer_too(project, api, boss, url):
    found = api("get").json()
    assert found["expected"] is None
    assert found["now"]["reference"] is None
    assert "There is no policy to train from yet" in _page(boss, url("overview"))


def test_the_run_in_the_api_says_why_and_what_was_expected(rule, project, boss, label):
    label(10)
    loop.evaluate_rules()
    run = boss.get(f"/api/v1/projects/{project.slug}/runs/1/").json()
    assert run["reference_reason"].startswith("The project’s first policy")
    assert run["forecast"]["reference"]["forwards"] == 10
    assert TrainingRun.objects.get().state == Job.State.QUEUED
