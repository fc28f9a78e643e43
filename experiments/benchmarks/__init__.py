"""Longer measurements of `experiments/benchmark.py`."""
