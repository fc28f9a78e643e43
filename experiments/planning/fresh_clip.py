"""A CLIP with fresh weights: its architecture, where its own weights are not needed or not at hand."""

from stmi.clip.loading import LoadedClip, build_clip


def fresh_clip(source: str) -> LoadedClip:
    """The towers that a source describes, with random weights; reads no weights and downloads nothing.

    Args:
        source: A folder with open_clip_config.json, or an open_clip name as model/pretrained.

    Returns:
        The towers without digest and tokenizer.

    Raises:
        ClipFileError: As `stmi.clip.loading.build_clip` does.
    """
    return LoadedClip(build_clip(source).eval().requires_grad_(False), None, source, digest="")
