"""The life of a run: prepare, begin, train, conclude, log. Scripts, trials and studies all call `run`."""

import gc
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial

from data_catalog.errors import CatalogError, NotWritableError, StorageAwayError
from data_catalog.progress import ShowProgress, open_progress
from data_catalog.ray_failures import describe_failure
from experiments.experiment_config import ExperimentConfig
from experiments.run import checkpoints, run_figures
from experiments.run.conclusion import conclude
from experiments.run.config_checks import check_batches
from experiments.run.initial_weights import as_file
from experiments.run.micro_batches import (
    OUT_OF_MEMORY,
    StepMemoryError,
    more_micro_batches,
    with_micro_batches,
    with_noted_micro_batches,
)
from experiments.run.run_description import code_version, describe_run, note_start, other_code_digests
from experiments.run.run_folder import INITIAL_FILE, RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import (
    FailedRunError,
    InterruptedRunError,
    LoggedRunResult,
    RunError,
    status_after,
)
from experiments.run.run_tables import RunTables
from experiments.run.stop_request import StopRequest, stopping_on_sigterm
from experiments.run.workers.ray_train import check_cluster, train_on_workers
from experiments.run.workers.training_input import TrainingInput
from experiments.tracking.event_files import event_files_written
from experiments.tracking.journal import INTERRUPTED, Event, Journal, current_epochs
from experiments.tracking.mlflow_logger import MlflowLogger
from experiments.tracking.polling import polling

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
REMOTE_POLL_SECONDS = 2.0
"""Each look into a journal in object storage is a request."""
LOG_SECONDS = 5.0

OnReport = Callable[[Event], None]
"""Called with each report of a worker, as the journal stores it."""


class BusyError(RunError):
    """Another process trains the run."""


def run(
    config: ExperimentConfig,
    tables: RunTables,
    options: RunOptions,
    *,
    threads: int | None = None,
    on_report: OnReport = lambda facts: None,
    patience_seconds: float = 0.0,
) -> LoggedRunResult:
    """Finish a run: train it, continue it where it was interrupted, or find it finished.

    Args:
        config: The run's settings, already checked against its tables.
        tables: What it reads.
        options: Where it is kept and logged, and what its workers get.
        threads: CPUs for the only worker of a run, which then trains in this process; None to train on Ray
            Train's workers, as several always do.
        on_report: Called first with the epochs of earlier starts, then with each new report.
        patience_seconds: How long to wait for another process that trains this run and makes no progress.

    Returns:
        The result; `mlflow` is None unless the run was logged.

    Raises:
        StoppedError: The run stopped itself.
        InterruptedRunError: It was asked to stop.
        BusyError: Another process trains the run.
        StorageAwayError: The storage was away for too long.
        FailedRunError: The workers failed more often than a run survives, or a step has too little memory.
    """
    folder = RunFolder.of(options.workspace, config, tables, options.storage)
    try:
        return _run(folder, tables, options, threads, on_report, patience_seconds)
    except NotWritableError as error:
        if not folder.is_finished:
            raise
        logger.warning("run %s is shown, and MLflow is not brought up to date: %s", folder.name, error)
        return LoggedRunResult(**dict(folder.finished_result) | {"reused": True, "mlflow": folder.mlflow})


def _run(
    folder: RunFolder,
    tables: RunTables,
    options: RunOptions,
    threads: int | None,
    on_report: OnReport,
    patience_seconds: float,
) -> LoggedRunResult:
    with _claimed(folder, patience_seconds):
        is_reused, is_trained = folder.is_finished, folder.trained
        checkpoint = None if is_trained else folder.last_checkpoint
        if not is_trained:
            # The nodes of a trial were checked by its study, which also logs it.
            if threads is None and options.tracking_uri is not None:
                check_cluster(options.needed_folders(trials=False))
            _begin(folder, tables, checkpoint, deterministic=options.deterministic)
        for epoch in folder.journal.epochs():
            # An earlier process may have been killed before it called `on_report`.
            on_report(epoch)
        with _logged(folder, options) as mlflow_logger, _event_file_written(folder, options):
            if not is_trained:
                with _observed(folder, mlflow_logger), stopping_on_sigterm(folder.checkpoints):
                    given = _training_input(folder, tables, options, checkpoint)
                    _train(given, folder, options, threads, on_report)
                    _refuse_interrupted(folder)
            if not is_reused:
                conclude(folder)
        logged = None if mlflow_logger is None else mlflow_logger.logged_run
        return LoggedRunResult(**dict(folder.finished_result) | {"reused": is_reused, "mlflow": logged})


def train_first_steps(
    config: ExperimentConfig, tables: RunTables, options: RunOptions, threads: int, stops: tuple[int, ...]
) -> RunFolder:
    """Train the first steps of a run, and leave it at that; its folder has the losses and checkpoints.

    Args:
        config: As in `run`; so are the other two.
        tables: What it reads.
        options: Where it is kept.
        threads: CPUs of each worker.
        stops: Steps, from 1, after which a checkpoint is taken; the last one is the last.
    """
    folder = RunFolder.of(options.workspace, config, tables, options.storage)
    with _claimed(folder, 0.0):
        _begin(folder, tables, None, deterministic=options.deterministic)
        with stopping_on_sigterm(folder.checkpoints):
            given = replace(_training_input(folder, tables, options, None), stops=stops, threads=threads)
            _train(given, folder, options, threads, lambda facts: None)
    return folder


