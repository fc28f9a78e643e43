"""One worker's share of a run with random weights and random pixels: a plan counts and times its step."""

import numpy as np
import torch
from torch import Tensor

from experiments.experiment_config import ExperimentConfig
from stmi.clip import loading
from stmi.clip.loading import LoadedClip
from stmi.modality import MODALITIES
from stmi.model import STMI, Features
from stmi.model_input import ModelInput, RandomDraws
from stmi.training import augment
from stmi.training.batch_plan import rows_of_rank
from stmi.training.train_step import TrainStep


def untrained_clip(config: ExperimentConfig) -> LoadedClip:
    """The run's CLIP with random weights, as `stmi.clip.loading.untrained_clip`."""
    return loading.untrained_clip(config.clip_source)


class DryRun:
    """The run's own training step on the share of its first worker.

    Inside a `FakeTensorMode`, tensors have shapes only: nothing is computed and no memory is used.

    Args:
        config: The run.
        model: Its model, with any weights, on its device.
        context_length: Tokens of a caption.
        compiled: Compile the network.

    Attributes:
        share: Samples of the global batch that are one worker's.
    """

    def __init__(
        self, config: ExperimentConfig, model: STMI, context_length: int, compiled: bool = False
    ) -> None:
        self.config = config
        self.model = model.train()
        self.context_length = context_length
        self.device = model.image_tower.proj.device
        self.autocast = config.train.precision == "bfloat16"
        self.rows = rows_of_rank(config.batch.size, 0, config.train.workers)
        if self.rows.stop - self.rows.start < 2:
            # The batch norm of the heads sees the whole batch in training, and takes no single sample here.
            self.rows = slice(0, 2)
        self.share = self.rows.stop - self.rows.start
        self.take_step = TrainStep(
            self.model,
            config.loss,
            config.optim,
            self.autocast,
            compiled,
            config.train.micro_batches,
            config.train.checkpoint_activations,
        )

    def batch(self, step: int = 0) -> tuple[ModelInput, RandomDraws, Tensor]:
        """A step's input, augmented as in training, its random numbers and its labels."""
        config, size = self.config, (self.config.model.image.height, self.config.model.image.width)
        pixels, mask = self._random_pixels(self.share)
        geometry = augment.sample_geometry(config.augment, config.batch.size, size, config.seed, 0, step)
        images, mask = augment.augment(
            pixels, mask, geometry.rows(self.rows), config.augment.crop_padding, config.model.pixels
        )
        labels = np.arange(config.batch.size) // config.batch.samples_per_identity
        draws = self.model.random_draws(config.seed, 0, step, config.batch.size, self.rows)
        return self._input(images, mask), draws, torch.from_numpy(labels[self.rows]).to(self.device)

    def train(self, step: int = 0) -> None:
        """Take one optimisation step."""
        self.take_step(*self.batch(step), self.config.optim.learning_rate)

    @torch.no_grad()
    def embed(self, samples: int) -> Features:
        """Embed a batch as evaluation does."""
        pixels, mask = self._random_pixels(samples)
        self.model.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.model(self._input(augment.normalise(pixels, self.config.model.pixels), mask))
        self.model.train()
        return features

    def _random_pixels(self, samples: int) -> tuple[Tensor, Tensor]:
        image = self.config.model.image
        shape = (samples, len(MODALITIES) * 3 + 1, image.height, image.width)
        values = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        return values[:, :-1].unflatten(1, (len(MODALITIES), 3)), values[:, -1]

    def _input(self, images: Tensor, mask: Tensor) -> ModelInput:
        samples, width = len(images), self.model.image_tower.proj.shape[1]
        caption = torch.zeros(samples, self.context_length, dtype=torch.int64, device=self.device)
        return ModelInput(
            images=images,
            foreground=augment.patch_foreground(mask, self.model.patch_size),
            text=torch.randn(samples, width, device=self.device),
            camera_id=torch.zeros(samples, dtype=torch.int64, device=self.device),
            caption=caption if self.config.model.text.fine_tune else None,
        )
