"""How a run ends: its journal becomes its result, with metrics of each choice of epoch, losses and times."""

import logging
from collections.abc import Sequence
from typing import Any

from data_catalog.storage.folders import Folder
from experiments.experiment_config import ReportConfig
from experiments.run.micro_batches import OUT_OF_MEMORY
from experiments.run.run_folder import QUERIES_FILE, RunFolder
from experiments.run.run_result import (
    DEGENERATE,
    DatasetMetrics,
    EpochChoices,
    EpochMetrics,
    InitialFacts,
    ReportedEpoch,
    RunResult,
    StoppedError,
)
from experiments.run.run_tables import split_name
from experiments.tracking.journal import Event
from stmi import checkpoint_files

logger = logging.getLogger(__name__)


def conclude(folder: RunFolder) -> RunResult:
    """Make the result of a run whose training has ended, and store it: from then on the run is finished.

    Raises:
        StoppedError: The run stopped itself.
    """
    result = _result(folder)
    assert result.reported is not None
    reported = result.reported.model_dump(mode="json")
    facts: Event = {"seconds": result.seconds, "epoch": reported["epoch"], "metrics": reported["metrics"]}
    if result.datasets:
        dumped = result.model_dump(mode="json")["datasets"]
        facts["datasets"] = {name: own["reported"] for name, own in dumped.items()}
    if (warning := hyperedge_warning(result)) is not None:
        logger.warning("run %s: %s", folder.name, warning)
        known = [found["check"] for found in _warnings(folder)]
        facts["tags"] = {"stmi.warnings": ", ".join(sorted({*known, DEGENERATE})), DEGENERATE: warning}
    folder.journal.append("finished", **facts)
    folder.write(QUERIES_FILE, Folder(result.checkpoint).read(checkpoint_files.QUERIES_FILE))
    folder.write_result(result)
    return result


def _result(folder: RunFolder) -> RunResult:
    journal = folder.journal
    journal.find("started")
    events = journal.read()
    start = max(i for i, event in enumerate(events) if event["event"] == "started")
    for event in events[start:]:
        if event["event"] == "stopped":
            raise StoppedError(f"run {folder.name} stopped: {event['error']}")
    test, untrained, epochs = journal.find("test"), journal.find("untrained"), journal.epochs()
    validation = [event for event in epochs if "validation" in event]
    choices = find_choices(folder, folder.config.report.feature)
    hyperedges = [event.get("hyperedges", {}) for event in (*epochs, test)]
    result = RunResult(
        run=folder.name,
        resumed=any(event["event"] == "resumed" for event in events),
        folder=folder.location,
        checkpoint=folder.find_checkpoint(test["checkpoint"]),
        config=folder.config.model_dump(mode="json"),
        metrics=test["metrics"],
        untrained=untrained["metrics"],
        validation=validation[-1]["validation"] if validation else None,
        choices=choices,
        reported=_reported(folder.config.report, choices),
        losses=tuple({"epoch": event["epoch"], **event["losses"]} for event in epochs),
        losses_without_gradient=tuple(
            {"epoch": event["epoch"], **idle}
            for event in epochs
            if (idle := event.get("losses_without_gradient"))
        ),
        hyperedges={split: facts for event in hyperedges for split, facts in event.items()},
        seconds=seconds_by_part(events[start:]),
        tables=folder.digests,
        initial=None if (initial := journal.last("initialised")) is None else InitialFacts.of(initial),
        notes=(*(found["message"] for found in _warnings(folder)), *_shortage(folder)),
    )
    result = result.model_copy(update={"datasets": _by_dataset(folder, result)})
    warning = hyperedge_warning(result)
    return result if warning is None else result.model_copy(update={"notes": (*result.notes, warning)})


def hyperedge_warning(result: RunResult) -> str | None:
    """What is wrong with the hyperedges of a run on the test identities of its data sets, or None."""
    warnings = [
        warning if split == "test" else f"{split_name(split)[1]}: {warning}"
        for split, facts in result.hyperedges.items()
        if split_name(split)[0] == "test" and (warning := facts.warning) is not None
    ]
    return "; ".join(warnings) or None


def degenerate_runs(folders: Sequence[RunFolder]) -> tuple[str, ...]:
    """How many of the finished runs have hypergraphs that do nothing, in a sentence; none where none has."""
    results = [result for folder in folders if (result := folder.result) is not None]
    warnings = [warning for result in results if (warning := hyperedge_warning(result)) is not None]
    return (f"{len(warnings)} of {len(results)} finished runs: {warnings[0]}.",) if warnings else ()


