from django.urls import path

from labeling import views

app_name = "labeling"

urlpatterns = [
    path("", views.project, name="project"),
    path("prompts/", views.prompts, name="prompts"),
    # The annotate page and what its keys do
    path("annotate/", views.annotate, name="annotate"),
    path("annotate/submit/", views.submit_preference, name="submit"),
    path("annotate/skip/", views.skip_pair, name="skip"),
    path("annotate/undo/", views.undo_preference, name="undo"),
    path("annotate/renew/", views.renew_lease, name="renew"),
]
