"""CLIP: reading its weights from folders, names and archives, and its two towers."""
