"""Named recipes: sets of settings, and how one of them is changed."""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from data_catalog.synthetic import Kind, SyntheticSettings
from experiments.experiment_config import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    ReportConfig,
    TrainConfig,
    full_name,
    parse,
)
from stmi.config import (
    AugmentConfig,
    BatchConfig,
    ChiConfig,
    ClipConfig,
    FusionConfig,
    ImageSize,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SfmConfig,
    StrConfig,
    Switch,
)

ROOT = Path(__file__).resolve().parents[1]
WORKSPACE = os.path.expanduser(os.environ.get("STMI_WORKSPACE") or str(ROOT / "runs"))  # noqa: PTH111 - or a URI
"""Where runs are kept by default. The folder of a submitted job is deleted with the job, so a cluster names
a lasting one (`cluster/local.py` does)."""
DEMO_CLIP = "stmi/demo_clip"


def demo() -> ExperimentConfig:
    """The embedded benchmark on a laptop: a small CLIP, 64 x 32 pixels, two CPU workers."""
    synthetic = SyntheticSettings()
    return ExperimentConfig(
        recipe="demo",
        data=DataConfig(dataset="synthetic_person", synthetic=synthetic),
        model=ModelConfig(
            image=ImageSize(height=synthetic.height, width=synthetic.width),
            clip=ClipConfig(source=DEMO_CLIP),
            sfm=SfmConfig(mask_threshold=0.5),
            str=StrConfig(heads=4),
        ),
        augment=AugmentConfig(crop_padding=3),
        batch=BatchConfig(size=48, samples_per_identity=4),
        optim=OptimConfig(
            optimizer="adamw",
            learning_rate=8e-4,
            final_learning_rate=1e-5,
            warmup_epochs=1,
            beta2=0.98,
            weight_decay=0.05,
            gradient_clip=2.0,
            modulation_rate_factor=10,
            modulation_weight_decay=0.0,
        ),
        train=TrainConfig(epochs=10, workers=2, precision="float32", validate_every=4, checkpoint_every=2),
    )


def benchmark(kind: Kind) -> ExperimentConfig:
    """The demo with more identities to train and to test on, for ablations."""
    base = demo()
    synthetic = SyntheticSettings(
        kind=kind, train_identities=400, validation_identities=64, test_identities=100
    )
    image, epochs = base.model.image, 4
    if kind == "vehicle":
        # The demo's CLIP has seen people only.
        epochs = 8
        image = ImageSize(height=image.width, width=image.height)
        synthetic = synthetic.model_copy(update={"height": image.height, "width": image.width})
    return base.model_copy(
        update={
            "recipe": "benchmark" if kind == "person" else f"benchmark-{kind}",
            "data": DataConfig(dataset=f"synthetic_{kind}", synthetic=synthetic),
            "model": base.model.model_copy(update={"image": image}),
            "train": base.train.model_copy(
                update={"epochs": epochs, "validate_every": 2, "checkpoint_every": 1}
            ),
        }
    )


@dataclass(frozen=True)
class _Published:
    """What differs between the paper's data sets."""

    image: ImageSize
    batch: BatchConfig
    epochs: int
    perturbation: float
    junk: Literal["camera", "scene"] = "camera"


PERSON, VEHICLE = ImageSize(height=256, width=128), ImageSize(height=128, width=256)
PUBLISHED = {
    "rgbnt201": _Published(PERSON, BatchConfig(size=72, samples_per_identity=8), 50, 0.01),
    "rgbnt100": _Published(VEHICLE, BatchConfig(size=128, samples_per_identity=16), 20, 0.0),
    "msvr310": _Published(VEHICLE, BatchConfig(size=64, samples_per_identity=8), 20, 0.015, "scene"),
}


def paper(dataset: str) -> ExperimentConfig:
    """The paper's settings for a data set.

    Values that the paper does not give, such as epochs and p, are those of the released code. It names no tau
    either; there the released code's rule is another one, and tau is 0.5.
    D of eq. 8 is read as the width of one head in both recipes: with the width of all heads together
    (`model.sfm.logit_scale=model_width`) attention would differ from that of CLIP's own training.
    """
    published = PUBLISHED[dataset]
    return ExperimentConfig(
        recipe=f"{dataset}-paper",
        data=DataConfig(dataset=dataset, junk=published.junk),
        model=ModelConfig(image=published.image, sfm=SfmConfig(perturbation=published.perturbation)),
        batch=published.batch,
        train=TrainConfig(epochs=published.epochs),
    )


