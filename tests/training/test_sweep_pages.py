"""Pages and API of a sweep: what it takes, the frontier while it grows, and the pick."""

from __future__ import annotations

import re

import pytest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from labeling.models import Prompt
from tests.training.test_sweeps import _runs, finish, request_sweep  # noqa: F401  (fixtures)
from training import gates, sweeps
from training.models import Checkpoint, LoopRule, Sweep, TrainingRun
from training.recipe import Recipe

HTMX = {"HX-Request": "true"}


@pytest.fixture
def client(sign_in, project_admin):
    return sign_in(project_admin)


@pytest.fixture
def url(project):
    return lambda name, **keys: reverse(f"training:{name}", kwargs={"slug": project.slug} | keys)


@pytest.fixture
def api(project):
    return lambda name, **keys: reverse(f"api:{name}", kwargs={"slug": project.slug} | keys)


def _text(response) -> str:
    return re.sub(r"[ \n]+", " ", response.content.decode())


def _form(policy, **values) -> dict[str, object]:
    usual = {name: value for name, value in Recipe().to_dict().items() if name not in sweeps.SWEPT}
    return usual | {"reference": policy.pk, "betas": "0.05, 0.5", "learning_rates": ""} | values


def test_the_form_starts_a_sweep_and_leads_to_it(client, url, policy, label, project_admin):
    label(10)
    response = client.post(url("new-sweep"), _form(policy, learning_rates="1e-5;1e-4", seed=3, epochs=2))
    sweep = Sweep.objects.get()
    assert response.headers["Location"] == url("sweep", number=1)
    assert [(run.beta, run.recipe["learning_rate"]) for run in _runs(sweep)] == [
        (0.05, 1e-5),
        (0.5, 1e-5),
        (0.05, 1e-4),
        (0.5, 1e-4),
    ]
    assert {(run.seed, run.recipe["epochs"], run.requested_by) for run in _runs(sweep)} == {(3, 2.0, project_admin)}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"betas": "0.1 0.1"}, "The β 0.1 is there twice"),
        ({"betas": "0,1 x"}, "Write numbers with a point"),
        ({"betas": "0.1 99"}, "beta is 99.0; it must lie between"),
        ({"betas": "0.1"}, "Train that one by itself"),
        ({"epochs": "999"}, "epochs is 999"),
    ],
)
def test_the_form_says_what_is_wrong_and_starts_nothing(client, url, policy, label, values, reason):
    label(10)
    response = client.post(url("new-sweep"), _form(policy, **values))
    assert response.status_code == 400
    assert escape(reason) in _text(response)
    assert not Sweep.objects.exists()


def test_a_refusal_of_the_service_is_shown(client, url, policy):
    response = client.post(url("new-sweep"), _form(policy))
    assert response.status_code == 400
    assert "not enough to train on" in _text(response)


def test_what_it_takes_is_that_of_every_point(client, url, policy, label, project, finish):  # noqa: F811
    label(10)
    assert "no run of this kind has told its pace yet" in _text(client.get(url("new-sweep")))
    run = TrainingRun.objects.create(
        project=project,
        number=1,
        snapshot=_snapshot(project),
        reference=policy,
        recipe=Recipe().to_dict(),
    )
    finish(run)
    Checkpoint.objects.filter(run=run).update(details={"speed": {"pairs_per_s": 1.0}})
    said = _text(client.get(url("new-sweep")))
    assert "about 2 min of training in all" in said, "4 times 10 triples and 3 epochs at 1 pair/s"
    assert "4 times 30 s" in said
    asked = client.get(url("new-sweep"), _form(policy, betas="0.1 0.2 0.3"), headers=HTMX)
    assert "3, one after the other" in _text(asked)
    assert "about 1 min 30 s of training in all" in _text(asked)
    assert "<html" not in _text(asked)
    wrong = client.get(url("new-sweep"), _form(policy, betas="0.1 0.1"), headers=HTMX)
    assert "is there twice" in _text(wrong)


