"""Whether a recorded run comes out again: its first steps are trained anew and held against its journal."""

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from data_catalog.records import Record
from data_catalog.storage.folders import Folder
from experiments.evaluating.evaluation_target import find_captions
from experiments.experiment_config import ConfigError
from experiments.run.elastic_workers import with_worker_count
from experiments.run.initial_weights import stored_initial
from experiments.run.lifecycle import train_first_steps
from experiments.run.micro_batches import OUT_OF_MEMORY, with_noted_micro_batches
from experiments.run.run_description import environment, other_code_digests
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import FailedRunError, InterruptedRunError
from experiments.run.run_tables import RunTables, training_views
from experiments.tracking.journal import Event, Journal


class StepDifference(Record):
    """Where a run and its repetition first differ."""

    step: int
    """From 1."""
    what: Literal["loss", "weights"]
    """The loss before the step, or the digest of the weights after it."""
    recorded: float | str | None
    """None for a loss that was not finite."""
    found: float | str | None


class Verification(Record):
    """The first steps of a recorded run, held against those of its repetition."""

    run: str
    verified: bool
    """Whether every loss and all recorded weights are equal, to the last bit."""
    steps: int
    workers: int
    threads: int
    """CPUs of each worker."""
    equal_losses: int
    largest_difference: float
    """Of a loss that is finite in both, over the recorded one."""
    weights: dict[int, bool]
    """Steps whose weights were recorded, and whether they are equal."""
    first_difference: StepDifference | None
    notes: tuple[str, ...]
    """What differs between then and now: code, machine."""


def verify(run: RunFolder, steps: int, options: RunOptions) -> Verification:
    """Train the first steps of a recorded run anew, on as many workers as began it, and compare.

    Args:
        run: The recorded run, finished or not.
        steps: Number of steps.
        options: Whose workspace the repetition has for a while, in a folder of its own.

    Raises:
        ConfigError: The run has no record of so many steps.
        CatalogError: Its tables are not there.
        InterruptedRunError: SIGTERM ended the repetition.
        FailedRunError: A loss of the repetition is not finite, and was.
    """
    recorded, weights = step_losses(run.journal), step_weights(run.journal)
    start = run.journal.last("untrained") or {}
    if "threads" not in start or not recorded:
        raise ConfigError(
            f"run {run.name} has no record of the loss of each step: an older version began it, or it has "
            "not come to the end of an epoch; train it anew, or further"
        )
    most, why = min((len(recorded), "has that many on record"), _steps_until_resize(run, start["workers"]))
    if not 1 <= steps <= most:
        raise ConfigError(f"--steps={steps}: expected 1 to {most}, for run {run.name} {why}")
    stops = tuple(sorted({step for step in weights if step <= steps} | {steps}))
    tables = _tables(run)
    with _scratch(options) as own:
        config = with_worker_count(with_noted_micro_batches(run.config, run.journal), start["workers"])
        # A run that left out batches without a finite loss does so again.
        skips = None in [recorded[step] for step in range(1, steps + 1)]
        deterministic = run.journal.find("started").get("deterministic", False)
        given = replace(own, skips_not_finite=skips, deterministic=deterministic)
        again = train_first_steps(config, tables, given, start["threads"], stops)
        found, found_weights = step_losses(again.journal), step_weights(again.journal)
        stopped = again.journal.last("stopped")
    if stopped is not None:
        raise FailedRunError(
            f"the repetition of run {run.name} stopped itself, which the run did not within {steps} steps: "
            f"{stopped['error']}"
        )
    if len(found) < steps:
        raise InterruptedRunError(
            f"the repetition of run {run.name} was stopped by SIGTERM after step {len(found)}; run the same "
            "command again"
        )
    pairs = [(step, recorded[step], found[step]) for step in range(1, steps + 1)]
    ratios = [
        abs(now - then) / max(abs(then), 1e-12)
        for _, then, now in pairs
        if then is not None and now is not None
    ]
    compared = [step for step in stops if step in weights and step in found_weights]
    different: list[tuple[int, Literal["loss", "weights"], float | str | None, float | str | None]] = [
        (step, "loss", then, now) for step, then, now in pairs if then != now
    ]
    different += [
        (step, "weights", weights[step], found_weights[step])
        for step in compared
        if weights[step] != found_weights[step]
    ]
    # The loss of a step is that before it, the weights are those after it.
    first = min(different, key=lambda one: one[:2], default=None)
    return Verification(
        run=run.name,
        verified=first is None,
        steps=steps,
        workers=start["workers"],
        threads=start["threads"],
        equal_losses=sum(then == now for _, then, now in pairs),
        largest_difference=max(ratios, default=0.0),
        weights={step: weights[step] == found_weights[step] for step in compared},
        first_difference=first
        and StepDifference(step=first[0], what=first[1], recorded=first[2], found=first[3]),
        notes=tuple(_differences(run)),
    )


