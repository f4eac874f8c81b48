"""Which pairs wait to be measured, how many judgements they were asked for, and seats that count what is there."""

from django.db import migrations, models
from django.db.models import Count, IntegerField, OuterRef, Subquery
from django.db.models.functions import Coalesce


def count_again(apps, schema_editor):
    """A judgement that was withdrawn and given again was counted twice. One query by index for each seat."""
    preferences = apps.get_model("labeling", "Preference").objects.filter(
        project=OuterRef("project"), annotator=OuterRef("annotator"), is_current=True
    )
    given = preferences.order_by().values("annotator").annotate(given=Count("pk")).values("given")
    seats = apps.get_model("labeling", "Seat").objects.all()
    seats.update(judged=Coalesce(Subquery(given, output_field=IntegerField()), 0))


class Migration(migrations.Migration):

    dependencies = [
        ('labeling', '0008_places_of_ones_own'),
    ]

    operations = [
        migrations.RunPython(count_again, migrations.RunPython.noop),
        migrations.AlterField(
            model_name='pair',
            name='p_a',
            field=models.FloatField(editable=False, help_text='Probability, given the votes of now, that A is better; empty from each change of them until the background job has been there.', null=True),
        ),
        # Without a default, so that no database writes all pairs anew.
        migrations.AddField(
            model_name='pair',
            name='judgements_asked',
            field=models.PositiveSmallIntegerField(editable=False, help_text='Judgements wanted when it was made, before any conflict.', null=True),
        ),
        migrations.AddIndex(
            model_name='pair',
            index=models.Index(condition=models.Q(('is_retired', False), ('judgements_count__gt', 0), ('p_a__isnull', True)), fields=['project', 'id'], name='pair_to_measure'),
        ),
    ]
