"""Downloads: ranges that fit together again, resuming, entity tags, and what the page says about them."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from django.http import HttpResponseBase
from django.test import RequestFactory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from knox.models import AuthToken

from training import digests, downloads, exports, store, supervision
from training.byte_ranges import Span, Unsatisfiable, single_range
from training.execution import Export
from training.models import Checkpoint, Gate, Job


@pytest.fixture
def adapter(project, policy, make_checkpoint) -> Checkpoint:
    """An adapter whose archive lies ready."""
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    (directory := store.checkpoint_dir(adapter.uuid)).joinpath("model.safetensors").write_bytes(_bytes(300_000))
    store.write_archive(directory, store.archive_path(adapter.uuid, "adapter"), adapter.name)
    return adapter


def _bytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def _archive(adapter: Checkpoint) -> Path:
    return store.archive_path(adapter.uuid, "adapter")


def _replace(adapter: Checkpoint) -> bytes:
    """Another archive takes the place of the first, as when a checkpoint is packed by another version."""
    (store.checkpoint_dir(adapter.uuid) / "model.safetensors").write_bytes(_bytes(300_000, seed=1))
    store.write_archive(store.checkpoint_dir(adapter.uuid), _archive(adapter), adapter.name)
    return _archive(adapter).read_bytes()


def _get(adapter: Checkpoint, method: str = "get", **headers: str) -> HttpResponseBase:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return downloads.serve(getattr(RequestFactory(), method)("/", headers=named), adapter, "adapter.zip")


def _body(response: HttpResponseBase) -> bytes:
    body = b"".join(response.streaming_content)
    _close(response)
    return body


def _close(response: HttpResponseBase) -> None:
    """What a server does at the end, but for ending the request, which would close the connection of the test."""
    for close in response._resource_closers:
        close()


def test_the_whole_file_comes_with_its_hash_as_entity_tag(adapter):
    content = _archive(adapter).read_bytes()
    response = _get(adapter)
    assert response.status_code == 200
    assert response.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Length"] == str(len(content))
    assert response.headers["Content-Type"] == "application/zip"
    assert response.headers["Content-Disposition"] == 'attachment; filename="adapter-adapter.zip"'
    assert _body(response) == content


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_into_ranges_fits_together_again(adapter, data):
    content = _archive(adapter).read_bytes()
    cuts = data.draw(st.lists(st.integers(1, len(content) - 1), unique=True, max_size=6).map(sorted))
    bounds = list(zip([0, *cuts], [*cuts, len(content)], strict=True))
    got = {}
    for start, end in data.draw(st.permutations(bounds)):
        forms = [f"bytes={start}-{end - 1}"]
        if end == len(content):
            forms += [f"bytes={start}-", f"bytes=-{end - start}", f"bytes={start}-{end + 10**9}"]
        response = _get(adapter, range=data.draw(st.sampled_from(forms)))
        assert response.status_code == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(content)}"
        assert response.headers["Content-Length"] == str(end - start)
        got[start] = _body(response)
    assert b"".join(got[start] for start in sorted(got)) == content


@settings(max_examples=60)
@given(st.text(alphabet="bytes=-,0129 kB", max_size=20) | st.from_regex(r"bytes=\d{0,25}-\d{0,25}"), st.integers(0, 99))
def test_no_header_gives_bytes_that_the_file_does_not_have(header, size):
    try:
        span = single_range(header, size)
    except Unsatisfiable:
        return
    assert span is None or 0 <= span.start < span.end <= size


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", Span(0, 1, 10)),
        ("bytes=9-", Span(9, 10, 10)),
        ("BYTES=2-3", Span(2, 4, 10)),
        ("bytes=-3", Span(7, 10, 10)),
        ("bytes=-300", Span(0, 10, 10)),
        ("bytes=4-400", Span(4, 10, 10)),
        ("bytes=5-4", None),
        ("bytes=1-2,4-5", None),
        ("items=1-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=٣-٤", None),
        ("", None),
    ],
)
def test_what_a_header_asks_for(header, expected):
    assert single_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes={size}-", "bytes={size}-{size}", "bytes=-0", f"bytes={'9' * 5000}-"])
def test_a_range_behind_the_end_is_told_the_size(adapter, header):
    with pytest.raises(Unsatisfiable):
        single_range(header.format(size=10), 10)
    size = _archive(adapter).stat().st_size
    response = _get(adapter, range=header.format(size=size))
    assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{size}")
    assert response.headers["ETag"]


def test_an_interrupted_download_goes_on_where_it_was(adapter):
    first = _get(adapter)
    start = next(iter(first.streaming_content))[:1234]
    _close(first)
    rest = _get(adapter, range=f"bytes={len(start)}-", if_range=first.headers["ETag"])
    assert rest.status_code == 206
    assert start + _body(rest) == _archive(adapter).read_bytes()


def test_of_an_archive_that_was_replaced_meanwhile_the_whole_is_sent(adapter):
    etag = _get(adapter, "head").headers["ETag"]
    content = _replace(adapter)
    response = _get(adapter, range="bytes=1234-", if_range=etag)
    assert response.status_code == 200
    assert "Content-Range" not in response.headers
    assert response.headers["ETag"] != etag
    assert _body(response) == content


@pytest.mark.parametrize("condition", ["W/{etag}", '"other"', "{etag}, {etag}", "Sat, 28 Nov 2026 08:00:00 GMT"])
def test_only_the_strong_tag_says_that_it_is_the_same_file(adapter, condition):
    etag = _get(adapter, "head").headers["ETag"]
    response = _get(adapter, range="bytes=5-9", if_range=condition.format(etag=etag))
    assert response.status_code == 200
    _close(response)


def test_a_download_that_has_begun_is_not_mixed_with_its_successor(adapter):
    content = _archive(adapter).read_bytes()
    response = _get(adapter)
    stream = iter(response.streaming_content)
    start = next(stream)
    _replace(adapter)
    assert start + b"".join(stream) == content
    _close(response)


def test_who_has_the_file_already_is_not_sent_it_again(adapter):
    etag = _get(adapter, "head").headers["ETag"]
    for headers in ({"if_none_match": etag}, {"if_none_match": f'"x", {etag}'}, {"if_none_match": "*"}):
        response = _get(adapter, range="bytes=1-2", **headers)
        assert (response.status_code, response.headers["ETag"], response.content) == (304, etag, b"")
    other = _get(adapter, if_none_match='"x"')
    assert other.status_code == 200
    _close(other)
    assert _get(adapter, if_match='"x"').status_code == 412


def test_head_tells_the_size_and_ignores_ranges(adapter):
    response = _get(adapter, "head", range="bytes=5-9")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Length"] == str(_archive(adapter).stat().st_size)
    assert "Content-Range" not in response.headers


def test_no_answer_leaves_the_file_open(adapter):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for headers in ({}, {"range": "bytes=1-2"}, {"range": "bytes=999999999-"}, {"if_none_match": "*"}):
        _close(_get(adapter, **headers))
        _close(_get(adapter, "head", **headers))
    assert count() == before


def test_an_archive_is_hashed_once_and_again_only_when_it_was_replaced(adapter, monkeypatch):
    read = []
    hashing = hashlib.file_digest
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *args: read.append(args) or hashing(*args))
    tags = {_get(adapter, "head").headers["ETag"] for _ in range(3)}
    assert read == [], "the one who packed it has kept its hash"
    _archive(adapter).write_bytes(b"put there by hand")
    tags |= {_get(adapter, "head").headers["ETag"] for _ in range(3)}
    assert len(read) == 1
    assert f'"{hashlib.sha256(b"put there by hand").hexdigest()}"' in tags
    assert len(tags) == 2
    digests.beside(_archive(adapter)).write_text("nonsense")
    _get(adapter, "head")
    assert len(read) == 2


def test_manifest_and_card_can_be_had_by_themselves(adapter, project, sign_in, reviewer):
    client, address = sign_in(reviewer), f"/p/{project.slug}/checkpoints/{adapter.uuid}/download/"
    for name, content_type in (("manifest.json", "application/json"), ("README.md", "text/markdown; charset=utf-8")):
        content = (store.checkpoint_dir(adapter.uuid) / name).read_bytes()
        response = client.get(address + name)
        assert _body(response) == content
        assert response.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert response.headers["Content-Type"] == content_type
        assert client.get(address + name, headers={"if-none-match": response.headers["ETag"]}).status_code == 304
    assert client.get(address + "model.safetensors").status_code == 404
    assert client.post(address + "manifest.json").status_code == 405


def test_a_manifest_that_was_changed_is_refused_with_the_reason(adapter, project, sign_in, reviewer):
    path = store.checkpoint_dir(adapter.uuid) / "manifest.json"
    path.write_text(path.read_text().replace('"adapter"', '"better"'))
    client, page = sign_in(reviewer), f"/p/{project.slug}/checkpoints/{adapter.uuid}/"
    response = client.get(page + "download/manifest.json", follow=True)
    assert response.redirect_chain[0][0] == page
    assert "manifest.json of checkpoint" in response.content.decode()
    assert "was changed on disk" in response.content.decode()


def test_full_weights_are_not_packed_with_a_manifest_that_was_changed(policy):
    path = store.checkpoint_dir(policy.uuid) / "manifest.json"
    path.write_text(path.read_text().replace('"base"', '"better"'))
    export = exports.request_export(checkpoint=policy)
    supervision.execute(export, Export)
    export.refresh_from_db()
    assert export.state == Job.State.FAILED
    assert "was changed on disk" in export.error
    assert not store.archive_path(policy.uuid, "merged").exists()


def test_the_card_tells_what_the_gate_decided_and_nobody_s_name(adapter, project, policy):
    published = (store.checkpoint_dir(adapter.uuid) / "README.md").read_bytes()
    decided = {"stage": "decided", "outcome": "promote", "reasons": ["admin decided: promote. A secret."]}
    checks = [{"name": "held_out", "outcome": "pass", "title": "Held-out", "words": "It finds more preferences."}]
    gate = Gate.objects.create(
        project=project, number=1, candidate=adapter, current=policy, rule={}, checks=checks, **decided
    )
    card = _body_of_card(adapter)
    assert b"the outcome was **promote**.\n\n- It finds more preferences." in card
    assert b"secret" not in card
    (offered,) = [file for file in downloads.listing(adapter) if file.name == "README.md"]
    assert (offered.size, offered.sha256) == (len(card), hashlib.sha256(card).hexdigest())
    for other in ({"kind": "watch"}, {"kind": "release", "stage": "waiting"}, {"stage": "decided", "checks": []}):
        Gate.objects.filter(pk=gate.pk).update(**other)
        assert _body_of_card(adapter) == published


def _body_of_card(adapter: Checkpoint) -> bytes:
    return _body(downloads.serve(RequestFactory().get("/"), adapter, "README.md"))


def test_nothing_is_left_beside_manifest_and_card_that_does_not_belong_there(adapter, project):
    """The hash of a manifest is computed anew: a file in the checkpoint's directory would make it a damaged one."""
    before = sorted(store.checkpoint_dir(adapter.uuid).iterdir())
    list(downloads.listing(adapter))
    _close(downloads.serve(RequestFactory().get("/"), adapter, "manifest.json"))
    assert sorted(store.checkpoint_dir(adapter.uuid).iterdir()) == before


