"""Training of the demo's CLIP on procedural image-caption pairs, with open_clip's model and loss."""

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

from data_catalog.captions.sentences import write_caption
from data_catalog.progress import open_progress
from data_catalog.synthetic import SyntheticSettings, render_sample
from data_catalog.synthetic.identities import make_identity
from experiments.pretraining.image_sentences import SENTENCE, attributes_in_image, write_sentence
from experiments.pretraining.pretrained_clip import HELD_OUT, PretrainedClip
from stmi import keyed_random
from stmi.checksums import file_digest
from stmi.clip import architecture, clip_files, loading
from stmi.config import AugmentConfig
from stmi.modality import MODALITIES
from stmi.training import augment

SEED_OFFSET = 7_000_000
"""Added to the seed of the images, so that it never equals a seed of the benchmark."""
RGB_STEPS = 300
"""The first steps, which see RGB images only."""
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


@dataclass(frozen=True)
class Pairs:
    """Images of people, and what each shows; half are by day without clutter, half as in the benchmark.

    Attributes:
        pixels: uint8 `(people, modality, 3, height, width)`.
        attributes: What can be seen in the image, by person and modality.
    """

    pixels: np.ndarray
    attributes: list[list[dict[str, str]]]

    @property
    def clear(self) -> int:
        """Number of people without clutter."""
        return len(self.pixels) // 2

    def batch(self, size: int, share_clear: float, seed: int, step: int) -> tuple[Tensor, list[str]]:
        """Images of one modality `(size, 3, height, width)` and their sentences; a share of them is clear.

        A thousand steps on cluttered images of all modalities teach nothing; with clear RGB images first, the
        model learns the words in a hundred steps. Then modalities take turns: sentences of another one would
        be too easy to tell from the right one.
        """
        random = keyed_random.generator(seed, "pretraining_batch", step)
        easy = random.choice(self.clear, round(size * share_clear), replace=False)
        first = self.clear + HELD_OUT
        hard = first + random.choice(len(self.pixels) - first, size - len(easy), replace=False)
        people, modality = [*easy, *hard], step % len(MODALITIES) if step >= RGB_STEPS else 0
        pixels = self.pixels[people, modality][:, None]
        geometry = augment.sample_geometry(AUGMENT, size, pixels.shape[-2:], seed, 0, step)
        mask = torch.zeros(size, *pixels.shape[-2:], dtype=torch.uint8)
        images, _ = augment.augment(torch.from_numpy(pixels), mask, geometry, AUGMENT.crop_padding)
        texts = [write_sentence(self.attributes[i][modality], random, omitted=0.15) for i in people]
        return images[:, 0], texts

    def held_out(self, modality: int) -> tuple[np.ndarray, list[str]]:
        """Cluttered images of a modality that are in no batch, and their sentences."""
        people = range(self.clear, self.clear + HELD_OUT)
        texts = [write_caption(self.attributes[i][modality], SENTENCE) for i in people]
        return self.pixels[people, modality], texts


def render_pairs(people: int, seed: int) -> Pairs:
    """Render one sample of each person, half of them without clutter."""
    cluttered = SyntheticSettings(seed=SEED_OFFSET + seed)
    clear = cluttered.model_copy(
        update={"clutter": 0.3, "bystander": 0.0, "occlusion": 0.0, "darkness": (0.0,)}
    )
    pixels = np.empty((people, len(MODALITIES), 3, cluttered.height, cluttered.width), dtype=np.uint8)
    attributes = []
    with open_progress("rendering people", "person", people) as show:
        for i in range(people):
            settings = clear if i < people // 2 else cluttered
            sample = render_sample(settings, identity=i + 1, camera=i % settings.cameras, shot=0)
            who = make_identity(settings, i + 1)
            pixels[i] = sample.pixels.transpose(0, 3, 1, 2)
            attributes.append([attributes_in_image(who, sample, modality) for modality in MODALITIES])
            show(i + 1)
    return Pairs(pixels, attributes)


@torch.no_grad()
def held_out_accuracy(
    model: open_clip.CLIP, tokenizer: Callable[[list[str]], Tensor], pairs: Pairs
) -> dict[str, float]:
    """Share of held-out images whose own sentence is the nearest held-out sentence, by modality."""
    model.eval()
    accuracy = {}
    for at, name in enumerate(MODALITIES):
        pixels, texts = pairs.held_out(at)
        text = model.encode_text(tokenizer(texts), normalize=True)
        image = model.encode_image(augment.normalise(torch.from_numpy(pixels)), normalize=True)
        nearest = (image @ text.T).argmax(dim=1)
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
    digest = file_digest(partial)
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
