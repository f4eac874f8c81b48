from django.urls import path
from drf_spectacular.views import SpectacularAPIView

from labeling import api as labeling_api
from training import api as training_api
from training import gate_api, retraining_api, sweep_api
from training.downloads import ROUTES as DOWNLOADS

app_name = "api"

urlpatterns = [
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("projects/", labeling_api.ProjectList.as_view(), name="projects"),
    path("projects/<slug:slug>/", labeling_api.ProjectDetail.as_view(), name="project"),
    path("projects/<slug:slug>/members/", labeling_api.MemberList.as_view(), name="members"),
    path("projects/<slug:slug>/prompts/", labeling_api.PromptList.as_view(), name="prompts"),
    path("projects/<slug:slug>/judgements/", labeling_api.JudgementList.as_view(), name="judgements"),
    path("projects/<slug:slug>/quality/", labeling_api.QualityNow.as_view(), name="quality"),
    path("projects/<slug:slug>/lease/", labeling_api.LeaseNext.as_view(), name="lease"),
    path("projects/<slug:slug>/preferences/", labeling_api.SubmitPreference.as_view(), name="preferences"),
    path("projects/<slug:slug>/skips/", labeling_api.SkipPair.as_view(), name="skips"),
    path("projects/<slug:slug>/triples/", training_api.TripleList.as_view(), name="triples"),
    path("projects/<slug:slug>/demonstrations/", training_api.DemonstrationList.as_view(), name="demonstrations"),
    path("projects/<slug:slug>/batches/", training_api.BatchList.as_view(), name="batches"),
    path("projects/<slug:slug>/runs/", training_api.RunList.as_view(), name="runs"),
    path("projects/<slug:slug>/runs/<int:number>/", training_api.RunDetail.as_view(), name="run"),
    path("projects/<slug:slug>/runs/<int:number>/cancel/", training_api.RunCancel.as_view(), name="cancel-run"),
    path("projects/<slug:slug>/runs/<int:number>/resume/", training_api.RunResume.as_view(), name="resume-run"),
    path("projects/<slug:slug>/sweeps/", sweep_api.SweepList.as_view(), name="sweeps"),
    path("projects/<slug:slug>/sweeps/<int:number>/", sweep_api.SweepDetail.as_view(), name="sweep"),
    path("projects/<slug:slug>/sweeps/<int:number>/cancel/", sweep_api.SweepCancel.as_view(), name="cancel-sweep"),
    path("projects/<slug:slug>/sweeps/<int:number>/resume/", sweep_api.SweepResume.as_view(), name="resume-sweep"),
    path("projects/<slug:slug>/sweeps/<int:number>/pick/", sweep_api.SweepPick.as_view(), name="pick"),
    path("projects/<slug:slug>/gates/", gate_api.GateList.as_view(), name="gates"),
    path("projects/<slug:slug>/gates/watch/", gate_api.Watch.as_view(), name="watch"),
    path("projects/<slug:slug>/gates/<int:number>/", gate_api.GateDetail.as_view(), name="gate"),
    path("projects/<slug:slug>/gates/<int:number>/decide/", gate_api.GateDecide.as_view(), name="decide-gate"),
    path("projects/<slug:slug>/gates/<int:number>/cancel/", gate_api.GateCancel.as_view(), name="cancel-gate"),
    path(
        "projects/<slug:slug>/gates/<int:number>/start-again/",
        gate_api.GateStartAgain.as_view(),
        name="start-gate-again",
    ),
    path("projects/<slug:slug>/release-rule/", gate_api.Release.as_view(), name="release-rule"),
    path("projects/<slug:slug>/retraining/", retraining_api.Retraining.as_view(), name="retraining"),
    path("projects/<slug:slug>/retraining/pause/", retraining_api.Pause.as_view(), name="pause-retraining"),
    path("projects/<slug:slug>/retraining/end-pause/", retraining_api.EndPause.as_view(), name="end-pause-retraining"),
    path("projects/<slug:slug>/checkpoints/", training_api.CheckpointList.as_view(), name="checkpoints"),
    *(
        path(
            f"projects/<slug:slug>/checkpoints/<uuid:uuid>/download/{name}",
            training_api.CheckpointFile.as_view(),
            {"name": name},
            name=route,
        )
        for name, route in DOWNLOADS.items()
    ),
    path("projects/<slug:slug>/promotions/", training_api.PromotionList.as_view(), name="promotions"),
]
