"""Sources of masks: GrabCut, SAM2, or files with masks that exist already."""
