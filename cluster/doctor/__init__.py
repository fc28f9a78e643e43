"""Before a submission: is the cluster what the run needs? `python -m cluster.doctor --help`."""
