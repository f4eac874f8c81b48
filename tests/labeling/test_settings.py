"""Settings and members of a project, and new projects."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.urls import reverse

from labeling import queue
from labeling.exceptions import LabelingError
from labeling.models import Membership, Preference, Project, Slot
from labeling.project_forms import EFFECTS, GROUPS, LABELS, SettingsForm
from labeling.project_settings import SETTINGS, add_person, change_role, change_settings, remove_member


@pytest.fixture
def url(project):
    return lambda name, *args: reverse(f"labeling:{name}", args=[project.slug, *args])


@pytest.fixture
def form_of(project):
    """What the page's form sends when nobody changes anything, and what somebody changes."""

    def form_of(**changes):
        form = SettingsForm(instance=project)
        values = {name: form[name].value() for name in form.fields}
        values |= {f"initial-{name}": value for name, value in values.items()}
        values = {name: value for name, value in values.items() if value is not False}
        return {**values, **changes}

    return form_of


def test_every_setting_has_its_place_its_sentence_and_its_effect():
    shown = [name for group in GROUPS for name in group.names]
    assert sorted(shown) == sorted(SETTINGS) == sorted(LABELS) == sorted(EFFECTS)
    undecided = {"id", "slug", "guidelines", "guidelines_version", "created_at", "arrivals"}
    assert {field.name for field in Project._meta.fields} - undecided == set(SETTINGS)
    for field in SettingsForm().fields.values():
        assert str(field.help_text).count(".") >= 2


def test_a_change_holds_for_new_pairs_and_not_for_old_ones(project, make_pair):
    old = make_pair()
    change_settings(project=project, changes={"judgements_per_pair": 3})
    new = make_pair()
    assert [Slot.objects.filter(pair=pair).count() for pair in (old, new)] == [1, 3]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"judgements_per_pair": 0}, "judgements_per_pair"),
        ({"judgements_per_pair": 7}, "most_judgements"),
        ({"lease_minutes": 1}, "lease_minutes"),
        ({"gold_percent": 51}, "gold_percent"),
        ({"reason_chips": [], "reasons_percent": 10}, "reasons_percent"),
        ({"criteria": ["Same", "same"]}, "criteria"),
        ({"criteria": "text"}, "criteria"),
        ({"name": "  "}, "name"),
    ],
)
def test_what_makes_no_sense_is_refused_by_field(project, changes, field):
    before = Project.objects.values().get()
    with pytest.raises(ValidationError) as refusal:
        change_settings(project=project, changes=changes)
    assert set(refusal.value.message_dict) == {field}
    assert Project.objects.values().get() == before


def test_only_settings_are_settings(project):
    with pytest.raises(ValidationError, match="slug"):
        change_settings(project=project, changes={"slug": "other"})


def test_the_page_shows_and_saves(project, project_admin, sign_in, url, form_of):
    client = sign_in(project_admin)
    page = client.get(url("settings")).content.decode()
    assert "Holds for pairs made from now on" in page
    form = form_of(name="Kinder answers", criteria="Correct\r\n\r\n Safe ", reason_chips="Clear", is_paused="on")
    assert client.post(url("settings"), form).status_code == 302
    changed = Project.objects.get()
    assert (changed.name, changed.criteria, changed.reason_chips) == ("Kinder answers", ["Correct", "Safe"], ["Clear"])
    assert changed.is_paused


def test_the_page_says_what_is_wrong_and_keeps_what_was_typed(project, project_admin, sign_in, url, form_of):
    form = form_of(name="Other", judgements_per_pair="9", reason_chips="One\none")
    response = sign_in(project_admin).post(url("settings"), form)
    page = response.content.decode()
    assert response.status_code == 400
    assert "Two names are the same." in page
    assert "Helpful answers</span>" in page, "the frame shows the project as it is"
    assert 'value="Other"' in page
    assert Project.objects.get().name == "Helpful answers"


def test_two_admins_do_not_undo_each_other(project, project_admin, sign_in, url, form_of):
    form = form_of(gold_percent="9")
    change_settings(project=project, changes={"lease_minutes": 30})
    sign_in(project_admin).post(url("settings"), form)
    assert Project.objects.values_list("lease_minutes", "gold_percent").get() == (30, 9)


