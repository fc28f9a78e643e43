"""A CLIP of a few thousand random weights in the real on-disk format."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from stmi.clip import architecture, clip_files

MODEL_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [32, 16], "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 0, "width": 16, "heads": 2, "layers": 1},
}


def write(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = architecture.write_merges(folder / clip_files.MERGES_FILE, 256)
    config = json.loads(json.dumps(MODEL_CONFIG))
    config["text_cfg"]["vocab_size"] = vocabulary
    (folder / clip_files.CONFIG_FILE).write_text(json.dumps({"model_cfg": config}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build_clip(folder)
    save_file(model.state_dict(), folder / clip_files.WEIGHTS_FILE)
    return folder
