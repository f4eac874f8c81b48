"""Importing prompts: all or nothing, with line numbers."""

from __future__ import annotations

import io
import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.urls import reverse

from labeling.exceptions import ImportRejected
from labeling.importers import MAX_LINE_BYTES, import_prompts
from labeling.models import Prompt


def _import(project, *lines: str | bytes):
    return import_prompts(
        project=project, file=io.BytesIO(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    )


def test_all_forms_of_a_prompt(project):
    report = _import(
        project,
        '\ufeff"A plain text"',
        "",
        '{"prompt": "In an object"}',
        '{"messages": [{"role": "user", "content": "A chat"}]}',
        '[{"role": "user", "content": "A list"}]',
    )
    assert (report.added, report.duplicates) == (4, 0)


def test_duplicates_in_the_file_and_in_the_project_are_counted(project):
    _import(project, '"One"')
    report = _import(project, '"one "', '"Two"', '"TWO"')
    assert (report.added, report.duplicates) == (1, 2)


def test_one_bad_line_imports_nothing_and_is_named(project):
    good = [json.dumps(f"Prompt {number}") for number in range(600)]
    with pytest.raises(ImportRejected, match=r"Line 602: not JSON.*\nLine 603: .*neither"):
        _import(project, *good, '"fine"', "{not json}", '{"text": "x"}')
    assert not Prompt.objects.exists()


def test_bytes_that_are_not_text_are_named(project):
    with pytest.raises(ImportRejected, match="Line 2: not UTF-8 text"):
        _import(project, '"fine"', b'"\xff"')


def test_a_line_without_end_is_refused_without_reading_it_into_memory(project):
    class Counting(io.BytesIO):
        longest = 0

        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            self.longest = max(self.longest, len(line))
            return line

    file = Counting(b'"One"\n' + b"x" * (5 * MAX_LINE_BYTES) + b"\noops\n")
    with pytest.raises(ImportRejected, match=r"Line 2: longer than 2 MiB.*\nLine 3: not JSON"):
        import_prompts(project=project, file=file)
    assert file.longest == MAX_LINE_BYTES + 1


def test_an_empty_file_is_refused(project):
    with pytest.raises(ImportRejected, match="the file is empty"):
        _import(project, "", "  ")


def test_the_list_of_problems_is_bounded(project):
    with pytest.raises(ImportRejected) as raised:
        _import(project, *["bad"] * 500)
    assert len(raised.value.problems) == 20
    assert raised.value.more


def test_the_command(project, tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    path.write_text('"One"\n"Two"\n')
    call_command("import_prompts", project.slug, str(path))
    assert "2 prompts imported" in capsys.readouterr().out
    path.write_text("oops\n")
    with pytest.raises(CommandError, match="Line 1: not JSON"):
        call_command("import_prompts", project.slug, str(path))
    with pytest.raises(CommandError, match="no project “nowhere”"):
        call_command("import_prompts", "nowhere", str(path))


def test_the_page(project, project_admin, reviewer, annotator, sign_in):
    url = reverse("labeling:prompts", args=[project.slug])
    client = sign_in(project_admin)
    good = SimpleUploadedFile("prompts.jsonl", b'"One"\n"Two"\n')
    assert client.post(url, {"file": good}, follow=True).status_code == 200
    assert Prompt.objects.count() == 2
    bad = client.post(url, {"file": SimpleUploadedFile("prompts.jsonl", b'"Three"\noops\n')})
    assert bad.status_code == 400
    assert "Line 2: not JSON" in bad.content.decode()
    assert Prompt.objects.count() == 2
    assert sign_in(reviewer).get(url).status_code == 200
    assert sign_in(reviewer).post(url, {"file": good}).status_code == 403
    assert sign_in(annotator).get(url).status_code == 403
