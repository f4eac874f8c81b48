"""Guidelines: read by everybody, written as versions, compared, and never written over somebody else's."""

from __future__ import annotations

import pytest
from django.urls import reverse

from labeling import queue
from labeling.answers import Details
from labeling.exceptions import GuidelinesChanged, LabelingError
from labeling.guidelines import version_last_judged_with, version_read_by
from labeling.models import Guidelines, Preference, Project
from labeling.services import create_project, set_guidelines


@pytest.fixture
def url(project):
    return lambda name, *args: reverse(f"labeling:{name}", args=[project.slug, *args])


def test_every_change_is_a_version_and_the_same_text_is_none(project, project_admin):
    first = set_guidelines(project=project, text="Be *kind*.", author=project_admin, note=" The first ")
    again = set_guidelines(project=project, text="Be *kind*.\r\n", author=None)
    assert (first, first.note) == (again, "The first")
    assert list(Guidelines.objects.values_list("version", "text")) == [(2, "Be *kind*."), (1, "")]
    assert Project.objects.get().guidelines_version == project.guidelines_version == 2


def test_nobody_writes_over_what_they_have_not_seen(project, project_admin):
    set_guidelines(project=project, text="Theirs", author=None, based_on=1)
    with pytest.raises(GuidelinesChanged, match="version 2"):
        set_guidelines(project=project, text="Mine", author=project_admin, based_on=1)
    assert set_guidelines(project=project, text="Both", author=project_admin, based_on=2).version == 3


def test_too_long_is_told(project):
    with pytest.raises(LabelingError, match="at most 60000"):
        set_guidelines(project=project, text="x" * 60_001, author=None)


def test_the_version_somebody_judged_with_last(project, annotator, make_pair, django_assert_num_queries):
    def judge(**said):
        make_pair()
        token = queue.lease_next(project, annotator.pk).token
        return queue.submit(project, token, annotator.pk, "a", Details(**said)).preference.guidelines_version

    assert version_last_judged_with(project, annotator.pk) is None
    assert version_read_by(project, annotator.pk) == 1
    assert judge() == 1
    set_guidelines(project=project, text="New rules", author=None)
    with django_assert_num_queries(1):
        assert version_read_by(project, annotator.pk) == 1
    assert version_last_judged_with(project, annotator.pk) == 1
    assert judge() == 2
    assert version_read_by(project, annotator.pk) == 2


@pytest.mark.parametrize(("shown", "kept"), [("1", 1), ("2", 2), ("", 2), ("3", 2), ("99999999999999999999", 2)])
def test_a_judgement_keeps_the_version_that_its_page_showed(project, annotator, make_pair, sign_in, url, shown, kept):
    set_guidelines(project=project, text="New rules", author=None)
    make_pair()
    token = queue.lease_next(project, annotator.pk).token
    sign_in(annotator).post(url("submit"), {"token": token, "choice": "left", "guidelines": shown})
    assert Preference.objects.get().guidelines_version == kept


def test_the_annotate_page_says_which_version_was_read_and_which_is_the_newest(
    project, annotator, make_pair, sign_in, url
):
    make_pair()
    client = sign_in(annotator)
    assert 'data-guidelines="1" data-newest-guidelines="1"' in _in_one_line(client.get(url("annotate")))
    queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
    set_guidelines(project=project, text="New rules", author=None)
    assert 'data-guidelines="1" data-newest-guidelines="2"' in _in_one_line(client.get(url("annotate")))
    turn = client.get(url("annotate"), headers={"HX-Request": "true"})
    assert 'data-today="1" data-guidelines="2"' in _in_one_line(turn)


def _in_one_line(response) -> str:
    return " ".join(response.content.decode().split())


