"""What finds the object in a sample: GrabCut, SAM2, or masks that people already have."""
