"""The only code that imports torch, transformers, trl and peft.

Each module with a ``main`` is a process of its own, started as ``python -m training.engine.NAME RUN_DIR``. It reads
``job.json`` and ``dataset.jsonl`` from the run directory, writes ``metrics.jsonl``, ``result.json`` and its output
there, and knows no Django, no Celery and no database. The contract is ``training/jobspec.py``.
"""
