"""How long a study takes on a number of devices, what it costs, and where the time goes.

The runs are assigned as Ray Tune does it: in their order, each as soon as there is room for it.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from data_catalog.records import Record
from experiments.experiment_config import ConfigError
from experiments.planning.expected_time import Kind, Workload, expect_time, find_hardware

START_SECONDS = 60.0
"""ASSUMED, from the start of a run to its first step: its process, Ray's workers, CLIP, the first kernels."""
MACHINE_SECONDS = 600.0
"""ASSUMED, from asking for a machine of a cloud until it takes work: it starts, and installs the packages."""


@dataclass(frozen=True)
class RunLeft:
    """What is left to do of a run.

    Attributes:
        workload: Workload of the whole run.
        share: Of it, still to do: 1 for a run that has not begun, 0 for a finished one.
    """

    workload: Workload
    share: float


class Assumptions(Record):
    """What the times and prices of a plan are made from, beside the peak and its share of each hardware."""

    start_seconds: float = START_SECONDS
    """From the start of a run to its first step."""
    machine_seconds: float = MACHINE_SECONDS
    """From asking for a machine until it takes work."""
    price: float | None = None
    """Price of a device in an hour, in any currency."""


class StudyTime(Record):
    """What the runs that are left take on a number of devices, all of which are paid until the last run ends.

    Not included: the exchange of gradients, checkpoints, ranking, and what a spot machine takes with it.
    """

    hardware: str
    kind: Kind
    devices: int
    """GPUs; or machines, where the runs train on CPUs."""
    utilisation: float
    """Assumed share of the peak."""
    at_once: int
    """Runs that there is room for."""
    seconds: float
    """From asking for the machines to the end of the last run."""
    device_hours: float
    """All that is paid: the sum of the next five."""
    training_hours: float
    evaluation_hours: float
    run_start_hours: float
    machine_start_hours: float
    idle_hours: float
    """Devices for which no run is left, while others still train."""
    price: float | None
    """Price of the device-hours."""


def expect_study_time(
    runs: Sequence[RunLeft], hardware: str, devices: int, assumed: Assumptions
) -> StudyTime:
    """What the runs of a study take on a number of devices.

    Args:
        runs: In the order in which they start.
        hardware: Name in `hardware.yaml`.
        devices: Number of devices.
        assumed: Start-up and price.

    Raises:
        ConfigError: The hardware is not known, or a run needs more devices than that.
    """
    kind = find_hardware(hardware).kind
    left = [run for run in runs if run.share > 0]
    each = devices_of_run(runs, hardware)
    at_once = int(devices / each + 1e-9)
    if at_once < 1:
        raise ConfigError(
            f"--devices {devices}: a run needs {each:g} of {hardware}; ask for more, or for fewer --workers"
        )
    training = evaluation = 0.0
    lengths = []
    for run in left:
        expected = expect_time(run.workload, hardware)
        trained = run.share * run.workload.steps * expected.step_seconds
        training += trained
        evaluation += run.share * expected.seconds - trained
        lengths.append(assumed.start_seconds + run.share * expected.seconds)
    seconds = (assumed.machine_seconds if left else 0.0) + _end_of_last(lengths, at_once)
    total = devices * seconds
    machines = devices * assumed.machine_seconds if left else 0.0
    used = [each * part for part in (training, evaluation, assumed.start_seconds * len(left))]
    idle = max(0.0, total - sum(used) - machines)  # rounding can make it less than nothing: "-0%"
    hours = [part / 3600 for part in (*used, machines, idle)]
    return StudyTime(
        hardware=hardware,
        kind=kind,
        devices=devices,
        utilisation=find_hardware(hardware).utilisation,
        at_once=at_once,
        seconds=seconds,
        device_hours=total / 3600,
        training_hours=hours[0],
        evaluation_hours=hours[1],
        run_start_hours=hours[2],
        machine_start_hours=hours[3],
        idle_hours=hours[4],
        price=None if assumed.price is None else assumed.price * total / 3600,
    )


def devices_of_run(runs: Sequence[RunLeft], hardware: str) -> float:
    """How many devices a run holds; on CPUs all its workers share one machine."""
    if find_hardware(hardware).kind == "processor":
        return 1.0
    return max(run.workload.workers * run.workload.gpus_per_worker for run in runs)


def _end_of_last(lengths: Sequence[float], at_once: int) -> float:
    """When the last of some runs ends, each of which starts as soon as there is room."""
    free = [0.0] * at_once
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)
