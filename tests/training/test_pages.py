"""Pages of those who train: what they show in each state, and what their buttons do."""

from __future__ import annotations

import json
import re
import shutil
import zipfile

import pytest
from django.urls import reverse
from django.utils.html import escape
from kombu.exceptions import OperationalError

from tests.training.test_outcome import DETAILS, OLDER
from tests.training.test_preflight import CONFIG
from training import exports, services, store, tasks
from training.command_line import _progress_line
from training.forms import TrainForm
from training.jobspec import StepMetrics
from training.learning_rate import HIGHEST, OF_FULL
from training.models import Checkpoint, CheckpointExport, Job, LoopRule, Promotion, SampleBatch, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir


@pytest.fixture
def client(sign_in, project_admin):
    return sign_in(project_admin)


@pytest.fixture
def url(project):
    return lambda name, **keys: reverse(f"training:{name}", kwargs={"slug": project.slug} | keys)


@pytest.fixture
def sized(policy) -> Checkpoint:
    """The policy, with a config that says how large it is."""
    (store.checkpoint_dir(policy.uuid) / "config.json").write_text(json.dumps(CONFIG))
    return policy


@pytest.fixture
def run(project, policy, label) -> TrainingRun:
    label(10)
    return services.request_run(project=project, recipe=Recipe())


def _write_metrics(run: TrainingRun, steps: int) -> None:
    run_dir = RunDir.of(run.uuid)
    run_dir.make()
    lines = [
        StepMetrics(n, 30, 10.0 * n, 0.69 - 0.01 * n, 0.02 * n, 0.6, -120.0, -130.0, 5e-5, 1.0, n / 10).to_json()
        for n in range(1, steps + 1)
    ]
    run_dir.metrics.write_text('{"phase":"training","at":1}\n' + "\n".join(lines) + "\n")
    run_dir.log.write_text("the tail of the log <b>\n")


def test_the_form_explains_every_field(client, url, policy):
    page = client.get(url("train")).content.decode()
    for word in ("Rafailov", "β", "LoRA rank", "Micro-batch", "frozen model"):
        assert word in page
    form = TrainForm(references=Checkpoint.objects.all())
    for name in form.fields:
        assert f'id="id_{name}"' in page, name
        help_text = _element(page, f"id_{name}_helptext")
        assert len(help_text) > 20, name
        control = re.search(rf'<(?:input|select)[^>]*id="id_{name}"[^>]*>', page)
        assert control, name
        assert f"id_{name}_helptext" in _described_by(control[0]), name
        for value, sentence in getattr(form[name].field, "explained", []):
            assert f"<strong>{escape(value)}:</strong> {escape(sentence)}" in help_text, (name, value)
    for paper in ("Azar et al. 2023", "Liu et al. 2023, RSO, after SLiC of Zhao et al. 2023", "Chowdhury et al. 2024"):
        assert paper in page
    assert page.count("Mitchell 2023") == 1, "only the loss under label noise is of that note"
    for word in ("Oosterlinck et al. 2024", "0.45 at most", "The loss of DPO starts at 0.69", "β times the difference"):
        assert word in page
    for paper in ("Liu et al. 2024; Pang et al. 2024", "arXiv 2409.06411", "Mitchell 2023"):
        assert paper in page


def _element(page: str, name: str) -> str:
    """What is inside the element of this id; none has another element of its own kind inside."""
    tag, inside = re.search(rf'<(\w+)\s[^>]*?id="{name}"[^>]*>(.*)', page, re.DOTALL).groups()
    return inside.split(f"</{tag}>")[0]


def _described_by(control: str) -> list[str]:
    found = re.search(r'aria-describedby="([^"]+)"', control)
    return found[1].split() if found else []


def test_every_help_text_that_a_control_names_is_there_once(client, url, policy):
    page = client.get(url("train")).content.decode()
    named = [name for names in re.findall(r'aria-describedby="([^"]+)"', page) for name in names.split()]
    assert named
    for name in [*named, *re.findall(r'aria-labelledby="([^"]+)"', page), *re.findall(r'for="([^"]+)"', page)]:
        assert page.count(f'id="{name}"') == 1, name


def test_training_is_started_by_the_form(client, url, policy, label):
    label(10)
    values = {name: value for name, value in Recipe().to_dict().items() if name != "learning_rate"}
    response = client.post(url("train"), values | {"reference": policy.pk, "seed": 5})
    run = TrainingRun.objects.get()
    assert response.headers["Location"] == run.get_absolute_url()
    assert (run.seed, run.recipe) == (5, Recipe().settled(run.snapshot.train_triples).to_dict())
    assert run.recipe["learning_rate"] == HIGHEST