def test_the_page_shows_hashes_and_lines_for_a_terminal(adapter, project, sign_in, reviewer):
    page = sign_in(reviewer).get(f"/p/{project.slug}/checkpoints/{adapter.uuid}/").content.decode()
    sha256 = hashlib.sha256(_archive(adapter).read_bytes()).hexdigest()
    manifest = hashlib.sha256((store.checkpoint_dir(adapter.uuid) / "manifest.json").read_bytes()).hexdigest()
    assert f'<code class="hash">{sha256}</code>' in page
    assert f'<code class="hash">{manifest}</code>' in page
    assert "curl --fail -C - -o adapter-adapter.zip \\\n  -H &quot;Authorization: Token $TIEBREAK_TOKEN&quot;" in page
    url = f"http://testserver/api/v1/projects/{project.slug}/checkpoints/{adapter.uuid}/download/adapter.zip"
    assert url in page
    assert f"echo &#x27;{sha256}  adapter-adapter.zip&#x27; | sha256sum -c" in page


def test_a_name_cannot_break_out_of_the_line_for_a_terminal(adapter):
    adapter.name = "a'; rm -rf ~; '/../b"
    file = next(downloads.listing(adapter))
    assert "/" not in file.filename
    ran = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {file.curl('http://x/')}"], capture_output=True, text=True, check=True
    )
    assert file.filename in ran.stdout.splitlines()


