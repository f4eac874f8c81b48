"""What annotators must not know reaches them in nothing they can fetch.

Neither which model, run or batch wrote a pair, nor what the queue and the reviewers know of it, nor anybody else's
vote or words: not in a page, a fragment, JSON, a header, a cookie, an id, an order, nor a number that changes.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.core.management.color import no_style
from django.db import connection
from django.http import HttpResponse
from django.template import engines
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from knox.models import AuthToken

from labeling import own_places, places, queue
from labeling.models import Membership, Pair, Preference, QualityReport, Response, Rewrite, Seat, Slot
from labeling.own_places import reserve
from labeling.qualification_items import ItemContent, add_items
from labeling.records import record_skip
from labeling.review import adjudicate, make_gold, send_back
from labeling.services import add_member, create_project
from labeling.tokens import lease_key, make_token, read_token
from tests.blindness import Mark, Walk, addresses, leaks, methods, routes
from training.models import (
    Checkpoint,
    Gate,
    GatePair,
    LabelEffect,
    LabelEffects,
    PairOrigin,
    Promotion,
    SampleBatch,
    SideBySide,
    TrainingRun,
)
from training.recipe import Recipe
from training.services import promote_checkpoint, request_run

HTMX = {"HX-Request": "true"}
# Rows of these models have numbers that nothing else has, so that one is recognised wherever it turns up.
FIRST_IDS = {Response: 1_550_000_001, Pair: 1_660_000_001, Slot: 1_880_000_001}
SEED, BATCH_SEED, RUN_NUMBER, GATE_SEED = 3_141_592_653, 1_718_281_828, 8_675_309, 1_414_213_562
EFFECTS_SEED = 1_732_050_807
WORDS = {
    "a model's name": "Zebra-7B",
    "a model's public name": "stripes/okapi",
    "a model's licence": "Savanna-1.0",
    "why a model was promoted": "promoted-ocelot",
    "another annotator": "voter-quagga",
    "somebody who skipped": "skipper-gecko",
    "a reviewer": "reviewer-ibis",
    "another's comment": "comment-lynx",
    "another's reason": "reason-tapir",
    "another's criterion": "criterion-saola",
    "another's rewrite": "rewrite-bongo",
    "the note of a skip": "skipped-dingo",
    "the note of a decision": "decided-vicuna",
    "what was sent back to another": "returned-axolotl",
    "a report": "report-numbat",
    "the expected answer of a qualification item": "expected-wombat",
    "the probability of a pair": "8371625",
    "the priority of a pair": "7319264",
    "a log-probability": "4321987",
    "a margin": "6172839",
    "an answer that somebody asked for": "compared-kudu",
    "why a gate decided": "gated-pangolin",
    "the answer to another's prompt": "answered-markhor",
}
CONDITIONS = ["fresh", "gold", "control", "calibration", "second look", "conflict", "ahead", "reopened", "judged"]
# The routes that nobody walks, with the reason. None so far.
NOT_WALKED: dict[str, str] = {}


def _person(project, name: str, role: str = Membership.Role.ANNOTATOR) -> User:
    user = User.objects.create_user(name, password="secret-password")
    add_member(project=project, user=user, role=role)
    return user


@pytest.fixture
def numbered(project, make_prompt) -> None:
    """From here on the rows of ``FIRST_IDS`` have the numbers that it says."""
    prompt = make_prompt("The first of all?")
    first = FIRST_IDS[Response]
    a, b = (Response.objects.create(pk=pk, prompt=prompt, text=f"Text {pk}") for pk in (first, first + 1))
    pair = Pair.objects.create(
        pk=FIRST_IDS[Pair], project=project, prompt=prompt, response_a=a, response_b=b, judgements_wanted=1,
        is_retired=True,
    )  # fmt: skip
    Slot.objects.create(pk=FIRST_IDS[Slot], project=project, pair=pair, place=1, state=Slot.State.CLOSED)
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), list(FIRST_IDS)):
            cursor.execute(statement)


@pytest.fixture
def planted(numbered, project, annotator, make_checkpoint, make_pair, judge):
    """A project with everything in it that annotators must not know, and all of it marked."""
    names = {"name": WORDS["a model's name"], "public_name": WORDS["a model's public name"]}
    policy = make_checkpoint("source", licence=WORDS["a model's licence"])
    Checkpoint.objects.filter(pk=policy.pk).update(**names)
    policy.refresh_from_db()
    reviewer = _person(project, WORDS["a reviewer"], Membership.Role.REVIEWER)
    voter, skipper = _person(project, WORDS["another annotator"]), _person(project, WORDS["somebody who skipped"])
    for number in range(10):
        judge(make_pair(f"Good {number}", f"Poor {number}", held_out=False), voter, "a")
    promote_checkpoint(project=project, checkpoint=policy, by=reviewer, reason=WORDS["why a model was promoted"])
    run = request_run(project=project, recipe=Recipe(), by=reviewer)
    TrainingRun.objects.filter(pk=run.pk).update(number=RUN_NUMBER)
    run.refresh_from_db()
    batch = SampleBatch.objects.get(project=project)
    SampleBatch.objects.update(seed=BATCH_SEED)
    own = make_pair("My good one", "My poor one", held_out=False)
    judge(own, annotator, "a")
    send_back(preference=own.preferences.get(), reviewer=reviewer, note="Please read it once more.")
    conflict = _judged_by_others(make_pair, judge, voter, skipper, reviewer)
    _say_much(conflict.preferences.get(annotator=voter), reviewer)
    record_skip(conflict.pk, reviewer.pk, "harmful", WORDS["the note of a skip"])
    adjudicate(pair=conflict, reviewer=reviewer, verdict="b", note=WORDS["the note of a decision"])
    _report(project, annotator, voter)
    content = ItemContent([{"role": "user", "content": "Item?"}], "1", "2", "a", WORDS["the expected answer of a "
                          "qualification item"])  # fmt: skip
    items = add_items(project=project, contents=[content, content])
    Seat.objects.update_or_create(project=project, annotator=annotator, defaults={"qualified_at": timezone.now()})
    create_project(name="Elsewhere", slug="elsewhere")
    _effects(project, policy, own, conflict)
    _origins(batch, policy)
    answer = {"prompt_id": "0", "left": {"text": WORDS["an answer that somebody asked for"]}}
    compared = SideBySide.objects.create(
        project=project, left=policy, right=policy, prompts=[content.messages], answers=[answer], decoding={}
    )
    gate = Gate.objects.create(
        project=project, number=RUN_NUMBER, candidate=policy, current=policy, rule={}, seed=GATE_SEED,
        stage=Gate.Stage.ASKING, reasons=[WORDS["why a gate decided"]],
    )  # fmt: skip
    return SimpleNamespace(
        project=project, policy=policy, run=run, batch=batch, voter=voter, skipper=skipper, reviewer=reviewer,
        items=items, conflict=conflict, own=own.preferences.get(), compared=compared, gate=gate,
    )  # fmt: skip


def _judged_by_others(make_pair, judge, voter, skipper, reviewer) -> Pair:
    """A pair on which two people differ and which a third has still to judge."""
    pair = make_pair("Divides the people", "Divides them too", priority=-0.7319264)
    judge(pair, voter, "a")
    Slot.objects.create(project=pair.project, pair=pair, place=2, is_shared=True, priority=-0.7319264)
    Pair.objects.filter(pk=pair.pk).update(judgements_wanted=2, p_a=0.8371625, is_calibration=True)
    judge(pair, skipper, "b")
    assert pair.slots.filter(state="open").exists()
    return pair


def _say_much(preference: Preference, reviewer: User) -> None:
    Preference.objects.filter(pk=preference.pk).update(
        comment=WORDS["another's comment"],
        reasons=[WORDS["another's reason"]],
        criteria={WORDS["another's criterion"]: "a"},
    )
    prompt = preference.pair.prompt
    response = Response.objects.create(prompt=prompt, text=WORDS["another's rewrite"])
    Rewrite.objects.create(preference=preference, response=response)
    send_back(preference=preference, reviewer=reviewer, note=WORDS["what was sent back to another"])


def _report(project, annotator: User, voter: User) -> None:
    share = {"value": 0.8371625, "low": 0.7319264, "high": 0.9, "of": 9}
    mine = {"judgements": 1, "gold": share, "reliability": share, "agreement": share}
    theirs = {"judgements": 11, "left": share}
    data = {"annotators": {str(annotator.pk): mine, str(voter.pk): theirs}, "said": WORDS["a report"]}
    QualityReport.objects.create(project=project, day=timezone.localdate(), data=data)


def _effects(project, policy: Checkpoint, *pairs: Pair) -> None:
    """What a promotion moved on a pair of one's own, and on one that others have judged."""
    promotion = Promotion.objects.get(project=project)
    effects = LabelEffects.objects.create(
        project=project, promotion=promotion, before=policy, pair_ids=[pair.pk for pair in pairs],
        seed=EFFECTS_SEED, state="succeeded",
    )  # fmt: skip
    answers = {"answer_before": "It said this.", "answer_after": "It says that."}
    for pair, said in zip(pairs, (answers, {"answer_after": WORDS["the answer to another's prompt"]}), strict=True):
        LabelEffect.objects.create(effects=effects, pair=pair, margin_before=0, margin_after=0.6172839, **said)