def test_full_fine_tuning_gets_its_own_learning_rate(client, url, policy, label):
    label(10)
    values = {name: value for name, value in Recipe().to_dict().items() if name != "learning_rate"}
    client.post(url("train"), values | {"reference": policy.pk, "method": "full"})
    assert TrainingRun.objects.get().recipe["learning_rate"] == HIGHEST * OF_FULL


def test_a_refused_run_says_why_and_keeps_the_form(client, url, policy):
    values = Recipe().to_dict() | {"reference": policy.pk}
    response = client.post(url("train"), values)
    assert response.status_code == 400
    assert "not enough to train on" in response.content.decode()
    assert "What it takes" in response.content.decode()
    response = client.post(url("train"), values | {"loss": "robust", "ties": "half", "label_noise": "votes"})
    assert response.content.decode().count("The robust loss divides by") == 1
    assert not TrainingRun.objects.exists()


def _facts(response) -> dict[str, str]:
    """The facts of a page or fragment, with their markup taken away."""
    page = response.content.decode()
    pairs = re.findall(r"<dt>([^<]+)</dt>\s*<dd>(.*?)</dd>", page, re.DOTALL)
    return {name: " ".join(re.sub(r"<[^>]+>", " ", text).split()) for name, text in pairs}


def test_the_form_says_what_a_run_takes_before_it_is_started(client, url, sized, label):
    label(10)
    label(2, held_out=True)
    facts = _facts(client.get(url("train")))
    assert facts["Triples"] == "10 to train on, 2 held out"
    assert re.fullmatch(r"about \d+ tokens, the prompt once and both responses", facts["Longest pair"])
    memory = r"about \S+\s[MG]B, with 8 pairs of that length at once · \S+\s[MG]B on a CPU machine like this one"
    assert re.fullmatch(memory, facts["Memory"]), facts["Memory"]
    assert facts["Time"] == "not known yet: no run of this kind has told its pace"


def test_another_choice_in_the_form_gets_another_estimate_and_no_page(client, url, sized, label):
    label(10)
    label(4, "tie")
    htmx = {"HX-Request": "true"}
    values = Recipe().to_dict() | {"reference": sized.pk}
    exact = client.get(url("train"), values, headers=htmx)
    assert "<html" not in exact.content.decode()
    other = client.get(url("train"), values | {"mode": "fast", "ties": "half", "micro_batch": 2}, headers=htmx)
    assert _facts(other)["Triples"] == "14 to train on, 0 held out · 4 of the former are ties"
    assert "with 2 pairs of that length at once" in _facts(other)["Memory"]
    assert not TrainingRun.objects.exists()
    wrong = client.get(url("train"), values | {"ties": "half", "loss": "robust", "label_noise": "votes"}, headers=htmx)
    assert (wrong.status_code, _facts(wrong)) == (200, {})
    assert "The robust loss divides by" in wrong.content.decode()
    unreadable = client.get(url("train"), values | {"beta": "x", "epochs": ""}, headers=htmx)
    assert unreadable.status_code == 200
    for told in ("<p>β: Enter a number.</p>", "<p>Epochs: This field is required.</p>"):
        assert told in unreadable.content.decode()


def test_what_would_be_refused_or_do_nothing_is_said_with_the_estimate(client, url, sized, label, settings):
    settings.ENGINE_DEVICE = "cpu"
    values = Recipe(mode="fast", label_noise="votes").to_dict() | {"reference": sized.pk}
    htmx = {"HX-Request": "true"}
    page = client.get(url("train"), values | {"fast_layers": 31}, headers=htmx).content.decode()
    assert "the model has 30" in page
    assert "votes change nothing" in page
    assert "Leave GPUs at 1" in client.get(url("train"), values | {"processes": 2}, headers=htmx).content.decode()
    settings.ENGINE_DEVICE = "cuda"
    label(8)
    gpu = _facts(client.get(url("train"), values, headers=htmx))["Memory"]
    assert re.fullmatch(r"about \S+\s[MG]B with one pair of that length · as many as fit are on the GPU at once", gpu)
    asked = _facts(client.get(url("train"), values | {"micro_batch": 3}, headers=htmx))["Memory"]
    assert asked.endswith("with 3 pairs of that length at once")