def test_a_token_is_what_a_program_downloads_with(adapter, project, reviewer, annotator, stranger, client):
    url = f"/api/v1/projects/{project.slug}/checkpoints/{adapter.uuid}/download/adapter.zip"
    assert client.get(url).status_code == 401
    for user, status in ((reviewer, 206), (annotator, 403), (stranger, 404)):
        _, token = AuthToken.objects.create(user)
        headers = {"authorization": f"Token {token}", "range": "bytes=0-9", "accept": "application/zip"}
        response = client.get(url, headers=headers)
        assert response.status_code == status
        assert status != 206 or _body(response) == _archive(adapter).read_bytes()[:10]
    assert client.get(url.replace("adapter.zip", "merged.zip"), headers=headers).status_code == 404


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.django_db(transaction=True)
def test_the_line_for_a_terminal_resumes_checks_and_stops_at_another_file(
    adapter, project, reviewer, live_server, tmp_path
):
    _, token = AuthToken.objects.create(reviewer)
    url = f"{live_server.url}/api/v1/projects/{project.slug}/checkpoints/{adapter.uuid}/download/adapter.zip"
    file = next(downloads.listing(adapter))

    def run(line: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "TIEBREAK_TOKEN": token, "NO_PROXY": "*"}
        command = ["bash", "-c", line]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    content = _archive(adapter).read_bytes()
    target = tmp_path / file.filename
    for begun in (0, 5, len(content) - 1, len(content)):
        target.write_bytes(content[:begun])
        if begun == 0:
            target.unlink()
        done = run(file.curl(url))
        if begun == len(content):
            assert "error: 416" in done.stderr, "there is nothing left to be sent"
        else:
            assert done.returncode == 0, done.stderr
        assert target.read_bytes() == content
    checked = run(file.check)
    assert checked.stdout == f"{file.filename}: OK\n"
    target.write_bytes(content[:1000])
    _replace(adapter)
    assert run(file.curl(url)).returncode != 0
    assert target.read_bytes() == content[:1000], "no bytes of another archive behind those of the first"
    assert run(file.check).returncode != 0
