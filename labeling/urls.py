from django.urls import path

from labeling.views import (
    dashboard,
    desk,
    guidelines,
    history,
    onboarding,
    people,
    projects,
    prompts,
    review,
    settings,
    tables,
)

app_name = "labeling"

urlpatterns = [
    path("", projects.project, name="project"),
    path("prompts/", prompts.prompts, name="prompts"),
    # The guidelines
    path("guidelines/", guidelines.guidelines, name="guidelines"),
    path("guidelines/edit/", guidelines.edit_guidelines, name="edit-guidelines"),
    path("guidelines/preview/", guidelines.preview_guidelines, name="preview-guidelines"),
    path("guidelines/<int:version>/", guidelines.guidelines_version, name="guidelines-version"),
    # The qualification set: taken, and written
    path("qualify/", onboarding.qualify, name="qualify"),
    path("qualify/answer/", onboarding.answer_item, name="answer-item"),
    path("qualification/", onboarding.qualification, name="qualification"),
    path("qualification/import/", onboarding.import_qualification, name="import-qualification"),
    path("qualification/new/", onboarding.add_item, name="add-item"),
    path("pairs/<int:pair_id>/item/", onboarding.item_of_pair, name="item-of-pair"),
    path("qualification/<int:pk>/", onboarding.edit_item, name="edit-item"),
    path("qualification/<int:pk>/order/", onboarding.order_item, name="order-item"),
    path("qualification/people/<int:user_id>/", onboarding.admit_person, name="admit-person"),
    # Settings and members
    path("settings/", settings.project_settings, name="settings"),
    path("settings/members/", settings.add_project_member, name="add-member"),
    path("settings/members/<int:user_id>/", settings.change_member, name="change-member"),
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
