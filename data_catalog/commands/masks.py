"""`masks`: one foreground mask per sample."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_catalog.command_parser import local_path
from data_catalog.commands.arguments import (
    OWN,
    OWN_SETTINGS,
    Option,
    add_choice,
    add_samples,
    find_made_from,
    find_samples,
    given_options,
    image_size,
    parse_assignments,
)
from data_catalog.commands.command import LISTED, BuiltTable, Command, build, print_result, says_nothing
from data_catalog.errors import CatalogError, name_first
from data_catalog.extensions import is_own, load_settings
from data_catalog.masks.mask_table import SegmenterSettings, list_below_gate, make_masks
from data_catalog.masks.segmenters.mask_files import MaskFileStatistics, import_masks
from data_catalog.masks.segmenters.sam2_checkpoint import SAM2_MODELS
from data_catalog.progress import Progress
from data_catalog.records import Record
from data_catalog.samples.camera_numbers import first_camera, shown_camera
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table

_NIGHT, _DUSK = 0.1, 0.3
"""Mean brightness of RGB below which a camera counts as one at night, at dusk."""


class QualityGate(Record):
    """The samples whose mask scores less than the gate."""

    score: float
    """The gate."""
    count: int
    samples: list[str]


class MasksResult(MaskFileStatistics, BuiltTable):
    """The masks of a data set; a statistic that does not apply is null."""

    quality_gate: QualityGate | None = None
    """With `--quality-gate`."""
    first_camera: int = 0
    """What the files call the camera whose `camera_id` is 0."""


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a score; write a number from 0 to 1")
    return value


_ROUTES = {
    "grabcut": "OpenCV's GrabCut on brightness, near infrared and heat; needs no weights and no GPU.",
    "sam2": "Segment Anything 2; needs its published weights, and a GPU to be quick.",
    "files": "Masks that exist already, a .npy or .png file per sample; needs no weights.",
    OWN: "A class of your own, a subclass of SegmenterSettings; needs its module.",
}
"""What each segmenter is and needs, for the help."""
_OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "grabcut": (),
    "sam2": (
        Option("--checkpoint", "published weights (.pt), needed", Path, "FILE"),
        Option("--model", "their size (default: sam2.1_hiera_l)", tuple(SAM2_MODELS)),
        Option("--prompt", "where the object is (default: point)", ("point", "box", "both")),
        Option(
            "--image-size", "side of the square that images are resized to (default: 1024)", int, "PIXELS"
        ),
        Option("--precision", "default: bfloat16", ("bfloat16", "float32")),
        Option("--images-per-batch", "images encoded at once (default: 6)", int, "N"),
    ),
    "files": (
        Option("--masks", "folder or manifest (default: that of the samples)", Path, "PATH"),
        Option("--mask-size", "size models are given (default: the card's)", image_size, "HxW"),
        Option("--allow-missing", "samples without one are all foreground", bool),
    ),
    OWN: (OWN_SETTINGS,),
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_samples(parser)
    add_choice(
        parser,
        "--segmenter",
        [name for name in _OPTIONS if name != OWN],
        "what finds the object, a class of your own too (default: grabcut)",
        "grabcut",
    )
    parser.add_argument(
        "--true-masks",
        type=local_path,
        metavar="DIR",
        help="score the masks against these (default: not scored)",
    )
    parser.add_argument(
        "--quality-gate",
        type=_score,
        metavar="SCORE",
        help="list the samples whose mask scores less (default: none)",
    )
    for segmenter, options in _OPTIONS.items():
        group = parser.add_argument_group(f"--segmenter {segmenter}", _ROUTES[segmenter])
        for option in options:
            option.add_to(group)


def _run(args: argparse.Namespace) -> MasksResult:
    given = given_options(args, "segmenter", _OPTIONS)
    samples = find_samples(args)
    result = build("masks", lambda progress: _make(args, samples, given, progress), MasksResult)
    if result.rows and result.empty + result.full == result.rows:
        raise says_nothing(result, "masks of one value")
    result = result.model_copy(update={"first_camera": first_camera(samples)})
    if args.quality_gate is None:
        return result
    below = list_below_gate(find_made_from(samples, TableKind.MASKS, result.key), args.quality_gate)
    gate = QualityGate(score=args.quality_gate, count=len(below), samples=below)
    return result.model_copy(update={"quality_gate": gate})


def _make(args: argparse.Namespace, samples: Table, given: Mapping[str, Any], progress: Progress) -> Table:
    if args.segmenter == "files":
        return import_masks(
            samples,
            args.masks,
            image_size=args.mask_size,
            allow_missing=bool(args.allow_missing),
            true_masks=args.true_masks,
            progress=progress,
        )
    # OpenCV and torch take long to import, which other commands and `--help` need not pay.
    if args.segmenter == "sam2":
        if args.checkpoint is None:
            raise CatalogError(
                "--segmenter sam2 needs --checkpoint FILE, the weights as SAM2's authors publish them"
            )
        from data_catalog.masks.segmenters.sam2 import sam2_settings  # noqa: PLC0415

        settings: SegmenterSettings = sam2_settings(**given)
    elif is_own(args.segmenter):
        values = parse_assignments(given.get("set", []))
        settings = load_settings(args.segmenter, "segmenter", SegmenterSettings, values)  # type: ignore[type-abstract]
    else:
        from data_catalog.masks.segmenters.grabcut import GrabCutSettings  # noqa: PLC0415

        settings = GrabCutSettings()
    return make_masks(samples, settings, args.true_masks, progress)


def _show(result: MasksResult) -> None:
    """Print the result: one line per camera, and of long lists the beginning."""
    ious, brightness = result.mean_iou_by_camera or {}, result.brightness_by_camera or {}
    by_camera = {
        shown_camera(int(camera), result.first_camera): _camera(
            counts, ious.get(camera), brightness.get(camera)
        )
        for camera, counts in result.sources_by_camera.items()
    }
    shown: dict[str, Any] = {}
    for name, value in result.model_dump(mode="json", exclude_none=True).items():
        if name == "sources_by_camera":
            shown["by_camera"] = by_camera
        elif name == "quality_gate":
            shown[name] = {**value, "samples": _shorten(value["samples"])}
        elif name not in ("mean_iou_by_camera", "brightness_by_camera", "lowest_scores", "first_camera"):
            is_names = isinstance(value, list) and not (value and isinstance(value[0], Mapping))
            shown[name] = _shorten(value) if is_names else value
    print_result(shown)


def _camera(counts: Mapping[str, int], iou: float | None, brightness: float | None) -> str:
    parts = [f"{source} {count}" for source, count in counts.items()]
    if iou is not None and brightness is not None:
        light = "night" if brightness < _NIGHT else "dusk" if brightness < _DUSK else "day"
        parts = [f"IoU {iou:.4f}", f"RGB brightness {brightness:.2f} ({light})", *parts]
    return "  ".join(parts)


def _shorten(values: list[str]) -> str:
    return name_first(values, LISTED) or "-"


COMMAND = Command(
    name="masks",
    summary="One foreground mask per sample: segmented, or imported from files.",
    example="--catalog runs/catalog --segmenter grabcut --true-masks runs/benchmark/true_masks",
    add_options=_add_options,
    run=_run,
    result=MasksResult,
    show=_show,
)
