"""What engines on this machine have computed before, by content: bounded, checked, and never needed.

One SQLite file holds values under keys that name everything a value follows from. Each value carries a checksum. A file
that cannot be read is started anew, and one that cannot be written is done without: a cache must not end a run.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from training.engine.journal import say

RESERVED_BYTES = 2 * 2**30  # of the disk, which are left free
# Pages of the file, of 4 KiB: free ones that are not worth giving back, and how many go back before others may write.
SPARE_PAGES = 1024
PAGES_AT_ONCE = 16_384
WAIT_SECONDS = 20.0  # for another engine that writes
# Values lie in a table of their own, so that noting a use does not write a value again.
TABLES = (
    """CREATE TABLE IF NOT EXISTS entry (
        id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, checksum INTEGER NOT NULL, bytes INTEGER NOT NULL,
        used INTEGER NOT NULL
    )""",
    "CREATE TABLE IF NOT EXISTS content (id INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS entry_by_age ON entry (used, bytes)",
)
# A damaged schema or row also shows as text that is none, or as a value of another type.
FAILURES = (sqlite3.Error, ValueError, TypeError)
# Codes that speak of the place where the file lies, or of who else is using it; all others speak of the file.
OUTSIDE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
FIND = "SELECT entry.id, checksum, value FROM entry JOIN content USING (id) WHERE key = ?"


def key_of(*parts: str | list[int]) -> bytes:
    """sha256 over ``parts``, told apart by their kinds and lengths."""
    digest = hashlib.sha256()
    for part in parts:
        kind, data = (b"s", part) if isinstance(part, str) else (b"i", ",".join(map(str, part)))
        digest.update(kind + len(data.encode()).to_bytes(8, "big") + data.encode())
    return digest.digest()


def checksum_of(key: bytes, value: bytes) -> int:
    """Over both: a damaged index leads to a whole value, but to another key's."""
    return zlib.crc32(value, zlib.crc32(key))


class Cache:
    """A bounded map from keys to bytes in ``path``. The entries that were not used for longest go first.

    ``damaged`` counts the values that did not fit their checksum; those are forgotten.
    """

    def __init__(self, path: Path | None, limit_bytes: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self.damaged = 0
        self.used: dict[int, int] = {}  # when entries were read, to be written with the next values
        self.skipped = False
        self.connection: sqlite3.Connection | None = None
        if path is not None:
            self.open(path)

    def open(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.connection = connect(path)
            self.shrink()
        except FAILURES as error:
            self.recover(error)
        except OSError as error:
            self.give_up(error)

    def start_anew(self, path: Path) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        with suppress(OSError, *FAILURES):
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self.connection = connect(path)

    def give_up(self, error: Exception) -> None:
        say(f"The cache is not used: {error}.")
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def get(self, key: bytes) -> bytes | None:
        if self.connection is None:
            return None
        try:
            row = self.connection.execute(FIND, (key,)).fetchone()
            if row is None:
                return None
            number, checksum, value = row
            if isinstance(value, bytes) and checksum_of(key, value) == checksum:
                self.used[number] = time.time_ns()
                return value
            self.damaged += 1
            self.forget([key])
        except FAILURES as error:
            self.recover(error)
        return None

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep ``items`` in one transaction, and forget old entries beyond the bound."""
        items = list(items)
        if self.connection is None or not self.has_room_for(sum(len(value) for _, value in items)):
            return
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self.note_uses()
            for key, value in items:
                self.insert(key, value)
            self.evict()
            self.connection.execute("COMMIT")
        except FAILURES as error:
            self.recover(error)

    def shrink(self) -> None:
        """Give the disk back what lies beyond the bound, after somebody has lowered it."""
        assert self.connection is not None
        (total,) = self.connection.execute("SELECT COALESCE(SUM(bytes), 0) FROM entry").fetchone()
        with suppress(sqlite3.OperationalError):  # another engine reads or writes: the next one finds it quiet
            if total > self.limit_bytes:
                with self.connection:  # which commits, or rolls back
                    self.connection.execute("BEGIN IMMEDIATE")
                    self.evict()
            while self.spare_pages() > SPARE_PAGES:
                # As a script, which is stepped to its end: by itself the statement gives back one page.
                self.connection.executescript(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})")

    def spare_pages(self) -> int:
        """Free pages of the file, beyond the quarter of it that may be used again."""
        assert self.connection is not None
        (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
        return int(free - pages // 4)

    def has_room_for(self, size: int) -> bool:
        """Whether the disk keeps its reserve; the database and the run's states are on it as well."""
        assert self.path is not None
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:  # the directory is gone
            self.give_up(error)
            return False
        if free > RESERVED_BYTES + size:
            return True
        if not self.skipped:
            say(f"The cache {self.path.name} takes no more: less than {RESERVED_BYTES >> 30} GiB of the disk are free.")
        self.skipped = True
        return False

    def note_uses(self) -> None:
        assert self.connection is not None
        rows = [(when, number) for number, when in self.used.items()]
        self.connection.executemany("UPDATE entry SET used = ? WHERE id = ?", rows)
        self.used.clear()

    def insert(self, key: bytes, value: bytes) -> None:
        assert self.connection is not None
        self.forget([key])
        entry = (key, checksum_of(key, value), len(value), time.time_ns())
        number = self.connection.execute("INSERT INTO entry (key, checksum, bytes, used) VALUES (?, ?, ?, ?)", entry)
        self.connection.execute("INSERT INTO content VALUES (?, ?)", (number.lastrowid, value))

    def evict(self) -> None:
        assert self.connection is not None
        total = self.connection.execute("SELECT COALESCE(SUM(bytes), 0) FROM entry").fetchone()[0]
        while total > self.limit_bytes:
            oldest = self.connection.execute("SELECT key, bytes FROM entry ORDER BY used LIMIT 256").fetchall()
            changes = self.connection.total_changes
            for key, size in oldest:
                if total <= self.limit_bytes:
                    return
                self.forget([key])
                total -= size
            if self.connection.total_changes == changes:
                raise sqlite3.DatabaseError("an index names entries that are not there")

    def forget(self, keys: Iterable[bytes]) -> None:
        if self.connection is None:
            return
        for key in keys:
            self.connection.execute("DELETE FROM content WHERE id = (SELECT id FROM entry WHERE key = ?)", (key,))
            self.connection.execute("DELETE FROM entry WHERE key = ?", (key,))

    def recover(self, error: Exception) -> None:
        """A full disk or a long lock: do without from here on. Anything else: the file is not what it should be."""
        if getattr(error, "sqlite_errorcode", -1) & 0xFF in OUTSIDE or self.path is None:
            self.give_up(error)
            return
        say(f"The cache {self.path.name} is damaged ({error}); it is started anew.")
        self.damaged += 1
        self.start_anew(self.path)

    def close(self) -> None:
        if self.connection is not None:
            if self.used:
                with suppress(*FAILURES):  # what was read lately matters only to what goes first
                    self.connection.execute("BEGIN IMMEDIATE")
                    self.note_uses()
                    self.connection.execute("COMMIT")
            self.connection.close()
            self.connection = None


def keep_a_log(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging. Two processes that make the file at once meet here, and SQLite does not wait."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
    try:
        if path.stat().st_size == 0:  # only before there is a table
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        elif connection.execute("PRAGMA auto_vacuum").fetchone() == (0,):
            raise sqlite3.DatabaseError("it is of an earlier version")
        keep_a_log(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        for statement in TABLES:
            connection.execute(statement)
    except FAILURES:
        connection.close()
        raise
    return connection
