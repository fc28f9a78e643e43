"""What every worker of a run does: train, validate, checkpoint, report; on one process or many."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute

from data_catalog.storage.folders import Folder
from data_catalog.tables.table import Table
from data_catalog.views.joined_view import JoinedView
from data_catalog.views.view_reader import View, open_view
from experiments.run import checkpoints, evaluation
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.initial_weights import load_initial
from experiments.run.micro_batches import naming_step
from experiments.run.progress import Progress
from experiments.run.run_result import FeatureMetrics
from experiments.run.run_tables import (
    count_cameras,
    junk_rule,
    number_cameras,
    split_name,
    split_names,
    training_views,
)
from experiments.run.stop_request import StopRequestedError
from experiments.run.workers.batch_input import BatchInput
from experiments.run.workers.checkpoint_schedule import CheckpointSchedule, Due
from experiments.run.workers.determinism import deterministic_algorithms
from experiments.run.workers.loss_check import DivergedError, LossCheck
from experiments.run.workers.reporter import Clock, Reporter
from experiments.run.workers.session import Session
from experiments.run.workers.slow_worker import worker_times
from experiments.run.workers.training_input import TrainingInput
from experiments.tracking.journal import INTERRUPTED, Event
from stmi.clip.loading import load_clip
from stmi.kernels.host_memory import keep_freed_memory
from stmi.model import STMI, trained_features
from stmi.retrieval.metrics import RetrievalError, RetrievalMetrics
from stmi.training.batch_plan import rows_of_rank
from stmi.training.losses import losses_without_gradient
from stmi.training.schedule import learning_rate
from stmi.training.train_step import HYPEREDGE_PREFIX, TrainStep


def train(given: TrainingInput, session: Session) -> None:
    """One worker's whole run, from the last checkpoint on; the results are reported."""
    with deterministic_algorithms() if given.deterministic else nullcontext(set[str]()) as lacking:
        _train_from_checkpoint(given, session, lacking)


def _train_from_checkpoint(given: TrainingInput, session: Session, not_deterministic: Set[str]) -> None:
    began, clock = time.time(), Clock()
    with clock.part("setup"):
        torch.set_num_threads(session.threads)
        keep_freed_memory()
        run = _Run(given, session)
        progress, history = run.restore()
    reporter = Reporter(session, clock, began, history, not_deterministic)
    schedule = CheckpointSchedule(given.config.train, session, given.stops)
    try:
        with session.stop_request.watched() if session.rank == 0 else nullcontext():
            _train(run, reporter, progress, schedule)
    except StopRequestedError:
        # Before the first step there is nothing to keep; in the last test, the last checkpoint has it all.
        if progress.in_epoch:
            reporter.store("checkpoint", partial(run.take_checkpoint, progress), **progress.position())
        reporter.report(INTERRUPTED, **progress.position(), step_losses=progress.step_losses())
    except (DivergedError, RetrievalError) as error:
        # Every worker gets the same error, and would get it again: a retry does not help.
        reporter.report("stopped", error=str(error), **getattr(error, "failed_step", {}))
    finally:
        session.wait()


def _train(run: "_Run", reporter: Reporter, progress: Progress, schedule: CheckpointSchedule) -> None:
    config, clock = run.config.train, reporter.clock
    if progress.step == 0:
        with clock.part("evaluation"):
            untrained = run.test(0)
            others = run.measure_others("test")
        reporter.report(
            "untrained",
            metrics=untrained.metrics["U"],
            **_others(others),
            hyperedges=_hyperedges({"test": untrained}, others),
            cameras=run.cameras,
            identities=run.identities,
            workers=run.session.world_size,
            threads=run.session.threads,
            processes=run.processes(),
        )
    else:
        reporter.report("resumed", **progress.position(), processes=run.processes(), history=reporter.history)
    take = partial(run.take_checkpoint, progress)
    while progress.epoch < config.epochs:
        own_seconds, due = run.own_seconds, Due.NOTHING
        with clock.part("steps"):
            for is_last in run.train_epoch(progress, clock):
                due = schedule.after_step(progress.step)
                if due is Due.STOP:
                    run.loss_check.check(progress)
                    raise StopRequestedError
                # After the last step the epoch's evaluation comes first.
                if due is Due.CHECKPOINT and not is_last:
                    run.loss_check.check(progress)
                    reporter.store("checkpoint", take, **progress.position())
            run.loss_check.check(progress)
        facts: Event = {
            **run.means(progress),
            "step_losses": progress.step_losses(),
            "learning_rate": progress.rate,
            "skipped": [run.loss_check.failed_step(progress, index) for index in progress.skipped],
            **worker_times(run.session, run.own_seconds - own_seconds),
        }
        epoch = progress.epoch + 1
        last = epoch == config.epochs
        with clock.part("evaluation"):
            if last or epoch % config.validate_every == 0:
                measured = {"validation": run.validate()} if run.validates else {}
                measured |= {} if last else {"test": run.test(epoch)}
                facts |= {split: one.metrics for split, one in measured.items()}
                run.keep_best(epoch, facts)
                others = run.measure_others(*(["val"] if last else ["val", "test"]))
                facts["hyperedges"] |= _hyperedges(measured, others)
                facts |= _others(others)
        progress.end_epoch()
        reporter.report("epoch", **progress.position(), **facts)
        if schedule.after_epoch(progress.epoch, due):
            reporter.store("checkpoint", take, **progress.position())
    with clock.part("evaluation"):
        tested = run.test(config.epochs)
        others = run.measure_others("test")
        run.keep_best(config.epochs, {"test": tested.metrics})
    reporter.store(
        "test",
        partial(take, embeddings=tested.embeddings),
        metrics=tested.metrics,
        **_others(others),
        hyperedges=_hyperedges({"test": tested}, others),
        epochs=config.epochs,
    )


