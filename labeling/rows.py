"""Rows of a model by SQL that is built once: for the few statements that run at every judgement.

Building a query with the ORM takes ten times as long as a database takes to answer it. What is read and written here
still follows the model: its columns, its converters, its checks of values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from django.db import connection, models
from django.db.models.expressions import Col

Row = TypeVar("Row", bound=models.Model)
Convert = Callable[[Any], Any]


@contextmanager
def pipelined() -> Iterator[None]:
    """Statements in here are sent without waiting for the answers of those before: one way there and back for all.

    On PostgreSQL, where each way there and back costs more than most of these statements; SQLite has none to save. In
    here belong only ``ask``, ``execute``, ``update`` and ``insert``: Django's own queries look at once for the number
    of rows they have touched, which is not there yet. Answers are best read behind the block. An error of the database
    comes up where the next answer is read, at the end of the block at the latest.
    """
    if connection.vendor != "postgresql":
        yield
        return
    connection.ensure_connection()
    with connection.wrap_database_errors, connection.connection.pipeline():
        yield


def ask(model: type[Row], where: str, values: Sequence[Any], *, lock: str = "") -> Callable[[], list[Row]]:
    """Send what ``fetch`` sends; what is returned reads the answer."""
    lock = lock if connection.features.has_select_for_update else ""
    cursor = connection.cursor()
    cursor.execute(f"{_select(model)} WHERE {where} {lock}", values)

    def read() -> list[Row]:
        with cursor:
            return [build(model, row) for row in cursor.fetchall()]

    return read


def fetch(model: type[Row], where: str, values: Sequence[Any], *, lock: str = "") -> list[Row]:
    """The rows of ``model`` for which ``where`` is true. ``lock``: such as "FOR UPDATE", on PostgreSQL."""
    return ask(model, where, values, lock=lock)()


def first(found: list[Row]) -> Row | None:
    return found[0] if found else None


def build(model: type[Row], values: Sequence[Any]) -> Row:
    """A saved row of its columns' values in the order of ``columns``."""
    converted = [convert(value) for convert, value in zip(_converters(model, connection.vendor), values, strict=True)]
    return model.from_db(connection.alias, _names(model), converted)


def insert(row: Row) -> Callable[[], Row]:
    """Write a new row, defaults and moments of creation included; what is returned reads its key and returns it."""
    fields = _written(type(row))
    values = [field.get_db_prep_save(field.pre_save(row, add=True), connection) for field in fields]
    cursor = connection.cursor()
    cursor.execute(_insert(type(row)), values)

    def read() -> Row:
        with cursor:
            row.pk = cursor.fetchone()[0]
        row._state.adding, row._state.db = False, connection.alias
        return row

    return read


def update(row: models.Model, names: tuple[str, ...]) -> None:
    """Write some columns of a row, found by its key."""
    model = type(row)
    fields = _fields(model, names)
    values = [field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields]
    with connection.cursor() as cursor:
        cursor.execute(_update(model, names), [*values, row.pk])


def execute(statement: str, values: Sequence[Any]) -> None:
    """Run a statement whose answer nobody reads."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def scalar(statement: str, values: Sequence[Any]) -> Any:
    """The first column of the first row; ``None`` where there is no row."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        row = cursor.fetchone()
    return row[0] if row else None


def moment(value: Any) -> Any:
    """A moment as the database takes it."""
    return connection.ops.adapt_datetimefield_value(value)


@cache
def columns(model: type[models.Model], alias: str = "") -> str:
    """The columns of a model for a SELECT or RETURNING, separated by commas."""
    prefix = f"{alias}." if alias else ""
    return ", ".join(f"{prefix}{field.column}" for field in model._meta.concrete_fields)


@cache
def _names(model: type[models.Model]) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields]


@cache
def _select(model: type[models.Model]) -> str:
    return f"SELECT {columns(model)} FROM {model._meta.db_table}"  # noqa: S608


@cache
def _written(model: type[models.Model]) -> list[Any]:
    return [field for field in model._meta.concrete_fields if not field.primary_key]


@cache
def _fields(model: type[models.Model], names: tuple[str, ...]) -> list[Any]:
    return [model._meta.get_field(name) for name in names]


@cache
def _insert(model: type[models.Model]) -> str:
    names = ", ".join(field.column for field in _written(model))
    places = ", ".join(["%s"] * len(_written(model)))
    return f"INSERT INTO {model._meta.db_table} ({names}) VALUES ({places}) RETURNING id"  # noqa: S608


@cache
def _update(model: type[models.Model], names: tuple[str, ...]) -> str:
    places = ", ".join(f"{field.column} = %s" for field in _fields(model, names))
    return f"UPDATE {model._meta.db_table} SET {places} WHERE id = %s"  # noqa: S608


@cache
def _converters(model: type[models.Model], vendor: str) -> list[Convert]:
    return [_converter(Col(model._meta.db_table, field)) for field in model._meta.concrete_fields]


def _converter(column: Any) -> Convert:
    steps = [*connection.ops.get_db_converters(column), *column.get_db_converters(connection)]
    if not steps:
        return lambda value: value

    def convert(value: Any) -> Any:
        for step in steps:
            value = step(value, column, connection)
        return value

    return convert
