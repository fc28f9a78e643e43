"""One run: its folder, journal and checkpoints, the training loop, its result and pictures."""