@dataclass(frozen=True)
class _Measured:
    """A view, embedded and scored.

    Attributes:
        embeddings: As `evaluation.Embedded` has them; so is `hyperedges`.
        metrics: By feature.
        hyperedges: None without a hypergraph.
    """

    embeddings: dict[str, np.ndarray]
    metrics: dict[str, FeatureMetrics]
    hyperedges: dict[str, float] | None


_Others = dict[str, dict[str, _Measured]]
"""The data sets beside the first one, by name and split."""


def _others(others: _Others) -> Event:
    """The metrics of the other data sets, by data set, split and feature, as events have them."""
    measured = {
        name: {split: one.metrics for split, one in own.items()} for name, own in others.items() if own
    }
    return {"datasets": measured} if measured else {}


def _hyperedges(measured: Mapping[str, _Measured], others: _Others) -> Event:
    """What the hyperedges are like: of the first data set by split, of the others as `test/NAME`."""
    named = dict(measured)
    named |= {f"{split}/{name}": one for name, own in others.items() for split, one in own.items()}
    return {split: one.hyperedges for split, one in named.items() if one.hyperedges}


class _Run:
    """The model, its data and its optimiser on one worker."""

    def __init__(self, given: TrainingInput, session: Session) -> None:
        config = given.config
        self.config = config
        self.initial = given.initial
        self.session = session
        self.rows = rows_of_rank(config.batch.size, session.rank, session.world_size)
        self.device = session.device
        self.autocast = config.train.precision == "bfloat16"
        datasets = config.data.names
        self.schedule = BatchSchedule(training_views(given.views, datasets), config, session.world_size)
        self.labels = self.schedule.labels[session.rank]
        self.identities = self.schedule.identities
        own = self.schedule.shards[session.rank]
        views = {
            name: open_view(table, own if split_name(name)[0] == "train" else None)
            for name, table in given.views.items()
        }
        self.views = split_names(views, datasets)
        numbers = number_cameras(given.views, datasets)
        self.first_cameras = {name: own.start for name, own in numbers.items()}
        self.cameras = count_cameras(given.views, datasets)
        self.trained_cameras = [
            numbers[name].start + camera
            for name, own in self.views.items()
            for camera in own["train"].table.statistics["cameras"]
            if camera >= 0
        ] or [0]
        self.train_view = JoinedView(
            [own["train"] for own in self.views.values()], list(self.first_cameras.values())
        )
        clip = load_clip(given.clip)
        model = STMI(config.model, clip, self.identities, self.cameras, config.seed)
        self.model = model.to(self.device).train()
        self.captions: dict[str, dict[str, torch.Tensor]] = {}
        captions = None
        if config.model.text.fine_tune:
            # `run_data` refuses views without text where text is on.
            self.captions = {
                name: caption_tokens(clip.tokenize, given.captions[name], own)
                for name, own in self.views.items()
            }
            captions = torch.cat([own["train"] for own in self.captions.values()]).numpy()
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
            given.skips_not_finite,
        )
        self.input = BatchInput(config, self.model, self.train_view, self.labels, captions, self.rows)
        self.input_seconds = 0.0
        self.loss_check = LossCheck(self.schedule, self.train_view, session, given.skips_not_finite)

    @property
    def own_seconds(self) -> float:
        """Time that this worker has taken for its rows of all steps, without its waiting for the others."""
        return self.input_seconds + self.take_step.global_loss.own_seconds

    def processes(self) -> list[Event]:
        """Where the workers of this start run, by rank: `host` and `pid`."""
        return self.session.gather({"host": socket.gethostname(), "pid": os.getpid()})

    def restore(self) -> tuple[Progress, list[Event]]:
        """Continue from the run's last checkpoint, if any; returns the progress and what was reported."""
        with self.session.checkpoint() as folder:
            if folder is None:
                if self.initial is not None:
                    load_initial(self.model, Folder(self.initial))
                return Progress(), []
            progress = checkpoints.load(folder, self.model, self.take_step.optimizer)
            self.queries = [checkpoints.load_queries(folder)]
            self.best = checkpoints.load_best(folder)
            return progress, checkpoints.load_history(folder)

    def take_checkpoint(
        self, progress: Progress, history: list[Event], embeddings: dict[str, np.ndarray] | None = None
    ) -> checkpoints.Checkpoint:
        """Copy the state of the run to memory."""
        # So that the weights after a step do not depend on whether it was evaluated.
        evaluation.fill_untrained_cameras(self.model, self.trained_cameras)
        taken = checkpoints.take(self.model, self.take_step.optimizer, progress)
        return checkpoints.Checkpoint(*taken, list(self.queries), self.best, history, embeddings)

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

    def train_epoch(self, progress: Progress, clock: Clock) -> Iterator[bool]:
        """Train the rest of an epoch; yields after each step, counted by `progress`, if it is the last."""
        config, epoch = self.config, progress.epoch
        plan = self.schedule.rows(self.session.rank, epoch)
        inputs = self.input.steps(plan, epoch, progress.in_epoch)
        for step in range(progress.in_epoch, len(plan)):
            # The rate of the middle of the step: neither the first nor the last is zero.
            rate = learning_rate(config.optim, epoch + (step + 0.5) / len(plan), config.train.epochs)
            with naming_step(progress.step + 1, config, self.session.world_size):
                began = time.perf_counter()
                with clock.part("input"):
                    given = next(inputs)
                self.input_seconds += time.perf_counter() - began
                losses = self.take_step(given.batch, given.draws, given.labels, rate)
            self.loss_check.count(progress, losses, rate, len(plan))
            yield step + 1 == len(plan)

    def means(self, progress: Progress) -> Event:
        """The means of the epoch so far: of losses, of those that train nothing, of the hyperedges."""
        means = progress.means()
        start = HYPEREDGE_PREFIX
        hyperedges = {n.removeprefix(start): value for n, value in means.items() if n.startswith(start)}
        features = trained_features(self.config.model)
        text = self.config.model.text.fine_tune
        idle = losses_without_gradient(self.config.loss, features, trains_text=text)
        return {
            "losses": {n: x for n, x in means.items() if not n.startswith(start) and n not in idle},
            "losses_without_gradient": {name: means[name] for name in idle},
            "hyperedges": {"train": hyperedges} if hyperedges else {},
        }

    @property
    def validates(self) -> bool:
        """Whether the (first) data set has validation identities."""
        return "val" in self.views[self.config.data.dataset]

    def validate(self) -> _Measured:
        """The validation identities."""
        return self._measure(self.config.data.dataset, "val")

    def test(self, epoch: int) -> _Measured:
        """The test view; the rank of every query is kept."""
        view, embedded, scored = self._evaluate(self.config.data.dataset, "test")
        queries = evaluation.query_table(view, scored)
        epochs = pa.array(np.full(len(queries), epoch), pa.int64())
        # The last checkpoint holds the last test, which is repeated where its report was lost.
        earlier = [table.filter(compute.not_equal(table["epoch"], epoch)) for table in self.queries]
        self.queries = [*earlier, queries.append_column("epoch", epochs)]
        return _Measured(embedded.features, evaluation.summarise(scored), embedded.hyperedges)

    def measure_others(self, *splits: str) -> "_Others":
        """The data sets beside the first one.

        Args:
            splits: `val` and `test`; each data set counts as far as it has them.
        """
        return {
            name: {
                {"val": "validation"}.get(split, split): self._measure(name, split)
                for split in splits
                if split in self.views[name]
            }
            for name in self.config.data.names[1:]
        }

    def _measure(self, dataset: str, split: str) -> _Measured:
        _, embedded, scored = self._evaluate(dataset, split)
        return _Measured(embedded.features, evaluation.summarise(scored), embedded.hyperedges)

    def _evaluate(
        self, dataset: str, split: str
    ) -> tuple[View, evaluation.Embedded, dict[str, RetrievalMetrics]]:
        view, captions = self.views[dataset][split], self.captions.get(dataset, {}).get(split)
        evaluation.fill_untrained_cameras(self.model, self.trained_cameras)
        rows = JoinedView([view], [self.first_cameras[dataset]])
        batch = self.config.train.evaluation_batch
        embedded = evaluation.embed(
            self.model, rows, batch, self.autocast, captions, before_batch=self._refuse_stop
        )
        junk = junk_rule(self.config.data, view.table)
        return view, embedded, evaluation.score_each(view, embedded.features, junk)

    def _refuse_stop(self) -> None:
        if self.session.agree(int(self.session.stop_request.is_made)):
            raise StopRequestedError


def caption_tokens(
    tokenize: Callable[[list[str]], torch.Tensor], captions: Table, views: dict[str, View]
) -> dict[str, torch.Tensor]:
    """Token numbers of the captions of each view's rows, int64 `(rows, context)`."""
    table = captions.read(["sample_index", "caption"])
    tokens = tokenize(table["caption"].to_pylist())
    row_of = {index: row for row, index in enumerate(table["sample_index"].to_pylist())}
    return {split: tokens[[row_of[i] for i in view.sample_index.tolist()]] for split, view in views.items()}
