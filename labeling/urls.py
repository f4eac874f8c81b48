from django.urls import path

from labeling.views import dashboard, desk, people, projects, prompts, review, tables

app_name = "labeling"

urlpatterns = [
    path("", projects.project, name="project"),
    path("prompts/", prompts.prompts, name="prompts"),
    # What reviewers look at and decide
    path("review/", review.desk, name="review"),
    path("review/send-back/<int:preference_id>/", review.return_judgement, name="send-back"),
    path("judgements/", tables.judgements, name="judgements"),
    path("judgements/export.csv", tables.export, {"suffix": "csv"}, name="export-csv"),
    path("judgements/export.jsonl", tables.export, {"suffix": "jsonl"}, name="export-jsonl"),
    path("pairs/", tables.pairs, name="pairs"),
    path("pairs/<int:pair_id>/", review.pair, name="pair"),
    path("pairs/<int:pair_id>/decide/", review.decide, name="decide"),
    path("pairs/<int:pair_id>/gold/", review.gold, name="gold"),
    path("people/", people.people, name="people"),
    path("people/<int:user_id>/", people.person, name="person"),
    path("dashboard/", dashboard.dashboard, name="dashboard"),
    # What everybody sees of themselves
    path("me/", people.me, name="me"),
    path("me/look-again/<int:preference_id>/", people.look_again, name="look-again"),
    # The annotate page and what its keys do
    path("annotate/", desk.annotate, name="annotate"),
    path("annotate/submit/", desk.submit_preference, name="submit"),
    path("annotate/skip/", desk.skip_pair, name="skip"),
    path("annotate/undo/", desk.undo_preference, name="undo"),
    path("annotate/renew/", desk.renew_lease, name="renew"),
]