def test_the_estimate_asks_without_the_token_that_guards_the_form(client, url, sized):
    page = client.get(url("train")).content.decode()
    assert 'hx-params="not csrfmiddlewaretoken"' in page


def test_too_few_triples_are_said_before_and_not_only_when_the_button_is_pressed(client, url, policy, label):
    label(7)
    assert "too few to start: 8 on 2 prompts must say" in _facts(client.get(url("train")))["Triples"]
    label(1)
    assert _facts(client.get(url("train")))["Triples"] == "8 to train on, 0 held out"


def test_a_machine_that_is_too_small_is_said(client, url, sized, label, monkeypatch):
    label(8)
    monkeypatch.setattr("training.footprint.machine_memory", lambda: 10**9)
    assert _facts(client.get(url("train")))["Memory"].endswith("on a CPU machine like this one, which is too little")


def test_time_is_told_by_an_earlier_run(client, url, project, sized, label, run, make_checkpoint):
    details = {"speed": {"pairs_per_s": 0.25}}
    checkpoint = make_checkpoint("dpo", project=project, kind="dpo", base=sized, parent=sized, details=details)
    TrainingRun.objects.update(state=Job.State.SUCCEEDED, checkpoint=checkpoint)
    assert _facts(client.get(url("train")))["Time"] == "about 2 min of training · at the pace of Run 1"


def _succeed(run: TrainingRun, make_checkpoint, details: dict) -> Checkpoint:
    checkpoint = make_checkpoint(
        "dpo", project=run.project, kind="dpo", base=run.reference, parent=run.reference, details=details
    )
    TrainingRun.objects.filter(pk=run.pk).update(state=Job.State.SUCCEEDED, checkpoint=checkpoint)
    return checkpoint


def test_a_whole_outcome_is_shown_on_the_page_of_the_run_and_of_the_checkpoint(client, url, run, make_checkpoint):
    checkpoint = _succeed(run, make_checkpoint, DETAILS)
    run_page, checkpoint_page = client.get(run.get_absolute_url()), client.get(url("checkpoint", uuid=checkpoint.uuid))
    for page in (run_page, checkpoint_page):
        text = " ".join(page.content.decode().split())
        for shown in (
            *("Chosen responses became less likely.", "Add an SFT term.", "Its own responses", "1.00 to 1.50"),
            *("by taking the shorter response", "95 % interval, after", "of at most 128 tokens"),
            *("Advantage over always choosing the shorter response, points", "−12.5 to +22.5"),
            "Where the interval of the advantage reaches zero or below",
        ):
            assert shown in text, shown
    assert _facts(run_page)["Reference"].startswith("3 computed, 1,200 from earlier runs")
    text = run_page.content.decode()
    assert text.index("Add an SFT term.") < text.index("What came out")


def test_an_outcome_of_an_older_run_is_shown_without_the_new(client, url, run, make_checkpoint):
    checkpoint = _succeed(run, make_checkpoint, OLDER)
    for page in (client.get(run.get_absolute_url()), client.get(url("checkpoint", uuid=checkpoint.uuid))):
        text = page.content.decode()
        assert "75.0\u202f%" in text
        for absent in ("by taking the", "Its own responses", 'class="note flag"', "<dt>Speed</dt>", "fast mode"):
            assert absent not in text, absent


def test_a_run_in_fast_mode_is_marked_wherever_it_is_shown(client, url, project, policy, label, make_checkpoint):
    label(10)
    run = services.request_run(project=project, recipe=Recipe(mode="fast"))
    assert "fast mode</span>" in client.get(run.get_absolute_url()).content.decode()
    checkpoint = _succeed(run, make_checkpoint, {})
    for page in (client.get(run.get_absolute_url()), client.get(url("checkpoint", uuid=checkpoint.uuid))):
        assert "fast mode</span>" in page.content.decode()
        assert "only the upper layers could change" in page.content.decode()
    assert "LoRA, fast" in client.get(url("overview")).content.decode()


def test_the_recipe_of_a_run_is_told_in_words_and_without_what_does_nothing(client, project, policy, label):
    label(10)
    recipe = Recipe(mode="fast", loss="hinge", ties="half", sft_weight=0.5, label_noise="none")
    facts = _facts(client.get(services.request_run(project=project, recipe=recipe).get_absolute_url()))
    assert (facts["Mode"], facts["Loss"], facts["SFT weight"]) == ("Fast", "Hinge", "0.5")
    assert (facts["Micro-batch"], facts["Layers of the fast mode"]) == ("as many as fit", "a third")
    assert facts["Ties"] == "Triples with label noise ½"
    assert not {"Length α", "Label noise", "GPUs", "Several GPUs"} & set(facts)


