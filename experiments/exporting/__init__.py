"""A trained run as one file that other programs compute."""
