"""CLIP: loading it from folders, names and archives, and its two towers."""