def test_a_recipe_of_an_earlier_version_is_told(client, run):
    TrainingRun.objects.update(recipe={"method": "full", "beta": 0.2, "lora_rank": 16, "micro_batch": 2})
    facts = _facts(client.get(run.get_absolute_url()))
    assert (facts["Method"], facts["β"], facts["Micro-batch"]) == ("Full fine-tuning", "0.2", "2")
    assert "LoRA rank" not in facts


def test_ties_that_are_trained_on_are_counted_on_the_page(client, url, project, policy, label):
    label(10)
    label(3, "tie")
    run = services.request_run(project=project, recipe=Recipe(ties="half"))
    facts = _facts(client.get(run.get_absolute_url()))
    assert facts["Triples"].startswith("13 to train on, 3 of them ties, 0 held out")
    assert "0 ties" in facts["Triples"]


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ({"phase": "reading reference", "done": 1200, "total": 4000}, "Reading reference: 1,200 of 4,000"),
        ({"phase": "comparing responses", "done": 3, "total": 32}, "Comparing responses: 3 of 32"),
        ({"phase": "writing checkpoint"}, "Writing checkpoint"),
        ({}, "Running"),
    ],
)
def test_a_running_run_says_how_far_its_phase_is(client, run, progress, said):
    run.claim("worker")
    run.renew(progress)
    assert f">{said}<" in client.get(run.get_absolute_url()).content.decode()


def test_a_running_run_says_how_much_is_in_memory(client, run):
    run.claim("worker")
    run.renew({"phase": "training", "memory": {"estimate_mb": 2048, "limit_mb": 8192, "micro_batch": 1}})
    facts = _facts(client.get(run.get_absolute_url()))
    assert facts["Memory"] == "estimated 2.0 GB, 8.0 GB to use"
    assert facts["At once"] == "1 pair in memory"
    run.renew({"phase": "training", "memory": {"tokens": 1024, "micro_batch": 8}})
    assert _facts(client.get(run.get_absolute_url()))["At once"] == "up to 1,024 tokens in memory"
    TrainingRun.objects.update(recipe=run.recipe | {"micro_batch": 8})
    asked = _facts(client.get(run.get_absolute_url()))["At once"]
    assert asked == "up to 1,024 tokens in memory, 8 pairs in memory"


@pytest.mark.parametrize("phase", ["scoring held-out pairs", "comparing responses", "writing checkpoint"])
def test_what_comes_after_the_last_step_is_told_and_no_time_is_left(client, run, phase):
    run.claim("worker")
    _write_metrics(run, 12)
    run.renew({"phase": "training", "step": 12, "steps": 30})
    assert "time left" in client.get(run.get_absolute_url()).content.decode()
    _write_metrics(run, 30)
    run.renew({"phase": "training", "step": 30, "steps": 30})
    assert "time left" not in client.get(run.get_absolute_url()).content.decode()
    _write_metrics(run, 12)  # as after a resumed run has read its steps
    run.renew({"phase": phase, "step": 12, "steps": 30, "loss": 0.5, "reward_margin": 0.1, "done": 2, "total": 9})
    page = client.get(run.get_absolute_url()).content.decode()
    assert "time left" not in page
    assert f">{phase.capitalize()}: 2 of 9<" in page
    run.refresh_from_db()
    assert _progress_line(run) == f"Run 1: {phase}, 2 of 9"


def test_the_command_line_tells_steps_while_they_are_made(run):
    run.claim("worker")
    run.progress = {"phase": "training", "step": 3, "steps": 30, "loss": 0.5, "reward_margin": 0.125}
    assert _progress_line(run) == "Run 1: step 3 of 30, loss 0.5000, margin 0.1250"
    run.progress |= {"phase": "writing checkpoint"}
    assert _progress_line(run) == "Run 1: writing checkpoint"


def test_a_running_run_shows_step_figures_charts_and_log_and_polls(client, url, run):
    run.claim("worker")
    _write_metrics(run, 12)
    page = client.get(run.get_absolute_url()).content.decode()
    for text in (
        "12<small> of 30",
        "0.57",
        "the tail of the log &lt;b&gt;",
        "<svg",
        "chosen",
        "rejected",
        "Cancel",
        "every 2s",
    ):
        assert text in page, text
    assert client.get(url("run-status", number=1)).status_code == 200


