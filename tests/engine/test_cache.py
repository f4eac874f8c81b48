"""The cache: bounded, checked, and never the reason why a run ends."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.runs import ROOT
from training.engine import cache as cache_module
from training.engine.cache import Cache, key_of

MANY = 10**9


def value_of(number: int, size: int = 100) -> bytes:
    return random.Random(number).randbytes(size)


def keys(count: int) -> list[bytes]:
    return [key_of(str(number)) for number in range(count)]


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """However full the disk of this machine is."""
    monkeypatch.setattr(cache_module, "RESERVED_BYTES", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache.sqlite3"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., Cache]]:
    """Caches on one file, closed after the test."""
    caches: list[Cache] = []

    def make(limit: int = MANY, where: Path = path) -> Cache:
        caches.append(Cache(where, limit))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


@pytest.fixture
def filled(path: Path, opened: Callable[..., Cache]) -> Path:
    """A file with eight values, closed, all of it in one place."""
    cache = opened()
    cache.put(zip(keys(8), map(value_of, range(8)), strict=True))
    cache.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


def test_what_is_put_is_got_back_to_the_byte(opened: Callable[..., Cache], path: Path) -> None:
    cache = opened()
    values = [b"", b"\x00", bytes(range(256)), value_of(1, 3_000_000)]
    cache.put(zip(keys(4), values, strict=True))
    assert [cache.get(key) for key in keys(5)] == [*values, None]
    cache.close()
    assert [opened().get(key) for key in keys(4)] == values
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_later_value_takes_the_place_of_an_earlier_one(opened: Callable[..., Cache]) -> None:
    cache = opened(limit=250)
    for number in (1, 2, 3, 4):
        cache.put([(keys(1)[0], value_of(number))])
    cache.put([(keys(2)[1], value_of(5))])
    assert [cache.get(key) for key in keys(2)] == [value_of(4), value_of(5)]


def test_the_bound_is_held_and_what_was_not_used_for_longest_goes_first(
    opened: Callable[..., Cache], path: Path
) -> None:
    cache = opened(limit=1000)
    for number, key in enumerate(keys(10)):
        cache.put([(key, value_of(number))])
    assert cache.get(keys(1)[0]) == value_of(0)  # used now, so no longer the oldest
    cache.put([(key_of("new"), value_of(99, 250))])
    gone = [number for number, key in enumerate(keys(10)) if cache.get(key) is None]
    assert gone == [1, 2, 3]
    for number in range(1000):
        cache.put([(key_of(f"more {number}"), value_of(number))])
    cache.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT SUM(bytes), SUM(LENGTH(value)) FROM entry JOIN content USING (id)").fetchone()
        assert connection.execute("SELECT SUM(LENGTH(value)) FROM content").fetchone()[0] <= 1000
    connection.close()
    assert path.stat().st_size < 60_000


def test_many_go_at_once_when_the_bound_is_lowered(opened: Callable[..., Cache]) -> None:
    opened().put((key, value_of(number)) for number, key in enumerate(keys(700)))
    cache = opened(limit=500)
    cache.put([(key_of("new"), value_of(1))])
    assert [number for number, key in enumerate(keys(700)) if cache.get(key)] == [696, 697, 698, 699]


SIZE = 50_000


@pytest.fixture
def large(opened: Callable[..., Cache], path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of ten megabytes, closed, that is made smaller a quarter of a megabyte at a time."""
    monkeypatch.setattr(cache_module, "SPARE_PAGES", 16)
    monkeypatch.setattr(cache_module, "PAGES_AT_ONCE", 64)
    cache = opened()
    cache.put((key, value_of(number, SIZE)) for number, key in enumerate(keys(200)))
    cache.close()
    assert path.stat().st_size > 200 * SIZE
    return path


