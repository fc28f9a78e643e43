"""The benchmarks of `experiments/benchmark.py`, and how they measure time and memory."""