def test_polling_ends_with_the_run(client, url, run):
    run.claim("worker")
    run.finish(Job.State.FAILED, code="out_of_memory", error="Memory ran out.", hint="Lower the micro-batch.")
    response = client.get(url("run-status", number=1))
    assert response.status_code == 286
    page = response.content.decode()
    assert "Memory ran out." in page
    assert "Lower the micro-batch." in page
    assert "Resume" in page
    assert "every 2s" not in page


def test_cancel_and_resume_from_the_page(client, url, run):
    client.post(url("cancel-run", number=1))
    run.refresh_from_db()
    assert run.state == Job.State.CANCELLED
    client.post(url("resume-run", number=1))
    run.refresh_from_db()
    assert run.state == Job.State.QUEUED


def test_a_run_without_a_metrics_file_or_with_a_torn_one_still_has_a_page(client, run):
    run_dir = RunDir.of(run.uuid)
    run_dir.make()
    run_dir.metrics.write_text('{"phase":"load')
    assert client.get(run.get_absolute_url()).status_code == 200


def test_promote_and_roll_back_from_the_page(client, url, project, policy, make_checkpoint):
    better = make_checkpoint("better", project=project, kind="dpo", parent=policy)
    page = client.post(url("promote", uuid=better.uuid), {"reason": "reads better"}, follow=True).content.decode()
    assert "is the policy now" in page
    assert services.current_policy(project) == better
    listed = client.get(url("checkpoints")).content.decode()
    assert f"Roll back to {policy.name}<" in listed
    there_and_back = {"leaves": better.uuid, "to": policy.uuid}
    for value in there_and_back.values():
        assert f'value="{value}"' in listed
    page = client.post(url("roll-back"), there_and_back, follow=True).content.decode()
    assert f"{policy.name} is the policy again" in page
    assert services.current_policy(project) == policy
    assert "reads better" in page
    assert 'id="roll-back"' not in page, "there is no policy before the first one"
    twice = client.post(url("roll-back"), there_and_back, follow=True).content.decode()
    assert f"better is not the policy any more: that is {policy.name} now." in twice
    assert "from which policy to which" in client.post(url("roll-back"), follow=True).content.decode()
    assert Promotion.objects.filter(is_rollback=True).count() == 1


def test_a_damaged_checkpoint_is_refused_on_the_page(client, url, project, policy, make_checkpoint):
    damaged = make_checkpoint("damaged", project=project)
    (store.checkpoint_dir(damaged.uuid) / "config.json").write_text("{}")
    page = client.post(url("promote", uuid=damaged.uuid), follow=True).content.decode()
    assert "was changed on disk (config.json)" in page
    assert services.current_policy(project) == policy


def test_a_checkpoint_shows_its_hash_and_downloads(client, url, project, policy, make_checkpoint, tmp_path):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    archive = store.archive_path(adapter.uuid, "adapter")
    store.write_archive(store.checkpoint_dir(adapter.uuid), archive, adapter.name)
    page = client.get(url("checkpoint", uuid=adapter.uuid)).content.decode()
    assert adapter.content_hash in page
    response = client.get(url("download-adapter", uuid=adapter.uuid))
    assert response.headers["Content-Disposition"] == 'attachment; filename="adapter-adapter.zip"'
    target = tmp_path / "got.zip"
    target.write_bytes(b"".join(response.streaming_content))
    with zipfile.ZipFile(target) as opened:
        assert json.loads(opened.read("adapter/manifest.json"))["content_hash"] == adapter.content_hash
    assert client.get(url("download-merged", uuid=adapter.uuid)).status_code == 404


def test_merged_weights_are_asked_for_once(client, url, project, policy, make_checkpoint):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    for _ in range(2):
        client.post(url("prepare", uuid=adapter.uuid))
    assert CheckpointExport.objects.get().state == Job.State.QUEUED
    assert client.get(url("export-status", uuid=adapter.uuid)).status_code == 200


