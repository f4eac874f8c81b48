"""Projects full of open pairs, written in a few statements. Import it after Django is set up.

The columns are the models' own: what is not named here takes the model's default.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.core.management.color import no_style
from django.db import connection, models, transaction
from django.db.models import Max

from labeling.models import Choice, Membership, Pair, Preference, Project, Prompt, Response, Slot
from labeling.prompts import content_hash, is_held_out
from labeling.services import create_project

PROMPTS = 500
SOURCE = random.Random(0)
TEXT = (
    "the answer begins with a plain reason and then shows one small example that a reader can follow at once "
    "because water warms slowly most harbours stay free of ice until late in the year which surprised early sailors"
)
WORDS = TEXT.split()


@dataclass(frozen=True)
class Seeded:
    """A project and the people who label in it."""

    project_id: int
    annotators: list[int]


@dataclass(frozen=True)
class Wanted:
    """How much there is to be: ``done`` pairs at the head of the queue were judged by everybody and have open slots.

    They stay open to nobody here: what looks for the next slot has to pass them.
    """

    pairs: int
    annotators: int
    judgements: int = 1
    done: int = 0


def seed(slug: str, wanted: Wanted) -> Seeded:
    """Write a project with ``wanted.pairs`` open pairs over a shared pool of texts."""
    with transaction.atomic():
        _without_checks_of_what_is_right_by_construction()
        project = create_project(name=f"Load of {slug}", slug=slug)
        # A second look is a pair given twice, on purpose; here each one would be a fault.
        Project.objects.filter(pk=project.pk).update(judgements_per_pair=wanted.judgements, repeat_percent=0)
        annotators = _add_annotators(project, wanted.annotators)
        _add_pairs(project, wanted, annotators)
    _reset_sequences()
    _settle()
    return Seeded(project.pk, annotators)


def _without_checks_of_what_is_right_by_construction() -> None:
    """Millions of foreign keys, each looked up, would take longer than everything else."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")


def _add_annotators(project: Project, count: int) -> list[int]:
    people = User.objects.bulk_create(
        User(username=f"{project.slug}-{number}", password="!") for number in range(count)
    )
    Membership.objects.bulk_create(Membership(project=project, user=user) for user in people)
    return [user.pk for user in people]


def _add_pairs(project: Project, wanted: Wanted, annotators: list[int]) -> None:
    total = wanted.pairs + wanted.done
    responses = _responses_a_prompt(total)
    first_prompt, first_response = _add_texts(project, responses)
    first = _next_id(Pair)
    head = f"n < {wanted.done}"
    open_at_the_head = max(1, wanted.judgements - 1)
    # Pair n is of prompt n % PROMPTS; its two responses are the (n / PROMPTS)-th ordered pair of that prompt's.
    a, b = f"(n / {PROMPTS}) / {responses - 1}", f"(n / {PROMPTS}) %% {responses - 1}"
    base = f"{first_response} + (n %% {PROMPTS}) * {responses}"
    _insert(
        Pair,
        _numbers(total),
        id=f"{first} + n",
        project_id=str(project.pk),
        prompt_id=f"{first_prompt} + n %% {PROMPTS}",
        response_a_id=f"{base} + {a}",
        response_b_id=f"{base} + {b} + CASE WHEN {b} >= {a} THEN 1 ELSE 0 END",
        judgements_wanted=f"CASE WHEN {head} THEN {len(annotators) + open_at_the_head} ELSE {wanted.judgements} END",
        judgements_count=f"CASE WHEN {head} THEN {len(annotators)} ELSE 0 END",
        is_control=f"(n %% 100 < {project.control_percent})",
    )
    pairs = {
        "project_id": str(project.pk),
        "pair_id": f"{first} + n",
        "random_key": _random(),
        "is_control": f"(n %% 100 < {project.control_percent})",
        "is_shared": "TRUE" if wanted.judgements > 1 else "FALSE",
    }
    places = f"{_numbers(total)} CROSS JOIN {_numbers(wanted.judgements, 'place')} WHERE NOT {head}"
    _insert(Slot, places, place="place + 1", **pairs)
    if wanted.done:
        spare = f"{_numbers(wanted.done)} CROSS JOIN {_numbers(open_at_the_head, 'place')}"
        _insert(Slot, spare, place=f"place + {len(annotators) + 1}", priority="1.0", **pairs)
        _add_done(wanted.done, annotators, pairs)