def _origins(batch: SampleBatch, policy: Checkpoint) -> None:
    """Say of every pair so far which policy wrote it, from which seeds."""
    for pair in Pair.objects.exclude(pk__in=PairOrigin.objects.values("pair_id")):
        PairOrigin.objects.create(
            pair=pair, batch=batch, policy=policy, prompt=pair.prompt, seed_a=SEED, seed_b=SEED + 1,
            logps_a=[-5.4321987], logps_b=[-5.4321987], reference_logps_a=[-5.4321987], margin=0.6172839,
        )  # fmt: skip


def _ask_for_the_gate(gate: Gate) -> None:
    """Every pair that people may see is the gate's: whose side is whose must reach nobody who labels."""
    for pair in Pair.objects.filter(project=gate.project).order_by("pk"):
        if not GatePair.objects.filter(gate=gate, prompt=pair.prompt).exists():
            GatePair.objects.get_or_create(
                pair=pair, defaults={"gate": gate, "prompt": pair.prompt, "candidate_side": "b"}
            )


def _marks(planted) -> list[Mark]:
    """Everything that is unmistakable, as the database has it now."""
    policy, run, batch = planted.policy, planted.run, planted.batch
    marks = [Mark(of, word) for of, word in WORDS.items()]
    marks.append(Mark("the seed of a gate", GATE_SEED))
    for row in (policy, run, batch, planted.gate):
        marks += [Mark(f"the id of {row}", str(row.uuid)), Mark(f"the id of {row}", row.uuid.hex)]
    marks += [Mark("the hash of a model", policy.content_hash), Mark("the hash of a model", policy.short_hash)]
    marks += [Mark("the hash of a dataset", run.snapshot.sha256), Mark("the seed of a run", run.seed)]
    marks += [Mark("the number of a run", RUN_NUMBER), Mark("the seed of a batch", BATCH_SEED)]
    marks += [Mark("the seed of answers", EFFECTS_SEED)]
    marks += [Mark("the seed of a pair", seed) for seed in (SEED, SEED + 1)]
    marks += [
        Mark(f"the number of a {model.__name__.lower()}", pk)
        for model in (Pair, Slot, Response)
        for pk in model.objects.values_list("pk", flat=True)
    ]
    return marks