def test_the_rule_is_saved_and_bad_values_are_named(client, url, project, policy):
    values = {"open_pairs_wanted": 10, "retrains": "on", "min_new_triples": 20, "min_minutes_between": 5}
    values |= {"effects_per_person": 3}
    values |= {"fixed_times": "15:30, 3:00", "most_runs_a_day": 3, "reference": "promoted", "kl_first_budget": 12.5}
    client.post(url("rule"), values)
    rule = LoopRule.objects.get()
    assert (rule.open_pairs_wanted, rule.effects_per_person) == (10, 3)
    assert (rule.retrains, rule.min_new_triples) == (True, 20)
    assert (rule.fixed_times, rule.most_runs_a_day) == (["03:00", "15:30"], 3)
    assert (rule.reference, rule.kl_first_budget) == ("promoted", 12.5)
    assert 'value="03:00, 15:30"' in client.get(url("overview")).content.decode()
    page = client.post(url("rule"), values | {"fixed_times": "3 pm"}, follow=True).content.decode()
    assert "“3” is no time of day" in page
    page = client.post(url("rule"), values | {"min_new_triples": 0}, follow=True).content.decode()
    assert "Not saved" in page
    assert LoopRule.objects.get().min_new_triples == 20


def test_sampling_progress_ends_its_own_polling(client, url, project, policy, make_prompt):
    make_prompt()
    client.post(url("sample"), {"pairs": 1})
    moving = client.get(url("sampling-status"))
    assert moving.status_code == 200
    assert "tokens/s" not in moving.content.decode()
    SampleBatch.objects.update(progress={"phase": "sampling", "tokens_per_s": 78.6})
    assert "79 tokens/s" in client.get(url("sampling-status")).content.decode()
    services.cancel_job(job=project.batches.get())
    assert client.get(url("sampling-status")).status_code == 286
    page = client.post(url("sample"), {"pairs": 0}, follow=True).content.decode()
    assert "1 to 2,000" in page


def test_a_damaged_adapter_is_not_packed_again(client, url, project, policy, make_checkpoint):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    (store.checkpoint_dir(adapter.uuid) / "model.safetensors").write_bytes(b"other")
    page = client.get(url("download-adapter", uuid=adapter.uuid), follow=True).content.decode()
    assert "was changed on disk (model.safetensors)" in page
    shutil.rmtree(store.checkpoint_dir(adapter.uuid))
    page = client.get(url("download-adapter", uuid=adapter.uuid), follow=True).content.decode()
    assert "cannot be read" in page, "its manifest goes along"


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_away_is_said_to_the_person_who_asked(client, url, policy, make_prompt, label, monkeypatch):
    def refuse(args: list[int]) -> None:
        raise OperationalError("connection refused")

    for task in tasks.TASKS.values():
        monkeypatch.setattr(task, "apply_async", refuse)
    make_prompt()
    assert "broker cannot be reached" in client.post(url("sample"), {"pairs": 1}, follow=True).content.decode()
    label(10)
    values = {name: value for name, value in Recipe().to_dict().items() if name != "learning_rate"}
    page = client.post(url("train"), values | {"reference": policy.pk}, follow=True).content.decode()
    assert "broker cannot be reached" in page


def test_triples_that_were_not_used_are_shown(client, url, project, policy, make_checkpoint, run):
    reason = {"pair_id": "3", "split": "train", "reason": "The prompt has 900 tokens."}
    details = {"left_out_by_split": {"train": 1, "held_out": 2}, "left_out": [reason], "held_out": {"pairs": 0}}
    checkpoint = make_checkpoint("dpo", project=project, kind="dpo", base=policy, parent=policy, details=details)
    TrainingRun.objects.update(state=Job.State.SUCCEEDED, checkpoint=checkpoint)
    for page in (client.get(run.get_absolute_url()), client.get(url("checkpoint", uuid=checkpoint.uuid))):
        text = " ".join(page.content.decode().split())
        assert "Not used: 1 triple to train on, 2 held out" in text
        assert "Pair 3: The prompt has 900 tokens." in text
        assert "None of the 2 held-out triples could be scored" in text


def test_lost_downloads_are_made_again(client, url, project, policy, make_checkpoint):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    response = client.get(url("download-adapter", uuid=adapter.uuid))
    assert response.status_code == 200
    assert b"".join(response.streaming_content)[:2] == b"PK"
    exports.request_export(checkpoint=adapter)
    CheckpointExport.objects.update(state=Job.State.SUCCEEDED)
    assert "Prepare merged weights" in client.get(url("checkpoint", uuid=adapter.uuid)).content.decode()
    client.post(url("prepare", uuid=adapter.uuid))
    assert CheckpointExport.objects.get().state == Job.State.QUEUED


def test_another_projects_checkpoint_is_not_found(client, url, make_checkpoint):
    from labeling.services import create_project

    foreign = make_checkpoint("foreign", project=create_project(name="Other", slug="other"))
    assert client.get(url("checkpoint", uuid=foreign.uuid)).status_code == 404
