from django.urls import path

from training import views

app_name = "training"

urlpatterns = [
    path("training/", views.overview, name="overview"),
    path("training/sampling/", views.sampling_status, name="sampling-status"),
    path("training/sample/", views.sample, name="sample"),
    path("training/batches/<int:pk>/cancel/", views.cancel_batch, name="cancel-batch"),
    path("training/rule/", views.save_rule, name="rule"),
    # Runs
    path("train/", views.train, name="train"),
    path("runs/<int:number>/", views.run, name="run"),
    path("runs/<int:number>/status/", views.run_status, name="run-status"),
    path("runs/<int:number>/cancel/", views.cancel_run, name="cancel-run"),
    path("runs/<int:number>/resume/", views.resume_run, name="resume-run"),
    # Checkpoints
    path("checkpoints/", views.checkpoints, name="checkpoints"),
    path("checkpoints/roll-back/", views.roll_back, name="roll-back"),
    path("checkpoints/<uuid:uuid>/", views.checkpoint, name="checkpoint"),
    path("checkpoints/<uuid:uuid>/downloads/", views.export_status, name="export-status"),
    path("checkpoints/<uuid:uuid>/prepare/", views.prepare_merged, name="prepare"),
    path("checkpoints/<uuid:uuid>/promote/", views.promote, name="promote"),
    path(
        "checkpoints/<uuid:uuid>/download/adapter.zip", views.download, {"variant": "adapter"}, name="download-adapter"
    ),
    path("checkpoints/<uuid:uuid>/download/merged.zip", views.download, {"variant": "merged"}, name="download-merged"),
]
