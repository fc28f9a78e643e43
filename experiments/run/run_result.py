"""The result of a run, read from its journal: metrics of each choice of epoch, losses, and its time."""

import json
from collections.abc import Callable
from typing import Any

from data_catalog.storage import filesystems
from experiments.recipes import ReportConfig
from experiments.run import checkpoints
from experiments.run.run_folder import RunFolder


class RunError(RuntimeError):
    """A run that could not be finished; says why and how to go on."""


class StoppedError(RunError):
    """A run that stopped itself, and would again: its loss diverged, or its data cannot be scored."""


def conclude(folder: RunFolder) -> dict[str, Any]:
    """Make the result of a run whose training has ended, and store it: from then on the run is finished.

    Returns:
        JSON values only: `run`, `status`, `resumed`, `reused`, `metrics` (of the last epoch, by feature),
        `choices` (epoch and metrics of the last, the one chosen on validation, the best on test), `reported`
        (the one that the config calls for), `untrained` (of U), `validation`, `losses` (by epoch),
        `seconds` (by part), `tables`, `config`, `checkpoint`, `folder`.

    Raises:
        StoppedError: The run stopped itself.
    """
    result = _result(folder)
    reported = result["reported"]
    folder.journal.append(
        "finished", seconds=result["seconds"], epoch=reported["epoch"], metrics=reported["metrics"]
    )
    with checkpoints.fetched(result["checkpoint"]) as checkpoint:
        queries = (checkpoint / checkpoints.QUERIES_FILE).read_bytes()
    filesystems.write_atomically(*filesystems.open_root(folder.queries), queries)
    folder.write_result(result)
    return result


def _result(folder: RunFolder) -> dict[str, Any]:
    journal = folder.journal
    events = journal.read()
    start = max(i for i, event in enumerate(events) if event["event"] == "started")
    for event in events[start:]:
        if event["event"] == "stopped":
            raise StoppedError(f"run {folder.name} stopped: {event['error']}")
    test, untrained, epochs = journal.last("test"), journal.last("untrained"), journal.epochs()
    assert test is not None
    assert untrained is not None
    validation = [event for event in epochs if "validation" in event]
    return {
        "run": folder.name,
        "status": "finished",
        "resumed": any(event["event"] == "resumed" for event in events),
        "reused": False,
        "folder": str(folder.path),
        "checkpoint": test["checkpoint"],
        "config": json.loads(folder.config.model_dump_json()),
        "metrics": test["metrics"],
        "untrained": untrained["metrics"],
        "validation": validation[-1]["validation"] if validation else None,
        **_choices(folder.config.report, epochs, test),
        "losses": [{"epoch": event["epoch"], **event["losses"]} for event in epochs],
        "seconds": _seconds(events[start:]),
        "tables": folder.digests,
    }


def choices_of(folder: RunFolder, feature: str) -> dict[str, dict[str, Any] | None]:
    """What `choices` of a finished run would be if another feature were the one that it reports."""
    test = folder.journal.last("test")
    assert test is not None
    report = folder.config.report.model_copy(update={"feature": feature})
    return _choices(report, folder.journal.epochs(), test)["choices"]


def _choices(
    report: ReportConfig, epochs: list[dict[str, Any]], test: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The test metrics of the last epoch, of the one chosen on validation, and of the one best on test.

    Epochs count that were looked at (`train.validate_every`). Where the data set has no validation
    identities, no epoch is chosen by them.
    """
    last = {"epoch": test["epochs"], "metrics": test["metrics"]}
    looked_at = [{"epoch": e["epoch"], "metrics": e["test"]} for e in epochs if "test" in e] + [last]
    validated = {e["epoch"]: e["validation"] for e in epochs if "validation" in e}

    def best(candidates: list[dict[str, Any]], metrics_of: Callable[[dict[str, Any]], Any]) -> Any:
        return max(candidates, key=lambda c: metrics_of(c)[report.feature]["mAP"], default=None)

    choices = {
        "last": last,
        "validation": best(
            [c for c in looked_at if c["epoch"] in validated], lambda c: validated[c["epoch"]]
        ),
        "best_on_test": best(looked_at, lambda c: c["metrics"]),
    }
    chosen = choices[report.epoch] or last
    reported = {
        "feature": report.feature,
        "chosen_by": report.epoch if choices[report.epoch] else "last",
        "epoch": chosen["epoch"],
        "metrics": chosen["metrics"][report.feature],
    }
    return {"choices": choices, "reported": reported}


def _seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time of a start went, by part, and the share that was training and evaluation.

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
