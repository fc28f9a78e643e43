"""The settings of a run: every option, checked before any long work starts."""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from data_catalog.records import FOLDER_NAME, NO_FOLDER_NAME
from data_catalog.synthetic import Kind, SyntheticSettings
from stmi.clip.clip_files import find_clip
from stmi.config import (
    LARGEST_COUNT,
    LARGEST_SEED,
    AugmentConfig,
    BatchConfig,
    ChiConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Section,
)


class ConfigError(ValueError):
    """A setting that is unknown or impossible, named by its dotted path."""


class DataConfig(Section):
    """Which tables a run reads."""

    dataset: str = Field(description="Name of the data set in the catalog.")
    datasets: tuple[str, ...] = Field(
        (),
        description="Data sets to train on together, for example [rgbnt201,msvr310], in place of "
        "data.dataset, which is then the first of them. All are evaluated; the headline, and the choice of "
        "an epoch, are the first one's.",
    )
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (),
        description="Share of each of data.datasets in the identities of the batches, for example [0.5,0.5]; "
        "empty for their numbers of training identities. An epoch ends with the first of them that does.",
    )
    synthetic: SyntheticSettings | None = Field(
        None, description="Settings of the embedded benchmark; its tables are made where they are missing."
    )
    junk: Literal["camera", "scene", "none"] = Field(
        "camera",
        description="What a gallery sample of the query's identity shares with it to be junk; with none, and "
        "without cameras, only the query itself is. Of data.datasets it holds for the first; for each other "
        "one it is the scene where its samples have scenes, else the camera.",
    )
    placement: Literal["replicated", "by_identity"] = Field(
        "replicated",
        description="Every worker reads the whole training view, or only shards of identities of its own, so "
        "that no node need hold them all; then the batches, and so the result, depend on train.workers.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets, the first one first; one where there are no several."""
        return self.datasets or (self.dataset,)

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, given: Any) -> Any:
        several = given.get("datasets") if isinstance(given, dict) else None
        return given | {"dataset": several[0]} if several and isinstance(several, (list, tuple)) else given

    @field_validator("dataset")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(FOLDER_NAME, name):
            raise ValueError(f"data.dataset={name!r}: {NO_FOLDER_NAME}")
        return name

    @model_validator(mode="after")
    def _several(self) -> Self:
        if self.datasets:
            given = f"data.datasets=[{','.join(self.datasets)}]"
            for name in self.datasets:
                if not re.fullmatch(FOLDER_NAME, name):
                    raise ValueError(f"{given}: {name!r} {NO_FOLDER_NAME}")
            if len(set(self.datasets)) < max(2, len(self.datasets)):
                raise ValueError(f"{given}: expected two or more different ones; for one, set data.dataset")
            if self.placement == "by_identity":
                raise ValueError(
                    f"{given} goes with data.placement=replicated, not by_identity: every worker reads all "
                    "of them"
                )
        if self.shares and (len(self.shares) != len(self.datasets) or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(
                f"data.shares={list(self.shares)}: expected one number for each of data.datasets "
                f"({len(self.datasets)}), which add up to 1"
            )
        return self

    @model_validator(mode="after")
    def _synthetic_name(self) -> Self:
        if self.synthetic is not None and self.datasets:
            kinds = [f"synthetic_{kind}" for kind in get_args(Kind)]
            if others := sorted(set(self.datasets) - set(kinds)):
                raise ValueError(
                    f"data.datasets: data.synthetic renders {' and '.join(kinds)}, not {', '.join(others)}; "
                    "set data.synthetic=null, for tables that are in the catalog"
                )
            if self.dataset != f"synthetic_{self.synthetic.kind}":
                raise ValueError(
                    f"data.datasets: the first is {self.dataset}, but data.synthetic.kind="
                    f"{self.synthetic.kind}; set data.synthetic.kind="
                    f"{self.dataset.removeprefix('synthetic_')}"
                )
        # Rendered samples must not be mixed with those of a real data set.
        if self.synthetic is not None and self.dataset != (name := f"synthetic_{self.synthetic.kind}"):
            raise ValueError(
                f"data.dataset={self.dataset}, but data.synthetic renders {name}; set data.dataset={name}, "
                "or data.synthetic=null for a data set of your own"
            )
        return self

    def alone(self, name: str) -> "DataConfig":
        """What a run on one of the data sets has, with its own part of the embedded benchmark."""
        if not self.datasets:
            return self
        synthetic = self.synthetic
        if synthetic is not None:
            synthetic = synthetic.model_copy(update={"kind": name.removeprefix("synthetic_")})
        alone = {"dataset": name, "datasets": (), "shares": (), "synthetic": synthetic}
        return self.model_copy(update=alone)


UNDECIDING = {"micro_batches", "checkpoint_activations", "checkpoint_steps", "checkpoint_minutes"}
"""Settings of `train` that do not decide the result: where memory and time go."""
ADDED_TO_DATA = ("datasets", "shares")
ADDED_TO_CHI = ("neighbours", "density", "exclude_text_copies")
"""Settings of `data` and of `model.chi` that older versions did not have."""


class TrainConfig(Section):
    """How long, on how many workers, and how often to validate."""

    epochs: int = Field(50, ge=1, le=LARGEST_COUNT, description="Passes over the training identities.")
    workers: int = Field(
        1,
        ge=1,
        le=LARGEST_COUNT,
        description="Data-parallel workers; the result depends on it only where data.placement=by_identity.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Precision of the network; losses are float32."
    )
    compile: bool = Field(
        False, description="Compile the training step's network: faster after a minute or so at the start."
    )
    micro_batches: int = Field(
        1,
        ge=1,
        description="Parts in which a worker's samples of a batch pass the network: less memory, the time of "
        "one more forward pass, and the same result up to rounding.",
    )
    checkpoint_activations: bool = Field(
        False,
        description="Compute the towers' layers again in the backward pass instead of keeping their "
        "activations: less memory, the time of one more forward pass, and the same result.",
    )
    validate_every: int = Field(
        5,
        ge=1,
        le=LARGEST_COUNT,
        description="Epochs between evaluations on the validation (and test) identities.",
    )
    checkpoint_every: int = Field(1, ge=1, le=LARGEST_COUNT, description="Epochs between checkpoints.")
    checkpoint_steps: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Steps between further checkpoints, also within an epoch; null for none.",
    )
    checkpoint_minutes: float | None = Field(
        None, gt=0, description="Minutes between further checkpoints, also within an epoch; null for none."
    )
    evaluation_batch: int = Field(
        128, ge=1, le=LARGEST_COUNT, description="Samples a worker embeds at a time."
    )


