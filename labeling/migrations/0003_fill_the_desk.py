"""What the new columns say of rows that are older than they are."""

from django.db import migrations
from django.db.models import F, OuterRef, Subquery

REASONS = ("unsure", "long", "language", "broken", "harmful", "private")


def fill(apps, schema_editor):
    Slot, Preference, Pair = (apps.get_model("labeling", name) for name in ("Slot", "Preference", "Pair"))
    Project, Guidelines, Skip = (apps.get_model("labeling", name) for name in ("Project", "Guidelines", "Skip"))
    Slot.objects.filter(is_extra=True).update(kind="extra")
    Slot.objects.filter(annotator__isnull=False).update(shown_to=F("annotator_id"))
    newest = Preference.objects.filter(slot=OuterRef("pk")).order_by("-version").values("version")[:1]
    Slot.objects.filter(preferences__isnull=False).update(versions=Subquery(newest))
    project = Pair.objects.filter(pk=OuterRef("pair")).values("project")[:1]
    Preference.objects.update(project=Subquery(project))
    for skip in Skip.objects.exclude(reason="").exclude(reason__in=REASONS).iterator():
        Skip.objects.filter(pk=skip.pk).update(note=skip.reason, reason="")
    for row in Project.objects.all():
        Guidelines.objects.create(project=row, version=1, text=row.guidelines)


class Migration(migrations.Migration):
    dependencies = [("labeling", "0002_the_desk")]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
