"""A project full of judgements by simulated people, written straight into the rows: the queue would take minutes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from django.contrib.auth.models import User

from labeling.models import Pair, Preference, Project, Prompt, Response, Seat, Slot
from labeling.services import add_member

OTHER = {"a": "b", "b": "a"}


def people(project: Project, count: int, *, name: str = "person") -> list[User]:
    users = [User.objects.create_user(f"{name}-{number:02}") for number in range(count)]
    for user in users:
        add_member(project=project, user=user, role="annotator")
        Seat.objects.create(project=project, annotator=user)
    return users


def judge(
    project: Project,
    users: Sequence[User],
    pairs: int,
    *,
    each: int = 2,
    right: float = 0.9,
    seconds: float = 40.0,
    **of_pair: object,
) -> list[Pair]:
    """Pairs of which A is better, each judged by ``each`` of the users in turn, who see it with a chance of ``right``.

    A is shown left every second time, to each of them and of each pair.
    """
    chance = random.Random(len(users))
    start = Pair.objects.count()
    prompts = Prompt.objects.bulk_create(
        Prompt(
            project=project,
            messages=[{"role": "user", "content": f"What is {number}?"}],
            content_hash=f"{number:064}",
            is_held_out=False,
        )
        for number in range(start, start + pairs)
    )
    texts = ("A long answer, with many a word.", "A short one.")
    responses = Response.objects.bulk_create(Response(prompt=prompt, text=text) for prompt in prompts for text in texts)
    made = Pair.objects.bulk_create(
        Pair(
            project=project,
            prompt=prompt,
            response_a=responses[2 * place],
            response_b=responses[2 * place + 1],
            **{"judgements_wanted": max(1, each), "judgements_count": each} | of_pair,
        )
        for place, prompt in enumerate(prompts)
    )
    for place, pair in enumerate(made):
        for number in range(each):
            user = users[(place + number) % len(users)]
            choice = "a" if chance.random() < right else "b"
            side = "ab"[(place // len(users) + number) % 2]
            add(pair, user, choice, shown_left=side, place=number + 1, seconds=seconds)
    return made


def add(pair: Pair, user: User, choice: str, *, shown_left: str = "a", place: int = 1, **values: object) -> Preference:
    """One more judgement; ``is_repeat`` makes it a second look, ``as_gold`` the answer to a known pair."""
    kind = Slot.Kind.GOLD if values.pop("as_gold", False) else Slot.Kind.PLANNED
    kind = Slot.Kind.REPEAT if values.get("is_repeat") else kind
    slot = Slot.objects.create(
        project_id=pair.project_id,
        pair=pair,
        place=place,
        kind=kind,
        state=Slot.State.DONE,
        annotator=user,
        shown_left=shown_left,
        shown_to=user.pk,
        versions=1,
    )
    return Preference.objects.create(
        project_id=pair.project_id,
        pair=pair,
        slot=slot,
        annotator=user,
        choice=choice,
        shown_left=shown_left,
        lease_number=1,
        **{"seconds": 40.0} | values,
    )