@contextmanager
def _claimed(folder: RunFolder, patience_seconds: float) -> Iterator[None]:
    """Hold the right to train a run; wait for another process that has it as long as it makes progress."""
    known, since = folder.journal.size, time.monotonic()

    def wait() -> bool:
        nonlocal known, since
        if folder.journal.size != known:
            known, since = folder.journal.size, time.monotonic()
        return time.monotonic() - since < patience_seconds

    busy = BusyError(
        f"run {folder.name} is being trained by another process; wait for it, then run the same command again"
    )
    with folder.claimed(busy, wait):
        yield


def _begin(folder: RunFolder, tables: RunTables, checkpoint: str | None, *, deterministic: bool) -> None:
    """Write into the journal which code begins the run, or goes on with it, and what is odd in its data.

    Checkpoints that a killed process has not completed are removed.
    """
    for name in folder.checkpoints.list_folders():
        if name.endswith(checkpoints.PARTIAL):
            (folder.checkpoints / name).delete()
    note_start(folder.journal, epoch=folder.epoch_of(checkpoint), deterministic=deterministic)
    warnings = [
        {"check": finding.check, "message": finding.message, "samples": len(finding.rows)}
        for finding in (*tables.warnings, *check_batches(folder.config, tables))
    ]
    folder.journal.append("checks", warnings=warnings)
    if tables.initial is not None and checkpoint is None:
        folder.write(INITIAL_FILE, as_file(tables.initial.weights))
        folder.journal.append("initialised", **tables.initial.facts.model_dump(mode="json"))


def _training_input(
    folder: RunFolder, tables: RunTables, options: RunOptions, checkpoint: str | None
) -> TrainingInput:
    return TrainingInput(
        config=folder.config,
        views=tables.views,
        captions=tables.captions,
        clip=folder.config.clip_source,
        checkpoint=checkpoint,
        skips_not_finite=options.skips_not_finite,
        deterministic=options.deterministic,
        initial=None if tables.initial is None else folder.location,
        stop_folders=tuple(filter(None, (folder.checkpoints, options.study))),
    )


def _train(
    given: TrainingInput, folder: RunFolder, options: RunOptions, threads: int | None, on_report: OnReport
) -> None:
    """Train a run to its end, with more micro-batches after a step that runs out of memory."""
    config = given.config
    if options.raises_micro_batches:
        config = with_noted_micro_batches(config, folder.journal)
    while True:
        given = replace(given, config=config)
        try:
            if threads is None or config.train.workers > 1:
                _train_on_workers(given, folder, options, on_report)
            else:
                _train_here(given, folder, options, threads, on_report)
            return
        except StepMemoryError as error:
            number = more_micro_batches(config, options.fewest_workers)
            if number is None or not options.raises_micro_batches:
                refusal = FailedRunError(
                    f"run {folder.name} failed: {error}; {_memory_remedy(config, number)}"
                )
                with suppress(NotWritableError):
                    folder.journal.append("failed", error=str(refusal), detail=error.reason)
                raise refusal from None
            facts = {"step": error.step, "micro_batches": number, "reason": error.reason}
        # The error is gone, and what its frames held with it.
        gc.collect()
        folder.journal.append(OUT_OF_MEMORY, **facts)
        logger.warning(
            "run %s: step %d ran out of memory (%s); it goes on from the last checkpoint with "
            "train.micro_batches=%d",
            *(folder.name, facts["step"], facts["reason"], number),
        )
        config = with_micro_batches(config, number)
        given = replace(given, checkpoint=folder.last_checkpoint)


def _memory_remedy(config: ExperimentConfig, number: int | None) -> str:
    """What helps a run that cannot train a step, with its next number of micro-batches."""
    if number is not None:
        return (
            f"set train.micro_batches={number}, or let it find the number with --on-memory double: it goes "
            "on from its last checkpoint, to the same result up to rounding"
        )
    more = "" if config.train.checkpoint_activations else "set train.checkpoint_activations=on, "
    return f"no smaller micro-batches divide its samples evenly; {more}lower batch.size, or use more workers"


def _train_on_workers(
    given: TrainingInput, folder: RunFolder, options: RunOptions, on_report: OnReport
) -> None:
    events = folder.journal.read()
    reported, failures = len(current_epochs(events)), len(_failures(events))

    def report_news() -> None:
        nonlocal reported, failures
        events = folder.journal.read()
        for facts in current_epochs(events)[reported:]:
            on_report(facts)
            reported += 1
        for event in _failures(events)[failures:]:
            failures += 1
            reasons = "; ".join(dict.fromkeys(event["reasons"].values()))
            logger.warning(
                "run %s lost workers (%s); it goes on from the last checkpoint once there is room",
                *(folder.name, reasons),
            )

    # Ray Train's controller, another process, writes the journal.
    with polling(report_news, _poll_seconds(folder)):
        train_on_workers(given, folder, options)
    # Ray Train has deleted the old ones of this start alone. Without a new one the others are still needed.
    if any(event.get("checkpoint") for event in folder.journal.read()[len(events) :]):
        folder.delete_old_checkpoints()


