"""What a run costs: its parameters, the FLOPs of a sample, and the memory of a worker.

The run's own model and training step are measured with fake tensors, which have a shape and no content, so
the largest model takes a few seconds and no memory.
"""

from dataclasses import dataclass

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from data_catalog.records import Record
from experiments.experiment_config import ExperimentConfig
from experiments.planning.dry_run import DryRun, untrained_clip
from experiments.planning.flop_counts import PARTS, Flops, count_flops, with_small_batch
from experiments.planning.memory_use import Memory, measure_memory
from experiments.run.config_checks import check_settings
from experiments.run.micro_batches import with_micro_batches
from stmi.clip.loading import LoadedClip
from stmi.model import STMI


class ParameterCount(Record):
    """How many parameters a part has."""

    total: int
    trained: int
    frozen: int

    @classmethod
    def from_modules(cls, *modules: nn.Module | None) -> "ParameterCount":
        """The parameters of some modules; None has none."""
        values = [value for module in modules if module is not None for value in module.parameters()]
        trained = sum(value.numel() for value in values if value.requires_grad)
        total = sum(value.numel() for value in values)
        return cls(total=total, trained=trained, frozen=total - trained)


class ModelParameters(ParameterCount):
    """How many parameters a model has."""

    by_part: dict[str, ParameterCount]
    """The frozen text tower is included, although training does not load it."""


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        parameters: Parameters of the model.
        flops: FLOPs of one sample.
        memory: Memory of one worker.
    """

    parameters: ModelParameters
    flops: Flops
    memory: Memory


def measure_cost(config: ExperimentConfig, identities: int, cameras: int) -> Cost:
    """Measure what a run costs; reads no weights and no data.

    Args:
        config: The run.
        identities: Number of training identities.
        cameras: Number of cameras of the data set.

    Raises:
        ClipFileError: The architecture of the CLIP is unknown.
        ConfigError: The config does not fit it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = untrained_clip(config)
        check_settings(config, clip)
        model = STMI(config.model, clip, identities, cameras, config.seed)
        length = clip.model.context_length
        flops = count_flops(DryRun(with_small_batch(config), model, length), clip)
        model.zero_grad(set_to_none=True)
        return Cost(_count_parameters(model, clip), flops, measure_memory(DryRun(config, model, length)))


def measure_micro_batches(config: ExperimentConfig, identities: int, cameras: int, number: int) -> Memory:
    """Measure the memory of a worker of the same run with another number of micro-batches."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = untrained_clip(config)
        model = STMI(config.model, clip, identities, cameras, config.seed)
        return measure_memory(DryRun(with_micro_batches(config, number), model, clip.model.context_length))


def _count_parameters(model: STMI, clip: LoadedClip) -> ModelParameters:
    parts = {part: ParameterCount.from_modules(getattr(model, module)) for part, module in PARTS.items()}
    if model.text_tower is None:
        # The temperature of CLIP's own training belongs to neither tower.
        frozen = sum(
            value.numel()
            for name, value in clip.model.named_parameters()
            if not name.startswith("visual.") and name != "logit_scale"
        )
        parts["text_tower"] = ParameterCount(total=frozen, trained=0, frozen=frozen)
    total, trained = sum(part.total for part in parts.values()), sum(part.trained for part in parts.values())
    return ModelParameters(total=total, trained=trained, frozen=total - trained, by_part=parts)
