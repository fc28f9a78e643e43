"""Errors of files that a user names; imports nothing, so that a command can catch them without PyTorch."""


class ClipFileError(ValueError):
    """A CLIP folder, name or file that cannot be used; names it and what is wrong."""


class TrainedRunError(ValueError):
    """A run that cannot be loaded; names what is missing or wrong in it, and what to do."""
