"""Ray over a Slurm allocation."""
