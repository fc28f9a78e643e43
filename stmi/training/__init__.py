"""Batch plan, augmentation, losses and the training step."""
