"""How long a run takes on named hardware, from its FLOPs and the capabilities in `hardware.yaml`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, TypeAdapter

from data_catalog.records import Record
from experiments.experiment_config import ConfigError

HARDWARE = Path(__file__).with_name("hardware.yaml")
SHOWN_BY_DEFAULT = ("A100-80GB", "RTX-4090", "T4", "Xeon-2-cores")

USABLE_MEMORY = 0.9
"""Share of the memory that a plan may use: the rest is for the runtime and the allocator's waste."""

Precision = Literal["bfloat16", "float32"]
Kind = Literal["gpu", "processor"]


class Hardware(BaseModel):
    """One entry of `hardware.yaml`, which explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind
    memory_gib: PositiveFloat
    peak_flops: dict[Precision, PositiveFloat]
    utilisation: float = Field(gt=0, le=1)
    source: str = Field(min_length=1)


class ExpectedTime(Record):
    """What a run takes on named hardware: a GPU for each worker, or one machine whose CPUs all workers share.

    The start of the workers, the exchange of gradients, checkpoints and ranking are not included.
    """

    name: str
    kind: Kind
    source: str
    """Where the peak comes from."""
    peak_flops: float
    """FLOP/s of one device in the run's precision."""
    utilisation: float
    """Assumed share of the peak."""
    step_seconds: float
    seconds: float
    """Seconds of the run, evaluation included."""
    gpu_hours: float
    """0 on CPUs."""
    memory_bytes: int
    """Memory of one device."""
    needed_bytes: int
    """On one device."""
    fits: bool
    """Whether the usable part of the memory suffices."""


@dataclass(frozen=True)
class Workload:
    """What a run computes.

    Attributes:
        steps: Optimisation steps of the whole run.
        batch: Samples of a step, over all workers.
        step_flops: FLOPs of a training step, for one sample.
        embedded: Samples that evaluation embeds in the whole run.
        forward_flops: FLOPs of embedding one sample.
        workers: Number of workers.
        precision: Precision of the network.
        peak_bytes: Peak memory of a worker.
        gpus_per_worker: Of a GPU's time and memory; workers share one where it is a fraction.
    """

    steps: int
    batch: int
    step_flops: int
    embedded: int
    forward_flops: int
    workers: int
    precision: Precision
    peak_bytes: int
    gpus_per_worker: float = 1.0


@cache
def known_hardware() -> dict[str, Hardware]:
    """Every entry of `hardware.yaml` by name."""
    read = yaml.safe_load(HARDWARE.read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, Hardware]).validate_python(read)


def find_hardware(name: str) -> Hardware:
    """The hardware with this name.

    Raises:
        ConfigError: It is not known.
    """
    known = known_hardware()
    if name not in known:
        raise ConfigError(f"hardware {name!r} is not known; use one of {', '.join(known)}, or --calibrate")
    return known[name]


def expect_time(workload: Workload, name: str) -> ExpectedTime:
    """What a run takes on named hardware.

    Raises:
        ConfigError: The hardware is not known.
    """
    hardware = find_hardware(name)
    is_gpu = hardware.kind == "gpu"
    # Workers that share a GPU share its speed; one worker cannot use more than one.
    devices = workload.workers * min(1.0, workload.gpus_per_worker) if is_gpu else 1
    peak = hardware.peak_flops[workload.precision]
    rate = devices * peak * hardware.utilisation
    step = workload.batch * workload.step_flops / rate
    seconds = workload.steps * step + workload.embedded * workload.forward_flops / rate
    memory = round(hardware.memory_gib * 2**30)
    sharing = max(1, int(1 / workload.gpus_per_worker)) if is_gpu else workload.workers
    needed = workload.peak_bytes * min(sharing, workload.workers)
    gpus = workload.workers * workload.gpus_per_worker if is_gpu else 0
    return ExpectedTime(
        name=name,
        kind=hardware.kind,
        source=hardware.source,
        peak_flops=peak,
        utilisation=hardware.utilisation,
        step_seconds=step,
        seconds=seconds,
        gpu_hours=gpus * seconds / 3600,
        memory_bytes=memory,
        needed_bytes=needed,
        fits=needed <= USABLE_MEMORY * memory,
    )
