"""Sweeps: one snapshot, one reference and one seed for all points, one after the other, and what is picked."""

from __future__ import annotations

import shutil

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from labeling.models import Prompt
from training import gates, loop, services, sweeps, tasks
from training.exceptions import Rejected
from training.forecast import Forecast, ReferenceValues
from training.frontier import read_frontier
from training.models import Checkpoint, DatasetSnapshot, Gate, Job, LoopRule, Sweep, TrainingRun
from training.recipe import Recipe


@pytest.fixture
def request_sweep(project, policy, label):
    label(10)

    def request_sweep(betas=(0.05, 0.1, 0.5), recipe: Recipe | None = None, **values) -> Sweep:
        return sweeps.request_sweep(project=project, recipe=recipe or Recipe(), betas=betas, **values)

    return request_sweep


@pytest.fixture
def finish(project, policy, make_checkpoint):
    """Let a run succeed with these figures."""

    def finish(run: TrainingRun, accuracy=0.7, kl=2.0, margin=0.3, **on_policy) -> Checkpoint:
        details = {
            "held_out": {
                "pairs": 20,
                "after": {"accuracy": accuracy, "margin": margin},
                "accuracy_interval": [accuracy - 0.1, accuracy + 0.1],
                "margin_interval": [margin - 0.1, margin + 0.1],
            },
            "on_policy": {"after": {"kl_first": kl, "kl_first_interval": [kl / 2, kl * 2], **on_policy}},
        }
        checkpoint = make_checkpoint(f"c{run.number}", project=project, kind="dpo", parent=policy, base=policy)
        Checkpoint.objects.filter(pk=checkpoint.pk).update(details=details)
        TrainingRun.objects.filter(pk=run.pk).update(state=Job.State.SUCCEEDED, checkpoint=checkpoint)
        return checkpoint

    return finish


def _runs(sweep: Sweep) -> list[TrainingRun]:
    return list(TrainingRun.objects.filter(sweep=sweep).order_by("number"))


def test_every_run_has_the_same_inputs(
    request_sweep, policy, project_admin, django_capture_on_commit_callbacks, project
):
    services.request_run(project=project, recipe=Recipe())
    TrainingRun.objects.update(state=Job.State.CANCELLED)
    with django_capture_on_commit_callbacks() as callbacks:
        sweep = request_sweep((0.5, 0.1), learning_rates=(1e-5, 1e-4), seed=7, by=project_admin)
    runs = _runs(sweep)
    assert [run.number for run in runs] == [2, 3, 4, 5], "consecutive, after the run that was there"
    assert [(run.beta, run.recipe["learning_rate"]) for run in runs] == [
        (0.1, 1e-5),
        (0.5, 1e-5),
        (0.1, 1e-4),
        (0.5, 1e-4),
    ]
    inputs = {(run.snapshot_id, run.reference, run.seed, run.requested_by, run.state) for run in runs}
    assert inputs == {(sweep.snapshot_id, policy, 7, project_admin, "queued")}
    common = {tuple(sorted(sweeps.in_common(Recipe.from_dict(run.recipe)).items())) for run in runs}
    assert common == {tuple(sorted(sweep.recipe.items()))}
    assert (sweep.number, sweep.reference, DatasetSnapshot.objects.count()) == (1, policy, 1)
    assert len(callbacks) == 4


def test_every_run_says_why_it_has_its_reference_and_what_is_expected_of_it(request_sweep, make_checkpoint, policy):
    from training.execution.runs import _lineage
    from training.jobspec import Result

    first, second, third = _runs(request_sweep())
    for run in (first, second, third):
        assert run.reference_reason == services.reference_for(run.project, None, None)[1]
        assert run.reference_reason.startswith("The project’s first policy, as its rule says")
        assert _lineage(run, Result(ok=True))["reference"]["reason"] == run.reference_reason
    assert first.forecast["reference"] == {"sampled": 0, "cached": 0, "forwards": 10}
    assert second.forecast == third.forecast
    assert second.forecast["reference"] == {"sampled": 0, "cached": 10, "forwards": 0}, "the first has read them"


