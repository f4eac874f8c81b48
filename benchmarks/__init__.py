"""Measurements that anyone can start: ``python benchmarks/NAME.py --help``. Each compares within one run."""
