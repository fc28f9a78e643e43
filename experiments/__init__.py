"""The runs: training, evaluation and reports on Ray Train, recorded in MLflow."""