class ReportConfig(Section):
    """Which of the measured numbers is the run's headline; all are measured and kept."""

    feature: Literal["U", "G", "T", "RGB", "NIR", "TIR", "GTTT"] = Field(
        "U",
        description="The feature that the headline ranks by. GTTT is what the released code compares "
        "vehicles by: class tokens and three times T.",
    )
    epoch: Literal["last", "validation", "best_on_test"] = Field(
        "last",
        description="The epoch that the headline is of: the last one, the one best on validation identities, "
        "or the one best on test, which the released code reports and which flatters.",
    )


class ExperimentConfig(Section):
    """Everything that decides the result of a run, beside the tables it reads."""

    recipe: str = Field(description="Name of the recipe; chosen with --recipe.")
    seed: int = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        description="Another seed gives other initial weights, batches, augmentation and dropout.",
    )
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _across_sections(self) -> Self:
        if self.batch.size % self.train.workers:
            fitting = [n for n in range(1, self.batch.size + 1) if self.batch.size % n == 0][:8]
            raise ValueError(
                f"train.workers={self.train.workers} does not divide batch.size={self.batch.size}; "
                f"use one of {', '.join(map(str, fitting))}, or another batch.size"
            )
        share = self.batch.size // self.train.workers
        if share % self.train.micro_batches:
            raise ValueError(
                f"train.micro_batches={self.train.micro_batches} does not divide the {share} samples of a "
                f"worker (batch.size={self.batch.size}, train.workers={self.train.workers}); use one of "
                f"{', '.join(str(n) for n in range(1, share + 1) if share % n == 0)}"
            )
        identities = self.batch.size // self.batch.samples_per_identity
        if self.data.placement == "by_identity" and identities % self.train.workers:
            raise ValueError(
                f"data.placement=by_identity: train.workers={self.train.workers} does not divide the "
                f"{identities} identities of a batch (batch.size={self.batch.size}, "
                f"batch.samples_per_identity={self.batch.samples_per_identity}); use another batch.size or "
                "number of workers, or data.placement=replicated"
            )
        if self.optim.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.optim.warmup_epochs} is more than train.epochs="
                f"{self.train.epochs}; warm up for fewer"
            )
        if self.report.feature in ("T", "GTTT") and not self.model.text.enabled:
            raise ValueError(
                f"report.feature={self.report.feature} needs the text, but model.text is off; "
                "use one of U, G, RGB, NIR, TIR"
            )
        return self

    def deciding(self) -> dict[str, Any]:
        """All settings that decide the result, dumped; the others may change from start to start of a run.

        A setting that older versions did not have is left out at its default: their runs keep their names.
        """
        same = {name for name in ADDED_TO_CHI if getattr(self.model.chi, name) == getattr(ChiConfig(), name)}
        unset = {name for name in ADDED_TO_DATA if not getattr(self.data, name)}
        settings = self.model_dump(
            mode="json", exclude={"train": UNDECIDING, "data": unset, "model": {"chi": same}}
        )
        if self.data.synthetic is not None:
            settings["data"]["synthetic"] = self.data.synthetic.deciding()
        return settings

    @property
    def clip_source(self) -> str:
        """The run's CLIP as workers find it: a folder (relative to here, or to the project), or a name."""
        return find_clip(self.model.clip.source)

    def by_dataset(self) -> "dict[str, ExperimentConfig]":
        """For each data set, the first one first, the config of a run that reads the same tables of it."""
        return {name: self.model_copy(update={"data": self.data.alone(name)}) for name in self.data.names}

    def flat(self) -> dict[str, Any]:
        """Every setting by its full dotted name (`model.sfm.perturbation`), as `--set` takes it."""
        return _flatten(self.model_dump(mode="json"))