def _set_percents(project, **percents) -> None:
    type(project).objects.filter(pk=project.pk).update(**percents)
    project.refresh_from_db()


def _condition(planted, judge, pair: Pair, condition: str) -> None:
    project = planted.project
    changes = {"control": {"is_control": True}, "calibration": {"is_calibration": True}}.get(condition, {})
    Pair.objects.filter(pk=pair.pk).update(p_a=0.8371625, **changes)
    if condition == "control":
        Slot.objects.filter(pair=pair).update(is_control=True)
        _set_percents(project, control_percent=100)
    if condition in ("calibration", "judged"):
        Pair.objects.filter(pk=pair.pk).update(judgements_wanted=2)
        Slot.objects.filter(pair=pair).update(is_shared=True)
        Slot.objects.create(project=project, pair=pair, place=2, is_shared=True, priority=5.0)
    if condition == "judged":
        judge(pair, planted.voter, "a")
        _say_much(pair.preferences.get(), planted.reviewer)
    if condition == "gold":
        make_gold(pair=pair, choice="a")
        _set_percents(project, gold_percent=100)


@pytest.fixture
def prepare(planted, project, annotator, make_pair, judge, monkeypatch):
    """Put a pair of the named condition on the annotator's desk. Returns it."""

    def made(condition: str) -> Pair:
        """The pair, before its slots are what the condition says."""
        if condition == "second look":
            monkeypatch.setattr(own_places, "REPEAT_AFTER", 0)
            _set_percents(project, repeat_percent=100)
            reserve(project, annotator.pk)
            return planted.own.pair
        if condition == "reopened":
            queue.reopen(project, annotator.pk, planted.own.pk)
            return planted.own.pair
        if condition == "conflict":
            places.bring_back(planted.conflict.pk)  # the decision had ended the asking
            return planted.conflict
        pair = make_pair("The one response.", "Other response.", priority=5.0)
        make_pair("Waits behind.", "Waits, too.", priority=4.0)
        return pair

    def prepare(condition: str) -> Pair:
        pair = made(condition)
        _condition(planted, judge, pair, condition)
        reserve(project, annotator.pk)
        _origins(planted.batch, planted.policy)
        _ask_for_the_gate(planted.gate)
        queue.lease_next(project, annotator.pk)
        _set_percents(project, repeat_percent=0, gold_percent=0, control_percent=0)
        if condition == "ahead":
            pair = queue.lease_ahead(project, annotator.pk).slot.pair
        assert Slot.objects.filter(pair=pair, annotator=annotator, state="leased").exists(), condition
        return pair

    return prepare


