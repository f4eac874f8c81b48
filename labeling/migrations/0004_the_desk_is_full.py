import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("labeling", "0003_fill_the_desk")]

    operations = [
        migrations.RemoveField(
            model_name='slot',
            name='is_extra',
        ),
        migrations.AlterField(
            model_name='skip',
            name='reason',
            field=models.CharField(blank=True, choices=[('', 'No reason given'), ('unsure', 'I cannot judge this'), ('long', 'Too long to read'), ('language', 'Not a language I know'), ('broken', 'Broken or empty text'), ('harmful', 'Harmful or upsetting'), ('private', "Somebody's private data")], max_length=16),
        ),
        migrations.AlterField(
            model_name="preference",
            name="project",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="preferences", to="labeling.project"
            ),
        ),
    ]
