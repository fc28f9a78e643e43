"""What every worker of a run does: train, validate, checkpoint, report; on one process or many."""

import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train.torch import get_device
from safetensors.numpy import save_file

from data_catalog.tables import Table
from data_catalog.view import View, open_view
from experiments import checkpoints, evaluation
from experiments.recipes import ExperimentConfig
from stmi import augment, batch_plan
from stmi.batch_plan import rows_of_rank
from stmi.clip import LoadedClip, load_clip
from stmi.model import STMI, ModelInput
from stmi.retrieval import RetrievalError
from stmi.train_step import TrainStep, learning_rate


@dataclass
class Clock:
    """Seconds spent by part, so that a run can say where its time went."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside towards a part."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        taken = {name: round(value, 4) for name, value in self.seconds.items()}
        self.seconds.clear()
        return taken


class DivergedError(RuntimeError):
    """The loss is not a finite number any more."""


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's whole run; called by Ray Train.

    Args:
        settings: `config` (an `ExperimentConfig`), `views` (split name to `Table`), `captions` (their
            `Table`) and `clip` (its source).
    """
    began, clock = time.time(), Clock()
    with clock.part("setup"):
        torch.set_num_threads(_own_threads())
        run = _Run(settings["config"], settings["views"], settings["captions"], settings["clip"])
        progress, history = run.restore()
    reporter = _Reporter(clock, began, history)
    try:
        _train(run, clock, reporter, progress)
    except (DivergedError, RetrievalError) as error:
        # Every worker meets these alike, and would again: nothing to retry.
        reporter.report("stopped", error=str(error))


def _train(run: "_Run", clock: Clock, reporter: "_Reporter", progress: checkpoints.Progress) -> None:
    config = run.config.train
    if progress.step == 0:
        with clock.part("evaluation"):
            untrained = run.evaluate("test")[1]["U"]
        reporter.report("untrained", metrics=untrained, cameras=run.cameras, identities=run.identities)
    else:
        reporter.report("resumed", epoch=progress.epoch, history=reporter.history)
    for epoch in range(progress.epoch, config.epochs):
        with clock.part("steps"):
            losses, rate, steps = run.train_epoch(epoch)
        progress = checkpoints.Progress(epoch + 1, progress.step + steps)
        facts: dict[str, Any] = {"epoch": epoch + 1, "step": progress.step, "losses": losses}
        last = epoch + 1 == config.epochs
        with clock.part("evaluation"):
            if last or (epoch + 1) % config.validate_every == 0:
                if "val" in run.views:
                    facts["validation"] = run.evaluate("val")[1]
                if not last:
                    facts["test"] = run.evaluate("test")[1]
        keep = last or (epoch + 1) % config.checkpoint_every == 0
        save = partial(run.save, progress=progress) if keep else None
        reporter.report("epoch", save, learning_rate=rate, **facts)
    with clock.part("evaluation"):
        embeddings, metrics = run.evaluate("test")

    def save_result(folder: Path) -> None:
        run.save(folder, progress)
        rows = {name: np.ascontiguousarray(values) for name, values in embeddings.items()}
        save_file(rows, folder / checkpoints.EMBEDDINGS_FILE)

    reporter.report("test", save_result, metrics=metrics, epochs=config.epochs)


class _Reporter:
    """Sends what happened to the driver, a checkpoint with it where there is one.

    Each checkpoint holds all that was reported until then: the driver may die after a checkpoint is stored
    and before its journal knows of it.
    """

    def __init__(self, clock: Clock, began: float, history: list[dict[str, Any]]) -> None:
        self.clock = clock
        self.began = began
        self.history = history
        self.is_first = ray.train.get_context().get_world_rank() == 0

    def report(self, event: str, save: Callable[[Path], None] | None = None, **facts: Any) -> None:
        report = {"event": event, "began": self.began, "seconds": {}, **facts}
        if event != "resumed":
            self.history.append(report)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if save is not None and self.is_first:
                with self.clock.part("checkpoint"):
                    save(Path(folder))
                    checkpoints.save_history(Path(folder), self.history)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            report["seconds"] = self.clock.take()
            with self.clock.part("report"):
                ray.train.report(report, checkpoint=checkpoint)