def test_a_reference_that_somebody_chose_for_a_sweep_is_said_to_be_chosen(
    request_sweep, make_checkpoint, project, project_admin, sign_in
):
    other = make_checkpoint("other", project=project)
    sweep = request_sweep(reference=other, by=project_admin)
    assert {run.reference_reason for run in _runs(sweep)} == {f"Chosen by {project_admin.username}."}
    page = sign_in(project_admin).get(sweep.get_absolute_url()).content.decode()
    assert f"Chosen by {project_admin.username}." in page


def test_a_further_run_takes_the_time_of_the_first_without_its_reading(settings):
    first = Forecast(ReferenceValues(1, 2, 3), training=100.0, reading=30.0, others=5.0, run=1)
    second = first.after_another()
    assert (second.reference, second.seconds) == (ReferenceValues(1, 5, 0), 105.0)
    assert first.seconds_of_sweep(2) == first.seconds + second.seconds
    unknown = Forecast(ReferenceValues(forwards=3)).after_another()
    assert (unknown.reference, unknown.seconds, unknown.reading) == (ReferenceValues(cached=3), None, None)
    settings.CACHE_MB = 0
    assert first.after_another() == first


@pytest.mark.parametrize(
    ("betas", "rates", "reason"),
    [
        ((0.1, 0.1), (), "β 0.1 is there twice"),
        ((0.1, 0.2), (1e-5, 1e-5), "learning rate 1e-05 is there twice"),
        ((0.1,), (), "make 1 run; a sweep has 2 to 12. Train that one by itself"),
        ((), (), "Name some β"),
        ((0.1, 0.2, 0.3, 0.4, 0.5), (1e-6, 1e-5, 1e-4), "make 15 runs; a sweep has 2 to 12. Name fewer"),
        ((0.1, 50.0), (), "beta is 50.0; it must lie between 0.001 and 10"),
        ((0.1, float("nan")), (), "beta is nan"),
        ((0.1, 0.2), (0.5,), "learning_rate is 0.5"),
    ],
)
def test_what_is_no_sweep_is_refused_and_queues_nothing(request_sweep, betas, rates, reason):
    with pytest.raises(Rejected, match=reason):
        request_sweep(betas, learning_rates=rates)
    assert not TrainingRun.objects.exists()
    assert not DatasetSnapshot.objects.exists()


def test_a_run_and_a_sweep_do_not_go_on_at_once(request_sweep, project):
    run = services.request_run(project=project, recipe=Recipe())
    with pytest.raises(Rejected, match="Run 1 is still going on"):
        request_sweep()
    services.cancel_job(job=run)
    sweep = request_sweep()
    with pytest.raises(Rejected, match="Sweep 1 is still going on"):
        services.request_run(project=project, recipe=Recipe())
    with pytest.raises(Rejected, match="Sweep 1 is still going on"):
        request_sweep()
    with pytest.raises(Rejected, match="Sweep 1 is still going on"):
        services.resume_job(job=TrainingRun.objects.get(pk=run.pk))
    sweeps.cancel_sweep(sweep=sweep)
    assert services.request_run(project=project, recipe=Recipe()).number == 5
    with pytest.raises(Rejected, match="Run 5 is still going on"):
        sweeps.resume_sweep(sweep=sweep)
    assert {run.state for run in _runs(sweep)} == {"cancelled"}


def test_of_a_run_and_a_sweep_that_were_asked_for_at_the_same_moment_one_is_refused(
    request_sweep, project, monkeypatch
):
    """Both have looked before either was there; the second looks once more under the lock."""
    freeze = services.freeze

    def slow(*values):
        snapshot = freeze(*values)
        monkeypatch.setattr(services, "freeze", freeze)
        services.request_run(project=project, recipe=Recipe())
        return snapshot

    monkeypatch.setattr(services, "freeze", slow)
    with pytest.raises(Rejected, match="Run 1 is still going on"):
        request_sweep()
    assert not Sweep.objects.exists()