@pytest.fixture
def walk(planted, annotator, sign_in):
    return Walk(sign_in(annotator), _marks(planted))


@pytest.fixture
def api_walk(planted, annotator):
    _, token = AuthToken.objects.create(annotator)
    return Walk(Client(headers={"Authorization": f"Token {token}"}), _marks(planted))


def _token(page: bytes) -> str:
    return re.search(r'name="token" value="([^"]+)"', page.decode())[1]


def _look(walk: Walk, api: Walk, url: str) -> str:
    """All that can be fetched of the pair on the desk without answering it. Returns its token."""
    page = walk.fetch("get", f"{url}annotate/")
    token = _token(page.content)
    walk.fetch("get", f"{url}annotate/", headers=HTMX)
    walk.fetch("get", f"{url}annotate/", {"shown": "0" * 16}, headers=HTMX)
    lease = api.fetch("post", f"/api/v1{url}lease/".replace("/p/", "/projects/")).json()
    assert lease["token"] == token
    sent = ("token", "expires_at", "prompt", "left", "right", "previous", "asks_reason", "is_second_look")
    assert set(lease) == set(sent)
    assert walk.fetch("get", f"{url}annotate/difference/", {"token": token}).status_code == 200
    assert walk.fetch("post", f"{url}annotate/renew/", {"token": token}).status_code == 204
    for name, data in (
        ("submit", {"token": token, "choice": "nonsense"}),
        ("submit", {"token": token[:-2] + "AA", "choice": "left"}),
        ("submit", {}),
        ("skip", {"token": "?"}),
        ("reasons", {"token": token, "reasons": "Nonsense"}),
        ("renew", {"token": "x" * 60}),
    ):
        walk.fetch("post", f"{url}annotate/{name}/", data, headers=HTMX)
    walk.follow("/", url)
    return token


def _answer(walk: Walk, api: Walk, url: str, token: str) -> None:
    """All that can be done with it, and what comes of that."""
    vote = {"token": token, "choice": "left", "comment": "Mine.", "shown": "0" * 16}
    assert walk.fetch("post", f"{url}annotate/submit/", vote, headers=HTMX).status_code == 200
    walk.fetch("post", f"{url}annotate/submit/", vote, headers=HTMX)  # once more: it counts once
    walk.fetch("post", f"{url}annotate/reasons/", {"token": token, "comment": "Because."})
    walk.fetch("post", f"{url}annotate/renew/", {"token": token})
    walk.fetch("get", f"{url}annotate/difference/", {"token": token})
    undone = walk.fetch("post", f"{url}annotate/undo/", headers=HTMX)
    walk.fetch("post", f"{url}annotate/submit/", {"token": _token(undone.content), "choice": "tie"}, headers=HTMX)
    walk.fetch("post", f"{url}annotate/give-back/")
    after = walk.fetch("get", f"{url}annotate/")
    if b"data-token=" in after.content:
        walk.fetch("post", f"{url}annotate/skip/", {"token": _token(after.content), "reason": "unsure"}, headers=HTMX)
        walk.fetch("post", f"{url}annotate/undo/", headers=HTMX)
    in_api = f"/api/v1{url}".replace("/p/", "/projects/")
    lease = api.fetch("post", f"{in_api}lease/")
    if lease.status_code == 200:
        api.post_json(f"{in_api}preferences/", {"token": lease.json()["token"], "choice": "right"})
    lease = api.fetch("post", f"{in_api}lease/")
    if lease.status_code == 200:
        api.post_json(f"{in_api}skips/", {"token": lease.json()["token"], "reason": "long"})
    walk.seen.clear()
    walk.follow("/", f"{url}history/", f"{url}me/", posts=True)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_nothing_of_a_pair_is_told_before_or_after_the_vote(condition, project, prepare, planted, walk, api_walk):
    prepare(condition)
    walk.marks = api_walk.marks = _marks(planted)
    token = _look(walk, api_walk, f"/p/{project.slug}/")
    assert walk.found + api_walk.found == []
    _answer(walk, api_walk, f"/p/{project.slug}/", token)
    assert walk.found + api_walk.found == []
    assert walk.fetched > 40


