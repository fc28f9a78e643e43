"""`sheet`: a contact sheet of some samples, or a web page of thousands."""

import argparse
from dataclasses import replace

from pydantic import RootModel

from data_catalog.checks.newest_tables import find_newest_tables
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
from data_catalog.inspect.catalog_page import CatalogPage, write_page
from data_catalog.inspect.contact_sheet import (
    MAX_SAMPLES,
    PAGE_SAMPLES,
    SampleChoice,
    Sheet,
    SheetSettings,
    draw_sheet,
)
from data_catalog.progress import progress_bar
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table, list_tables
from stmi.clip.clip_files import patch_size


class PrintedSheet(RootModel[Sheet | CatalogPage]):
    """What the command prints: of a contact sheet, or of a page (`--html`)."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    out = parser.add_mutually_exclusive_group(required=True)
    out.add_argument("--out", metavar="FILE", help="the PNG file to write")
    out.add_argument(
        "--html",
        metavar="FILE",
        help="write one web page in its place, that loads nothing and can be filtered by identity, camera, "
        "split, quarantine, and the warnings of `checks`; 2,000 samples of 256x128 are about 20 MB",
    )
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
    which.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"largest number of samples of the page of --html (default: {PAGE_SAMPLES})",
    )
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument(
        "--size",
        type=image_size,
        metavar="HxW",
        help="size of the model input (default: the image's own, in whole patches)",
    )
    add_setting_options(tokens, SheetSettings, "patch_size", "threshold")


def _run(args: argparse.Namespace) -> Sheet | CatalogPage:
    check_dataset(args.catalog, args.name)
    given = given_settings(args, "split", "seed")
    for option in ("count", "size", "patch_size", "threshold") if args.html else ("limit",):
        if getattr(args, option) is not None:
            other = "--out, not of --html" if args.html else "--html, not of --out"
            raise CatalogError(f"--{option.replace('_', '-')} is an option of {other}; leave it out")
    if args.lowest_score is not None and args.count is not None:
        raise CatalogError("--lowest-score and --count both say how many; give one of them")
    for option in ("lowest_score", "count", "limit"):
        if args.ids and getattr(args, option) is not None:
            raise CatalogError(
                f"--ids says which samples and how many; leave out --{option.replace('_', '-')}"
            )
    if len(args.ids) > MAX_SAMPLES:
        raise CatalogError(
            f"--ids names {len(args.ids)} samples, expected at most {MAX_SAMPLES}; draw more than one sheet"
        )
    samples = find_table(args.catalog, args.name, TableKind.SAMPLES, key=args.samples_key)
    masks = _newest(samples, TableKind.MASKS, args.masks_key)
    captions = _newest(samples, TableKind.CAPTIONS, args.captions_key)
    given |= {"identities": tuple(args.identity), "ids": tuple(args.ids)}
    if args.lowest_score is not None:
        given |= {"lowest_score": True, "count": args.lowest_score}
    if args.html:
        if args.limit is not None:
            given["count"] = args.limit
        tables = replace(
            find_newest_tables(args.catalog, args.name, samples.manifest.key), masks=masks, captions=captions
        )
        with progress_bar("draw samples", "sample") as progress:
            return write_page(tables, args.html, SampleChoice(**given), progress)
    given |= given_settings(args, "count", "size", "patch_size", "threshold")
    if "patch_size" not in given and (text_features := _newest(samples, TableKind.TEXT_FEATURES, None)):
        given["patch_size"] = patch_size(text_features.manifest.created["clip"])
    return draw_sheet(samples, masks, captions, args.out, SheetSettings(**given))


def _newest(samples: Table, kind: TableKind, key: str | None) -> Table | None:
    """The table with the key, or the newest; None if there is no key and no table."""
    made = list_tables(samples.catalog, samples.manifest.dataset, kind)
    if key is None and not any(table.manifest.inputs["samples"] == samples.digest for table in made):
        return None
    return find_made_from(samples, kind, key)


COMMAND = Command(
    name="sheet",
    summary="A contact sheet (images, mask outline, token mask, caption), or a web page of thousands.",
    example="benchmark --catalog runs/catalog --out sheet.png      # or --html page.html",
    add_options=_add_options,
    run=_run,
    result=PrintedSheet,
)
