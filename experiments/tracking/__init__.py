"""What happened in a run: its journal, and MLflow, which is sent what the journal has."""