def _values(planted) -> dict[str, list[object]]:
    """What stands in the addresses of everything there is."""
    newest = Preference.objects.order_by("-pk").values_list("pk", flat=True)
    pairs = list(Pair.objects.values_list("pk", flat=True))
    people = [planted.voter.pk, planted.skipper.pk, planted.reviewer.pk, planted.own.annotator_id]
    return {
        "slug": [planted.project.slug],
        "uuid": [planted.policy.uuid],
        "number": [RUN_NUMBER],
        "pk": [planted.batch.pk, *(item.pk for item in planted.items)],
        "side_by_side_id": [planted.compared.pk],
        "version": [1, 2],
        "pair_id": pairs,
        "preference_id": list(newest),
        "prompt_id": [planted.own.pair.prompt_id],
        "user_id": people,
        "object_id": [planted.policy.pk],
        "id": [planted.policy.pk],
        "app_label": ["training"],
        "content_type_id": [1],
        "url": ["x"],
        "path": ["css/app.css"],
    }


@pytest.fixture
def every_route(planted, prepare, walk, api_walk):
    """Ask for every route of the resolver with every object, by every method; with a pair on the desk."""
    prepare("judged")
    marks = _marks(planted)
    walk.marks = api_walk.marks = marks

    def visit() -> None:
        # Signing out comes last: it ends the walk.
        for route in sorted(set(routes()) - set(NOT_WALKED), key=lambda route: route == "/sign-out/"):
            by = api_walk if route.startswith("/api/") else walk
            for url, method in itertools.product(addresses(route, _values(planted)), methods(route)):
                by.fetch(method, url)

    return visit


def test_what_ones_own_labels_changed_is_shown_and_tells_nothing_else(planted, walk, project):
    page = walk.fetch("get", f"/p/{project.slug}/what-changed/").content.decode()
    assert "My good one" in page
    assert "It says that." in page
    assert "Divides the people" not in page
    assert walk.found == []


def test_every_route_with_every_object_tells_nothing(every_route, walk, api_walk):
    """The API's schema, what is forbidden, missing or not to be asked that way, and the operators' door included."""
    every_route()
    reached = walk.reached | api_walk.reached
    assert set(routes()) - reached == set(NOT_WALKED)
    assert len(reached) > 80
    assert walk.found + api_walk.found == []
    schema = api_walk.fetch("get", "/api/v1/schema/")
    assert (schema.status_code, api_walk.found) == (200, [])


def test_a_route_that_the_walk_does_not_know_fails_it(planted):
    new = path("p/<slug:slug>/checkpoints/<int:checkpoint_number>/card/", lambda request: HttpResponse(), name="card")
    (route,) = routes([new])
    assert route == "/p/<slug:slug>/checkpoints/<int:checkpoint_number>/card/"
    with pytest.raises(AssertionError, match="checkpoint_number"):
        addresses(route, _values(planted))