class _Run:
    """The model, its data and its optimiser on one worker."""

    def __init__(
        self, config: ExperimentConfig, tables: dict[str, Table], captions: Table, clip_source: str
    ) -> None:
        context = ray.train.get_context()
        self.config = config
        self.rows = rows_of_rank(config.batch.size, context.get_world_rank(), context.get_world_size())
        self.device = get_device()
        self.autocast = config.train.precision == "bfloat16"
        self.views: dict[str, View] = {name: open_view(table) for name, table in tables.items()}
        train = self.views["train"]
        names, self.labels = np.unique(train.identity, return_inverse=True)
        self.identities = len(names)
        self.cameras = int(max(view.camera_id.max() for view in self.views.values())) + 1
        clip = load_clip(clip_source)
        model = STMI(config.model, clip, self.identities, self.cameras, config.seed)
        self.model = model.to(self.device).train()
        self.captions: dict[str, torch.Tensor | None] = dict.fromkeys(self.views)
        if config.model.text.fine_tune:
            self.captions |= caption_tokens(clip, captions, self.views)
        self.take_step = TrainStep(self.model, config.loss, config.optim, self.autocast, config.train.compile)

    def restore(self) -> tuple[checkpoints.Progress, list[dict[str, Any]]]:
        """Continue from the run's last checkpoint, if it has one; how far it is, and what was reported."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return checkpoints.Progress(), []
        with checkpoint.as_directory() as folder:
            progress = checkpoints.load(Path(folder), self.model, self.take_step.optimizer)
            return progress, checkpoints.load_history(Path(folder))

    def save(self, folder: Path, progress: checkpoints.Progress) -> None:
        """Write a checkpoint."""
        checkpoints.save(folder, self.model, self.take_step.optimizer, progress)

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], float, int]:
        """Train one epoch; returns the mean losses, the last learning rate and the number of steps."""
        config = self.config
        plan = batch_plan.plan(self.labels, config.batch, config.seed, epoch)
        sums: dict[str, torch.Tensor] = {}
        rate = 0.0
        for step, global_rows in enumerate(plan):
            # The rate of the middle of the step: neither the first nor the last is zero.
            rate = learning_rate(config.optim, epoch + (step + 0.5) / len(plan), config.train.epochs)
            batch, labels = self._augmented(global_rows, epoch, step)
            noise = self.model.noise(config.seed, epoch, step, config.batch.size, self.rows)
            for name, value in self.take_step(batch, noise, labels, rate).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        losses = {name: (total / len(plan)).item() for name, total in sums.items()}
        if not math.isfinite(losses["total"]):
            raise DivergedError(
                f"the loss of epoch {epoch + 1} is {losses['total']} at learning rate {rate:.3g}; "
                "lower optim.learning_rate, or set optim.gradient_clip"
            )
        return losses, rate, len(plan)

    def evaluate(self, split: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Embeddings of a split, and the metrics of each feature."""
        view = self.views[split]
        embeddings = evaluation.embed(
            self.model, view, self.config.train.evaluation_batch, self.autocast, self.captions[split]
        )
        return embeddings, evaluation.score_all(view, embeddings, self.config.data.junk)

    def _augmented(self, global_rows: np.ndarray, epoch: int, step: int) -> tuple[ModelInput, torch.Tensor]:
        config, rows = self.config, global_rows[self.rows]
        batch, captions = self.views["train"].batch(rows), self.captions["train"]
        size = batch.mask.shape[1:]
        geometry = augment.draw_geometry(config.augment, config.batch.size, size, config.seed, epoch, step)
        images, mask = augment.augment(
            torch.from_numpy(batch.pixels).to(self.device),
            torch.from_numpy(batch.mask).to(self.device),
            geometry,
            config.augment.crop_padding,
            self.rows,
            (config.seed, epoch, step),
        )
        model_input = ModelInput(
            images=images,
            foreground=augment.patch_foreground(mask, self.model.patch_size),
            text=torch.from_numpy(batch.text_feature).to(self.device),
            camera_id=torch.from_numpy(batch.camera_id.astype(np.int64)).to(self.device),
            caption=None if captions is None else captions[torch.from_numpy(rows)].to(self.device),
        )
        return model_input, torch.from_numpy(self.labels[rows]).to(self.device)


def caption_tokens(clip: LoadedClip, captions: Table, views: dict[str, View]) -> dict[str, torch.Tensor]:
    """Token numbers of the captions of each view's rows, int64 `(rows, context)`."""
    table = captions.read(["sample_index", "caption"])
    tokens = clip.tokenize(table["caption"].to_pylist())
    place = {index: row for row, index in enumerate(table["sample_index"].to_pylist())}
    return {split: tokens[[place[i] for i in view.sample_index.tolist()]] for split, view in views.items()}


def _own_threads() -> int:
    """CPU threads for this worker: its share of the processors that its node gives to the run."""
    return max(1, len(os.sched_getaffinity(0)) // ray.train.get_context().get_local_world_size())
