"""An index on a column that a longer one begins with answers nothing more, and every claim and answer has to write it."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('labeling', '0010_second_looks_passed_on'),
    ]

    operations = [
        migrations.AlterField(
            model_name='pair',
            name='response_a',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='labeling.response'),
        ),
        migrations.AlterField(
            model_name='preference',
            name='slot',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='preferences', to='labeling.slot'),
        ),
        migrations.AlterField(
            model_name='seat',
            name='project',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='seats', to='labeling.project'),
        ),
        migrations.AlterField(
            model_name='slot',
            name='pair',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='slots', to='labeling.pair'),
        ),
    ]
