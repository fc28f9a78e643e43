"""A tiny data set written by hand, and a text tower that needs no weights."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HEIGHT, WIDTH = 32, 16
FOLDERS = {"train": "train_171", "val": "val", "test": "test"}
MODALITY_FOLDERS = ("RGB", "NI", "TI")
IDENTITIES = {"train": (1, 2, 3), "val": (11, 12), "test": (21, 22)}
CAMERAS = (1, 2)
SHOTS = (0, 1)


def names(split: str) -> list[str]:
    return [
        f"{identity:06d}_cam{camera}_0_{shot:02d}"
        for identity in IDENTITIES[split]
        for camera in CAMERAS
        for shot in SHOTS
    ]


def sample_ids() -> list[str]:
    return sorted(f"{split}/{name}" for split in FOLDERS for name in names(split))


def image_path(source: Path, sample_id: str, modality: int) -> Path:
    split, name = sample_id.split("/")
    return source / "RGBNT201" / FOLDERS[split] / MODALITY_FOLDERS[modality] / f"{name}.jpg"


def true_mask_path(source: Path, sample_id: str) -> Path:
    split, name = sample_id.split("/")
    return source / "true_masks" / FOLDERS[split] / f"{name}.png"


def write_data_set(source: Path) -> None:
    """Images of a bright figure on noise, its true masks, and predictions of four attributes."""
    rng = np.random.default_rng(0)
    for split, folder in FOLDERS.items():
        for kind in (*(f"RGBNT201/{folder}/{name}" for name in MODALITY_FOLDERS), f"true_masks/{folder}"):
            (source / kind).mkdir(parents=True)
        (source / "readings").mkdir(exist_ok=True)
        lines = []
        for name in names(split):
            left = int(rng.integers(4, 7))
            mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
            mask[3:30, left : left + 6] = True
            Image.fromarray(mask.astype(np.uint8) * 255).save(true_mask_path(source, f"{split}/{name}"))
            for modality in range(3):
                pixels = rng.integers(20, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
                pixels[mask] += 120
                Image.fromarray(pixels).save(image_path(source, f"{split}/{name}", modality), quality=95)
            lines.append(json.dumps({"item": f"{name}.jpg", "readings": _readings(rng)}))
        (source / "readings" / f"{folder}.jsonl").write_text("\n".join(lines) + "\n")


def _readings(rng: np.random.Generator) -> dict[str, dict[str, dict[str, object]]]:
    values = {
        "gender": ["man", "woman", "unknown"],
        "hair": ["long", "bun", "Unknown "],
        "hat": ["none", "cap", "unknown"],
        "upper_colour": ["red", "blue", ""],
    }
    # Few distinct confidences, so that ties are many.
    return {
        source: {
            name: {"value": str(rng.choice(options)), "confidence": float(rng.choice([0.2, 0.5, 1.0]))}
            for name, options in values.items()
            if rng.random() < 0.8
        }
        for source in ("RGB", "NIR", "TIR", "JOINT")
    }


class FakeTower:
    """A text tower whose features say which bytes it was given."""

    name = "fake"
    digest = hashlib.sha256(b"fake").hexdigest()
    embed_dim = 6

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([list(hashlib.sha256(text.encode()).digest()[:6]) for text in texts])

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float() / 255


def load_fake_tower(source: str) -> FakeTower:
    return FakeTower()
