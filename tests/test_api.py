"""The API: once through labeling and training, its errors, its contract."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import quote

import pytest
from django.test import Client
from knox.models import AuthToken

from labeling.models import Pair, Preference, Prompt
from training import store
from training.models import Promotion, TrainingRun
from training.recipe import Decoding

# As the schema has them; what the engine alone reads stays inside.
TRIPLE_FIELDS = {
    *("pair_id", "prompt_id", "split", "messages", "chosen", "rejected", "preference_ids", "weight", "label_noise"),
    "source",
}


def test_prompts_are_added_all_or_none(project, project_admin, api):
    call = api(project_admin)
    good = ["One", [{"role": "user", "content": "Two"}], "one"]
    created = call("post", f"{project.slug}/prompts/", {"prompts": good})
    assert (created.status_code, created.json()) == (201, {"added": 2, "duplicates": 1})
    bad = call("post", f"{project.slug}/prompts/", {"prompts": ["Three", ""]})
    assert bad.status_code == 400
    assert "empty" in bad.json()["detail"]
    assert Prompt.objects.count() == 2
    listed = call("get", f"{project.slug}/prompts/").json()["results"]
    assert [prompt["messages"][0]["content"] for prompt in listed] == ["Two", "One"]


def test_lease_and_answer(project, annotator, make_pair, api):
    pair = make_pair("A text", "B text")
    call = api(annotator)
    lease = call("post", f"{project.slug}/lease/").json()
    assert {lease["left"], lease["right"]} == {"A text", "B text"}
    answer = {"token": lease["token"], "choice": "left"}
    first = call("post", f"{project.slug}/preferences/", answer)
    assert (first.status_code, first.json()["is_repeat"]) == (201, False)
    assert call("post", f"{project.slug}/preferences/", answer).json()["is_repeat"]
    preference = Preference.objects.get(pair=pair)
    assert {"a": "A text", "b": "B text"}[preference.choice] == lease["left"]
    assert call("post", f"{project.slug}/lease/").status_code == 204


def test_an_answer_carries_what_the_page_can_say(project, annotator, make_pair, api):
    project.criteria = ["Correct"]
    project.save()
    make_pair()
    call = api(annotator)
    lease = call("post", f"{project.slug}/lease/").json()
    answer = {"token": lease["token"], "choice": "right", "is_strong": True, "criteria": {"Correct": "left"}}
    refused = call("post", f"{project.slug}/preferences/", answer | {"criteria": {"Kind": "left"}})
    assert (refused.status_code, "not a criterion" in refused.content.decode()) == (409, True)
    said = {"reasons": ["Safer"], "comment": "So it is.", "rewrite": "Better.", "seconds": 0.5}
    assert call("post", f"{project.slug}/preferences/", answer | said).status_code == 201
    preference = Preference.objects.get()
    assert (preference.is_strong, preference.reasons, preference.comment) == (True, ["Safer"], "So it is.")
    assert preference.criteria["Correct"] != preference.choice
    assert preference.rewrite.response.text == "Better."


@pytest.mark.parametrize(
    ("body", "code"),
    [({}, 400), ({"token": "x", "choice": "left"}, 410), ({"token": "x", "choice": "first"}, 400), ([1], 400)],
)
def test_answers_that_are_none(project, annotator, api, body, code):
    assert api(annotator)("post", f"{project.slug}/preferences/", body).status_code == code


def test_triples_page_by_page(project, reviewer, label, api, monkeypatch):
    monkeypatch.setattr("training.api.TRIPLES_PER_PAGE", 4)
    label(6)
    label(2, "tie")
    call = api(reviewer)
    seen, after = [], 0
    while after is not None:
        page = call("get", f"{project.slug}/triples/?after={after}").json()
        seen += [triple["pair_id"] for triple in page["results"]]
        after = page["next_after"]
        for triple in page["results"]:
            assert set(triple) == TRIPLE_FIELDS
            assert set(triple["chosen"]) == set(triple["rejected"]) == {"text", "token_ids", "finish_reason"}
    assert len(seen) == len(set(seen)) == 6


def test_triples_come_by_the_default_rule_or_by_another(project, reviewer, label, api):
    (pair,) = label(1)
    Pair.objects.filter(pk=pair.pk).update(p_a=0.8)
    call = api(reviewer)
    said = [
        {
            name: call("get", f"{project.slug}/triples/{query}").json()["results"][0][name]
            for name in ("label_noise", "weight")
        }
        for query in ("", "?label_noise=none&pair_weight=posterior", "?label_noise=none")
    ]
    assert [tuple(round(value, 9) for value in one.values()) for one in said] == [(0.2, 1.0), (0.0, 0.6), (0.0, 1.0)]
    for query, why in (("label_noise=coin", "no label noise"), ("pair_weight=posterior", "the same doubt")):
        refused = call("get", f"{project.slug}/triples/?{query}")
        assert (refused.status_code, why in refused.content.decode()) == (409, True)


def test_numbers_beyond_any_row_find_nothing(project, project_admin, api):
    call = api(project_admin)
    assert call("get", f"{project.slug}/triples/?after={10**30}").json() == {"results": [], "next_after": None}
    assert call("get", f"{project.slug}/runs/{10**30}/").status_code == 404


def test_a_run_and_a_promotion(project, policy, project_admin, label, make_checkpoint, api):
    call = api(project_admin)
    refused = call("post", f"{project.slug}/runs/", {})
    assert refused.status_code == 409
    assert "not enough to train on" in refused.json()["detail"]
    label(10)
    unknown = call("post", f"{project.slug}/runs/", {"recipe": {"speed": 1}})
    assert "no field “speed”" in unknown.json()["detail"]
    created = call("post", f"{project.slug}/runs/", {"recipe": {"beta": 0.2, "method": "full"}, "seed": 3})
    assert created.status_code == 201
    run = TrainingRun.objects.get()
    assert (run.recipe["beta"], run.recipe["learning_rate"], run.seed) == (0.2, 1e-5, 3)
    assert (run.recipe["mode"], run.recipe["ties"], run.recipe["micro_batch"]) == ("exact", "drop", 0)
    assert call("get", f"{project.slug}/runs/1/").json()["snapshot"] == run.snapshot.sha256
    assert call("post", f"{project.slug}/runs/1/cancel/").json()["state"] == "cancelled"
    assert call("post", f"{project.slug}/runs/1/resume/").json()["state"] == "queued"
    better = make_checkpoint("better", project=project)
    promoted = call("post", f"{project.slug}/promotions/", {"checkpoint": str(better.uuid), "reason": "API"})
    assert promoted.status_code == 201
    assert Promotion.objects.first().checkpoint == better
    names = [row["name"] for row in call("get", f"{project.slug}/checkpoints/").json()["results"]]
    assert names == ["better", "base"]


def test_a_damaged_checkpoint_is_a_conflict_with_the_reason(project, policy, project_admin, make_checkpoint, api):
    damaged = make_checkpoint("damaged", project=project)
    (store.checkpoint_dir(damaged.uuid) / "model.safetensors").unlink()
    answer = api(project_admin)("post", f"{project.slug}/promotions/", {"checkpoint": str(damaged.uuid)})
    assert answer.status_code == 409
    assert "model.safetensors" in answer.json()["detail"]


def test_sampling_is_asked_for_once(project, policy, project_admin, make_prompt, api):
    make_prompt()
    call = api(project_admin)
    assert call("post", f"{project.slug}/batches/", {"pairs": 1}).status_code == 201
    again = call("post", f"{project.slug}/batches/", {"pairs": 1})
    assert (again.status_code, "already writing" in again.json()["detail"]) == (409, True)


def test_pairs_are_written_as_the_batch_says(project, policy, project_admin, make_prompt, api):
    make_prompt()
    call = api(project_admin)
    refused = call("post", f"{project.slug}/batches/", {"pairs": 1, "decoding": {"max_new_tokens": 0}})
    assert (refused.status_code, "max_new_tokens" in refused.json()["detail"]) == (409, True)
    asked = call("post", f"{project.slug}/batches/", {"pairs": 1, "decoding": {"max_new_tokens": 40}})
    assert asked.json()["decoding"] == Decoding(max_new_tokens=40).to_dict()
    assert project.batches.get().decoding["max_new_tokens"] == 40


def test_a_revoked_token_is_no_token(project, annotator, api):
    call = api(annotator)
    assert call("get", "").status_code == 200
    AuthToken.objects.all().delete()
    assert call("get", "").status_code == 401


def test_the_schema_describes_every_route_without_a_warning(annotator, sign_in, capsys):
    from django.core.management import call_command

    call_command("spectacular", "--validate", "--fail-on-warn", "--file", "/dev/null")
    schema = sign_in(annotator).get("/api/v1/schema/", headers={"Accept": "application/json"})
    assert schema.status_code == 200
    assert b"/api/v1/projects/{slug}/lease/" in schema.content


@pytest.mark.parametrize(
    "credentials", [b"\xff", b"tb_\xff\xfe", b"\x00", "tb_\u00e9".encode(), b"a b", b"x" * 5000, b""]
)
def test_a_token_of_any_bytes_is_a_wrong_token(project, credentials):
    header = (b"Token " + credentials).decode("latin-1")  # as a WSGI server hands it over
    response = Client().get("/api/v1/projects/", headers={"Authorization": header})
    assert response.status_code == 401
    assert set(response.json()) == {"detail"}


def _cursor(position: str) -> str:
    return quote(b64encode(f"p={quote(position)}".encode()).decode())


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("post", "preferences/", "[" * 100_000),
        ("post", "runs/", {"recipe": {"method": ["lora"]}}),
        ("post", "runs/", {"recipe": {"method": {}}}),
        ("post", "runs/", {"recipe": {"loss": ["dpo"]}}),
        ("post", "runs/", {"recipe": {"loss": "robust", "ties": "half"}}),
        ("post", "runs/", {"recipe": {"loss": "robust"}}),
        ("post", "runs/", {"recipe": {"mode": "fast", "fast_layers": 500}}),
        ("post", "runs/", {"recipe": {"beta": 10**400}}),
        ("get", "runs/?cursor=cD1hYmM=", None),
        ("get", "prompts/?cursor=%00", None),
        ("get", f"prompts/?cursor={_cursor('9' * 5000)}", None),
        ("get", f"prompts/?cursor={_cursor('9' * 19)}", None),
        ("get", f"runs/?cursor={_cursor('²')}", None),
        ("get", f"runs/?cursor={_cursor('-1')}", None),
        ("get", f"triples/?after={'9' * 3000}", None),
    ],
)
def test_nonsense_is_never_a_server_error(project, policy, project_admin, method, path, body, sign_in):
    client = sign_in(project_admin)
    data = {} if body is None else {"data": body, "content_type": "application/json"}
    response = getattr(client, method)(f"/api/v1/projects/{project.slug}/{path}", **data)
    assert response.status_code in (200, 400, 404, 409)


def test_reviewers_read_judgements_and_their_quality(project, reviewer, api):
    from labeling.measure import measure_all
    from tests.labeling import crowd

    call = api(reviewer)
    assert call("get", f"{project.slug}/quality/").status_code == 204
    crowd.judge(project, crowd.people(project, 4), 60)
    measure_all()
    quality = call("get", f"{project.slug}/quality/").json()
    assert quality["quality"]["judgements"] == 120
    assert {"agreement", "left", "annotators", "arms"} <= set(quality["quality"])
    assert not {"parameters", "reach"} & set(quality["quality"])
    first = call("get", f"{project.slug}/judgements/").json()
    assert len(first["results"]) == 100
    newest = Preference.objects.latest("pk")
    assert first["results"][0]["id"] == newest.pk
    assert first["results"][0]["person"] == newest.annotator.username
    assert first["results"][0]["side"] == ("left" if newest.choice == newest.shown_left else "right")
    rest = call("get", first["next"].split("/projects/")[1]).json()
    assert len(rest["results"]) == 20
