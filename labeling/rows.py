"""Rows of a model by SQL that is built once: for the few statements that run at every judgement.

Building a query with the ORM takes ten times as long as a database takes to answer it. What is read and written here
still follows the model: its columns, its converters, its checks of values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from django.db import connection, models
from django.db.models.expressions import Col

Row = TypeVar("Row", bound=models.Model)
Convert = Callable[[Any], Any]


def fetch(model: type[Row], where: str, values: Sequence[Any], *, lock: str = "") -> list[Row]:
    """The rows of ``model`` for which ``where`` is true. ``lock``: such as "FOR UPDATE", on PostgreSQL."""
    lock = lock if connection.features.has_select_for_update else ""
    with connection.cursor() as cursor:
        cursor.execute(f"{_select(model)} WHERE {where} {lock}", values)
        return [build(model, row) for row in cursor.fetchall()]


def build(model: type[Row], values: Sequence[Any]) -> Row:
    """A saved row of its columns' values in the order of ``columns``."""
    converted = [convert(value) for convert, value in zip(_converters(model, connection.vendor), values, strict=True)]
    return model.from_db(connection.alias, _names(model), converted)


def insert(row: Row) -> Row:
    """Write a new row, defaults and moments of creation included; its key is set."""
    fields = _written(type(row))
    values = [field.get_db_prep_save(field.pre_save(row, add=True), connection) for field in fields]
    with connection.cursor() as cursor:
        cursor.execute(_insert(type(row)), values)
        row.pk = cursor.fetchone()[0]
    row._state.adding, row._state.db = False, connection.alias
    return row


def update(row: models.Model, names: tuple[str, ...]) -> None:
    """Write some columns of a row, found by its key."""
    model = type(row)
    fields = _fields(model, names)
    values = [field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields]
    with connection.cursor() as cursor:
        cursor.execute(_update(model, names), [*values, row.pk])


def execute(statement: str, values: Sequence[Any]) -> int:
    """Run a statement; returns the number of rows it touched."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.rowcount)


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