def test_the_retrain_rule_waits_and_its_watermark_moves(request_sweep, project, label):
    LoopRule.objects.filter(pk=services.loop_rule(project).pk).update(
        retrains=True, min_new_triples=5, min_minutes_between=0, open_pairs_wanted=0
    )
    sweep = request_sweep()
    rule = LoopRule.objects.get()
    assert (rule.trained_preference_id, rule.new_triples) == (sweep.snapshot.last_preference_id, 0)
    label(5)
    assert loop.retrain(rule) is None
    assert LoopRule.objects.get().verdict == "Sweep 1 is going on."
    sweeps.cancel_sweep(sweep=sweep)
    assert loop.retrain(LoopRule.objects.get()).number == 4


def test_runs_go_one_after_the_other_whatever_order_their_messages_come_in(request_sweep, monkeypatch):
    """With two training workers as well: the first run reads the reference for all of them."""
    done, hinted = [], []

    def execute(run: TrainingRun, work) -> None:
        done.append(run.number)
        TrainingRun.objects.filter(pk=run.pk).update(state=Job.State.SUCCEEDED)

    monkeypatch.setattr(tasks.supervision, "execute", execute)
    monkeypatch.setattr(tasks, "send_hint", lambda run: hinted.append(run.number))
    first, second, third = _runs(request_sweep())
    tasks.run_training(third.pk)
    tasks.run_training(second.pk)
    assert done == []
    TrainingRun.objects.filter(pk=third.pk).update(state=Job.State.RUNNING)
    tasks.run_training(first.pk)
    assert done == [], "one of them runs, be it a later one that was resumed"
    TrainingRun.objects.filter(pk=third.pk).update(state=Job.State.QUEUED)
    for run in (first, second, third):
        tasks.run_training(run.pk)
    assert (done, hinted) == ([1, 2, 3], [2, 3])


def test_a_sweep_is_cancelled_as_a_whole_and_resumed_where_it_stopped(request_sweep, finish):
    sweep = request_sweep()
    first, second, third = _runs(sweep)
    finish(first)
    assert second.claim("worker")
    sweeps.cancel_sweep(sweep=sweep)
    assert [run.state for run in _runs(sweep)] == ["succeeded", "running", "cancelled"]
    assert _runs(sweep)[1].is_cancelling
    TrainingRun.objects.filter(pk=second.pk).update(state=Job.State.FAILED)
    with pytest.raises(Rejected, match="Nothing of Sweep 1 waits or runs"):
        sweeps.cancel_sweep(sweep=sweep)
    assert sweeps.resume_sweep(sweep=sweep) == [second, third]
    assert [run.state for run in _runs(sweep)] == ["succeeded", "queued", "queued"]
    with pytest.raises(Rejected, match="No run of Sweep 1 was cancelled or has failed"):
        sweeps.resume_sweep(sweep=sweep)


def test_what_is_picked_becomes_the_recipe_of_automatic_runs_and_no_policy(
    request_sweep, finish, project, project_admin, policy, label
):
    sweep = request_sweep(recipe=Recipe(epochs=2.0))
    for run in _runs(sweep):
        finish(run)
    chosen = _runs(sweep)[2]
    picked = sweeps.pick(sweep=sweep, run=chosen, by=project_admin)
    assert (picked.picked, picked.picked_by) == (chosen, project_admin)
    assert picked.picked_at is not None
    assert LoopRule.objects.get().recipe == {"beta": 0.5, "epochs": 2.0}, "only what is not usual"
    assert services.current_policy(project) == policy
    label(10)
    LoopRule.objects.update(retrains=True, min_new_triples=5, min_minutes_between=0)
    run = loop.retrain(LoopRule.objects.select_related("project").get())
    assert (run.beta, run.recipe["epochs"], run.sweep) == (0.5, 2.0, None)


@pytest.mark.parametrize("named_in", ["rates", "recipe"])
def test_a_picked_rate_that_somebody_named_stays_though_it_is_the_usual_one_now(request_sweep, finish, named_in):
    usual = Recipe().settled(10).learning_rate
    if named_in == "rates":
        sweep = request_sweep((0.1,), learning_rates=(usual, usual / 2))
    else:
        sweep = request_sweep((0.1, 0.5), recipe=Recipe(learning_rate=usual))
    chosen = _runs(sweep)[0]
    finish(chosen)
    chosen.refresh_from_db()
    assert "learning_rate" not in sweep.recipe
    sweeps.pick(sweep=sweep, run=chosen)
    assert LoopRule.objects.get().recipe == {"learning_rate": usual}