def _warnings(folder: RunFolder) -> list[dict[str, Any]]:
    """What the checks of the data warned of when the run began."""
    return (folder.journal.last("checks") or {"warnings": []})["warnings"]


def _shortage(folder: RunFolder) -> tuple[str, ...]:
    """A note that a step of a run ran out of memory, if one did."""
    if (shortage := folder.journal.last(OUT_OF_MEMORY)) is None:
        return ()
    step, number = shortage["step"], shortage["micro_batches"]
    return (f"step {step} ran out of memory, and training went on with train.micro_batches={number}",)


def find_choices(folder: RunFolder, feature: str) -> EpochChoices:
    """The test metrics of the last epoch, of the one chosen on validation, and of the one best on test.

    Only epochs that were evaluated count (`train.validate_every`). Where the data set has no validation
    identities, no epoch is chosen on them.

    Args:
        folder: A run whose training has ended.
        feature: The feature that chooses; a run's own result has the choices of the feature that it reports.
    """
    epochs, test = folder.journal.epochs(), folder.journal.find("test")
    last = EpochMetrics(epoch=test["epochs"], metrics=test["metrics"])
    tested = [EpochMetrics(epoch=e["epoch"], metrics=e["test"]) for e in epochs if "test" in e] + [last]
    validated = {e["epoch"]: e["validation"][feature]["mAP"] for e in epochs if "validation" in e}
    return EpochChoices(
        last=last,
        validation=max(
            (one for one in tested if one.epoch in validated),
            key=lambda one: validated[one.epoch],
            default=None,
        ),
        best_on_test=max(tested, key=lambda one: one.metrics[feature].mean_average_precision),
    )


def _by_dataset(folder: RunFolder, result: RunResult) -> dict[str, DatasetMetrics]:
    """The metrics of each data set of a run on several; of none for a run on one."""
    reported, datasets = result.reported, folder.config.data.datasets
    if not datasets or reported is None:
        return {}
    journal = folder.journal
    events = [*journal.epochs(), journal.find("test"), journal.find("untrained")]
    first = DatasetMetrics(
        metrics=result.metrics,
        untrained=result.untrained,
        validation=result.validation,
        reported=reported.metrics,
    )
    found = {datasets[0]: first}
    *epochs, test, untrained = [event.get("datasets", {}) for event in events]
    for name in test:
        tested = {
            event["epoch"]: own[name]["test"]
            for event, own in zip(events, epochs, strict=False)
            if "test" in own.get(name, {})
        } | {events[-2]["epochs"]: test[name]["test"]}
        validated = [own[name]["validation"] for own in epochs if "validation" in own.get(name, {})]
        found[name] = DatasetMetrics(
            metrics=test[name]["test"],
            untrained=untrained[name]["test"]["U"],
            validation=validated[-1] if validated else None,
            reported=tested[reported.epoch][reported.feature],
        )
    return found


def _reported(report: ReportConfig, choices: EpochChoices) -> ReportedEpoch:
    wanted = choices.get(report.epoch)
    chosen = wanted or choices.last
    return ReportedEpoch(
        feature=report.feature,
        chosen_by=report.epoch if wanted else "last",
        epoch=chosen.epoch,
        metrics=chosen.metrics[report.feature],
    )


def seconds_by_part(events: list[Event]) -> dict[str, float]:
    """Where the time of one start of a run went, and the share that was training and evaluation.

    Args:
        events: From the "started" event on.
    """
    started = events[0]["time"]
    reports = [event for event in events if event.get("began", 0) > started]
    if not reports:
        # The clock of the workers' machine is behind this one's.
        began = [event["began"] for event in events if "began" in event][-1]
        reports = [event for event in events if event.get("began") == began]
    # Workers that crash come back; what they did before is lost time, the rest is counted by part.
    last = [event for event in reports if event["began"] == reports[-1]["began"]]
    parts: dict[str, float] = {}
    for event in last:
        for name, value in event["seconds"].items():
            parts[name] = parts.get(name, 0.0) + value
    began, ended = last[0]["began"], last[-1]["time"]
    working = parts.get("steps", 0.0) + parts.get("evaluation", 0.0)
    return {
        "start_workers": max(0.0, reports[0]["began"] - started),
        "failed_attempts": began - reports[0]["began"],
        **parts,
        "other": ended - began - sum(parts.values()),
        "workers": ended - began,
        "share_in_steps_and_evaluation": working / (ended - reports[0]["began"]),
        "total": ended - started,
    }