def test_the_page_of_everybody(project, annotator, sign_in, url):
    set_guidelines(project=project, text="# Rule\n\nBe *kind*.", author=None, note="A start")
    set_guidelines(project=project, text="# Rule\n\nBe *honest*.", author=None, note="Second thoughts")
    client = sign_in(annotator)
    page = client.get(url("guidelines")).content.decode()
    assert "<em>honest</em>" in page
    assert "Version 3" in page
    assert "A start" in page
    assert url("edit-guidelines") not in page
    version = client.get(url("guidelines-version", 3)).content.decode()
    assert "<ins>honest</ins>" in version
    assert "<del>kind</del>" in version
    other_way = client.get(url("guidelines-version", 2) + "?against=3").content.decode()
    assert "<ins>honest</ins>" in other_way
    assert client.get(url("guidelines-version", 9))["Location"] == url("guidelines")
    assert client.get(url("guidelines-version", 1) + "?against=nonsense").status_code == 200


def test_an_admin_edits(project, project_admin, sign_in, url):
    client = sign_in(project_admin)
    assert 'name="based_on" value="1"' in client.get(url("edit-guidelines")).content.decode()
    form = {"text": "Be kind.", "note": "New", "based_on": "1"}
    assert client.post(url("edit-guidelines"), form)["Location"] == url("guidelines")
    newest = Guidelines.objects.first()
    assert (newest.version, newest.text, newest.note, newest.author) == (2, "Be kind.", "New", project_admin)


def test_a_conflict_is_told_and_nothing_is_lost(project, project_admin, sign_in, url):
    set_guidelines(project=project, text="Be brief.", author=None)
    client = sign_in(project_admin)
    response = client.post(url("edit-guidelines"), {"text": "Mine entirely", "note": "Mine", "based_on": "1"})
    page = response.content.decode()
    assert response.status_code == 409
    assert "version 2 meanwhile" in page
    assert "Mine entirely</textarea>" in page
    assert 'name="based_on" value="2"' in page
    assert Project.objects.get().guidelines == "Be brief."
    assert client.post(url("edit-guidelines"), {"text": "Both", "note": "", "based_on": "2"}).status_code == 302


def test_the_preview_is_rendered_and_stores_nothing(project, project_admin, sign_in, url):
    page = sign_in(project_admin).post(url("preview-guidelines"), {"text": "**Bold** <script>"}).content.decode()
    assert "<strong>Bold</strong>" in page
    assert "<script>" not in page
    assert "<html" not in page
    assert Guidelines.objects.count() == 1


def test_the_operators_form_writes_versions_too(project, admin_client):
    from django.contrib.admin.helpers import AdminForm
    from django.contrib.auth.models import User

    address = reverse("admin:labeling_project_change", args=[project.pk])
    form: AdminForm = admin_client.get(address).context["adminform"]
    values = {name: form.form[name].value() for name in form.form.fields}
    values = {name: value for name, value in values.items() if value is not None and value is not False}
    values |= {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0}
    assert admin_client.post(address, values | {"guidelines": "By operators"}).status_code == 302
    newest = Guidelines.objects.filter(project=project).first()
    assert (newest.version, newest.text, newest.author) == (2, "By operators", User.objects.get(username="admin"))
    added = {**values, "name": "Made", "slug": "made", "guidelines": "From the start"}
    assert admin_client.post(reverse("admin:labeling_project_add"), added).status_code == 302
    made = Project.objects.get(slug="made")
    assert [row.version for row in made.guidelines_versions.all()] == [1]
    assert (made.guidelines, made.guidelines_version) == ("From the start", 1)


def test_the_api_writes_versions_too(project, project_admin, sign_in):
    def patch(body: dict):
        return sign_in(project_admin).patch(f"/api/v1/projects/{project.slug}/", body, content_type="application/json")

    done = patch({"guidelines": "By API", "guidelines_note": "Why not", "guidelines_based_on": 1})
    assert (done.status_code, done.json()["guidelines_version"]) == (200, 2)
    refused = patch({"guidelines": "Late", "guidelines_based_on": 1, "name": "Other"})
    assert refused.status_code == 409
    assert Project.objects.get().name != "Other", "all or none"


def test_a_new_project_has_its_first_version(db):
    project = create_project(name="New", slug="new", guidelines="Text")
    assert [row.text for row in project.guidelines_versions.all()] == ["Text"]