def _add_done(count: int, annotators: list[int], pairs: dict[str, str]) -> None:
    """Everybody's judgement of the pairs at the head."""
    table, people = Slot._meta.db_table, User._meta.db_table
    side, choice = f"'{Slot.Side.A}'", f"'{Choice.A}'"
    _insert(
        Slot,
        f"{_numbers(count)} CROSS JOIN {people} WHERE {people}.id BETWEEN {annotators[0]} AND {annotators[-1]}",
        place=f"{people}.id - {annotators[0]} + 1",
        priority="1.0",
        state=f"'{Slot.State.DONE}'",
        annotator_id=f"{people}.id",
        lease_number="1",
        leased_at="CURRENT_TIMESTAMP",
        shown_left=side,
        **pairs,
    )
    _insert(
        Preference,
        f"{table} WHERE state = '{Slot.State.DONE}' AND project_id = {pairs['project_id']}",
        pair_id="pair_id",
        slot_id=f"{table}.id",
        annotator_id="annotator_id",
        project_id="project_id",
        choice=choice,
        shown_left=side,
        seconds="9.0",
        lease_number="1",
    )


def _responses_a_prompt(pairs: int) -> int:
    """The fewest responses whose ordered pairs suffice."""
    count = 2
    while count * (count - 1) * PROMPTS < pairs:
        count += 1
    return count


def _add_texts(project: Project, responses: int) -> tuple[int, int]:
    """Prompts with responses in Markdown, of 60 to 250 words each; returns the first id of both."""
    first_prompt, first_response = _next_id(Prompt), _next_id(Response)
    chats = [[{"role": "user", "content": f"{_words(12)} ({number})?"}] for number in range(PROMPTS)]
    digests = [content_hash(chat) for chat in chats]
    Prompt.objects.bulk_create(
        Prompt(
            id=first_prompt + number,
            project=project,
            messages=chat,
            content_hash=digest,
            is_held_out=is_held_out(digest),
        )
        for number, (chat, digest) in enumerate(zip(chats, digests, strict=True))
    )
    Response.objects.bulk_create(
        (
            Response(id=first_response + number, prompt_id=first_prompt + number // responses, text=_answer(number))
            for number in range(PROMPTS * responses)
        ),
        batch_size=500,
    )
    return first_prompt, first_response


def _answer(number: int) -> str:
    paragraphs = [f"Answer **{number}**: {_words(30)}."] + [f"{_words(SOURCE.randint(20, 60))}." for _ in range(3)]
    points = [f"- *{_words(2)}*: {_words(6)}" for _ in range(SOURCE.randint(0, 4))]
    return "\n\n".join([*paragraphs, "\n".join(points)]).strip()


def _words(count: int) -> str:
    return " ".join(SOURCE.choices(WORDS, k=count)).capitalize()


def _next_id(model: type[models.Model]) -> int:
    return (model._default_manager.aggregate(last=Max("pk"))["last"] or 0) + 1


def _numbers(count: int, name: str = "n") -> str:
    """A table of 0 to ``count - 1``, in the SQL that both databases know."""
    counted = f"SELECT 0 UNION ALL SELECT {name} + 1 FROM counted WHERE {name} + 1 < {count}"
    return f"(WITH RECURSIVE counted({name}) AS ({counted}) SELECT {name} FROM counted) AS {name}_table"


def _random() -> str:
    """A number from 0 up to 1; SQLite's own is a whole one of 64 bits."""
    return "random()" if connection.vendor == "postgresql" else "(random() / 18446744073709551616.0 + 0.5)"


def _insert(model: type[models.Model], source: str, **expressions: str) -> None:
    """``INSERT … SELECT`` from ``source``; columns that are not in ``expressions`` take the model's default."""
    columns, values, parameters = [], [], []
    blank = model()
    for field in model._meta.concrete_fields:
        if field.attname in expressions:
            values.append(expressions[field.attname])
        elif field.primary_key or field.generated or field.has_db_default():
            continue
        else:
            values.append("%s")
            parameters.append(_default(field, blank))
        columns.append(connection.ops.quote_name(field.column))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {model._meta.db_table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {source}",
            parameters,
        )


def _default(field: Any, blank: models.Model) -> Any:
    return field.get_db_prep_save(field.pre_save(blank, add=True), connection=connection)


def _reset_sequences() -> None:
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), [Prompt, Response, Pair]):
            cursor.execute(statement)


def _settle() -> None:
    """Do now what would otherwise go on while others measure: what autovacuum does, and writing to disk."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")
        else:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