def test_a_picked_rate_that_nobody_named_goes_by_the_steps_again_and_the_page_says_so(
    request_sweep, finish, sign_in, project_admin
):
    sweep = request_sweep((0.1, 0.5))
    chosen = _runs(sweep)[0]
    finish(chosen)
    chosen.refresh_from_db()
    assert sweep.recipe["learning_rate"] == 0.0
    page = sign_in(project_admin).get(sweep.get_absolute_url()).content.decode()
    assert "the usual one for the number of steps" in page
    sweeps.pick(sweep=sweep, run=chosen)
    assert LoopRule.objects.get().recipe == {}


def test_the_gate_looks_at_the_point_that_was_picked_once_and_at_no_other(
    request_sweep, finish, project, project_admin, make_prompt
):
    sweep = request_sweep()
    for run in _runs(sweep):
        finish(run)
        TrainingRun.objects.filter(pk=run.pk).update(finished_at=timezone.now())
    gates.turn_gates()
    assert not Gate.objects.exists()
    first, second, _ = _runs(sweep)
    Prompt.objects.update(withdrawn_at=timezone.now())
    assert sweeps.pick(sweep=sweep, run=first).picked == first, "there are no prompts to compare on"
    for _ in range(10):
        make_prompt(held_out=True)
    for _ in range(2):
        sweeps.pick(sweep=sweep, run=second, by=project_admin)
    gate = Gate.objects.get()
    assert (gate.run, gate.candidate, gate.requested_by) == (second, second.checkpoint, project_admin)
    gates.change_release_rule(project=project, compares=False)
    sweeps.pick(sweep=sweep, run=first)
    assert Gate.objects.count() == 1


def test_only_a_point_that_is_done_can_be_picked_and_only_of_its_sweep(request_sweep, finish):
    sweep = request_sweep()
    with pytest.raises(Rejected, match="Run 1 is waiting; only a run that is done"):
        sweeps.pick(sweep=sweep, run=_runs(sweep)[0])
    for run in _runs(sweep):
        finish(run)
    other = request_sweep()
    with pytest.raises(Rejected, match="Run 1 is no run of Sweep 2"):
        sweeps.pick(sweep=other, run=_runs(sweep)[0])
    assert not LoopRule.objects.exclude(recipe={}).exists()


def test_the_frontier_is_what_nothing_dominates(request_sweep, finish):
    sweep = request_sweep((0.05, 0.1, 0.5, 1.0))
    for run, (accuracy, kl) in zip(_runs(sweep), [(0.70, 9.0), (0.72, 4.0), (0.72, 5.0), (0.6, 1.0)], strict=True):
        finish(run, accuracy, kl)
    frontier = read_frontier(sweep)
    assert [point.is_best for point in frontier.points] == [False, True, False, True]
    assert frontier.kl_name == "KL from the first policy"
    accuracy, margin = frontier.charts
    spots = [spot for track in accuracy.tracks for spot in track.spots]
    assert [spot.name.text for spot in spots] == ["β 0.05", "β 0.1", "β 0.5", "β 1"]
    farthest_first = sorted(spots, key=lambda spot: -spot.x)
    assert [spot.name.text for spot in farthest_first] == ["β 0.05", "β 0.5", "β 0.1", "β 1"]
    assert (accuracy.level.label, margin.level.label) == ("reference", "reference")


def test_margins_of_different_betas_are_compared_without_beta(request_sweep, finish):
    sweep = request_sweep((0.05, 0.5))
    for run in _runs(sweep):
        finish(run, margin=0.3)
    small, large = read_frontier(sweep).points
    assert (small.margin.value, large.margin.value) == (0.3, 0.3)
    assert (small.nats.value, large.nats.value) == pytest.approx((6.0, 0.6))
    assert small.nats.interval == pytest.approx((4.0, 8.0))


