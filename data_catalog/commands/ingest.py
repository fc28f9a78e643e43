"""`ingest`: makes the samples table from image folders."""

import argparse

from pydantic import Field

from data_catalog.command_parser import local_path
from data_catalog.commands.arguments import (
    OWN,
    add_catalog,
    add_choice,
    add_setting_options,
    given_settings,
    image_size,
)
from data_catalog.commands.command import BuiltTable, Command, build, print_result
from data_catalog.errors import name_first
from data_catalog.formats import FORMATS, find_format
from data_catalog.formats.manifest_columns import describe_columns
from data_catalog.samples.camera_numbers import shown_camera
from data_catalog.samples.ingestion import IngestSettings, SamplesStatistics, ingest


class IngestResult(SamplesStatistics, BuiltTable):
    """The samples table of an image folder."""

    samples: int = Field(default_factory=lambda values: values["rows"])
    """As `rows`."""
    first_camera: int = 0
    """What the files call the camera whose `camera_id` is 0."""


def _size_or_any(text: str) -> tuple[int, int] | str:
    return text if text == "any" else image_size(text)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_catalog(parser)
    parser.add_argument("--dataset", metavar="NAME", help="default: the format's name")
    parser.add_argument(
        "--source", required=True, type=local_path, metavar="PATH", help="folder of the data set, or manifest"
    )
    add_choice(parser, "--format", sorted(FORMATS), "its layout, or your own (default: rgbnt201)", "rgbnt201")
    parser.add_argument(
        "--size",
        type=_size_or_any,
        metavar="HxW",
        help="size every image must have, or `any` (default: the one that half of them have, else any)",
    )
    add_setting_options(parser, IngestSettings, "validation_identities", "samples_per_shard", "thermal_range")
    parser.add_argument(
        "--allow-missing", action="store_true", help="take samples that lack images: zeros in their place"
    )
    for name, layout in sorted(FORMATS.items()):
        parser.add_argument_group(f"--format {name}", layout.tree or describe_columns())
    parser.add_argument_group(f"--format {OWN}", "A SourceFormat of your own; needs its module.")


def _show(result: IngestResult) -> None:
    """Print the result, with cameras as the files count them."""
    cameras = ", ".join(shown_camera(camera_id, result.first_camera) for camera_id in result.cameras)
    shown = result.model_dump(mode="json", exclude={"first_camera"}) | {"cameras": cameras}
    shown["separate_queries"] = name_first(result.separate_queries) or "-"
    print_result(shown)


def _run(args: argparse.Namespace) -> IngestResult:
    settings = IngestSettings(
        format=args.format,
        size=args.size or "most common",
        allow_missing=args.allow_missing,
        **given_settings(args, "validation_identities", "samples_per_shard", "thermal_range"),
    )
    source_format = find_format(args.format)
    dataset = args.dataset or source_format.name
    result = build(
        "ingest",
        lambda progress: ingest(args.source, args.catalog, dataset, settings, progress),
        IngestResult,
    )
    return result.model_copy(update={"first_camera": source_format.first_camera})


COMMAND = Command(
    name="ingest",
    summary="Make the samples table from image folders or a manifest; what is broken goes into quarantine.",
    example="--source runs/benchmark/RGBNT201 --catalog runs/catalog --dataset benchmark",
    add_options=_add_options,
    run=_run,
    result=IngestResult,
    show=_show,
)
