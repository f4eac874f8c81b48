"""The store of checkpoints: hashes, changed files, archives."""

from __future__ import annotations

import json
import os
import zipfile

import pytest

from training import registry, store
from training.exceptions import CheckpointDamaged


def test_a_published_checkpoint_has_manifest_card_and_readable_files(base):
    directory = store.checkpoint_dir(base.uuid)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["content_hash"] == base.content_hash
    assert {file["path"] for file in manifest["files"]} == {"config.json", "model.safetensors"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in directory.iterdir())
    assert 'license: "apache-2.0"' in (directory / "README.md").read_text()


def test_the_same_files_have_the_same_hash_and_an_adapter_is_bound_to_its_base(make_checkpoint, base):
    directory = store.checkpoint_dir(base.uuid)
    files = store.list_files(directory)
    assert store.content_hash(files) == base.content_hash
    assert store.content_hash(files, "one base") != store.content_hash(files, "another base")


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "gone"])
def test_a_directory_that_was_changed_is_refused_by_hash(base, damage):
    directory = store.checkpoint_dir(base.uuid)
    weights = directory / "model.safetensors"
    if damage == "changed":
        content = bytearray(weights.read_bytes())
        content[0] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    elif damage == "added":
        (directory / "extra.safetensors").write_bytes(b"x")
    else:
        directory.rename(directory.with_name("elsewhere"))
    expected = {"added": "extra.safetensors", "gone": "missing"}.get(damage, "model.safetensors")
    with pytest.raises(CheckpointDamaged, match=expected):
        registry.weights_of(base)


@pytest.mark.parametrize("name", ["evil.pkl", "modeling.py", "weights.bin"])
def test_files_that_may_carry_code_are_refused(base, name):
    (store.checkpoint_dir(base.uuid) / name).write_bytes(b"x")
    with pytest.raises(CheckpointDamaged, match=name):
        registry.weights_of(base)


def test_a_link_is_refused(base, tmp_path):
    target = tmp_path / "secret.json"
    target.write_text("{}")
    (store.checkpoint_dir(base.uuid) / "linked.json").symlink_to(target)
    with pytest.raises(CheckpointDamaged, match=r"linked\.json"):
        registry.weights_of(base)


def test_an_archive_is_complete_and_the_same_each_time(base, data_dir):
    directory = store.checkpoint_dir(base.uuid)
    first = store.write_archive(directory, data_dir / "a.zip", "base")
    second = store.write_archive(directory, data_dir / "b.zip", "base")
    assert first == second
    with zipfile.ZipFile(data_dir / "a.zip") as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {f"base/{path.name}" for path in directory.iterdir()}


def test_an_archive_on_a_full_disk_leaves_nothing(base, data_dir, monkeypatch):
    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.shutil, "copyfileobj", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write_archive(store.checkpoint_dir(base.uuid), data_dir / "a.zip", "base")
    assert not list(data_dir.glob("*a.zip*"))


def test_old_staging_without_a_job_is_removed_and_the_rest_kept(data_dir, monkeypatch):
    for name in ("live", "stale"):
        store.staging_dir(name).mkdir(parents=True)
    monkeypatch.setattr(store, "STAGING_PATIENCE_SECONDS", -1)
    assert store.remove_stale_staging({"live"}) == 1
    assert store.staging_dir("live").exists()


def test_half_archives_are_removed_when_they_are_old(base, data_dir, monkeypatch):
    half = store.archive_path("0000", "merged").with_name(".half.zip")
    half.parent.mkdir()
    half.write_bytes(b"x")
    whole = store.archive_path("0000", "adapter")
    whole.write_bytes(b"x")
    assert store.remove_half_archives() == 0, "a worker may be writing it"
    monkeypatch.setattr(store, "HALF_ARCHIVE_PATIENCE_SECONDS", -1)
    assert store.remove_half_archives() == 1
    assert whole.exists()


def test_what_was_converted_long_ago_is_new_in_staging(data_dir):
    source = data_dir / "source"
    source.mkdir()
    os.utime(source, (0, 0))
    store.stage(source, "import")
    assert store.remove_stale_staging(set()) == 0