def test_members_come_change_and_go(project, project_admin, stranger, sign_in, url):
    client = sign_in(project_admin)
    assert client.post(url("add-member"), {"username": "stranger", "role": "annotator"}).status_code == 302
    assert Membership.objects.get(user=stranger).role == "annotator"
    client.post(url("change-member", stranger.pk), {"role": "reviewer"})
    assert Membership.objects.get(user=stranger).role == "reviewer"
    client.post(url("change-member", stranger.pk), {"do": "remove"})
    assert not Membership.objects.filter(user=stranger).exists()


@pytest.mark.parametrize(
    ("username", "role", "why"),
    [
        ("nobody", "annotator", "Nobody is called"),
        ("boss", "annotator", "already"),
        ("stranger", "owner", "not a role"),
    ],
)
def test_who_cannot_be_added(project, project_admin, stranger, username, role, why):
    with pytest.raises(LabelingError, match=why):
        add_person(project=project, username=username, role=role)


def test_whose_account_is_closed_cannot_be_added(project, project_admin, stranger, sign_in, url):
    stranger.is_active = False
    stranger.save()
    response = sign_in(project_admin).post(url("add-member"), {"username": "stranger", "role": "annotator"})
    assert response.status_code == 400
    assert "Nobody is called" in response.content.decode()


def test_a_project_keeps_an_admin(project, project_admin, annotator):
    with pytest.raises(LabelingError, match="last admin"):
        remove_member(project=project, user_id=project_admin.pk)
    with pytest.raises(LabelingError, match="last admin"):
        change_role(project=project, user_id=project_admin.pk, role="reviewer")
    change_role(project=project, user_id=annotator.pk, role="admin")
    remove_member(project=project, user_id=project_admin.pk)


def test_what_a_removed_member_judged_stays(project, project_admin, annotator, make_pair, sign_in, url):
    make_pair()
    queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
    sign_in(project_admin).post(url("change-member", annotator.pk), {"do": "remove"})
    assert Preference.objects.filter(annotator=annotator, is_current=True).count() == 1
    assert sign_in(annotator).get(url("project")).status_code == 404


def test_somebody_who_is_not_in_cannot_be_changed(project, project_admin, stranger, sign_in, url):
    page = sign_in(project_admin).post(url("change-member", stranger.pk), {"role": "admin"}, follow=True)
    assert "not in the project any more" in page.content.decode()


def test_the_api(project, project_admin, annotator, sign_in):
    client, address = sign_in(project_admin), f"/api/v1/projects/{project.slug}/"
    assert client.get(address).json()["judgements_per_pair"] == 1

    def patch(body):
        return client.patch(address, body, content_type="application/json")

    assert patch({"judgements_per_pair": 2, "criteria": ["Safe"]}).json()["criteria"] == ["Safe"]
    assert patch({"lease_minutes": 1}).status_code == 400
    refused = patch({"judgements_per_pair": 50})
    assert (refused.status_code, list(refused.json())) == (400, ["most_judgements"])
    assert patch({"slug": "other", "guidelines_version": 9}).json()["slug"] == project.slug
    members = client.get(f"{address}members/").json()["results"]
    assert {(row["username"], row["role"]) for row in members} == {("boss", "admin"), ("annotator", "annotator")}


def test_staff_make_a_project_and_are_its_admin(db, sign_in):
    staff = User.objects.create_user("staff", is_staff=True)
    client = sign_in(staff)
    assert reverse("new-project") in client.get(reverse("home")).content.decode()
    made = client.post(reverse("new-project"), {"name": "Kind answers", "slug": "kind"})
    assert made["Location"] == reverse("labeling:settings", args=["kind"])
    assert client.get(made["Location"]).status_code == 200
    again = client.post(reverse("new-project"), {"name": "Other", "slug": "kind"})
    assert again.status_code == 400
    assert "has this short name" in again.content.decode()
    assert client.post(reverse("new-project"), {"name": "Other", "slug": "Kind"}).status_code == 400
