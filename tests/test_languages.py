"""The interface's languages: every text has its German, and pages come in the language that somebody chose."""

from __future__ import annotations

import html
import os
import re
from datetime import UTC, date, datetime

import pytest
from django.template import engines
from django.utils import translation

from config import catalogue
from labeling.figures import told
from labeling.measure import measure_all
from labeling.models import Preference, Skip
from labeling.qualification_items import ItemContent, add_items
from labeling.quality import pace_signals, streak_signal
from labeling.templatetags.formatting import count, decimals, percent, short_day, signed
from tests.labeling import crowd

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


def _sentences_of(*names: str) -> set[str]:
    """The English of what these templates say."""
    wanted = {f"templates/{name}" for name in names}
    found = catalogue.read_sources()
    messages = [message for message in found if wanted & {path for path, _ in message.locations}]
    texts = [text for message in messages for text in (message.id if message.pluralizable else [message.id])]
    return {
        part.strip() for text in texts for part in re.split(r"%\(\w+\)[sd]|</?\w+>", text) if re.search(r"\w", part)
    }


def _words_of(page: str) -> str:
    """What a reader is given: text and spoken names; not the texts of people and not the names of things in code."""
    page = re.sub(r"<script.*?</script>|<(pre|code).*?</\1>", " ", page, flags=re.DOTALL)
    kept = re.findall(r'(?:aria-label|title|data-[\w-]+)="([^"]*)"|>([^<]*)<', page)
    return html.unescape("\n".join(" ".join((named or text).split()) for named, text in kept))


def test_the_annotate_page_has_no_english_left(project, annotator, sign_in, make_pair):
    for name, value in (("asks_strength", True), ("allows_rewrites", True), ("criteria", ["Korrekt"])):
        setattr(project, name, value)
    project.reason_chips = ["Klarer"]
    project.name = "Hilfreich"
    project.save()
    make_pair("Die eine.", "Die andere.")
    page = sign_in(annotator).get(f"/p/{project.slug}/annotate/", headers={"Accept-Language": "de"}).content.decode()
    parts = ("annotate", "_desk", "_pane", "_vote", "_saying", "_help", "_turn")
    english = _sentences_of("_project_nav.html", "base.html", *(f"labeling/{name}.html" for name in parts))
    assert len(english) > 80
    lines = _words_of(page).split("\n")
    german = {text for message in catalogue.read_catalogue(GERMAN) for text in catalogue.strings_of(message)}
    left = {text for text in english - german for line in lines if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", line)}
    assert not left
    assert "Welche Antwort ist besser?" in lines


@pytest.mark.parametrize("choice", Skip.Reason.values)
def test_reasons_to_skip_are_in_german(choice):
    with translation.override("en"):
        english = str(Skip.Reason(choice).label)
    with translation.override("de"):
        assert str(Skip.Reason(choice).label) != english


def test_numbers_have_the_marks_of_the_language():
    with translation.override("de"):
        assert count(12345.6) == "12.346"
        assert decimals(-1234.5, 2) == "−1234,50"
        assert percent(0.1234, 1) == "12,3\N{NARROW NO-BREAK SPACE}%"
        assert signed(0.5, 1) == "+0,5"
        assert short_day(date(2026, 3, 5)) == "5. Mär"
    assert count(12345.6) == "12,346"
    assert short_day(date(2026, 3, 5)) == "5 Mar"
    assert short_day(None) == ""


def test_a_signal_is_told_in_the_language_of_the_page():
    signal = pace_signals(dict.fromkeys(range(6), [40.0] * 40) | {6: [1.25] * 40})[6]
    with translation.override("de"):
        assert told(signal.template, signal.figures).startswith("Die Hälfte der Urteile dauerte höchstens 1,2 s; bei")
    assert told(signal.template, signal.figures) == signal.sentence
    streak = streak_signal(["left", "right"] * 40 + ["left"] * 40, "side")
    with translation.override("de"):
        assert "nach links" in told(streak.template, streak.figures)


@pytest.mark.parametrize("name", ["dashboard", "people", "me"])
def test_drawings_keep_their_decimal_points(project, reviewer, sign_in, name):
    users = [*crowd.people(project, 3), reviewer]
    crowd.judge(project, users, 90)
    measure_all()
    page = sign_in(reviewer).get(f"/p/{project.slug}/{name}/", headers={"Accept-Language": "de"}).content.decode()
    drawn = re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy|width|height|max|value|d|viewBox)="([^"]*)"', page)
    assert any("." in number for number in drawn)
    assert not any("," in number for number in drawn)


def test_days_on_pages_are_in_german(project, reviewer, sign_in):
    users = crowd.people(project, 2)
    crowd.judge(project, users, 4)
    Preference.objects.update(created_at=datetime(2026, 3, 5, 12, tzinfo=UTC))
    page = sign_in(reviewer).get(f"/p/{project.slug}/judgements/", headers={"Accept-Language": "de"}).content.decode()
    assert "5. Mär, " in page
