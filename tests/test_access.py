"""Every URL by every role. A route that is missing from the table fails the test."""

from __future__ import annotations

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from labeling.models import Preference

ANYBODY, MEMBER, REVIEWER, ADMIN, OPERATOR = "anybody", "member", "reviewer", "admin", "operator"

# What each role may do, in the order anonymous, stranger, annotator, reviewer, admin. 302 leads to the sign-in page.
EXPECTED = {
    ANYBODY: ("ok", "ok", "ok", "ok", "ok"),
    MEMBER: (302, 404, "ok", "ok", "ok"),
    REVIEWER: (302, 404, 403, "ok", "ok"),
    ADMIN: (302, 404, 403, 403, "ok"),
}
API_EXPECTED = {level: (401, *codes[1:]) for level, codes in EXPECTED.items()}
PAGES = {
    "login": ("get", ANYBODY),
    "set-language": ("post", ANYBODY),
    "livez": ("get", ANYBODY),
    "readyz": ("get", ANYBODY),
    "labeling:project": ("get", MEMBER),
    "labeling:annotate": ("get", MEMBER),
    "labeling:submit": ("post", MEMBER),
    "labeling:skip": ("post", MEMBER),
    "labeling:undo": ("post", MEMBER),
    "labeling:renew": ("post", MEMBER),
    "labeling:reasons": ("post", MEMBER),
    "labeling:difference": ("get", MEMBER),
    "labeling:give-back": ("post", MEMBER),
    "labeling:history": ("get", MEMBER),
    "labeling:reopen": ("post", MEMBER),
    "labeling:prompts": ("get", REVIEWER),
    "labeling:guidelines": ("get", MEMBER),
    "labeling:guidelines-version": ("get", MEMBER),
    "labeling:edit-guidelines": ("get", ADMIN),
    "labeling:preview-guidelines": ("post", ADMIN),
    "labeling:qualify": ("get", MEMBER),
    "labeling:answer-item": ("post", MEMBER),
    "labeling:qualification": ("get", ADMIN),
    "labeling:import-qualification": ("post", ADMIN),
    "labeling:add-item": ("get", ADMIN),
    "labeling:edit-item": ("get", ADMIN),
    "labeling:item-of-pair": ("post", ADMIN),
    "labeling:order-item": ("post", ADMIN),
    "labeling:admit-person": ("post", ADMIN),
    "labeling:settings": ("get", ADMIN),
    "labeling:add-member": ("post", ADMIN),
    "labeling:change-member": ("post", ADMIN),
    "labeling:review": ("get", REVIEWER),
    "labeling:send-back": ("post", REVIEWER),
    "labeling:judgements": ("get", REVIEWER),
    "labeling:export-csv": ("get", REVIEWER),
    "labeling:export-jsonl": ("get", REVIEWER),
    "labeling:pairs": ("get", REVIEWER),
    "labeling:pair": ("get", REVIEWER),
    "labeling:decide": ("post", REVIEWER),
    "labeling:gold": ("post", REVIEWER),
    "labeling:people": ("get", REVIEWER),
    "labeling:person": ("get", REVIEWER),
    "labeling:dashboard": ("get", REVIEWER),
    "labeling:me": ("get", MEMBER),
    "training:overview": ("get", REVIEWER),
    "training:sampling-status": ("get", REVIEWER),
    "training:sample": ("post", ADMIN),
    "training:cancel-batch": ("post", ADMIN),
    "training:rule": ("post", ADMIN),
    "training:retraining-status": ("get", REVIEWER),
    "training:pause": ("post", ADMIN),
    "training:end-pause": ("post", ADMIN),
    "training:usual-recipe": ("post", ADMIN),
    "training:train": ("get", ADMIN),
    "training:run": ("get", REVIEWER),
    "training:run-status": ("get", REVIEWER),
    "training:cancel-run": ("post", ADMIN),
    "training:resume-run": ("post", ADMIN),
    "training:new-sweep": ("get", ADMIN),
    "training:sweep": ("get", REVIEWER),
    "training:sweep-status": ("get", REVIEWER),
    "training:cancel-sweep": ("post", ADMIN),
    "training:resume-sweep": ("post", ADMIN),
    "training:pick": ("post", ADMIN),
    "training:my-labels": ("get", MEMBER),
    "training:checkpoints": ("get", REVIEWER),
    "training:roll-back": ("post", ADMIN),
    "training:checkpoint": ("get", REVIEWER),
    "training:export-status": ("get", REVIEWER),
    "training:prepare": ("post", REVIEWER),
    "training:promote": ("post", ADMIN),
    "training:prepare-gguf": ("post", REVIEWER),
    "training:push": ("post", ADMIN),
    "training:download-adapter": ("get", REVIEWER),
    "training:download-merged": ("get", REVIEWER),
    "training:compare": ("get", REVIEWER),
    "training:side-by-side": ("get", REVIEWER),
    "training:side-by-side-status": ("get", REVIEWER),
    "training:cancel-side-by-side": ("post", ADMIN),
    "training:ask-gate": ("post", ADMIN),
    "training:gates": ("get", REVIEWER),
    "training:release-rule": ("post", ADMIN),
    "training:watch": ("post", ADMIN),
    "training:gate": ("get", REVIEWER),
    "training:gate-status": ("get", REVIEWER),
    "training:decide-gate": ("post", ADMIN),
    "training:cancel-gate": ("post", ADMIN),
    "training:start-gate-again": ("post", ADMIN),
    "training:download-gguf": ("get", REVIEWER),
    "training:download-manifest": ("get", REVIEWER),
    "training:download-card": ("get", REVIEWER),
    "training:retention": ("get", REVIEWER),
    "training:delete-old": ("post", ADMIN),
    "training:checkpoint-lineage": ("get", REVIEWER),
    "training:pair-lineage": ("get", REVIEWER),
    "training:withdrawals": ("get", REVIEWER),
    "training:withdraw-annotator": ("get", ADMIN),
    "training:withdraw-prompt": ("get", ADMIN),
    "training:withdraw-judgement": ("get", ADMIN),
    "training:rebuild-run": ("post", ADMIN),
}
API = {
    "api:project": ("get", ADMIN),
    "api:members": ("get", ADMIN),
    "api:prompts": ("get", REVIEWER),
    "api:judgements": ("get", REVIEWER),
    "api:quality": ("get", REVIEWER),
    "api:lease": ("post", MEMBER),
    "api:preferences": ("post", MEMBER),
    "api:skips": ("post", MEMBER),
    "api:triples": ("get", REVIEWER),
    "api:demonstrations": ("get", REVIEWER),
    "api:batches": ("get", REVIEWER),
    "api:runs": ("get", REVIEWER),
    "api:run": ("get", REVIEWER),
    "api:cancel-run": ("post", ADMIN),
    "api:resume-run": ("post", ADMIN),
    "api:sweeps": ("get", REVIEWER),
    "api:sweep": ("get", REVIEWER),
    "api:cancel-sweep": ("post", ADMIN),
    "api:resume-sweep": ("post", ADMIN),
    "api:pick": ("post", ADMIN),
    "api:gates": ("get", REVIEWER),
    "api:watch": ("post", ADMIN),
    "api:gate": ("get", REVIEWER),
    "api:decide-gate": ("post", ADMIN),
    "api:cancel-gate": ("post", ADMIN),
    "api:start-gate-again": ("post", ADMIN),
    "api:release-rule": ("get", REVIEWER),
    "api:retraining": ("get", REVIEWER),
    "api:pause-retraining": ("post", ADMIN),
    "api:end-pause-retraining": ("post", ADMIN),
    "api:checkpoints": ("get", REVIEWER),
    "api:promotions": ("get", REVIEWER),
    "api:download-adapter": ("get", REVIEWER),
    "api:download-merged": ("get", REVIEWER),
    "api:download-gguf": ("get", REVIEWER),
    "api:download-manifest": ("get", REVIEWER),
    "api:download-card": ("get", REVIEWER),
}
# Routes that read for some and write for others.
WRITES = {
    "labeling:prompts": ("post", ADMIN),
    "labeling:edit-guidelines": ("post", ADMIN),
    "labeling:add-item": ("post", ADMIN),
    "labeling:edit-item": ("post", ADMIN),
    "labeling:settings": ("post", ADMIN),
    "api:project": ("patch", ADMIN),
    "training:train": ("post", ADMIN),
    "training:compare": ("post", REVIEWER),
    "training:new-sweep": ("post", ADMIN),
    "training:retention": ("post", ADMIN),
    "training:withdraw-annotator": ("post", ADMIN),
    "training:withdraw-prompt": ("post", ADMIN),
    "training:withdraw-judgement": ("post", ADMIN),
    "api:prompts": ("post", ADMIN),
    "api:batches": ("post", ADMIN),
    "api:runs": ("post", ADMIN),
    "api:sweeps": ("post", ADMIN),
    "api:gates": ("post", ADMIN),
    "api:release-rule": ("patch", ADMIN),
    "api:retraining": ("patch", ADMIN),
    "api:promotions": ("post", ADMIN),
}
# Behind the door there may be nothing under that address.
MAY_BE_MISSING = {f"{area}:download-{what}" for area in ("training", "api") for what in ("adapter", "merged", "gguf")}
MAY_BE_MISSING |= {"labeling:admit-person", "notice"}
# Pages for everybody who is signed in, whatever the project, and what the others get.
SIGNED_IN = {
    "home": ("get", 302),
    "keys": ("get", 302),
    "notices": ("get", 302),
    "notice": ("get", 302),
    "notices-read": ("post", 302),
    "notices-emails": ("post", 302),
    "logout": ("post", 302),
    "api:projects": ("get", 401),
    "api:schema": ("get", 401),
}
# Pages for staff, whatever the project.
STAFF = {"new-project"}


