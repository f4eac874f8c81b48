"""Every URL: a project's pages under ``/p/SLUG/``, the API under ``/api/v1/``, the operators' view at ``/admin/``."""

from django.contrib import admin
from django.contrib.auth.views import LogoutView
from django.urls import include, path
from django.views.decorators.http import require_POST
from django.views.i18n import set_language

from config.health import livez, readyz
from labeling.views.keys import keys
from labeling.views.projects import SignIn, home
from labeling.views.settings import new_project
from training.views.notices import mark_all_read, notice, notices, save_emails

admin.site.site_header = admin.site.site_title = "Tiebreak operations"
admin.site.index_title = "Every row"

urlpatterns = [
    path("", home, name="home"),
    path("sign-in/", SignIn.as_view(), name="login"),
    path("sign-out/", LogoutView.as_view(), name="logout"),
    path("language/", require_POST(set_language), name="set-language"),
    path("keys/", keys, name="keys"),
    path("new-project/", new_project, name="new-project"),
    path("notices/", notices, name="notices"),
    path("notices/<int:pk>/", notice, name="notice"),
    path("notices/read/", mark_all_read, name="notices-read"),
    path("notices/emails/", save_emails, name="notices-emails"),
    # Answered by HealthMiddleware before they come here; this gives them names.
    path("livez", livez, name="livez"),
    path("readyz", readyz, name="readyz"),
    path("admin/", admin.site.urls),
    path("api/v1/", include("config.api_urls")),
    path("p/<slug:slug>/", include("labeling.urls")),
    path("p/<slug:slug>/", include("training.urls")),
]
