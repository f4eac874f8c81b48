"""When a second look was skipped, and not only that it was: what came last is undone first."""

from django.db import migrations, models
from django.db.models import F


def note_moments(apps, schema_editor):
    """The moment is not known; it came after the lease began, and before whatever its person did next."""
    passed_on = apps.get_model("labeling", "Slot").objects.filter(kind="repeat", is_passed_on=True)
    passed_on.update(passed_on_at=F("leased_at"))


class Migration(migrations.Migration):

    dependencies = [
        ('labeling', '0009_what_is_measured'),
    ]

    operations = [
        migrations.AddField(
            model_name='slot',
            name='passed_on_at',
            field=models.DateTimeField(blank=True, help_text='When its person skipped it, a second look.', null=True),
        ),
        migrations.RunPython(note_moments, migrations.RunPython.noop),
        migrations.RemoveField(
            model_name='slot',
            name='is_passed_on',
        ),
        migrations.AddIndex(
            model_name='slot',
            index=models.Index(condition=models.Q(('passed_on_at__isnull', False)), fields=['project', 'annotator', 'passed_on_at'], name='slot_passed_on'),
        ),
    ]
