"""Whose turn it is: how the two databases let people, and the tabs of one person, wait for each other."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import connection, transaction

from labeling import rows

ADVISORY_LOCK_NAMESPACE = 0x7B1E  # any constant of our own; the second key is the annotator's id
TURN = "SELECT pg_advisory_xact_lock(%s, %s)"
FORGETTABLE_TURN = f"{TURN}, set_config('synchronous_commit', 'off', true)"


@contextmanager
def transaction_at_desk() -> Iterator[None]:
    """A transaction for what somebody waits for.

    On SQLite one writes at a time, and who comes second sleeps and looks again, longer each time, while others that
    come later find the database free: with some dozens of people the unlucky ones wait for seconds. So whoever comes
    to the desk stands in a queue that the operating system keeps, for all threads and processes.
    """
    with _waiting_line(), transaction.atomic():
        yield


def take_turn(annotator_id: int, *, is_forgettable: bool = False) -> None:
    """Let this person's other tabs wait until the transaction ends. Its first statement; may stand in a pipeline.

    SKIP LOCKED with NOT EXISTS lets one person in two tabs claim two slots of a pair: neither claim sees the other. On
    SQLite the transaction alone is enough.

    ``is_forgettable``: the database may lose the transaction if it crashes in the next moment, and so need not wait for
    its disk. A lease may be lost: its token tells all of it, and an answer is taken whatever has become of the slot.
    """
    if connection.vendor == "postgresql":
        rows.execute(FORGETTABLE_TURN if is_forgettable else TURN, [ADVISORY_LOCK_NAMESPACE, annotator_id])


@contextmanager
def _waiting_line() -> Iterator[None]:
    """Wait for those who came before, in this and in other processes; for nobody but on a SQLite file."""
    name = str(connection.settings_dict["NAME"])
    is_file = connection.vendor == "sqlite" and not (name == ":memory:" or "mode=memory" in name)
    if not is_file or connection.in_atomic_block:
        yield
        return
    with Path(f"{name}-desk").open("ab") as line:
        fcntl.flock(line, fcntl.LOCK_EX)  # let go when the file is closed, or its process dies
        yield
