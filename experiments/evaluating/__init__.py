"""Evaluation of a trained model on a test view over all nodes of a cluster, and the files it writes."""
