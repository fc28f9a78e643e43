"""Runs that belong together, as trials of one Tune experiment and children of one MLflow run."""