def _names(patterns: list[URLPattern | URLResolver], prefix: str = "") -> list[str]:
    names: list[str] = []
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            if pattern.namespace == "admin":
                continue
            inner = f"{prefix}{pattern.namespace}:" if pattern.namespace else prefix
            names += _names(pattern.url_patterns, inner)
        elif pattern.name:
            names.append(prefix + pattern.name)
    return names


def test_every_route_is_in_the_table():
    assert set(_names(get_resolver().url_patterns)) == {*PAGES, *API, *SIGNED_IN, *STAFF}


@pytest.fixture
def people(annotator, reviewer, project_admin, stranger) -> list[User | None]:
    return [None, stranger, annotator, reviewer, project_admin]


@pytest.fixture
def address(project, policy, label, make_prompt):
    """The URL of a route with rows behind every placeholder."""
    from labeling.models import Seat
    from labeling.qualification_items import ItemContent, add_items
    from training.models import Gate, SideBySide, Sweep
    from training.recipe import Recipe
    from training.services import request_run, request_samples

    label(10)
    run = request_run(project=project, recipe=Recipe())
    Sweep.objects.create(
        project=project, number=run.number, snapshot=run.snapshot, reference=run.reference, recipe=run.recipe
    )
    batch = request_samples(project=project, pairs=1)
    Gate.objects.create(project=project, number=run.number, candidate=policy, current=policy, rule={})
    judged = Preference.objects.filter(project=project).latest("pk")
    Seat.objects.get_or_create(project=project, annotator=judged.annotator)
    values = {"slug": project.slug, "number": run.number, "pk": batch.pk, "uuid": policy.uuid, "version": 1}
    asked = SideBySide.objects.create(project=project, left=policy, right=policy, prompts=[], decoding={})
    values |= {"side_by_side_id": asked.pk}
    values |= {"pair_id": judged.pair_id, "preference_id": judged.pk, "user_id": judged.annotator_id}
    values["prompt_id"] = judged.pair.prompt_id

    def address(name: str) -> str:
        if name in ("labeling:edit-item", "labeling:order-item"):
            # Not before it is asked for: while there is one, nobody is given a pair.
            content = ItemContent([{"role": "user", "content": "?"}], "1", "2", "a", "!")
            return reverse(name, args=[project.slug, add_items(project=project, contents=[content])[0].pk])
        if name == "labeling:change-member":
            return reverse(name, args=[project.slug, User.objects.get_or_create(username="nobody")[0].pk])
        if name == "notice":  # of nobody
            return reverse(name, args=[0])
        for keys in ([], ["slug"], *(["slug", key] for key in values if key != "slug")):
            try:
                return reverse(name, kwargs={key: values[key] for key in keys})
            except Exception:
                continue
        raise AssertionError(name)

    return address


