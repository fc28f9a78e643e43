"""A run whose number of workers changes with the cluster: a node is lost, and comes back."""

import signal

import psutil
import pytest

from experiments import recipes
from experiments.command_line import COME_AGAIN_STATUS
from experiments.evaluating.verification import step_losses
from experiments.tracking.journal import Journal
from tests.tolerances import ROUNDING_FLOAT32
from tests.two_hosts.conftest import RECIPE, SETTINGS, train_alone

LONG = ("train.epochs=1000", "train.validate_every=1000", "optim.learning_rate=0.00001")
"""More epochs than are trained until the node is back, in which rounding must not grow."""


class EnoughError(Exception):
    """Ends the run of one process."""


def test_run_goes_on_without_a_lost_node_and_with_it_once_it_is_back(
    hosts, options, clip, local_workspace, tmp_path
):
    given = ["--storage", hosts.store.uri("elastic"), *(part for text in LONG for part in ("--set", text))]
    process = hosts.spawn(hosts.first, "train.py", *options, *given, "--workers", "1-2")

    def journal():
        """What the run's journal says, copied from the disk of the first host."""
        copy = tmp_path / "journal.jsonl"
        for path in hosts.first.path("runs", "train").rglob("journal.jsonl"):
            copy.write_bytes(path.read_bytes())
        return Journal(copy)

    def has_workers(*counts):
        """Whether the starts of the run had so many workers, and the last one has trained an epoch."""
        events = journal().read()
        starts = [len(event["processes"]) for event in events if "processes" in event]
        return starts == list(counts) and events[-1]["event"] == "checkpoint"

    hosts.wait(process, lambda: has_workers(2))
    hosts.kill_raylet(hosts.second)
    hosts.wait(process, lambda: has_workers(2, 1))
    hosts.start_node(hosts.second)
    hosts.wait(process, lambda: has_workers(2, 1, 2))
    # The process itself is that of `nsenter`, which would end, and leave the script alone.
    (script,) = psutil.Process(process.pid).children()
    script.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == COME_AGAIN_STATUS
    losses = step_losses(journal())
    assert losses == pytest.approx(
        alone(clip, local_workspace, tmp_path / "alone", len(losses)), rel=ROUNDING_FLOAT32
    )


def alone(clip, workspace, runs, steps):
    """The losses of the same run in one process."""

    def end(facts):
        if facts["event"] == "epoch" and facts["step"] >= steps:
            raise EnoughError

    settings = [*SETTINGS, f"model.clip.source={clip}", *LONG]
    with pytest.raises(EnoughError):
        train_alone(recipes.resolve(RECIPE, settings), workspace, runs, end)
    (path,) = runs.glob("train/*/journal.jsonl")
    found = step_losses(Journal(path))
    return {step: found[step] for step in range(1, steps + 1)}
