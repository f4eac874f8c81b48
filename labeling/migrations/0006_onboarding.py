
import django.core.validators
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('labeling', '0005_queue_position'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name='guidelines',
            name='note',
            field=models.CharField(blank=True, help_text='What is new in it, by its author.', max_length=200),
        ),
        migrations.AddField(
            model_name='qualificationitem',
            name='is_active',
            field=models.BooleanField(default=True, help_text='Part of the set; the others are kept for their answers.'),
        ),
        migrations.AddField(
            model_name='seat',
            name='qualification_tries_granted',
            field=models.PositiveSmallIntegerField(default=0, help_text="Tries beyond the project's, by an admin."),
        ),
        migrations.AlterField(
            model_name='project',
            name='guidelines',
            field=models.TextField(blank=True, help_text='Markdown, shown beside the work.', validators=[django.core.validators.MaxLengthValidator(60000)]),
        ),
        migrations.AlterField(
            model_name='seat',
            name='qualification_try',
            field=models.PositiveSmallIntegerField(default=1, help_text='The one that is under way, or next.'),
        ),
        migrations.CreateModel(
            name='QualificationResult',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('attempt', models.PositiveSmallIntegerField()),
                ('right', models.PositiveSmallIntegerField()),
                ('asked', models.PositiveSmallIntegerField()),
                ('is_passed', models.BooleanField()),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('annotator', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='qualification_results', to='labeling.project')),
            ],
            options={
                'ordering': ['attempt'],
                'constraints': [models.UniqueConstraint(fields=('project', 'annotator', 'attempt'), name='one_qualification_result_a_try'), models.CheckConstraint(condition=models.Q(('right__lte', models.F('asked'))), name='qualification_right_within_asked')],
            },
        ),
    ]