def test_each_learning_rate_is_a_line_of_its_own(request_sweep, finish):
    sweep = request_sweep((0.05, 0.5), learning_rates=(1e-5, 1e-4))
    for number, run in enumerate(_runs(sweep)):
        finish(run, kl=1.0 + number)
    tracks = read_frontier(sweep).charts[0].tracks
    assert [(track.label, track.role, len(track.spots)) for track in tracks] == [
        ("rate 1e-05", "main", 2),
        ("rate 0.0001", "other", 2),
    ]


def test_without_a_way_to_the_first_policy_distances_are_from_the_reference(request_sweep, finish):
    sweep = request_sweep((0.05, 0.5))
    for run in _runs(sweep):
        finish(run)
    Checkpoint.objects.filter(run__sweep=sweep).update(
        details={"held_out": {"after": {"accuracy": 0.6}}, "on_policy": {"after": {"kl_reference": 3.0}}}
    )
    frontier = read_frontier(sweep)
    assert frontier.kl_name == "KL from the reference"
    assert [point.kl.value for point in frontier.points] == [3.0, 3.0]
    assert [chart.title for chart in frontier.charts] == ["Held-out accuracy"], "there are no margins"


def test_the_command_queues_a_sweep_and_says_why_not(project, policy, label, capsys):
    with pytest.raises(CommandError, match="not enough to train on"):
        call_command("sweep", project.slug, "--beta", "0.1", "0.2")
    label(10)
    call_command("sweep", project.slug, "--beta", "0.05", "0.5", "--learning-rate", "1e-5", "--epochs", "1")
    assert "Sweep 1 is queued: 2 runs on 10 triples" in capsys.readouterr().out
    assert [(run.beta, run.recipe["learning_rate"], run.recipe["epochs"]) for run in _runs(Sweep.objects.get())] == [
        (0.05, 1e-5, 1.0),
        (0.5, 1e-5, 1.0),
    ]


def test_the_command_waits_for_all_and_prints_the_frontier(request_sweep, finish, capsys, monkeypatch):
    sweep = request_sweep((0.05, 0.5))
    monkeypatch.setattr(sweeps, "request_sweep", lambda **values: sweep)
    for run, kl in zip(_runs(sweep), (9.0, 2.0), strict=True):
        finish(run, kl=kl)
    call_command("sweep", sweep.project.slug, "--wait")
    said = capsys.readouterr().out
    assert "Run 1, beta 0.05, rate 0.0005: KL 9.00 nats, accuracy 70.0" in said
    assert said.rstrip().endswith("margin +0.60 nats *")


@pytest.fixture
def tiny_policy(data_dir, tiny_model, project, settings):
    from training import registry

    settings.CACHE_DIR = data_dir / "cache"
    settings.ENGINE_THREADS, settings.ENGINE_DEVICE = 1, "cpu"
    source = shutil.copytree(tiny_model, data_dir / "tiny")  # which is moved
    tiny = registry.register(staging_name="tiny", source=source, kind="sft", name="tiny", project=project)
    tiny.save()
    services.promote_checkpoint(project=project, checkpoint=tiny)
    return tiny


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_points_after_the_first_read_no_reference(project, tiny_policy, label):
    """With the real engine: the first run reads each triple once, and the others find every value in the cache."""
    label(8)
    label(2, held_out=True)
    recipe = Recipe(epochs=1.0, learning_rate=1e-2, max_length=64)
    sweep = sweeps.request_sweep(project=project, recipe=recipe, betas=(0.05, 0.5))
    for run in _runs(sweep):
        tasks.run_training(run.pk)
    first, second = (run.checkpoint.details["reference_logps"] for run in _runs(sweep))
    assert (first["forwards"], second["forwards"], second["cached"]) == (10, 0, 10)
    kl = [point.kl.value for point in read_frontier(sweep).points]
    assert kl[0] != kl[1], "they are two policies"
    assert all(point.accuracy and point.nats for point in read_frontier(sweep).points)
