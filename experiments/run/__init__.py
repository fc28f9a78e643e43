"""One run: its options, folder, journal and checkpoints, its life, and its result and figures."""
