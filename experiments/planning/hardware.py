"""How long a run takes on named hardware, from its FLOPs: `hardware.yaml` says what each kind can do."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, TypeAdapter

from experiments.recipes import ConfigError

HARDWARE = Path(__file__).with_suffix(".yaml")
SHOWN_BY_DEFAULT = ("A100-80GB", "RTX-4090", "T4", "Xeon-2-cores")

USABLE_MEMORY = 0.9
"""Share of the memory that a run may plan with: the rest is for the runtime and the allocator's waste."""

Precision = Literal["bfloat16", "float32"]


class Hardware(BaseModel):
    """One entry of `hardware.yaml`, which says what the fields mean."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["gpu", "processor"]
    memory_gib: PositiveFloat
    peak_flops: dict[Precision, PositiveFloat]
    utilisation: float = Field(gt=0, le=1)
    source: str = Field(min_length=1)


@cache
def known_hardware() -> dict[str, Hardware]:
    """Every entry of `hardware.yaml` by name."""
    read = yaml.safe_load(HARDWARE.read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, Hardware]).validate_python(read)


def hardware_of(name: str) -> Hardware:
    """The hardware of this name.

    Raises:
        ConfigError: It is not known.
    """
    known = known_hardware()
    if name not in known:
        raise ConfigError(f"hardware {name!r} is not known; use one of {', '.join(known)}, or --calibrate")
    return known[name]


@dataclass(frozen=True)
class Work:
    """What a run computes.

    Attributes:
        steps: Optimisation steps of the whole run.
        batch: Samples of a step, over all workers.
        step_flops: Of a training step, for one sample.
        embedded: Samples that evaluation embeds in the whole run.
        forward_flops: Of embedding one sample.
        workers: How many share the work.
        precision: Of the network.
        peak_bytes: The most that a worker holds at one time.
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


def expect(work: Work, name: str) -> dict[str, Any]:
    """What a run takes on named hardware: a GPU for each worker, or one machine whose processor all share.

    Starting the workers, exchanging gradients, checkpoints and ranking are not counted.

    Returns:
        `name`, `kind`, `source`, `peak_flops`, `utilisation` (assumed), `step_seconds`, `seconds` (of the
        run, evaluation included), `gpu_hours` (0 on a processor), `memory_bytes` (of a device),
        `needed_bytes` (on it) and `fits` (in its usable part).

    Raises:
        ConfigError: The hardware is not known.
    """
    hardware = hardware_of(name)
    is_gpu = hardware.kind == "gpu"
    # A GPU that several workers share is as fast as ever; one worker cannot use more than one.
    devices = work.workers * min(1.0, work.gpus_per_worker) if is_gpu else 1
    peak = hardware.peak_flops[work.precision]
    rate = devices * peak * hardware.utilisation
    step = work.batch * work.step_flops / rate
    seconds = work.steps * step + work.embedded * work.forward_flops / rate
    memory = round(hardware.memory_gib * 2**30)
    sharing = max(1, int(1 / work.gpus_per_worker)) if is_gpu else work.workers
    needed = work.peak_bytes * min(sharing, work.workers)
    return {
        "name": name,
        "kind": hardware.kind,
        "source": hardware.source,
        "peak_flops": peak,
        "utilisation": hardware.utilisation,
        "step_seconds": step,
        "seconds": seconds,
        "gpu_hours": work.workers * work.gpus_per_worker * seconds / 3600 if is_gpu else 0.0,
        "memory_bytes": memory,
        "needed_bytes": needed,
        "fits": needed <= USABLE_MEMORY * memory,
    }
