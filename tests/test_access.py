"""Every URL by every role. A route that is missing from the table fails the test."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.urls import URLPattern, URLResolver, get_resolver

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
    "livez": ("get", ANYBODY),
    "readyz": ("get", ANYBODY),
    "labeling:project": ("get", MEMBER),
    "labeling:annotate": ("get", MEMBER),
    "labeling:submit": ("post", MEMBER),
    "labeling:skip": ("post", MEMBER),
    "labeling:undo": ("post", MEMBER),
    "labeling:renew": ("post", MEMBER),
    "labeling:prompts": ("get", REVIEWER),
    "training:overview": ("get", REVIEWER),
    "training:sampling-status": ("get", REVIEWER),
    "training:sample": ("post", ADMIN),
    "training:cancel-batch": ("post", ADMIN),
    "training:rule": ("post", ADMIN),
    "training:train": ("get", ADMIN),
    "training:run": ("get", REVIEWER),
    "training:run-status": ("get", REVIEWER),
    "training:cancel-run": ("post", ADMIN),
    "training:resume-run": ("post", ADMIN),
    "training:checkpoints": ("get", REVIEWER),
    "training:roll-back": ("post", ADMIN),
    "training:checkpoint": ("get", REVIEWER),
    "training:export-status": ("get", REVIEWER),
    "training:prepare": ("post", REVIEWER),
    "training:promote": ("post", ADMIN),
    "training:download-adapter": ("get", REVIEWER),
    "training:download-merged": ("get", REVIEWER),
}
API = {
    "api:prompts": ("get", REVIEWER),
    "api:lease": ("post", MEMBER),
    "api:preferences": ("post", MEMBER),
    "api:skips": ("post", MEMBER),
    "api:triples": ("get", REVIEWER),
    "api:batches": ("get", REVIEWER),
    "api:runs": ("get", REVIEWER),
    "api:run": ("get", REVIEWER),
    "api:cancel-run": ("post", ADMIN),
    "api:resume-run": ("post", ADMIN),
    "api:checkpoints": ("get", REVIEWER),
    "api:promotions": ("get", REVIEWER),
}
# Pages for everybody who is signed in, whatever the project.
SIGNED_IN = {"home", "logout", "api:projects", "api:schema"}


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
    assert set(_names(get_resolver().url_patterns)) == {*PAGES, *API, *SIGNED_IN}


@pytest.fixture
def people(annotator, reviewer, project_admin, stranger) -> list[User | None]:
    return [None, stranger, annotator, reviewer, project_admin]


@pytest.fixture
def address(project, policy, label, make_prompt):
    """The URL of a route with rows behind every placeholder."""
    from django.urls import reverse

    from training.recipe import Recipe
    from training.services import request_run, request_samples

    label(10)
    run = request_run(project=project, recipe=Recipe())
    batch = request_samples(project=project, pairs=1)
    values = {"slug": project.slug, "number": run.number, "pk": batch.pk, "uuid": policy.uuid}

    def address(name: str) -> str:
        for keys in ([], ["slug"], ["slug", "number"], ["slug", "pk"], ["slug", "uuid"]):
            try:
                return reverse(name, kwargs={key: values[key] for key in keys})
            except Exception:
                continue
        raise AssertionError(name)

    return address


@pytest.mark.parametrize("name", [*PAGES, *API])
def test_who_may(name, people, address, sign_in, anonymous_client):
    method, level = (PAGES | API)[name]
    expected = (API_EXPECTED if name in API else EXPECTED)[level]
    for user, code in zip(people, expected, strict=True):
        client = sign_in(user) if user else anonymous_client
        response = getattr(client, method)(
            address(name), **({"content_type": "application/json"} if name in API else {})
        )
        got = response.status_code
        if code == "ok":
            # A form that is not filled in, or a row in the wrong state, is past the door too.
            assert got not in (401, 403), (name, user, got)
            assert got != 404 or name.startswith("training:download"), (name, user)
            assert got != 302 or "/sign-in/" not in response.headers["Location"], (name, user)
        else:
            assert got == code, (name, user, got)


@pytest.mark.parametrize("name", ["labeling:submit", "training:promote", "training:cancel-run", "training:roll-back"])
def test_what_changes_something_is_not_a_get_and_needs_the_csrf_token(name, address, project_admin):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    client.force_login(project_admin)
    assert client.get(address(name)).status_code == 405
    assert client.post(address(name)).status_code == 403


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
    assert set(lease.json()) == {"token", "expires_at", "prompt", "left", "right", "previous"}


def test_the_operators_view_of_every_model_opens_and_counts_without_n_plus_one(
    project, policy, label, admin_client, django_assert_max_num_queries
):
    from django.apps import apps
    from django.urls import reverse

    label(12)
    for app in ("labeling", "training"):
        for model in apps.get_app_config(app).get_models():
            if model._meta.auto_created or model.__name__ == "Membership":
                continue
            url = reverse(f"admin:{app}_{model._meta.model_name}_changelist")
            with django_assert_max_num_queries(12):
                assert admin_client.get(url).status_code == 200, model


def test_lists_do_not_grow_in_queries(
    project, policy, make_checkpoint, sign_in, project_admin, django_assert_max_num_queries
):
    for number in range(8):
        make_checkpoint(f"c{number}", project=project, kind="dpo", parent=policy)
    client = sign_in(project_admin)
    for url in ("training/", "checkpoints/", "prompts/"):
        with django_assert_max_num_queries(18):
            assert client.get(f"/p/{project.slug}/{url}").status_code == 200