def test_steps_and_the_rate_are_said_where_no_rates_are_typed(client, url, policy, label):
    label(10)
    steps = '<dt>Steps</dt> <dd> 6 <span class="muted">· at the learning rate 0.0005</span>'
    assert steps in _text(client.get(url("new-sweep")))
    typed = client.get(url("new-sweep"), _form(policy, learning_rates="1e-5 1e-4"), headers=HTMX)
    assert "<dt>Triples</dt>" in _text(typed)
    assert "<dt>Steps</dt>" not in _text(typed)


def _snapshot(project):
    from training import services

    return services.freeze(project, Recipe(), services.default_reference(project))


def test_the_page_grows_with_the_runs_and_ends_its_own_polling(client, url, request_sweep, finish):  # noqa: F811
    sweep = request_sweep((0.05, 0.1, 0.5))
    first, second, third = _runs(sweep)
    page = _text(client.get(url("sweep", number=1)))
    assert "0 of 3 runs done" in page
    assert "The first point appears when the first run is done" in page
    assert 'hx-trigger="every 4s"' in page
    finish(first, 0.7, 9.0)
    assert second.claim("worker")
    TrainingRun.objects.filter(pk=second.pk).update(progress={"step": 3, "steps": 12})
    status = client.get(url("sweep-status", number=1), headers=HTMX)
    assert status.status_code == 200
    assert "step 3 of 12" in _text(status)
    assert "β 0.05: 70" in _text(status), "the chart says it"
    assert "6.00 to 12.0" not in _text(status)
    assert "4.50 to 18.00" in _text(status)
    for run in (second, third):
        finish(run, 0.75, 4.0)
    ended = client.get(url("sweep-status", number=1), headers=HTMX)
    assert ended.status_code == 286
    assert "hx-trigger" not in _text(ended)


def test_points_are_marked_and_one_is_picked_with_a_button(client, url, request_sweep, finish, project):  # noqa: F811
    sweep = request_sweep((0.05, 0.5))
    first, second = _runs(sweep)
    finish(first, 0.7, 9.0)
    better = finish(second, 0.7, 4.0)
    page = _text(client.get(url("sweep", number=1)))
    assert page.count("on the frontier</span>") == 1
    assert page.count(">Pick</button>") == 2
    assert 'class="ring"' not in page
    said = _text(client.post(url("pick", number=1), {"run": second.number}, follow=True))
    assert "runs that start by themselves have its recipe from now on" in said
    assert said.count('class="ring"') == 2, "in both charts"
    assert said.count(">Pick</button>") == 1
    assert f'{reverse("training:checkpoint", args=[project.slug, better.uuid])}">{better.name}' in said
    assert LoopRule.objects.get().recipe == {"beta": 0.5}


def test_whoever_picks_is_told_whether_it_is_compared(client, url, request_sweep, finish, make_prompt):  # noqa: F811
    sweep = request_sweep((0.05, 0.5))
    for run in _runs(sweep):
        finish(run)
    Prompt.objects.update(withdrawn_at=timezone.now())
    said = _text(client.post(url("pick", number=1), {"run": 1}, follow=True))
    assert "is not compared with the policy. The project has 0 held-out prompts" in said
    for _ in range(gates.LEAST_PROMPTS):
        make_prompt(held_out=True)
    said = _text(client.post(url("pick", number=1), {"run": 1}, follow=True))
    assert "Its checkpoint is compared with the policy in Gate 1." in said
    gates.change_release_rule(project=sweep.project, compares=False)
    said = _text(client.post(url("pick", number=1), {"run": 2}, follow=True))
    assert "Its checkpoint is not compared with the policy." in said


@pytest.mark.parametrize("run", ["", "x", "99", "1"])
def test_what_is_no_finished_point_is_not_picked(client, url, request_sweep, run):  # noqa: F811
    request_sweep()
    said = _text(client.post(url("pick", number=1), {"run": run}, follow=True))
    assert ("Choose one of the points" in said) != ("only a run that is done can be picked" in said)
    assert Sweep.objects.get().picked is None


