"""The input of a worker's training steps: read, moved to its device and augmented."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data_catalog.views.joined_view import Rows
from experiments.experiment_config import ExperimentConfig
from stmi.modality import MODALITIES
from stmi.model import STMI
from stmi.model_input import ModelInput, RandomDraws, zeroed
from stmi.training import augment
from stmi.training.batch_plan import rows_of_rank

Item = TypeVar("Item")

BYTES_TOGETHER = 2**23
"""Size of the images that are augmented in one go on CPUs."""


@dataclass(frozen=True)
class StepInput:
    """What a training step takes of a worker's rows, on its device."""

    batch: ModelInput
    draws: RandomDraws
    labels: Tensor

    def tensors(self) -> list[Tensor]:
        """All of its tensors."""
        parts = [*vars(self.batch).values(), *vars(self.draws).values(), self.labels]
        return [part for part in parts if part is not None]


class BatchInput:
    """Makes the input of every step of a run for one worker.

    On a GPU, the next step's input is made while the current step runs: another thread reads and copies, on a
    stream of its own. On CPUs, which the current step keeps busy, it is made when the step needs it. Where
    images are small, that takes mostly the start of some 200 small operations, whose code and data the step
    before has driven out of the caches; so the input of several steps is made in one go.

    Args:
        config: The run.
        model: Its model, on its device.
        view: The worker's part of the training views.
        labels: Identity of each of its rows, counted from 0, int64.
        captions: Token numbers of their captions, int64 `(rows, context)`, where the text tower is trained.
        rows: The worker's rows of the global batch.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: STMI,
        view: Rows,
        labels: np.ndarray,
        captions: np.ndarray | None,
        rows: slice,
    ) -> None:
        self.config = config
        self.model = model
        self.view = view
        self.labels = labels
        self.captions = captions
        self.rows = rows
        self.device = model.image_tower.proj.device

    def steps(self, plan: np.ndarray, epoch: int, first: int = 0) -> Iterator[StepInput]:
        """The input of the steps of an epoch.

        Args:
            plan: The worker's rows of the view in each step, `(steps, batch / workers)`.
            epoch: Epoch number.
            first: The first step that is wanted.
        """
        if self.device.type != "cuda":
            for step in range(first, len(plan), self._together):
                yield from self.make(plan[step : step + self._together], epoch, step)
            return
        stream = torch.cuda.Stream(self.device)

        def make_beside() -> Iterator[tuple[StepInput, torch.cuda.Event]]:
            for step in range(first, len(plan)):
                with torch.cuda.stream(stream):
                    [made] = self.make(plan[step : step + 1], epoch, step)
                    yield made, stream.record_event()

        for made, is_made in one_ahead(make_beside()):
            current = torch.cuda.current_stream(self.device)
            current.wait_event(is_made)
            for tensor in made.tensors():
                # The allocator must not give its memory away before the step has read it.
                tensor.record_stream(current)
            yield made

    @property
    def _together(self) -> int:
        """How many steps' input is made in one go on CPUs: as many as have `BYTES_TOGETHER`, at least one."""
        image = self.config.model.image
        pixels = (self.rows.stop - self.rows.start) * len(MODALITIES) * 3 * image.height * image.width
        return max(1, BYTES_TOGETHER // (pixels * torch.float32.itemsize))

    def make(self, plan: np.ndarray, epoch: int, first: int) -> list[StepInput]:
        """The input of some steps in a row.

        Args:
            plan: The worker's rows of the view in each of these steps, `(steps, batch / workers)`.
            epoch: Epoch number.
            first: The first of the steps, within the epoch.
        """
        config, rows, steps = self.config, plan.flatten(), range(first, first + len(plan))
        read = self.view.batch(rows)
        size = (read.mask.shape[1], read.mask.shape[2])
        geometries = [
            augment.sample_geometry(config.augment, config.batch.size, size, config.seed, epoch, step)
            for step in steps
        ]
        images, mask = augment.augment(
            self._moved(read.pixels),
            self._moved(read.mask),
            augment.join_geometries([geometry.rows(self.rows) for geometry in geometries]),
            config.augment.crop_padding,
            config.model.pixels,
        )
        batch = ModelInput(
            images=zeroed(images, None if read.missing is None else self._moved(read.missing)),
            foreground=augment.patch_foreground(mask, self.model.patch_size),
            text=self._moved(read.text_feature),
            camera_id=self._moved(read.camera_id.astype(np.int64)),
            caption=None if self.captions is None else self._moved(self.captions[rows]),
        )
        labels = self._moved(self.labels[rows])
        made = []
        for number, step in enumerate(steps):
            own = rows_of_rank(len(rows), number, len(plan))
            draws = self.model.random_draws(config.seed, epoch, step, config.batch.size, self.rows)
            made.append(StepInput(batch.rows(own), draws, labels[own]))
        return made

    def _moved(self, values: np.ndarray) -> Tensor:
        """An array on the device; from pinned memory a GPU reads while other work goes on."""
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda" and torch.cuda.is_available():
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def one_ahead(made: Iterator[Item]) -> Iterator[Item]:
    """The items of an iterator; each is made in another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, made, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, made, None)
            yield item
