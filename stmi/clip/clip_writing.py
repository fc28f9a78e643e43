"""Writes the folder of a CLIP, as `load_clip` reads it: whole, read back, or not at all."""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from stmi.checksums import file_digest
from stmi.clip import clip_files, loading
from stmi.errors import ClipFileError


def write_clip(
    out: Path, config: dict[str, Any], weights: dict[str, Tensor], source: str, merges: bytes | None = None
) -> dict[str, Any]:
    """Write a CLIP folder with float32 weights and their digest.

    Args:
        out: The new folder; it must not exist.
        config: `model_cfg` of open_clip.
        weights: By open_clip's names, contiguous.
        source: Where they come from, for messages.
        merges: The tokenizer's merges; None for CLIP's own.

    Returns:
        `folder`, `digest` (that of `LoadedClip`), `parameters`, and `model_cfg`.

    Raises:
        ClipFileError: The config makes no CLIP, or weights are missing, unknown or of another shape.
        OSError: The folder cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # The folder is written elsewhere, read back, and then appears whole by one rename.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as parent:
        folder = Path(parent) / out.name
        folder.mkdir()
        described = folder / clip_files.CONFIG_FILE
        described.write_text(json.dumps({"model_cfg": config}, indent=2) + "\n")
        if merges is not None:
            # A fixed modification time: the same merges give the same bytes.
            (folder / clip_files.MERGES_FILE).write_bytes(gzip.compress(merges, mtime=0))
        path = folder / clip_files.WEIGHTS_FILE
        save_file(weights, path)
        # safetensors makes files that only the owner can read, but folders of weights are often shared.
        path.chmod(described.stat().st_mode)
        (folder / clip_files.DIGEST_FILE).write_text(f"{file_digest(path)}  {clip_files.WEIGHTS_FILE}\n")
        try:
            loaded = loading.load_clip(folder)
        except ClipFileError as error:
            raise ClipFileError(f"{source}: what is in it makes no CLIP: {error}") from error
        folder.rename(out)
    return {
        "folder": str(out),
        "digest": loaded.digest,
        "parameters": sum(value.numel() for value in weights.values()),
        "model_cfg": config,
    }
