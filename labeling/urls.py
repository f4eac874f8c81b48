from django.urls import path

from labeling.views import desk, history, projects, prompts

app_name = "labeling"

urlpatterns = [
    path("", projects.project, name="project"),
    path("prompts/", prompts.prompts, name="prompts"),
    # The annotate page and what its keys do
    path("annotate/", desk.annotate, name="annotate"),
    path("annotate/submit/", desk.submit_preference, name="submit"),
    path("annotate/skip/", desk.skip_pair, name="skip"),
    path("annotate/undo/", desk.undo_preference, name="undo"),
    path("annotate/reasons/", desk.add_reasons, name="reasons"),
    path("annotate/difference/", desk.show_difference, name="difference"),
    path("annotate/renew/", desk.renew_lease, name="renew"),
    path("annotate/give-back/", desk.give_back, name="give-back"),
    path("history/", history.history, name="history"),
    path("history/<int:preference_id>/reopen/", history.reopen, name="reopen"),
]
