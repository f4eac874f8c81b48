from django.urls import path

from training.downloads import ROUTES
from training.views import (
    checkpoints,
    downloads,
    gates,
    lineage,
    loop,
    my_labels,
    retention,
    retraining,
    runs,
    side_by_side,
    sweeps,
    withdrawals,
)

app_name = "training"

urlpatterns = [
    path("training/", loop.overview, name="overview"),
    path("training/sampling/", loop.sampling_status, name="sampling-status"),
    path("training/sample/", loop.sample, name="sample"),
    path("training/batches/<int:pk>/cancel/", loop.cancel_batch, name="cancel-batch"),
    path("training/rule/", loop.save_rule, name="rule"),
    path("training/retraining/", retraining.retraining_status, name="retraining-status"),
    path("training/retraining/pause/", retraining.pause, name="pause"),
    path("training/retraining/end-pause/", retraining.end_pause, name="end-pause"),
    path("training/retraining/usual-recipe/", retraining.usual_recipe, name="usual-recipe"),
    # Runs
    path("train/", runs.train, name="train"),
    path("runs/<int:number>/", runs.run, name="run"),
    path("runs/<int:number>/status/", runs.run_status, name="run-status"),
    path("runs/<int:number>/cancel/", runs.cancel_run, name="cancel-run"),
    path("runs/<int:number>/resume/", runs.resume_run, name="resume-run"),
    # Sweeps
    path("sweep/", sweeps.new_sweep, name="new-sweep"),
    path("sweeps/<int:number>/", sweeps.sweep, name="sweep"),
    path("sweeps/<int:number>/status/", sweeps.sweep_status, name="sweep-status"),
    path("sweeps/<int:number>/cancel/", sweeps.cancel_sweep, name="cancel-sweep"),
    path("sweeps/<int:number>/resume/", sweeps.resume_sweep, name="resume-sweep"),
    path("sweeps/<int:number>/pick/", sweeps.pick, name="pick"),
    # What everybody sees of what they have judged
    path("what-changed/", my_labels.what_changed, name="my-labels"),
    # Checkpoints
    path("checkpoints/", checkpoints.checkpoints, name="checkpoints"),
    path("checkpoints/roll-back/", checkpoints.roll_back, name="roll-back"),
    path("checkpoints/<uuid:uuid>/", checkpoints.checkpoint, name="checkpoint"),
    path("checkpoints/<uuid:uuid>/lineage/", lineage.checkpoint_lineage, name="checkpoint-lineage"),
    path("checkpoints/<uuid:uuid>/promote/", checkpoints.promote, name="promote"),
    path("checkpoints/<uuid:uuid>/gate/", gates.ask_gate, name="ask-gate"),
    # Two policies side by side
    path("compare/", side_by_side.compare, name="compare"),
    path("compare/<int:side_by_side_id>/", side_by_side.side_by_side, name="side-by-side"),
    path("compare/<int:side_by_side_id>/status/", side_by_side.side_by_side_status, name="side-by-side-status"),
    path("compare/<int:side_by_side_id>/cancel/", side_by_side.cancel_side_by_side, name="cancel-side-by-side"),
    # Gates
    path("gates/", gates.gates, name="gates"),
    path("gates/rule/", gates.save_release_rule, name="release-rule"),
    path("gates/watch/", gates.watch, name="watch"),
    path("gates/<int:number>/", gates.gate, name="gate"),
    path("gates/<int:number>/status/", gates.gate_status, name="gate-status"),
    path("gates/<int:number>/decide/", gates.decide, name="decide-gate"),
    path("gates/<int:number>/cancel/", gates.cancel, name="cancel-gate"),
    path("gates/<int:number>/start-again/", gates.start_again, name="start-gate-again"),
    # Taking one away
    path("checkpoints/<uuid:uuid>/downloads/", downloads.export_status, name="export-status"),
    path("checkpoints/<uuid:uuid>/prepare/", downloads.prepare, {"variant": "merged"}, name="prepare"),
    path("checkpoints/<uuid:uuid>/prepare-gguf/", downloads.prepare, {"variant": "gguf"}, name="prepare-gguf"),
    path("checkpoints/<uuid:uuid>/push/", downloads.push, name="push"),
    *(
        path(f"checkpoints/<uuid:uuid>/download/{name}", downloads.download, {"name": name}, name=route)
        for name, route in ROUTES.items()
    ),
    # Old ones
    path("checkpoints/retention/", retention.retention, name="retention"),
    path("checkpoints/retention/delete/", retention.delete_now, name="delete-old"),
    # Where labels went, and taking them back
    path("lineage/pairs/<int:pair_id>/", lineage.pair_lineage, name="pair-lineage"),
    path("withdrawals/", withdrawals.withdrawn, name="withdrawals"),
    path("withdrawals/people/<int:user_id>/", withdrawals.annotator, name="withdraw-annotator"),
    path("withdrawals/prompts/<int:prompt_id>/", withdrawals.prompt, name="withdraw-prompt"),
    path("withdrawals/judgements/<int:preference_id>/", withdrawals.judgement, name="withdraw-judgement"),
    path("runs/<int:number>/rebuild/", withdrawals.rebuild, name="rebuild-run"),
]