def test_what_exists_and_what_does_not_is_refused_alike(planted, walk, api_walk, project):
    """An answer of "not yours" beside one of "not there" would say which runs, models and pairs there are."""
    page, api = f"/p/{project.slug}/", f"/api/v1/projects/{project.slug}/"
    theirs = Preference.objects.filter(annotator=planted.voter).first()
    nobody = "00000000-0000-4000-8000-000000000000"
    alike = [
        ("get", page + "runs/{}/", RUN_NUMBER, 4),
        ("get", page + "checkpoints/{}/", planted.policy.uuid, nobody),
        ("get", page + "checkpoints/{}/download/adapter.zip", planted.policy.uuid, nobody),
        ("get", page + "compare/{}/", planted.compared.pk, 10**6),
        ("get", page + "pairs/{}/", planted.conflict.pk, 4),
        ("get", page + "people/{}/", planted.voter.pk, 10**6),
        ("get", page + "qualification/{}/", planted.items[0].pk, 10**6),
        ("post", page + "review/send-back/{}/", theirs.pk, 10**6),
        ("post", page + "history/{}/reopen/", theirs.pk, 10**6),
        ("post", page + "me/look-again/{}/", theirs.pk, 10**6),
        ("get", page + "qualify/?after={}", planted.items[0].pk, 10**6),
        ("get", api + "runs/{}/", RUN_NUMBER, 4),
        ("post", api + "runs/{}/cancel/", RUN_NUMBER, 4),
        ("get", "/p/{}/", "elsewhere", "nowhere"),
        ("get", "/api/v1/projects/{}/", "elsewhere", "nowhere"),
    ]
    for method, address, there, missing in alike:
        by = api_walk if "/api/" in address else walk
        # Both refusals are fetched once before, for a message of one waits for the next page.
        answers = []
        for value in (there, missing):
            response = by.fetch(method, address.format(value))
            text = response.content.decode().replace(address.format(value), "HERE")
            answers.append((response.status_code, response.headers.get("Location"), _blurred(text)))
            said = by.fetch("get", page + "history/") if method == "post" else None
            answers[-1] += (
                (re.findall(r'<div class="messages".*?</div>', said.content.decode(), re.DOTALL),) if said else ()
            )
        assert answers[0] == answers[1], address


SECRETS = re.compile(
    r'(?<=data-key=")[0-9a-f]{16}|(?<=data-token=")[\w-]+|(?<=name="token" value=")[\w-]+'
    r'|(?<=name="csrfmiddlewaretoken" value=")\w+|(?<="X-CSRFToken": ")\w+'
)


def _blurred(page: str) -> str:
    """A page without what is different at every request."""
    return SECRETS.sub(lambda found: f"{len(found[0])} characters", page)


@pytest.fixture
def looked_at(project, annotator, make_prompt, make_pair, sign_in, monkeypatch):
    """What somebody sees of a first look at a pair of the named kind: pages, JSON, headers, queries."""
    client = sign_in(annotator)
    _, knox = AuthToken.objects.create(annotator)
    numbers = itertools.count(1)

    def pair_of(kind: str) -> Pair:
        number = next(numbers)
        prompt = make_prompt(f"Which one, number {number:03}?")
        pair = make_pair(f"One of {number:03}", f"Two of {number:03}", prompt=prompt, priority=float(number))
        Response.objects.update(finish_reason="")  # which side says that it was cut is the coin's
        if kind == "gold":
            make_gold(pair=pair, choice="a")
        if kind in ("calibration", "conflict"):
            Slot.objects.filter(pair=pair).update(is_shared=True)
            Slot.objects.create(project=project, pair=pair, place=2, is_shared=True, priority=float(number))
            Pair.objects.filter(pk=pair.pk).update(judgements_wanted=2, is_calibration=kind == "calibration")
        if kind == "conflict":
            Pair.objects.filter(pk=pair.pk).update(review="conflict", p_a=0.5)
        if kind == "control":
            Pair.objects.filter(pk=pair.pk).update(is_control=True)
            Slot.objects.filter(pair=pair).update(is_control=True)
        return pair

    def look(kind: str) -> dict[str, object]:
        behind = pair_of("fresh")  # gold comes among others only
        pair = pair_of(kind)
        percents = {"gold_percent": 100 * (kind == "gold"), "control_percent": 100 * (kind == "control")}
        type(project).objects.filter(pk=project.pk).update(**percents)
        project.refresh_from_db()
        reserve(project, annotator.pk)
        lease = queue.lease_next(project, annotator.pk)
        assert lease.slot.pair_id == pair.pk, kind
        seen = _seen(client, knox, f"/p/{project.slug}/", pair, behind)
        queue.submit(project, lease.token, annotator.pk, "tie")
        Slot.objects.exclude(annotator=annotator).update(state=Slot.State.CLOSED)
        return seen

    return look


