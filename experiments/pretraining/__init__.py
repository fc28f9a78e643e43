"""Training of the small CLIP from which the demo starts."""
