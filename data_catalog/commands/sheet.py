"""`sheet`: a contact sheet of some samples."""

import argparse
from pathlib import Path

from data_catalog.commands.arguments import (
    add_dataset,
    add_setting_options,
    check_dataset,
    find_made_from,
    given_settings,
    image_size,
)
from data_catalog.commands.command import Command
from data_catalog.errors import CatalogError
from data_catalog.formats import SPLITS
from data_catalog.inspect.contact_sheet import MAX_SAMPLES, Sheet, SheetSettings, draw_sheet
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table, list_tables
from stmi.clip.clip_files import patch_size


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the PNG file to write")
    parser.add_argument("--masks-key", metavar="KEY", help="default: the newest masks of the samples, if any")
    parser.add_argument("--captions-key", metavar="KEY", help="default: the newest captions, if any")
    which = parser.add_argument_group("which samples")
    which.add_argument("--split", choices=SPLITS, help="default: all")
    which.add_argument("--identity", type=int, nargs="+", default=[], metavar="ID", help="raw identities")
    which.add_argument(
        "--ids", nargs="+", default=[], metavar="ID", help="these samples, like test/000077_cam1_0_00"
    )
    which.add_argument(
        "--lowest-score",
        type=int,
        metavar="N",
        help="the N masks that score lowest (default: a random choice)",
    )
    add_setting_options(which, SheetSettings, "count", "seed")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument(
        "--size", type=image_size, metavar="HxW", help="size of the model input (default: own)"
    )
    add_setting_options(tokens, SheetSettings, "patch_size", "threshold")


def _run(args: argparse.Namespace) -> Sheet:
    check_dataset(args.catalog, args.name)
    if args.lowest_score is not None and args.count is not None:
        raise CatalogError("--lowest-score and --count both say how many; give one of them")
    for option in ("lowest_score", "count"):
        if args.ids and getattr(args, option) is not None:
            raise CatalogError(
                f"--ids says which samples and how many; leave out --{option.replace('_', '-')}"
            )
    if len(args.ids) > MAX_SAMPLES:
        raise CatalogError(
            f"--ids names {len(args.ids)} samples, expected at most {MAX_SAMPLES}; draw more than one sheet"
        )
    samples = find_table(args.catalog, args.name, TableKind.SAMPLES, key=args.samples_key)
    given = given_settings(args, "split", "count", "seed", "size", "patch_size", "threshold")
    if args.lowest_score is not None:
        given |= {"lowest_score": True, "count": args.lowest_score}
    if "patch_size" not in given and (text_features := _newest(samples, TableKind.TEXT_FEATURES, None)):
        given["patch_size"] = patch_size(text_features.manifest.created["clip"])
    settings = SheetSettings(identities=tuple(args.identity), ids=tuple(args.ids), **given)
    masks = _newest(samples, TableKind.MASKS, args.masks_key)
    captions = _newest(samples, TableKind.CAPTIONS, args.captions_key)
    return draw_sheet(samples, masks, captions, args.out, settings)


def _newest(samples: Table, kind: TableKind, key: str | None) -> Table | None:
    """The table with the key, or the newest; None if there is no key and no table."""
    made = list_tables(samples.catalog, samples.manifest.dataset, kind)
    if key is None and not any(table.manifest.inputs["samples"] == samples.digest for table in made):
        return None
    return find_made_from(samples, kind, key)


COMMAND = Command(
    name="sheet",
    summary="A contact sheet of some samples: images, mask outline, token mask, caption.",
    example="benchmark --catalog runs/catalog --out sheet.png",
    add_options=_add_options,
    run=_run,
    result=Sheet,
)