def full_name(text: str) -> str:
    """The full dotted name of a setting, for one whose `model.` was left out.

    Older versions stored and printed names without it, and people may leave it out: `sfm.perturbation` is
    `model.sfm.perturbation`. What follows the name (`=0.2`) stays as it is.
    """
    first = re.match(r"\w*", text.strip())
    assert first is not None
    return f"model.{text.strip()}" if first[0] in ModelConfig.model_fields else text


SettingName = Annotated[str, BeforeValidator(full_name)]
"""A setting's full dotted name; those that older versions stored are read as such."""


def differences(one: ExperimentConfig, other: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configs differ, by full name, each with both values; the recipe's name aside."""
    ours, theirs = one.flat(), other.flat()
    return {
        name: (ours.get(name), theirs.get(name))
        for name in [*ours, *(name for name in theirs if name not in ours)]
        if name != "recipe" and ours.get(name) != theirs.get(name)
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def parse(tree: dict[str, Any]) -> ExperimentConfig:
    """A config from its dumped form.

    Raises:
        ConfigError: Names the first setting that is wrong, its value and what was expected.
    """
    try:
        return ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        # Rules across fields name the fields themselves.
        is_rule = first["type"] == "value_error"
        raise ConfigError(message if is_rule else f"{name}={first['input']!r:.80}: {message}") from None
