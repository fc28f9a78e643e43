"""`view`: the memory-mapped training view of a split."""

import argparse
from functools import partial

from data_catalog.commands.arguments import (
    add_samples,
    add_setting_options,
    find_made_from,
    find_samples,
    given_settings,
    image_size,
)
from data_catalog.commands.command import BuiltTable, Command, DatasetResult, build
from data_catalog.formats import SPLITS
from data_catalog.tables.schemas import TableKind
from data_catalog.views.training_view import ViewSettings, ViewStatistics, make_view


class BuiltView(ViewStatistics, BuiltTable):
    """The training view of a split."""


class ViewResult(DatasetResult):
    """The views that were made or found."""

    views: dict[str, BuiltView]
    """The view of each split."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_samples(parser)
    parser.add_argument("--split", choices=("all", *SPLITS), default="all", help="default: all")
    parser.add_argument("--size", type=image_size, required=True, metavar="HxW", help="image size")
    parser.add_argument("--masks-key", metavar="KEY", help="default: the newest masks of the samples")
    parser.add_argument("--text-features-key", metavar="KEY", help="default: the newest of the samples")
    parser.add_argument("--no-masks", action="store_true", help="every pixel is foreground")
    parser.add_argument("--no-text", action="store_true", help="text features are zero")
    add_setting_options(parser, ViewSettings, "text_dim", "samples_per_shard")


def _run(args: argparse.Namespace) -> ViewResult:
    samples = find_samples(args)
    masks = None if args.no_masks else find_made_from(samples, TableKind.MASKS, args.masks_key)
    features = (
        None if args.no_text else find_made_from(samples, TableKind.TEXT_FEATURES, args.text_features_key)
    )
    splits = list(samples.statistics["splits"]) if args.split == "all" else [args.split]
    height, width = args.size
    views = {}
    for split in splits:
        given = given_settings(args, "text_dim", "samples_per_shard")
        settings = ViewSettings(split=split, height=height, width=width, **given)
        views[split] = build(
            f"view {split}", partial(make_view, samples, masks, features, settings), BuiltView
        )
    return ViewResult(dataset=samples.manifest.dataset, views=views)


COMMAND = Command(
    name="view",
    summary="The memory-mapped training view of a split.",
    example="--catalog runs/catalog --split all --size 64x32",
    add_options=_add_options,
    run=_run,
    result=ViewResult,
)