def released(dataset: str) -> ExperimentConfig:
    """The settings of the authors' released code for a data set: all its differences from the paper."""
    base = paper(dataset)
    sfm = base.model.sfm.model_copy(update={"mask_threshold": 0.5, "perturbation_draw": "layer_and_modality"})
    return ExperimentConfig(
        recipe=f"{dataset}-released",
        seed=1111,
        data=base.data,
        model=ModelConfig(
            image=base.model.image,
            camera_embedding=True,
            separate_modality_heads=dataset == "rgbnt100",
            sfm=sfm,
            chi=ChiConfig(convolution="released", incidence="euclidean", activation="silu"),
            fusion=FusionConfig(dropout=0.1),
        ),
        loss=LossConfig(identity_weight=0.25),
        augment=AugmentConfig(geometry="per_modality", erase_aspect="log_uniform"),
        batch=base.batch,
        optim=OptimConfig(schedule="released"),
        train=base.train.model_copy(update={"validate_every": 1}),
        report=ReportConfig(feature="U" if dataset == "rgbnt201" else "GTTT", epoch="best_on_test"),
    )


RECIPES: dict[str, Callable[[], ExperimentConfig]] = {
    "demo": demo,
    "benchmark": partial(benchmark, "person"),
    "benchmark-vehicle": partial(benchmark, "vehicle"),
    **{f"{dataset}-paper": partial(paper, dataset) for dataset in PUBLISHED},
    **{f"{dataset}-released": partial(released, dataset) for dataset in PUBLISHED},
}


def resolve(recipe: str, settings: list[str] | None = None) -> ExperimentConfig:
    """A recipe with some settings changed.

    Args:
        recipe: A name in `RECIPES`.
        settings: Changes as `dotted.name=value`, for example `model.sfm=off` or `batch.size=96`;
            `model.` may be left out.

    Raises:
        ConfigError: A name is unknown, or a value impossible.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"recipe {recipe!r} is unknown; there are {', '.join(RECIPES)}")
    tree = RECIPES[recipe]().model_dump(mode="json")
    for setting in settings or []:
        name, equals, text = full_name(setting).partition("=")
        if not equals:
            raise ConfigError(f"setting {setting!r} is not name=value, for example model.sfm=off")
        if not name.strip():
            raise ConfigError(f"setting {setting!r} names nothing before =; write for example model.sfm=off")
        if name.strip() == "recipe":
            raise ConfigError("recipe is not a setting; name it with --recipe")
        _set(tree, name.strip(), text)
    return parse(tree)


class ValueLoader(yaml.SafeLoader):
    """YAML in which 010 is no octal number, 1:30 no number of base 60, and 2024-05-01 no date."""


ValueLoader.yaml_implicit_resolvers = {
    first: [
        (tag, form) for tag, form in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
ValueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)
ValueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789")
)


def _set(tree: dict[str, Any], name: str, text: str) -> None:
    """Change one value of a dumped config, which is modified."""
    section: type[BaseModel] = ExperimentConfig
    try:
        value = yaml.load(text, ValueLoader)
    except (yaml.YAMLError, ValueError):
        # A number of thousands of digits, or a date that is none, is no error of YAML's own.
        raise ConfigError(f"{name}={text:.40}: not a value; quote what has brackets or colons") from None
    *parents, last = name.split(".")
    for depth, parent in enumerate(parents):
        _require(section, name, depth)
        kind = section_of(section, parent)
        if kind is None and isinstance(tree[parent], dict) and parent == parents[-1]:
            # One value for each modality.
            tree[parent] |= {last: value}
            return
        if kind is None or tree[parent] is None:
            raise ConfigError(
                f"{name}: {parent} is no group of settings here; --list-settings prints all names"
            )
        section, tree = kind, tree[parent]
    _require(section, name, len(parents))
    kind = section_of(section, last)
    if kind is not None and issubclass(kind, Switch) and isinstance(value, bool):
        tree[last]["enabled"] = value
    elif value is None and section.model_fields[last].default is None:
        # A group that may be left out, as in data.synthetic=null.
        tree[last] = None
    elif kind is not None:
        whole = " or on/off" if issubclass(kind, Switch) else ""
        if section.model_fields[last].default is None:
            whole = f", or leave it out with {name}=null"
        raise ConfigError(
            f"{name}={text}: this is a group; set one of its fields ({', '.join(kind.model_fields)}){whole}"
        )
    elif section.model_fields[last].annotation is str and re.match(r"\s*[^\s'\"\[{]", text):
        # What looks like a number, a switch or a comment is a name here: 2024_05, no, a #1.
        tree[last] = text.strip()
    else:
        tree[last] = value


def _require(section: type[BaseModel], name: str, depth: int) -> None:
    """Refuse a name whose part at this depth is no field of the section that the parts before it name."""
    parts = name.split(".")
    if parts[depth] in section.model_fields:
        return
    if depth == 0:
        near = difflib.get_close_matches(name, _all_names(ExperimentConfig), n=1)
    else:
        fields = difflib.get_close_matches(parts[depth], section.model_fields, n=1)
        near = [".".join([*parts[:depth], field]) for field in fields]
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(section.model_fields)}"
    raise ConfigError(f"setting {name} is unknown; {hint}")


def _all_names(section: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for field in section.model_fields:
        names.append(f"{prefix}{field}")
        kind = section_of(section, field)
        if kind is not None:
            names += _all_names(kind, f"{prefix}{field}.")
    return names


def section_of(section: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The group of settings that a field of a section holds, or None for a single setting."""
    annotation = section.model_fields[field].annotation
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
