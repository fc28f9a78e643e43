"""`text-features`: encodes the captions with the frozen text tower."""

import argparse
from pathlib import Path

import stmi
from data_catalog.captions.text_feature_table import TextFeatureStatistics, make_text_features
from data_catalog.commands.arguments import add_samples, find_made_from, find_samples
from data_catalog.commands.command import BuiltTable, Command, build
from data_catalog.tables.schemas import TableKind

DEMO_CLIP = Path(stmi.__file__).parent / "demo_clip"


class TextFeaturesResult(TextFeatureStatistics, BuiltTable):
    """The text features of a data set."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_samples(parser)
    parser.add_argument("--captions-key", metavar="KEY", help="default: the newest captions of the samples")
    parser.add_argument(
        "--clip",
        default=str(DEMO_CLIP),
        metavar="DIR",
        help="folder of a CLIP, or open_clip name/pretrained (default: that of the demo, stmi/demo_clip)",
    )


def _run(args: argparse.Namespace) -> TextFeaturesResult:
    captions = find_made_from(find_samples(args), TableKind.CAPTIONS, args.captions_key)
    return build(
        "text-features",
        lambda progress: make_text_features(captions, args.clip, progress=progress),
        TextFeaturesResult,
    )


COMMAND = Command(
    name="text-features",
    summary="Encode the captions with the frozen CLIP text tower, once.",
    example="--catalog runs/catalog --clip stmi/demo_clip",
    add_options=_add_options,
    run=_run,
    result=TextFeaturesResult,
)