def _steps_until_resize(run: RunFolder, workers: int) -> tuple[int, str]:
    """After how many steps a run went on with another number of workers, and how to say so."""
    for event in run.journal.read():
        if "processes" in event and len(event["processes"]) != workers:
            return event.get("step", 0), f"went on with {len(event['processes'])} workers then"
    return sys.maxsize, ""


def step_losses(journal: Journal) -> dict[int, float | None]:
    """The total loss of each step, counted from 1, as far as it was recorded without a gap.

    None is a loss that was not finite.
    """
    events = [*journal.epochs(), *filter(None, [journal.last("interrupted")])]
    losses: dict[int, float | None] = {}
    for event in events:
        own = event.get("step_losses", [])
        first = event["step"] - len(own) + 1
        losses |= {first + number: loss for number, loss in enumerate(own)}
    return {step: losses[step] for step in range(1, len(losses) + 1) if step in losses}


def step_weights(journal: Journal) -> dict[int, str]:
    """The digest of the weights after each step that has a checkpoint."""
    stored = [event for event in journal.read() if event["event"] == "checkpoint"]
    return {event["step"]: event["weights"] for event in stored if "weights" in event}


def _tables(run: RunFolder) -> RunTables:
    """The tables that a run read, found again."""
    views = {split: run.view(split) for split in run.splits}
    captions = {}
    if run.config.model.text.fine_tune:
        training = training_views(views, run.config.data.names)
        captions = {view.manifest.dataset: find_captions(view) for view in training}
    for split, view in views.items():
        if view.digest != run.digests[f"view/{split}"]:
            raise ConfigError(
                f"view {view.path} is not the one that run {run.name} read: its digest differs; name the "
                "catalog that has it with --catalog"
            )
    return RunTables(views, captions, run.digests, initial=stored_initial(run))


@contextmanager
def _scratch(options: RunOptions) -> Iterator[RunOptions]:
    """Options for a workspace of its own in that of others, which all nodes reach; removed at the end."""
    folder = Folder(options.workspace.file(f".verification-{uuid.uuid4().hex[:8]}"))
    try:
        yield replace(options, workspace=folder, storage=None, tracking_uri=None)
    finally:
        folder.delete()


def _differences(run: RunFolder) -> Iterator[str]:
    if others := other_code_digests(run):
        yield f"other code trained it (digest {', '.join(others)})"
    if (shortage := run.journal.last(OUT_OF_MEMORY)) is not None:
        yield (
            f"step {shortage['step']} ran out of memory: steps before it may have had fewer micro-batches, "
            f"where all have {shortage['micro_batches']} here"
        )
    started: Event = run.journal.last("started") or {}
    then, now = started.get("environment", {}), environment()
    facts: list[tuple[str, Any, Any]] = [
        (name, then.get(name), now[name]) for name in ("python", "platform", "processors", "accelerators")
    ]
    facts.append(("torch", then.get("packages", {}).get("torch"), now["packages"]["torch"]))
    for name, old, new in facts:
        if old != new:
            yield f"{name} was {old}, is {new}"