def _train_here(
    given: TrainingInput, folder: RunFolder, options: RunOptions, threads: int, on_report: OnReport
) -> None:
    import torch  # noqa: PLC0415 - takes seconds, which a run on workers does not need here

    from experiments.run.workers.session import OwnProcessSession  # noqa: PLC0415
    from experiments.run.workers.training_loop import train  # noqa: PLC0415

    is_accelerated = torch.cuda.is_available() and options.gpus_per_worker != 0
    device = torch.device("cuda" if is_accelerated else "cpu")
    try:
        stop_request = StopRequest(*given.stop_folders)
        train(given, OwnProcessSession(folder, threads, device, on_report, given.checkpoint, stop_request))
    except (StepMemoryError, StorageAwayError):
        # The journal of the latter may lie there, too, and would be waited for once more.
        raise
    except Exception as error:
        # The disk of the journal may be full, which is the reason then.
        with suppress(NotWritableError):
            folder.journal.append("failed", error=describe_failure(error), detail=traceback.format_exc())
        raise


def _failures(events: list[Event]) -> list[Event]:
    """After which it goes on: what ends the run is its error."""
    return [event for event in events if event["event"] == "worker_failed" and event.get("goes_on", True)]


def _refuse_interrupted(folder: RunFolder) -> None:
    """Raise an error where the training ended because it was asked to."""
    last = folder.journal.read()[-1]
    if last["event"] == INTERRUPTED:
        step = last["step"]
        where = f"after step {step}, of which it has a checkpoint" if step else "before its first step"
        raise InterruptedRunError(
            f"run {folder.name} was stopped by SIGTERM {where}; run the same command again to continue"
        )


@contextmanager
def _logged(folder: RunFolder, options: RunOptions) -> Iterator[MlflowLogger | None]:
    """Log a run to MLflow meanwhile, and close it there at the end, with its files and figures.

    Yields:
        The logger; None where others log the run.
    """
    if options.tracking_uri is None:
        yield None
        return
    _warn_of_other_code(folder)
    mlflow_logger = MlflowLogger(options.tracking_uri, folder, options.workspace, describe_run(folder))
    try:
        yield mlflow_logger
        figures = run_figures.find_pictures(folder) or run_figures.draw_all(folder, folder.finished_result)
        files = [*figures, *folder.files]
    except BaseException as error:
        mlflow_logger.finish(*_ended_early(folder, error))
        raise
    mlflow_logger.finish("FINISHED", files)


def _ended_early(folder: RunFolder, error: BaseException) -> tuple[str, list[str]]:
    """MLflow's status of a run that an error ends, and the files that it can be sent."""
    try:
        return "FINISHED" if folder.is_finished else status_after(error), folder.files
    except CatalogError:
        return status_after(error), []


def _warn_of_other_code(folder: RunFolder) -> None:
    if others := other_code_digests(folder):
        what = "was finished" if folder.is_finished else "was begun"
        logger.warning(
            "run %s %s by other code (digest %s, now %s); move its folder away to train it anew",
            *(folder.name, what, ", ".join(others), code_version()["code.digest"]),
        )


def _event_file_written(folder: RunFolder, options: RunOptions) -> AbstractContextManager[None]:
    """Write TensorBoard's event file meanwhile, where it is asked for."""
    if not options.writes_event_files:
        return nullcontext()
    return event_files_written(lambda: {folder: folder.config.flat()})


@contextmanager
def _observed(folder: RunFolder, mlflow_logger: MlflowLogger | None) -> Iterator[None]:
    """Show the progress in the journal and log it to MLflow meanwhile, unless others do."""
    if mlflow_logger is None:
        yield
        return
    epochs, done = folder.config.train.epochs, len(folder.journal.epochs())
    with (
        open_progress("starting workers", "epoch", epochs, done, line_each=True) as show,
        polling(partial(_show, folder.journal, show), _poll_seconds(folder)),
        # In a thread of its own: a server that hangs must not stop the bar. `finish` logs the end.
        polling(mlflow_logger.sync, LOG_SECONDS, final_call=False),
    ):
        yield


def _poll_seconds(folder: RunFolder) -> float:
    return POLL_SECONDS if folder.is_local else REMOTE_POLL_SECONDS


def _show(journal: Journal, show: ShowProgress) -> None:
    events = journal.epochs()
    if not events:
        return
    validated = [event["validation"]["U"]["mAP"] for event in events if "validation" in event]
    text = f"loss={events[-1]['losses']['total']:.3f}"
    text += f", validation mAP={validated[-1]:.1%}" if validated else ""
    show(len(events), text, "training")
