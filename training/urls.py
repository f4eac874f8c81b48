from django.urls import path

from training.views import checkpoints, lineage, loop, runs, withdrawals

app_name = "training"

urlpatterns = [
    path("training/", loop.overview, name="overview"),
    path("training/sampling/", loop.sampling_status, name="sampling-status"),
    path("training/sample/", loop.sample, name="sample"),
    path("training/batches/<int:pk>/cancel/", loop.cancel_batch, name="cancel-batch"),
    path("training/rule/", loop.save_rule, name="rule"),
    # Runs
    path("train/", runs.train, name="train"),
    path("runs/<int:number>/", runs.run, name="run"),
    path("runs/<int:number>/status/", runs.run_status, name="run-status"),
    path("runs/<int:number>/cancel/", runs.cancel_run, name="cancel-run"),
    path("runs/<int:number>/resume/", runs.resume_run, name="resume-run"),
    # Checkpoints
    path("checkpoints/", checkpoints.checkpoints, name="checkpoints"),
    path("checkpoints/roll-back/", checkpoints.roll_back, name="roll-back"),
    path("checkpoints/<uuid:uuid>/", checkpoints.checkpoint, name="checkpoint"),
    path("checkpoints/<uuid:uuid>/lineage/", lineage.checkpoint_lineage, name="checkpoint-lineage"),
    path("checkpoints/<uuid:uuid>/downloads/", checkpoints.export_status, name="export-status"),
    path("checkpoints/<uuid:uuid>/prepare/", checkpoints.prepare_merged, name="prepare"),
    path("checkpoints/<uuid:uuid>/promote/", checkpoints.promote, name="promote"),
    path(
        "checkpoints/<uuid:uuid>/download/adapter.zip",
        checkpoints.download,
        {"variant": "adapter"},
        name="download-adapter",
    ),
    path(
        "checkpoints/<uuid:uuid>/download/merged.zip",
        checkpoints.download,
        {"variant": "merged"},
        name="download-merged",
    ),
    # Where labels went, and taking them back
    path("lineage/pairs/<int:pair_id>/", lineage.pair_lineage, name="pair-lineage"),
    path("withdrawals/", withdrawals.withdrawn, name="withdrawals"),
    path("withdrawals/people/<int:user_id>/", withdrawals.annotator, name="withdraw-annotator"),
    path("withdrawals/prompts/<int:prompt_id>/", withdrawals.prompt, name="withdraw-prompt"),
    path("withdrawals/judgements/<int:preference_id>/", withdrawals.judgement, name="withdraw-judgement"),
    path("runs/<int:number>/rebuild/", withdrawals.rebuild, name="rebuild-run"),
]
