"""What every worker of a run does: train, validate, checkpoint, report; on one process or many."""

import math
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
import pyarrow as pa
import torch
from pyarrow import compute
from pydantic_core import to_jsonable_python
from safetensors.numpy import save_file

from data_catalog.tables.table import Table
from data_catalog.views.view_reader import View, open_view
from experiments.run import checkpoints, evaluation
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.run_result import FeatureMetrics
from experiments.run.workers.session import Session
from experiments.run.workers.training_input import TrainingInput
from experiments.tracking.journal import Event
from stmi.checksums import write_sums
from stmi.clip.loading import load_clip
from stmi.kernels.host_memory import keep_freed_memory
from stmi.model import STMI
from stmi.model_input import ModelInput
from stmi.retrieval.metrics import RetrievalError, RetrievalMetrics
from stmi.training import augment
from stmi.training.batch_plan import rows_of_rank
from stmi.training.schedule import learning_rate
from stmi.training.train_step import TrainStep


@dataclass
class Clock:
    """Seconds spent by part, so that a run can report where its time went."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside towards a part."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds counted since the last call."""
        taken = {name: round(value, 4) for name, value in self.seconds.items()}
        self.seconds.clear()
        return taken


class DivergedError(RuntimeError):
    """The loss is not a finite number any more."""


def train(given: TrainingInput, session: Session) -> None:
    """One worker's whole run, from the last checkpoint on; the results are reported."""
    began, clock = time.time(), Clock()
    with clock.part("setup"):
        torch.set_num_threads(session.threads)
        keep_freed_memory()
        run = _Run(given, session)
        progress, history = run.restore()
    reporter = _Reporter(session, clock, began, history)
    try:
        _train(run, clock, reporter, progress)
    except (DivergedError, RetrievalError) as error:
        # Every worker gets the same error, and would get it again: a retry does not help.
        reporter.report("stopped", error=str(error))


def _train(run: "_Run", clock: Clock, reporter: "_Reporter", progress: checkpoints.Progress) -> None:
    config = run.config.train
    if progress.step == 0:
        with clock.part("evaluation"):
            untrained = run.test(0)[1]["U"]
        reporter.report("untrained", metrics=untrained, cameras=run.cameras, identities=run.identities)
    else:
        reporter.report("resumed", epoch=progress.epoch, history=reporter.history)
    for epoch in range(progress.epoch, config.epochs):
        with clock.part("steps"):
            losses, rate, steps = run.train_epoch(epoch)
        progress = checkpoints.Progress(epoch + 1, progress.step + steps)
        facts: Event = {"epoch": epoch + 1, "step": progress.step, "losses": losses}
        last = epoch + 1 == config.epochs
        with clock.part("evaluation"):
            if last or (epoch + 1) % config.validate_every == 0:
                if "val" in run.views:
                    facts["validation"] = run.validate()
                if not last:
                    facts["test"] = run.test(epoch + 1)[1]
                run.keep_best(epoch + 1, facts)
        keep = last or (epoch + 1) % config.checkpoint_every == 0
        save = partial(run.save, progress=progress) if keep else None
        reporter.report("epoch", save, learning_rate=rate, **facts)
    with clock.part("evaluation"):
        embeddings, metrics = run.test(config.epochs)
        run.keep_best(config.epochs, {"test": metrics})

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

    def __init__(self, session: Session, clock: Clock, began: float, history: list[Event]) -> None:
        self.session = session
        self.clock = clock
        self.began = began
        self.history = history

    def report(self, event: str, save: Callable[[Path], None] | None = None, **facts: Any) -> None:
        report = to_jsonable_python({"event": event, "began": self.began, "seconds": {}, **facts})
        if event != "resumed":
            self.history.append(report)
        with tempfile.TemporaryDirectory() as folder:
            saves = save is not None and self.session.rank == 0
            if save is not None and saves:
                with self.clock.part("checkpoint"), checkpoints.writing(folder):
                    save(Path(folder))
                    checkpoints.save_history(Path(folder), self.history)
                    write_sums(Path(folder))
            report["seconds"] = self.clock.take()
            with self.clock.part("report"):
                self.session.report(report, Path(folder) if saves else None)


