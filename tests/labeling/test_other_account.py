"""A page that one account has opened does nothing for another that signs in in the same browser."""

from __future__ import annotations

import pytest
from django.urls import reverse

from labeling import queue
from labeling.models import Preference, Slot

HTMX = {"HX-Request": "true"}


@pytest.fixture
def url(project):
    return lambda name: reverse(f"labeling:{name}", args=[project.slug])


def _headers(person):
    return HTMX | {"X-Person": str(person.pk)}


@pytest.fixture
def judged(project, other_annotator, make_pair):
    make_pair()
    make_pair("Three", "Four")
    lease = queue.lease_next(project, other_annotator.pk)
    return queue.submit(project, lease.token, other_annotator.pk, "a").preference


def test_undo_on_anothers_page_undoes_nothing(sign_in, url, annotator, other_annotator, judged):
    client = sign_in(other_annotator)
    response = client.post(url("undo"), headers=_headers(annotator))
    assert (response.status_code, response.headers["X-Other-Person"]) == (403, "1")
    assert not Slot.objects.filter(state="leased").exists()
    assert client.post(url("undo"), headers=_headers(other_annotator)).status_code == 200
    assert Slot.objects.get(state="leased", is_ahead=False).pk == judged.slot_id


@pytest.mark.parametrize("name", ["annotate", "difference"])
def test_anothers_page_is_shown_nothing(sign_in, url, annotator, other_annotator, judged, name):
    response = sign_in(other_annotator).get(url(name), headers=_headers(annotator))
    assert response.status_code == 403
    assert "another account" in response.content.decode()
    assert not Slot.objects.filter(state="leased").exists()


@pytest.mark.parametrize("name", ["submit", "skip", "reasons", "renew", "give-back"])
def test_nothing_is_written_from_anothers_page(sign_in, url, annotator, other_annotator, judged, name):
    response = sign_in(other_annotator).post(url(name), {"token": "nonsense"}, headers=_headers(annotator))
    assert response.status_code == 403
    assert Preference.objects.count() == 1


def test_whoever_is_signed_out_is_led_to_sign_in(client, url, annotator):
    response = client.get(url("annotate"), headers=_headers(annotator))
    assert "/sign-in/" in response.headers["HX-Redirect"]
    assert "X-Other-Person" not in response.headers
