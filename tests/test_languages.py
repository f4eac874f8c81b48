"""The interface's languages: every text has its German, and pages come in the language that somebody chose."""

from __future__ import annotations

import os
import re

import pytest
from django.template import engines
from django.utils import translation

from config import catalogue
from labeling.qualification_items import ItemContent, add_items

PLACEHOLDER = re.compile(r"%\((\w+)\)[sd]")
GERMAN = catalogue.LOCALE / "de/LC_MESSAGES/django.po"


def _texts(found):
    return {(message.context, message.id): message for message in found if message.id}


def _placeholders(text: str) -> list[str]:
    return sorted(PLACEHOLDER.findall(text))


def test_the_catalogue_has_the_texts_of_the_sources_and_no_others():
    assert set(_texts(catalogue.read_catalogue(GERMAN))) == set(_texts(catalogue.read_sources()))


def test_texts_are_found_in_templates_and_in_python():
    texts = {message.id for message in catalogue.read_sources()}
    assert "Out of tries" in texts, "translate"
    assert "Signed in as %(name)s" in texts, "blocktranslate"
    assert ("You have one try.", "You have %(left)s tries.") in texts, "plural"
    assert "Two names are the same." in texts, "gettext"
    assert "Skip the pair" in texts, "a lazy one"


@pytest.mark.parametrize("path", catalogue.catalogues(), ids=lambda path: path.parent.parent.name)
def test_every_text_is_translated_with_its_placeholders(path):
    for message in catalogue.read_catalogue(path):
        if not message.id:
            continue
        originals = list(message.id) if message.pluralizable else [message.id]
        assert not message.fuzzy, message.id
        assert all(text.strip() for text in catalogue.strings_of(message)), message.id
        for original, text in zip(originals, catalogue.strings_of(message), strict=True):
            assert _placeholders(text) == _placeholders(original), message.id
            assert text.count("%") == original.count("%"), message.id
            assert re.findall(r"</?\w+", text) == re.findall(r"</?\w+", original), message.id


def test_what_is_compiled_is_newer_and_compiled_once(tmp_path, monkeypatch):
    folder = tmp_path / "de/LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "django.po").write_bytes(GERMAN.read_bytes())
    monkeypatch.setattr(catalogue, "LOCALE", tmp_path)
    assert len(catalogue.compile_newer()) == 1
    assert catalogue.compile_newer() == []
    compiled = (folder / "django.mo").stat().st_mtime_ns
    os.utime(folder / "django.po", ns=(compiled + 1, compiled + 1))
    assert len(catalogue.compile_newer()) == 1


def test_an_update_adds_what_is_new_and_keeps_what_is_translated(tmp_path):
    path = tmp_path / "de/LC_MESSAGES/django.po"
    path.parent.mkdir(parents=True)
    known = GERMAN.read_text().replace(
        'msgid "Out of tries"\nmsgstr "Keine Versuche mehr"', 'msgid "Gone"\nmsgstr "Weg"'
    )
    path.write_text(known)
    texts, empty = catalogue.update(path)
    assert (texts, empty) == (len(_texts(catalogue.read_sources())), 1)
    assert 'msgid "Gone"' not in path.read_text()
    path.write_text(GERMAN.read_text())
    assert catalogue.update(path)[1] == 0
    assert path.read_text() == GERMAN.read_text(), "nothing changes where nothing is new"


def test_a_browser_that_asks_for_german_is_given_german(anonymous_client):
    page = anonymous_client.get("/sign-in/", headers={"Accept-Language": "de-AT, en;q=0.5"}).content.decode()
    assert '<html lang="de" dir="ltr">' in page
    assert "Anmelden" in page
    english = anonymous_client.get("/sign-in/", headers={"Accept-Language": "fr"}).content.decode()
    assert '<html lang="en" dir="ltr">' in english


def test_a_choice_is_kept_and_counts_more_than_the_browsers(project, annotator, sign_in):
    client = sign_in(annotator)
    address = f"/p/{project.slug}/"
    chosen = client.post("/language/", {"language": "de", "next": address})
    assert chosen["Location"] == address
    assert chosen.cookies["django_language"]["httponly"]
    page = client.get(address, headers={"Accept-Language": "en"}).content.decode()
    assert "offen für Sie" in page
    assert re.search(r'value="de"[^>]*aria-current="true"', page)
    assert re.search(r'value="en".*?English', page, re.DOTALL), "each language in its own name"
    assert "Englisch" not in page
    assert client.post("/language/", {"language": "de", "next": "https://elsewhere.example/"})["Location"] == "/"


@pytest.mark.parametrize("name", ["settings", "qualification", "guidelines", "guidelines/edit", "qualify", "prompts"])
def test_german_pages_open(project, project_admin, sign_in, name):
    add_items(
        project=project,
        contents=[
            ItemContent([{"role": "user", "content": "?"}], "1", "2", "a", "!"),
            ItemContent([{"role": "user", "content": "!"}], "1", "2", "a", "!"),
        ],
    )
    response = sign_in(project_admin).get(f"/p/{project.slug}/{name}/", headers={"Accept-Language": "de"})
    page = response.content.decode()
    assert response.status_code == 200
    assert "Überblick" in page
    assert "Overview" not in page
    assert "Guidelines" not in page


def test_pages_that_are_in_english_say_so(project, policy, reviewer, sign_in):
    page = sign_in(reviewer).get(f"/p/{project.slug}/training/", headers={"Accept-Language": "de"}).content.decode()
    assert '<html lang="de"' in page
    assert re.search(r'<main id="content"[^>]*lang="en"', page)


def test_a_chart_keeps_its_decimal_points():
    from labeling.charts import Series, line_chart

    chart = line_chart("Loss", [Series("loss", "main", [(0, 0.69), (1, 0.61), (3, 0.5)])], x_max=3)
    with translation.override("de"):
        svg = engines["django"].get_template("_chart.html").render({"chart": chart})
    numbers = re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy)="([^"]*)"', svg)
    assert any("." in number for number in numbers)
    assert not any("," in number for number in numbers)
