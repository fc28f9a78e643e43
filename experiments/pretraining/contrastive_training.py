"""Training of the demo's CLIP on procedural image-caption pairs, with open_clip's model and loss."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from data_catalog.captions.sentences import PERSON, write_caption
from data_catalog.progress import open_progress
from data_catalog.synthetic import SyntheticSettings, render_sample, true_attributes
from experiments.pretraining.pretrained_clip import HELD_OUT, PretrainedClip
from stmi import keyed_random
from stmi.clip import architecture, clip_files, loading
from stmi.config import AugmentConfig
from stmi.modality import MODALITIES
from stmi.training import augment

SEED_OFFSET = 7_000_000
"""Added to the seed of the images, so that it never equals a seed of the benchmark."""
MERGES = 2048
AUGMENT = AugmentConfig(flip=0.5, crop_padding=4, erase=0.0)


def model_config(vocabulary: int) -> dict[str, object]:
    """The architecture of the small CLIP, as a config of open_clip."""
    return {
        "embed_dim": 128,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [64, 32], "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": vocabulary, "width": 64, "heads": 2, "layers": 2},
    }


def render_people(
    first: int, count: int, settings: SyntheticSettings
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Render one sample of each identity from `first` on.

    Returns:
        Pixels, uint8 `(count, modality, 3, height, width)`, and the true attributes of each identity.
    """
    pixels = np.empty((count, 3, 3, settings.height, settings.width), dtype=np.uint8)
    attributes = []
    with open_progress("rendering people", "person", count) as show:
        for i in range(count):
            sample = render_sample(settings, identity=first + i, camera=i % settings.cameras, shot=0)
            pixels[i] = sample.pixels.transpose(0, 3, 1, 2)
            attributes.append(true_attributes(settings, first + i))
            show(i + 1)
    return pixels, attributes


def write_sentence(attributes: dict[str, str], random: np.random.Generator, omitted: float) -> str:
    """A sentence that contains each attribute with probability 1 - `omitted`."""
    kept = {name: value for name, value in attributes.items() if random.random() >= omitted}
    return write_caption(kept, PERSON)


@dataclass(frozen=True)
class Pairs:
    """Images of people for training, of two kinds.

    Attributes:
        clear: Images by day without clutter, uint8 `(people, modality, 3, height, width)`.
        cluttered: Images of other people, as in the benchmark.
        attributes: Of the people in `clear`, then of those in `cluttered`.
    """

    clear: np.ndarray
    cluttered: np.ndarray
    attributes: list[dict[str, str]]

    def batch(self, size: int, share_clear: float, seed: int, step: int) -> tuple[Tensor, list[str]]:
        """Images `(size, 3, height, width)` and sentences: some clear ones in RGB, the others cluttered.

        A thousand steps on cluttered images of all modalities alone teach nothing; with clear RGB images
        first, the model learns the words in a hundred steps.
        """
        random = keyed_random.generator(seed, "pretraining_batch", step)
        clear = round(size * share_clear)
        easy = random.choice(len(self.clear), clear, replace=False)
        hard = random.choice(len(self.cluttered) - HELD_OUT, size - clear, replace=False) + HELD_OUT
        modality = random.integers(0, 3, size - clear)
        pixels = np.concatenate([self.clear[easy, 0], self.cluttered[hard, modality]])[:, None]
        geometry = augment.sample_geometry(AUGMENT, size, pixels.shape[-2:], seed, 0, step)
        mask = torch.zeros(size, *pixels.shape[-2:], dtype=torch.uint8)
        images, _ = augment.augment(
            torch.from_numpy(pixels), mask, geometry, AUGMENT.crop_padding, slice(0, size), (seed, 0, step)
        )
        people = [*easy, *(hard + len(self.clear))]
        return images[:, 0], [write_sentence(self.attributes[i], random, omitted=0.15) for i in people]

    def held_out(self) -> tuple[np.ndarray, list[dict[str, str]]]:
        """Cluttered images that are in no batch, and their attributes."""
        first = len(self.clear)
        return self.cluttered[:HELD_OUT], self.attributes[first : first + HELD_OUT]


def render_pairs(people: int, seed: int) -> Pairs:
    """Render the people, half of them without clutter."""
    cluttered = SyntheticSettings(seed=SEED_OFFSET + seed)
    clear = cluttered.model_copy(
        update={"clutter": 0.3, "bystander": 0.0, "occlusion": 0.0, "darkness": (0.0,)}
    )
    half = people // 2
    clear_pixels, clear_attributes = render_people(1, half, clear)
    pixels, attributes = render_people(half + 1, people - half, cluttered)
    return Pairs(clear_pixels, pixels, clear_attributes + attributes)


@torch.no_grad()
def held_out_accuracy(
    model: open_clip.CLIP, tokenizer: Callable[[list[str]], Tensor], pairs: Pairs
) -> dict[str, float]:
    """Share of held-out images whose own sentence is the nearest held-out sentence, by modality."""
    model.eval()
    pixels, attributes = pairs.held_out()
    text = model.encode_text(
        tokenizer([write_caption(known, PERSON) for known in attributes]), normalize=True
    )
    accuracy = {}
    for i, name in enumerate(MODALITIES):
        images = augment.normalise(torch.from_numpy(pixels[:, i]))
        nearest = (model.encode_image(images, normalize=True) @ text.T).argmax(dim=1)
        accuracy[str(name)] = (nearest == torch.arange(HELD_OUT)).float().mean().item()
    return accuracy


def pretrain(out: Path, people: int, steps: int, batch: int, rate: float, seed: int) -> PretrainedClip:
    """Train the CLIP and write its folder."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = architecture.write_merges(out / clip_files.MERGES_FILE, MERGES)
    config = {"model_cfg": model_config(vocabulary), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (out / clip_files.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    with keyed_random.seeded_construction(seed, "pretraining_weights"):
        model, tokenizer = architecture.build_clip(out), architecture.build_tokenizer(out)
    pairs = render_pairs(people, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    clip_loss = open_clip.ClipLoss()
    with open_progress("pretraining", "step", steps) as show:
        for step in range(steps):
            decay = (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 100) * decay
            share_clear = max(0.25, 1 - step / (0.4 * steps))
            images, texts = pairs.batch(batch, share_clear, seed, step)
            image = model.encode_image(images, normalize=True)
            text = model.encode_text(tokenizer(texts), normalize=True)
            loss = clip_loss(image, text, model.logit_scale.exp())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            show(step + 1, f"loss={loss.item():.3f}")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    partial = out / f".{clip_files.WEIGHTS_FILE}.partial"
    save_file(weights, partial)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    (out / clip_files.DIGEST_FILE).write_text(f"{digest}  {clip_files.WEIGHTS_FILE}\n")
    partial.replace(out / clip_files.WEIGHTS_FILE)
    loaded = loading.load_clip(out)
    return PretrainedClip(
        folder=str(out),
        sha256=digest,
        bytes=(out / clip_files.WEIGHTS_FILE).stat().st_size,
        parameters=sum(value.numel() for value in weights.values()),
        held_out_accuracy=held_out_accuracy(loaded.model, tokenizer, pairs),
        chance=1 / HELD_OUT,
        seconds=time.perf_counter() - start,
    )