def _seen(client: Client, knox: str, url: str, pair: Pair, behind: Pair) -> dict[str, object]:
    authorization = {"Authorization": f"Token {knox}"}
    lease_url = f"/api/v1{url}lease/".replace("/p/", "/projects/")
    token = make_token(pair.slots.get(state="leased"))
    asks = {
        "page": lambda: client.get(f"{url}annotate/"),
        "lease": lambda: Client().post(lease_url, headers=authorization),
        "difference": lambda: client.get(f"{url}annotate/difference/", {"token": token}),
        "renew": lambda: client.post(f"{url}annotate/renew/", {"token": token}),
        "project": lambda: client.get(url),
        "me": lambda: client.get(f"{url}me/"),
        "refused": lambda: client.post(f"{url}annotate/submit/", {"token": token, "choice": "x"}),
    }
    seen: dict[str, object] = {}
    for name, ask in asks.items():
        with CaptureQueriesContext(connection) as queries:
            response = ask()
        text = response.content.decode()
        for one in (pair, behind):
            for said in (str(one.prompt), one.response_a.text, one.response_b.text):
                text = text.replace(said, "A TEXT")
        text = re.sub(r'(?<="expires_at":")[^"]+', "later", re.sub(r'(?<="token":")[\w-]+', "60", text))
        text = re.sub(
            r"<strong id=\"today\">\d+|max=\"10\" value=\"\d+|data-today=\"\d+|<dd>\d+</dd>|<dd>\s+\d+( s)?\s+</dd>",
            "",
            text,
        )
        if name == "difference":  # which word differs is what the texts say
            text = re.sub(r"\b(One|Two)\b|\d{3}", "", text)
        headers = {key: value for key, value in response.headers.items() if key not in ("Set-Cookie", "Expires")}
        cookies = {key: len(morsel.value) for key, morsel in response.cookies.items()}
        seen[name] = (response.status_code, headers, cookies, _blurred(text), len(queries))
    return seen


@pytest.mark.parametrize("kind", ["gold", "control", "calibration", "conflict"])
def test_a_pair_of_any_kind_looks_like_every_other(kind, looked_at):
    """In markup, JSON, headers with the length, cookies, and the number of queries, which is what time it takes.

    Giving out a gold pair costs a few queries more than others, for its slot is made then. That is at the claim: pairs
    are fetched ahead, so nobody waits for it.
    """
    looked_at("fresh")  # the first page of a session sets cookies
    assert looked_at(kind) == looked_at("fresh")


@pytest.mark.parametrize("kind", ["gold", "repeat", "planned"])
def test_a_token_and_a_key_say_nothing_of_their_slot(kind, numbered, project, annotator, make_pair):
    """Slots of gold pairs and second looks are the newest of all, and leased for the first time."""
    slot = make_pair().slots.get()
    slot.kind, slot.annotator, slot.leased_at, slot.lease_number = kind, annotator, timezone.now(), 1
    slot.state = Slot.State.LEASED
    slot.save()
    opened = HttpResponse(f"{make_token(slot)} {lease_key(slot)}")
    assert leaks(opened, [Mark("a slot", slot.pk), Mark("a pair", slot.pair_id)]) == []
    assert (len(make_token(slot)), len(lease_key(slot))) == (60, 16)
    assert read_token(make_token(slot), annotator.pk).slot_id == slot.pk


def test_tokens_are_in_no_order_and_share_nothing(annotator):
    """One bit that is always the same, or grows with the slot's number, would be enough to tell the newest ones."""
    now = timezone.now()
    numbers = range(1000, 1128)
    slots = [Slot(pk=pk, lease_number=1, annotator=annotator, leased_at=now, shown_left="a") for pk in numbers]
    sealed = [base64.urlsafe_b64decode(make_token(slot)) for slot in slots]
    bits = [[int(bit) for byte in one for bit in f"{byte:08b}"] for one in sealed]
    for place in range(len(bits[0])):
        column = [row[place] for row in bits]
        assert 30 <= sum(column) <= 98
        later = sum(column[64:]) - sum(column[:64])
        assert abs(later) <= 34, f"bit {place} goes with the number"
    earlier_first = sum(one < other for one, other in itertools.combinations(sealed, 2))
    assert 0.35 < earlier_first / (128 * 127 / 2) < 0.65


def test_how_much_is_open_does_not_tell_what_kind_a_pair_was(project, annotator, make_pair, sign_in):
    """An exact number falls by one at an ordinary pair, by two at a shared one, and not at all at a gold one."""

    def said() -> str:
        return sign_in(annotator).get(f"/p/{project.slug}/").content.decode()

    for _ in range(24):
        make_pair()
    gold = make_pair()
    Slot.objects.filter(pair=gold).update(state=Slot.State.CLOSED)
    make_gold(pair=gold, choice="a")
    before = said()
    assert "10+" in before
    plain = queue.lease_next(project, annotator.pk)
    assert plain.slot.kind == Slot.Kind.PLANNED
    after_plain = said()
    queue.submit(project, plain.token, annotator.pk, "a")
    Preference.objects.all().delete()  # only what is open is looked at
    type(project).objects.update(gold_percent=100)
    project.refresh_from_db()
    reserve(project, annotator.pk)
    golden = queue.lease_next(project, annotator.pk)
    assert golden.slot.kind == Slot.Kind.GOLD
    assert _blurred(before) == _blurred(after_plain) == _blurred(said())