@pytest.mark.parametrize(
    ("name", "method", "level"), [(name, *row) for table in (PAGES, API, WRITES) for name, row in table.items()]
)
def test_who_may(name, method, level, people, policy, address, sign_in, anonymous_client):
    is_api = name.startswith("api:")
    expected = (API_EXPECTED if is_api else EXPECTED)[level]
    for user, code in zip(people, expected, strict=True):
        client = sign_in(user) if user else anonymous_client
        data = {}
        if is_api and method in ("post", "patch"):
            # Not what anybody asks for: who sends it is looked at first.
            data = {"data": {"nonsense": 1}, "content_type": "application/json"}
        response = getattr(client, method)(address(name), **data)
        got = response.status_code
        if code == "ok":
            # A form that is not filled in, or a row in the wrong state, is past the door too.
            assert got not in (401, 403), (name, user, got)
            assert got != 404 or name in MAY_BE_MISSING, (name, user)
            assert got != 302 or "/sign-in/" not in response.headers["Location"], (name, user)
        else:
            assert got == code, (name, user, got)


@pytest.mark.parametrize("name", [name for table in (API, WRITES) for name in table if name.startswith("api:")])
@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete"])
def test_the_api_tells_nobody_anything_without_a_sign_in(name, method, address, anonymous_client):
    assert getattr(anonymous_client, method)(address(name)).status_code == 401


