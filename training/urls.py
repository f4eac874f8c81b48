from django.urls import path

from training.downloads import ROUTES
from training.views import checkpoints, downloads, loop, retention, runs

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
    path("checkpoints/<uuid:uuid>/promote/", checkpoints.promote, name="promote"),
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
]