def test_a_lowered_bound_gives_the_disk_back(
    large: Path, opened: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to who only reads, and where the disk is full, which is why somebody has lowered it."""
    monkeypatch.setattr(cache_module, "RESERVED_BYTES", 10**18)
    opened(limit=4 * SIZE).close()
    assert large.stat().st_size < 8 * SIZE
    again = opened(limit=4 * SIZE)
    assert [number for number, key in enumerate(keys(200)) if again.get(key)] == [196, 197, 198, 199]
    assert again.damaged == 0


def test_a_file_in_use_is_made_smaller_later(
    large: Path, opened: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "WAIT_SECONDS", 0.1)
    reader = sqlite3.connect(large, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM entry").fetchone()
    cache = opened(limit=4 * SIZE)
    cache.put([(key_of("new"), value_of(1, SIZE))])
    assert cache.get(key_of("new")) == value_of(1, SIZE)
    cache.close()
    reader.close()
    opened(limit=4 * SIZE).close()
    assert large.stat().st_size < 8 * SIZE


def test_a_file_of_an_earlier_version_is_started_anew(
    large: Path, opened: Callable[..., Cache], capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(large, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA auto_vacuum=NONE")
        connection.execute("VACUUM")
    connection.close()
    cache = opened()
    assert cache.get(keys(1)[0]) is None
    cache.put([(keys(1)[0], value_of(1))])
    assert cache.get(keys(1)[0]) == value_of(1)
    assert "earlier version" in capsys.readouterr().out


def test_a_bound_smaller_than_a_value_keeps_nothing(opened: Callable[..., Cache]) -> None:
    cache = opened(limit=50)
    cache.put([(keys(1)[0], value_of(1))])
    assert cache.get(keys(1)[0]) is None
    cache.put([(keys(1)[0], b"short")])
    assert cache.get(keys(1)[0]) == b"short"


def test_without_a_path_nothing_is_kept_and_nothing_fails(opened: Callable[..., Cache]) -> None:
    cache = opened(where=None)
    cache.put([(keys(1)[0], b"value")])
    assert cache.get(keys(1)[0]) is None


def test_a_flipped_byte_in_a_value_is_noticed_and_the_value_forgotten(
    filled: Path, opened: Callable[..., Cache]
) -> None:
    data = bytearray(filled.read_bytes())
    place = data.index(value_of(3)) + 50
    data[place] ^= 1
    filled.write_bytes(data)
    cache = opened()
    assert [number for number, key in enumerate(keys(8)) if cache.get(key) != value_of(number)] == [3]
    assert cache.damaged == 1
    assert cache.get(keys(4)[3]) is None
    assert cache.damaged == 1  # forgotten, not found damaged again
    cache.put([(keys(4)[3], value_of(3))])
    assert cache.get(keys(4)[3]) == value_of(3)


def test_a_whole_value_under_another_key_is_noticed(filled: Path, opened: Callable[..., Cache]) -> None:
    """As where the page of an index is damaged."""
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE entry SET key = ? WHERE key = ?", (key_of("wanted"), keys(1)[0]))
    connection.close()
    cache = opened()
    assert cache.get(key_of("wanted")) is None
    assert cache.damaged == 1


@pytest.mark.parametrize("damage", ["header", "schema", "pages", "cut", "text", "empty", "old tables"])
def test_a_file_that_is_no_database_any_more_is_started_anew(
    filled: Path, opened: Callable[..., Cache], damage: str
) -> None:
    data = bytearray(filled.read_bytes())
    if damage == "header":
        data[:16] = b"\xff" * 16
    elif damage == "schema":
        data[100:4096] = random.Random(0).randbytes(3996)
    elif damage == "pages":
        data[4096:] = random.Random(0).randbytes(len(data) - 4096)
    elif damage == "cut":
        del data[5000:]
    filled.write_bytes(b"not a database\n" * 500 if damage == "text" else b"" if damage == "empty" else bytes(data))
    if damage == "old tables":
        with sqlite3.connect(filled) as connection:
            connection.execute("ALTER TABLE entry RENAME COLUMN checksum TO sum")
        connection.close()
    cache = opened()
    assert [cache.get(key) for key in keys(8)] == [None] * 8
    cache.put([(keys(1)[0], b"value")])
    cache.close()
    assert opened().get(keys(1)[0]) == b"value"
    assert cache.damaged == (0 if damage == "empty" else 1)


@pytest.mark.parametrize("seed", range(6))
def test_no_flipped_bit_gives_a_wrong_value_or_an_exception(
    filled: Path, opened: Callable[..., Cache], seed: int
) -> None:
    """Forty places in turn: what is read is right or nothing, and a small bound can still be held."""
    whole, generator = filled.read_bytes(), random.Random(seed)
    used = [place for place, byte in enumerate(whole) if byte]
    for _ in range(40):
        data = bytearray(whole)
        place = generator.choice(used)
        data[place] ^= 1 << generator.randrange(8)
        filled.write_bytes(data)
        for suffix in ("-wal", "-shm"):
            filled.with_name(filled.name + suffix).unlink(missing_ok=True)
        cache = opened(limit=500)
        for number, key in enumerate(keys(8)):
            assert cache.get(key) in (value_of(number), None), place
        cache.put([(key_of("new"), value_of(99))])
        assert cache.get(key_of("new")) in (value_of(99), None), place
        cache.close()


def test_a_directory_that_cannot_be_written_is_done_without(tmp_path: Path, opened: Callable[..., Cache]) -> None:
    """Root may write anywhere, so the directory is one where nobody can."""
    for place in (Path("/proc/cache.sqlite3"), Path("/proc/deep/cache.sqlite3"), tmp_path):
        cache = opened(where=place)
        cache.put([(keys(1)[0], b"value")])
        assert cache.get(keys(1)[0]) is None


def test_a_file_that_cannot_be_written_is_done_without(
    filled: Path, opened: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = sqlite3.connect
    monkeypatch.setattr(
        cache_module.sqlite3, "connect", lambda path, **options: genuine(f"file:{path}?mode=ro", uri=True, **options)
    )
    cache = opened()
    cache.put([(key_of("new"), b"value")])
    assert cache.get(key_of("new")) is None
    assert cache.get(keys(1)[0]) is None
    assert cache.damaged == 0
    monkeypatch.undo()
    assert opened().get(keys(1)[0]) == value_of(0)  # and the file is as it was


def test_a_damaged_file_that_cannot_be_removed_is_done_without(
    filled: Path, opened: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    filled.write_bytes(b"not a database\n" * 500)
    monkeypatch.setattr(Path, "unlink", refuse)
    cache = opened()
    cache.put([(keys(1)[0], b"value")])
    assert cache.get(keys(1)[0]) is None


def test_a_full_disk_is_done_without(path: Path) -> None:
    """The process may write files of 100 kB. What fits is kept, what does not ends nothing."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from training.engine.cache import Cache, key_of\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from training.engine import cache\n"
        "cache.RESERVED_BYTES = 0\n"
        "cache = Cache(Path(sys.argv[1]), 10**9)\n"
        "cache.put([(key_of('small'), b'x' * 1000)])\n"
        "assert cache.get(key_of('small')) == b'x' * 1000\n"
        "cache.put([(key_of('large'), b'x' * 1_000_000)])\n"
        "assert cache.connection is None\n"
        "assert cache.get(key_of('small')) is None\n"
        "cache.put([(key_of('later'), b'x')])\n"
        "cache.close()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The cache is not used" in done.stdout
    cache = Cache(path, MANY)
    assert cache.get(key_of("small")) == b"x" * 1000
    assert cache.get(key_of("large")) is None
    cache.close()


def test_a_reserve_of_the_disk_is_left_to_others(
    opened: Callable[..., Cache], path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = opened()
    cache.put([(keys(1)[0], b"value")])
    monkeypatch.setattr(cache_module, "RESERVED_BYTES", shutil.disk_usage(path.parent).total)
    for number in range(3):
        cache.put([(key_of("new"), value_of(number))])
    assert cache.get(key_of("new")) is None
    assert cache.get(keys(1)[0]) == b"value"  # what is there is read
    assert capsys.readouterr().out.count("takes no more") == 1


def test_a_directory_that_is_gone_is_done_without(opened: Callable[..., Cache], path: Path) -> None:
    cache = opened()
    cache.put([(keys(1)[0], b"value")])
    shutil.rmtree(path.parent)
    cache.put([(key_of("new"), b"value")])
    assert cache.get(key_of("new")) is None


def test_a_database_that_stays_locked_is_done_without(
    filled: Path, opened: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "WAIT_SECONDS", 0.05)
    holder = sqlite3.connect(filled, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    cache = opened()
    cache.put([(key_of("new"), b"value")])
    assert cache.get(key_of("new")) is None
    assert cache.damaged == 0
    holder.execute("ROLLBACK")
    holder.close()
    assert opened().get(keys(1)[0]) == value_of(0)


def test_many_that_make_the_file_at_once_all_have_it(tmp_path: Path) -> None:
    """The ranks of a run do; SQLite does not wait by itself where two switch on the log."""
    for number in range(20):
        path, start = tmp_path / f"{number}.sqlite3", threading.Barrier(4)
        errors: list[Exception] = []

        def make(path: Path = path, start: threading.Barrier = start, errors: list[Exception] = errors) -> None:
            start.wait()
            try:
                cache_module.connect(path).close()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


def test_two_processes_at_once_lose_nothing(path: Path, opened: Callable[..., Cache]) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from training.engine.cache import Cache, key_of\n"
        "from training.engine import cache\n"
        "cache.RESERVED_BYTES = 0\n"
        "cache = Cache(Path(sys.argv[1]), 10**9)\n"
        "for number in range(150):\n"
        "    cache.put([(key_of(sys.argv[2], str(number)), f'{sys.argv[2]} {number}'.encode())])\n"
        "    cache.get(key_of('1', str(number)))\n"
        "assert cache.connection is not None\n"
        "cache.close()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT, stdout=subprocess.PIPE)
        for name in ("1", "2")
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == [b"", b""]
    assert [process.returncode for process in processes] == [0, 0]
    cache = opened()
    for name in ("1", "2"):
        assert all(cache.get(key_of(name, str(number))) == f"{name} {number}".encode() for number in range(150))


def test_a_process_that_is_killed_while_it_writes_leaves_a_good_file(path: Path, opened: Callable[..., Cache]) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from training.engine.cache import Cache, key_of\n"
        "from training.engine import cache\n"
        "cache.RESERVED_BYTES = 0\n"
        "cache = Cache(Path(sys.argv[1]), 10**9)\n"
        "for number in range(10**6):\n"
        "    cache.put([(key_of(str(number)), bytes(5000))])\n"
        "    print(number, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 50:
            break
    child.kill()
    child.communicate()
    cache = opened()
    assert all(cache.get(key) == bytes(5000) for key in keys(51))
    assert cache.damaged == 0


def test_keys_do_not_meet_across_the_borders_of_their_parts() -> None:
    parts: list[tuple[str | list[int], ...]] = [
        ("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c"),
        ([1, 2], [3]), ([1], [2, 3]), ([1, 2, 3],), ([1, 2, 3], []), ([], [1, 2, 3]), ([12, 3],), ([1, 23],), ([123],),
        ("1,2,3",), (), ([],), ("",), ("", ""), ([], []),
    ]  # fmt: skip
    assert len({key_of(*item) for item in parts}) == len(parts)
    assert key_of("a", [1, 2]) == key_of("a", [1, 2])
    assert {len(key_of(*item)) for item in parts} == {32}


def test_it_needs_nothing_heavy() -> None:
    code = "import sys, training.engine.cache; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, env=os.environ).returncode == 0