@pytest.mark.parametrize("name", SIGNED_IN)
def test_what_is_for_everybody_is_for_those_who_are_signed_in(name, address, stranger, sign_in, anonymous_client):
    method, refusal = SIGNED_IN[name]
    refused = getattr(anonymous_client, method)(address(name))
    assert refused.status_code == refusal
    if refusal == 302:
        assert reverse("login") in refused.headers["Location"]
    if name != "logout":
        answer = getattr(sign_in(stranger), method)(address(name))
        assert answer.status_code in (200, 302) or name in MAY_BE_MISSING
        assert reverse("login") not in answer.headers.get("Location", "")


@pytest.mark.parametrize(
    "name",
    [
        *("labeling:submit", "training:promote", "training:cancel-run", "training:roll-back"),
        *("training:decide-gate", "training:ask-gate", "training:release-rule"),
    ],
)
def test_what_changes_something_is_not_a_get_and_needs_the_csrf_token(name, address, project_admin):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    client.force_login(project_admin)
    assert client.get(address(name)).status_code == 405
    assert client.post(address(name)).status_code == 403


@pytest.mark.parametrize("name", STAFF)
@pytest.mark.parametrize("method", ["get", "post"])
def test_what_is_for_staff_is_for_staff(name, method, address, project_admin, admin_client, sign_in, anonymous_client):
    assert reverse("login") in getattr(anonymous_client, method)(address(name)).headers["Location"]
    assert getattr(sign_in(project_admin), method)(address(name)).status_code == 403
    assert getattr(admin_client, method)(address(name)).status_code in (200, 400)


def test_annotators_see_no_model_name_anywhere(project, policy, make_pair, annotator, sign_in):
    policy.name = policy.public_name = "Zebra-7B"
    policy.save()
    make_pair()
    client = sign_in(annotator)
    for url in ("", "annotate/"):
        page = client.get(f"/p/{project.slug}/{url}").content.decode()
        assert "Zebra" not in page
        assert "training/" not in page
    lease = client.post(f"/api/v1/projects/{project.slug}/lease/")
    assert set(lease.json()) == {
        *("token", "expires_at", "prompt", "left", "right", "previous", "asks_reason", "is_second_look"),
    }


def test_reviewers_decide_without_seeing_a_model_name_either(project, policy, label, reviewer, sign_in):
    policy.name = policy.public_name = "Zebra-7B"
    policy.save()
    (pair,) = label(1)
    pair.review = "conflict"
    pair.save()
    client = sign_in(reviewer)
    for url in ("review", "judgements", "judgements/export.jsonl", "pairs", f"pairs/{pair.pk}", "people", "dashboard"):
        response = client.get(f"/p/{project.slug}/{url}" + ("" if "." in url else "/"))
        assert response.status_code == 200, url
        assert b"Zebra" not in (b"".join(response) if response.streaming else response.content), url
    for url in ("judgements", "quality"):
        assert b"Zebra" not in client.get(f"/api/v1/projects/{project.slug}/{url}/").content