def test_it_is_cancelled_and_resumed_with_buttons(client, url, request_sweep):  # noqa: F811
    request_sweep()
    page = _text(client.post(url("cancel-sweep", number=1), follow=True))
    assert "Points that are done stay" in page
    assert "3 stopped before the end" in page
    assert "No run has come to its end" in page
    page = _text(client.post(url("resume-sweep", number=1), follow=True))
    assert "Queued again" in page
    assert set(TrainingRun.objects.values_list("state", flat=True)) == {"queued"}


def test_without_a_held_out_pair_the_page_says_why_there_is_no_chart(client, url, request_sweep, finish):  # noqa: F811
    for run in _runs(request_sweep()):
        finish(run)
    Checkpoint.objects.filter(kind="dpo").update(details={})
    assert "no judged pair on a held-out prompt" in _text(client.get(url("sweep", number=1)))


def test_a_reviewer_reads_and_has_no_button(url, request_sweep, finish, sign_in, reviewer):  # noqa: F811
    for run in _runs(request_sweep()):
        finish(run)
    page = _text(sign_in(reviewer).get(url("sweep", number=1)))
    assert "Held-out accuracy" in page
    assert ">Pick</button>" not in page


def test_a_run_and_the_list_of_runs_lead_to_the_sweep(client, url, request_sweep):  # noqa: F811
    request_sweep()
    for page in (url("run", number=2), url("overview")):
        assert url("sweep", number=1) in _text(client.get(page))
    assert url("new-sweep") in _text(client.get(url("train")))


def test_the_page_does_not_grow_in_queries(client, url, request_sweep, finish, django_assert_max_num_queries):  # noqa: F811
    for betas in ((0.1, 0.2), tuple(number / 10 for number in range(1, 13))):
        for run in _runs(request_sweep(betas)):
            finish(run)
    client.get(url("sweep", number=1))
    for number in (1, 2):
        with django_assert_max_num_queries(15):
            client.get(url("sweep", number=number))


def test_the_api_starts_reads_cancels_resumes_and_picks(client, api, policy, label, finish):  # noqa: F811
    label(10)
    asked = {"betas": [0.05, 0.5], "recipe": {"epochs": 1}, "seed": 3}
    made = client.post(api("sweeps"), asked, content_type="application/json")
    assert made.status_code == 201
    assert (made.json()["number"], made.json()["runs"], made.json()["picked"]) == (1, [1, 2], None)
    assert [point["kl"] for point in made.json()["points"]] == [None, None]
    assert client.post(api("cancel-sweep", number=1)).status_code == 202
    assert set(TrainingRun.objects.values_list("state", flat=True)) == {"cancelled"}
    assert client.post(api("resume-sweep", number=1)).status_code == 202
    assert set(TrainingRun.objects.values_list("state", flat=True)) == {"queued"}
    for run in TrainingRun.objects.all():
        finish(run, 0.75, 4.0, 0.5)
    (listed,) = client.get(api("sweeps")).json()["results"]
    assert listed["recipe"]["epochs"] == 1
    first, second = client.get(api("sweep", number=1)).json()["points"]
    assert (first["kl"], first["accuracy"]) == ([4.0, 2.0, 8.0], pytest.approx([0.75, 0.65, 0.85]))
    assert (first["nats"][0], second["nats"][0]) == pytest.approx((10.0, 1.0))
    picked = client.post(api("pick", number=1), {"run": 2}, content_type="application/json")
    assert (picked.json()["picked"], Sweep.objects.get().picked.number) == (2, 2)
    assert client.post(api("pick", number=1), {"run": 9}, content_type="application/json").status_code == 404
    refused = client.post(api("sweeps"), {"betas": [0.1]}, content_type="application/json")
    assert refused.status_code in (400, 409)
    assert "Train that one by itself" in refused.content.decode()