class _Run:
    """The model, its data and its optimiser on one worker."""

    def __init__(self, given: TrainingInput, session: Session) -> None:
        config = given.config
        self.config = config
        self.session = session
        self.rows = rows_of_rank(config.batch.size, session.rank, session.world_size)
        self.device = session.device
        self.autocast = config.train.precision == "bfloat16"
        self.schedule = BatchSchedule(given.views["train"], config)
        self.labels = self.schedule.labels[session.rank]
        self.identities = self.schedule.identities
        own = {"train": self.schedule.shards[session.rank]}
        self.views = {name: open_view(table, own.get(name)) for name, table in given.views.items()}
        self.trained_cameras = given.views["train"].statistics["cameras"]
        self.cameras = max(view.cameras for view in self.views.values())
        clip = load_clip(given.clip)
        model = STMI(config.model, clip, self.identities, self.cameras, config.seed)
        self.model = model.to(self.device).train()
        self.captions: dict[str, torch.Tensor | None] = dict.fromkeys(self.views)
        if config.model.text.fine_tune:
            assert given.captions is not None  # `run_data` refuses views without text where text is on
            self.captions |= caption_tokens(clip.tokenize, given.captions, self.views)
        self.queries: list[pa.Table] = []
        self.best: checkpoints.Best | None = None
        self.take_step = TrainStep(
            self.model,
            config.loss,
            config.optim,
            self.autocast,
            config.train.compile,
            config.train.micro_batches,
            config.train.checkpoint_activations,
        )

    def restore(self) -> tuple[checkpoints.Progress, list[Event]]:
        """Continue from the run's last checkpoint, if any; returns the progress and what was reported."""
        with self.session.checkpoint() as folder:
            if folder is None:
                return checkpoints.Progress(), []
            progress = checkpoints.load(folder, self.model, self.take_step.optimizer)
            self.queries = [checkpoints.load_queries(folder)]
            self.best = checkpoints.load_best(folder)
            return progress, checkpoints.load_history(folder)

    def save(self, folder: Path, progress: checkpoints.Progress) -> None:
        """Write a checkpoint."""
        checkpoints.save(folder, self.model, self.take_step.optimizer, progress)
        checkpoints.save_queries(folder, self.queries)
        if self.best is not None:
            checkpoints.save_best(folder, self.best)

    def keep_best(self, epoch: int, facts: Event) -> None:
        """Keep the weights of an epoch that is the best so far, where the config reports the best one.

        Args:
            epoch: From 1.
            facts: Its metrics on `validation` and on `test`, as far as they were measured.
        """
        report = self.config.report
        chosen = facts.get({"validation": "validation", "best_on_test": "test"}.get(report.epoch, ""))
        if chosen is None:
            return
        value = chosen[report.feature].mean_average_precision
        if self.best is None or value > self.best.value:
            weights = self.model.state_dict() if self.session.rank == 0 else None
            kept = weights and {name: x.detach().cpu().clone() for name, x in weights.items()}
            self.best = checkpoints.Best(epoch, value, kept)

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], float, int]:
        """Train one epoch; returns the mean losses, the last learning rate and the number of steps."""
        config = self.config
        plan = self.schedule.rows(self.session.rank, epoch)
        sums: dict[str, torch.Tensor] = {}
        rate = 0.0
        for step, rows in enumerate(plan):
            # The rate of the middle of the step: neither the first nor the last is zero.
            rate = learning_rate(config.optim, epoch + (step + 0.5) / len(plan), config.train.epochs)
            batch, labels = self._augmented(rows, epoch, step)
            draws = self.model.random_draws(config.seed, epoch, step, config.batch.size, self.rows)
            for name, value in self.take_step(batch, draws, labels, rate).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        losses = {name: (total / len(plan)).item() for name, total in sums.items()}
        if not math.isfinite(losses["total"]):
            raise DivergedError(
                f"the loss of epoch {epoch + 1} is {losses['total']} at learning rate {rate:.3g}; "
                "lower optim.learning_rate, or set optim.gradient_clip"
            )
        return losses, rate, len(plan)

    def validate(self) -> dict[str, FeatureMetrics]:
        """Metrics of each feature on the validation identities."""
        return evaluation.summarise(self._evaluate("val")[1])

    def test(self, epoch: int) -> tuple[dict[str, np.ndarray], dict[str, FeatureMetrics]]:
        """Embeddings of the test view, and the metrics of each feature; the rank of every query is kept."""
        embeddings, scored = self._evaluate("test")
        queries = evaluation.query_table(self.views["test"], scored)
        epochs = pa.array(np.full(len(queries), epoch), pa.int64())
        # The last checkpoint holds the last test, which is repeated where its report was lost.
        earlier = [table.filter(compute.not_equal(table["epoch"], epoch)) for table in self.queries]
        self.queries = [*earlier, queries.append_column("epoch", epochs)]
        return embeddings, evaluation.summarise(scored)

    def _evaluate(self, split: str) -> tuple[dict[str, np.ndarray], dict[str, RetrievalMetrics]]:
        view = self.views[split]
        evaluation.fill_untrained_cameras(self.model, self.trained_cameras)
        embeddings = evaluation.embed(
            self.model, view, self.config.train.evaluation_batch, self.autocast, self.captions[split]
        )
        return embeddings, evaluation.score_each(view, embeddings, self.config.data.junk)

    def _augmented(self, rows: np.ndarray, epoch: int, step: int) -> tuple[ModelInput, torch.Tensor]:
        config = self.config
        batch, captions = self.views["train"].batch(rows), self.captions["train"]
        size = batch.mask.shape[1:]
        geometry = augment.sample_geometry(config.augment, config.batch.size, size, config.seed, epoch, step)
        images, mask = augment.augment(
            torch.from_numpy(batch.pixels).to(self.device),
            torch.from_numpy(batch.mask).to(self.device),
            geometry,
            config.augment.crop_padding,
            self.rows,
            (config.seed, epoch, step),
            config.model.pixels,
        )
        model_input = ModelInput(
            images=images,
            foreground=augment.patch_foreground(mask, self.model.patch_size),
            text=torch.from_numpy(batch.text_feature).to(self.device),
            camera_id=torch.from_numpy(batch.camera_id.astype(np.int64)).to(self.device),
            caption=None if captions is None else captions[torch.from_numpy(rows)].to(self.device),
        )
        return model_input, torch.from_numpy(self.labels[rows]).to(self.device)


def caption_tokens(
    tokenize: Callable[[list[str]], torch.Tensor], captions: Table, views: dict[str, View]
) -> dict[str, torch.Tensor]:
    """Token numbers of the captions of each view's rows, int64 `(rows, context)`."""
    table = captions.read(["sample_index", "caption"])
    tokens = tokenize(table["caption"].to_pylist())
    row_of = {index: row for row, index in enumerate(table["sample_index"].to_pylist())}
    return {split: tokens[[row_of[i] for i in view.sample_index.tolist()]] for split, view in views.items()}