LISTS = [
    "training:overview",
    "training:checkpoints",
    "training:gates",
    "labeling:prompts",
    "labeling:judgements",
    "labeling:pairs",
]
LISTS += ["labeling:people", "labeling:dashboard", "labeling:review", "labeling:history", "labeling:guidelines"]
LISTS += ["labeling:qualification", "labeling:settings", "api:members", "api:judgements", "api:projects"]
LISTS += ["api:prompts", "api:triples", "api:demonstrations", "api:batches", "api:runs", "api:checkpoints"]
LISTS += ["api:promotions", "api:sweeps", "api:retraining", "training:compare", "training:retraining-status"]
LISTS += ["api:gates", "training:withdrawals"]


@pytest.fixture
def grow(project, policy, make_checkpoint, label, project_admin):
    """Add ``count`` rows of everything that is listed."""
    from django.utils import timezone

    from labeling import onboarding
    from labeling.models import QualificationResult
    from labeling.qualification_items import ItemContent, add_items
    from labeling.services import add_member, create_project, set_guidelines
    from training.models import Gate, Job, SampleBatch, TrainingRun
    from training.recipe import Recipe
    from training.services import promote_checkpoint, request_run

    def finished(model, row, **values) -> None:
        model.objects.filter(pk=row.pk).update(finished_at=timezone.now(), **values)

    def grow(count: int) -> None:
        label(10)
        for _ in range(count):
            number = TrainingRun.objects.count()
            better = make_checkpoint(f"c{number}", project=project, kind="dpo", parent=policy, base=policy)
            run = request_run(project=project, recipe=Recipe(), by=project_admin)
            finished(TrainingRun, run, state=Job.State.SUCCEEDED, checkpoint=better)
            promote_checkpoint(project=project, checkpoint=better, by=project_admin)
            Gate.objects.create(
                project=project, number=number + 1, candidate=better, current=policy, run=run, rule={}, stage="decided",
                requested_by=project_admin,
            )  # fmt: skip
            batch = SampleBatch.objects.active().get(project=project)  # a promotion asks for pairs
            finished(SampleBatch, batch, state=Job.State.SUCCEEDED)
            create_project(name=f"Other {number}", slug=f"other-{number}", admin=project_admin)
            set_guidelines(project=project, text=f"Rule {number}", author=project_admin)
            member = User.objects.create_user(f"member-{number}")
            add_member(project=project, user=member, role="annotator")
            add_items(
                project=project, contents=[ItemContent([{"role": "user", "content": "?"}], "1", "2", "a", "Because.")]
            )
            onboarding.arrive(project=project, annotator_id=member.pk)
            QualificationResult.objects.create(
                project=project, annotator=member, attempt=1, right=0, asked=1, is_passed=False
            )

    return grow


@pytest.fixture
def grows_in_queries(grow):
    """The pages of ``urls`` that ask the database more often when there are more rows, with both numbers."""

    def queries(client, url: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get(url).status_code == 200, url
        return len(captured)

    def grows(client, urls: list[str]) -> dict[str, tuple[int, int]]:
        grow(2)
        few = {url: queries(client, url) for url in urls}
        grow(8)
        many = {url: queries(client, url) for url in urls}
        return {url: (few[url], many[url]) for url in urls if many[url] > few[url]}

    return grows


def test_lists_do_not_grow_in_queries(project, project_admin, sign_in, grows_in_queries):
    urls = [reverse(name, args=[] if name == "api:projects" else [project.slug]) for name in LISTS]
    assert grows_in_queries(sign_in(project_admin), [reverse("home"), *urls]) == {}


def test_the_operators_view_of_every_model_opens_and_does_not_grow_in_queries(admin_client, grows_in_queries):
    models = [model for model in site._registry if model._meta.app_label in ("labeling", "training")]
    assert len(models) > 12
    urls = [reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist") for model in models]
    assert grows_in_queries(admin_client, urls) == {}


@pytest.mark.parametrize("wanted", ["/sign-in/", "/sign-in/?next=/sign-in/", "//elsewhere.example/"])
def test_the_door_does_not_lead_to_itself_or_elsewhere(sign_in, annotator, wanted):
    assert sign_in(annotator).get("/sign-in/", {"next": wanted}).headers["Location"] == "/"
