"""Retrieval metrics and re-ranking."""