def test_gold_does_not_come_when_everything_is_done(project, annotator, make_pair):
    """Who has read "you have done every pair" and is given one the next minute would know what it is."""
    type(project).objects.update(gold_percent=100)
    project.refresh_from_db()
    gold = make_pair()
    Slot.objects.filter(pair=gold).update(state=Slot.State.CLOSED)
    make_gold(pair=gold, choice="a")
    assert reserve(project, annotator.pk) == 1
    assert queue.lease_next(project, annotator.pk) is None
    make_pair()
    assert queue.lease_next(project, annotator.pk).slot.pair == gold


def test_newcomers_learn_an_expected_answer_after_their_own(planted, sign_in):
    """The page of an item is the same whatever is expected, and nothing else tells it."""
    newcomer = _person(planted.project, "newcomer")
    walk = Walk(sign_in(newcomer), _marks(planted))
    pages = set()
    for choice in ("a", "b", "tie", "both_bad"):
        for item in planted.items:
            item.choice = choice
            item.save()
        pages.add(_blurred(walk.fetch("get", f"/p/{planted.project.slug}/qualify/?start").content.decode()))
    assert len(pages) == 1
    assert "Item?" in pages.pop()
    walk.follow("/", f"/p/{planted.project.slug}/", f"/p/{planted.project.slug}/annotate/")
    assert walk.found == []
    url = f"/p/{planted.project.slug}/qualify/"
    answer = {"item": planted.items[0].pk, "attempt": 1, "choice": "left"}
    told = walk.client.post(f"{url}answer/", answer, follow=True).content.decode()
    assert WORDS["the expected answer of a qualification item"] in told, "it teaches"


# The checker itself


def _answer_of(body: str = "", **headers: str) -> HttpResponse:
    return HttpResponse(body, headers=headers)


ZEBRA, NUMBER = Mark("a model", "Zebra-7B"), Mark("a slot", FIRST_IDS[Slot])


@pytest.mark.parametrize(
    "response",
    [
        _answer_of("<p>by zebra-7b</p>"),
        _answer_of("<p>by &#90;ebra-7B</p>"),
        _answer_of("<a href='/?model=Zebra%2D7B'>"),
        _answer_of(json.dumps({"model": "Zebra-7B"}).replace("Z", "\\u005a")),
        _answer_of(ETag='"Zebra-7B"'),
        _answer_of(**{"X-Model": "Zebra-7B"}),
        _answer_of(base64.urlsafe_b64encode(b'{"by": "Zebra-7B"}').decode().rstrip("=") + ":1abc:signature"),
    ],
)
def test_a_leaked_word_is_found(response):
    assert len(leaks(response, [ZEBRA])) == 1
    assert leaks(_answer_of("<p>by a horse</p>"), [ZEBRA]) == []


def test_a_leaked_cookie_is_found():
    response = _answer_of()
    response.set_cookie("seen", "Zebra-7B")
    assert leaks(response, [ZEBRA])


@pytest.mark.parametrize(
    "payload",
    [f"[{FIRST_IDS[Slot]},1]".encode(), FIRST_IDS[Slot].to_bytes(8, "big"), FIRST_IDS[Slot].to_bytes(4, "little")],
)
def test_a_leaked_number_is_found_in_a_token(payload):
    assert leaks(_answer_of(base64.urlsafe_b64encode(payload + b" and more").decode()), [NUMBER])


def test_a_template_that_prints_a_model_is_caught_by_the_walk(planted, walk, monkeypatch, project):
    """A mutation of the product: the project's page with a line more."""
    template = engines["django"].engine.get_template("labeling/project.html")
    real = type(template).render
    name = planted.policy.name

    def render(self, context):
        text = real(self, context)
        return text + f"<i>{name}</i>" if self.name == "labeling/project.html" else text

    monkeypatch.setattr(type(template), "render", render)
    walk.follow("/")
    assert walk.found
    assert all("Zebra-7B" in found for found in walk.found)
