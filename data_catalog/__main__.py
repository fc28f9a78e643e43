"""The command line of the catalog: `python -m data_catalog synthesize|ingest|masks|captions|...`.

Each command makes one table from the newest tables that it needs, or finds it made already.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import stmi
from data_catalog.building import Progress
from data_catalog.captions import CaptionSettings, make_captions
from data_catalog.cards import card_names
from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS, SPLITS
from data_catalog.ingest import IngestSettings, ingest
from data_catalog.masks import SEGMENTERS, make_masks
from data_catalog.progress import progress_bar
from data_catalog.schemas import TableKind
from data_catalog.synthetic import SynthesisConflictError, SyntheticSettings, synthesize
from data_catalog.tables import Table, find_table, list_datasets, list_tables
from data_catalog.text_features import make_text_features
from data_catalog.view import ViewSettings, make_view

DEMO_CLIP = Path(stmi.__file__).parent / "demo_clip"
USAGE_STATUS = 2
INTERRUPTED_STATUS = 130

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    args = _parser().parse_args(arguments)
    try:
        # What a library prints must not get between the reader and the one JSON document.
        with contextlib.redirect_stdout(sys.stderr):
            result = args.run(args)
    except (CatalogError, SynthesisConflictError) as error:
        print(f"data_catalog {args.command}: {error}", file=sys.stderr)
        return USAGE_STATUS
    except ValidationError as error:
        print(f"data_catalog {args.command}: {_first_fault(error)}", file=sys.stderr)
        return USAGE_STATUS
    except KeyboardInterrupt:
        print(
            f"data_catalog {args.command}: interrupted; what is complete is kept, so run the same command "
            "again to continue",
            file=sys.stderr,
        )
        return INTERRUPTED_STATUS
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print_table(result)
    return 0


def _synthesize(args: argparse.Namespace) -> Result:
    values: dict[str, Any] = {}
    for assignment in args.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise CatalogError(f"--set {assignment!r} sets nothing; write name=value, for example seed=3")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    for name in ("kind", "seed"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    if args.size is not None:
        values["height"], values["width"] = args.size
    settings = SyntheticSettings(**values)
    with progress_bar("synthesize", "sample") as progress:
        report = synthesize(settings, args.out, progress)
    return {
        "out": str(report.out),
        "samples": report.samples,
        "identities": report.identities,
        "reused": report.reused,
        "seconds": round(report.seconds, 3),
    }


def _ingest(args: argparse.Namespace) -> Result:
    settings = IngestSettings(
        format=args.format, size=args.size or "most common", samples_per_shard=args.samples_per_shard
    )
    result = _build(
        "ingest",
        lambda progress: ingest(args.source, args.catalog, args.dataset or args.format, settings, progress),
    )
    return result | {"samples": result["rows"]}


def _masks(args: argparse.Namespace) -> Result:
    samples = _samples(args)
    settings = SEGMENTERS[args.segmenter]()
    return _build("masks", lambda progress: make_masks(samples, settings, args.true_masks, progress))


def _captions(args: argparse.Namespace) -> Result:
    samples = _samples(args)
    # A data set that has a card is captioned by it.
    card = args.card or (
        samples.manifest.dataset if samples.manifest.dataset in card_names() else CaptionSettings().card
    )
    settings = CaptionSettings(captioner=args.captioner, card=card)
    return _build("captions", lambda progress: make_captions(samples, args.readings, settings, progress))


def _text_features(args: argparse.Namespace) -> Result:
    captions = _of_samples(_samples(args), TableKind.CAPTIONS, args.captions_key)
    return _build(
        "text-features", lambda progress: make_text_features(captions, args.clip, progress=progress)
    )


def _view(args: argparse.Namespace) -> Result:
    samples = _samples(args)
    masks = None if args.no_masks else _of_samples(samples, TableKind.MASKS, args.masks_key)
    features = None if args.no_text else _of_samples(samples, TableKind.TEXT_FEATURES, args.text_features_key)
    splits = list(samples.statistics["splits"]) if args.split == "all" else [args.split]
    height, width = args.size
    views = {}
    for split in splits:
        settings = ViewSettings(split=split, height=height, width=width, text_dim=args.text_dim)
        views[split] = _build(f"view {split}", _view_builder(samples, masks, features, settings))
    return {"dataset": samples.manifest.dataset, "views": views}


def _view_builder(
    samples: Table, masks: Table | None, features: Table | None, settings: ViewSettings
) -> Callable[[Progress], Table]:
    return lambda progress: make_view(samples, masks, features, settings, progress)


def _show(args: argparse.Namespace) -> Result:
    tables = list_tables(args.catalog, args.name)
    if not tables:
        found = ", ".join(list_datasets(args.catalog)) or "none"
        raise CatalogError(
            f"data set {args.name!r} is not in catalog {args.catalog}; expected one of: {found}"
        )
    return {
        "dataset": args.name,
        "tables": [
            table.manifest.model_dump(mode="json", exclude={"dataset", "shards"}) | {"path": table.path}
            for table in tables
        ],
    }


def _dataset(args: argparse.Namespace) -> str:
    """The data set that is meant: the one named, or the only one there is."""
    if args.dataset:
        return str(args.dataset)
    found = list_datasets(args.catalog)
    if len(found) != 1:
        raise CatalogError(
            f"catalog {args.catalog} holds {len(found)} data sets ({', '.join(found) or 'none'}); name one "
            "with --dataset"
        )
    return found[0]


def _samples(args: argparse.Namespace) -> Table:
    return find_table(args.catalog, _dataset(args), TableKind.SAMPLES, key=args.samples_key)


def _of_samples(samples: Table, kind: TableKind, key: str | None) -> Table:
    """The newest table of a kind that was made of these samples."""
    inputs = {"samples": samples.digest}
    return find_table(samples.catalog, samples.manifest.dataset, kind, key=key, inputs=inputs)


def _build(title: str, build: Callable[[Progress], Table]) -> Result:
    start = time.monotonic()
    with progress_bar(title, "shard") as progress:
        table = build(progress)
    return {
        "dataset": table.manifest.dataset,
        "table": table.kind.value,
        "key": table.manifest.key,
        "digest": table.digest,
        "rows": len(table),
        "reused": table.reused,
        "path": table.path,
        "seconds": round(time.monotonic() - start, 3),
        **table.statistics,
    }


def _print_table(result: Mapping[str, Any], indent: str = "") -> None:
    width = max((len(str(name)) for name in result), default=0)
    for name, value in result.items():
        if isinstance(value, Mapping) and "digest" in value:
            print(
                f"{indent}{name:<{width}}  {value['digest'][:12]}  {value['rows']:>8} rows  {value['path']}"
            )
        elif isinstance(value, Mapping) and value:
            print(f"{indent}{name}")
            _print_table(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{indent}{name}")
            for entry in value:
                _print_entry(entry, indent + "  ")
        else:
            text = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{indent}{name:<{width}}  {text if text not in ({}, []) else '-'}")


def _print_entry(entry: Mapping[str, Any], indent: str) -> None:
    if "digest" in entry:
        made_from = ", ".join(f"{name} {digest[:12]}" for name, digest in entry["inputs"].items()) or "files"
        print(
            f"{indent}{entry['table']:<14}{entry['digest'][:12]}  {entry['rows']:>8} rows  from {made_from}"
        )
    else:
        print(indent + "  ".join(str(value) for value in entry.values()))


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}{': ' if field else ''}{first['msg']} (got {first['input']!r})"


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no image size; write height x width, for example 256x128"
        )
    return int(height), int(width)


def _image_size_or_any(text: str) -> tuple[int, int] | str:
    return text if text == "any" else _image_size(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_catalog",
        description="Turns image folders into verified, versioned tables that training reads.",
        epilog="Order: synthesize (or data of your own), ingest, masks, captions, text-features, view.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], Result], summary: str, example: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  python -m data_catalog {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        command.set_defaults(run=run)
        return command

    def of_catalog(command: argparse.ArgumentParser, samples: bool = True) -> None:
        command.add_argument(
            "--catalog", required=True, metavar="URI", help="folder or URI (s3://...) of tables"
        )
        default = "the only one of the catalog" if samples else "the format's name"
        command.add_argument("--dataset", metavar="NAME", help=f"default: {default}")
        if samples:
            command.add_argument("--samples-key", metavar="KEY", help="default: the newest samples table")

    command = add(
        "synthesize",
        _synthesize,
        "Draw the procedural benchmark, in the RGBNT201 layout.",
        "--out runs/benchmark --seed 0",
    )
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    command.add_argument("--kind", choices=("person", "vehicle"), help="what to draw (default: person)")
    command.add_argument("--seed", type=int, help="another seed draws other identities (default: 0)")
    command.add_argument("--size", type=_image_size, metavar="HxW", help="image size (default: 64x32)")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting, repeatable"
    )

    command = add(
        "ingest",
        _ingest,
        "Image folders to the samples table; what is broken goes to a quarantine list.",
        "--source runs/benchmark/RGBNT201 --catalog runs/catalog --dataset benchmark",
    )
    of_catalog(command, samples=False)
    command.add_argument("--source", required=True, type=Path, metavar="DIR", help="folder of the data set")
    command.add_argument("--format", choices=sorted(FORMATS), default="rgbnt201", help="its layout")
    command.add_argument(
        "--size",
        type=_image_size_or_any,
        metavar="HxW",
        help="size every image must have, or `any` (default: the most common one)",
    )
    command.add_argument("--samples-per-shard", type=int, default=512, metavar="N", help="default: 512")

    command = add(
        "masks",
        _masks,
        "One foreground mask per sample.",
        "--catalog runs/catalog --segmenter grabcut --true-masks runs/benchmark/true_masks",
    )
    of_catalog(command)
    command.add_argument("--segmenter", choices=sorted(SEGMENTERS), default="grabcut", help="what finds it")
    command.add_argument("--true-masks", type=Path, metavar="DIR", help="score the masks against these")

    command = add(
        "captions",
        _captions,
        "One caption per sample, filled from attribute readings by confidence.",
        "--catalog runs/catalog --captioner readings --readings runs/benchmark/readings",
    )
    of_catalog(command)
    command.add_argument("--captioner", choices=("readings",), default="readings", help="what writes them")
    command.add_argument("--readings", required=True, type=Path, metavar="DIR", help="one .jsonl per split")
    command.add_argument(
        "--card",
        choices=card_names(),
        help="attributes and template (default: the data set's own card, or synthetic_person)",
    )

    command = add(
        "text-features",
        _text_features,
        "Captions through the frozen CLIP text tower, once.",
        "--catalog runs/catalog --clip stmi/demo_clip",
    )
    of_catalog(command)
    command.add_argument("--captions-key", metavar="KEY", help="default: the newest captions of the samples")
    command.add_argument(
        "--clip", default=str(DEMO_CLIP), metavar="DIR", help="folder of a CLIP, or open_clip name/pretrained"
    )

    command = add(
        "view",
        _view,
        "The memory-mapped training view of a split.",
        "--catalog runs/catalog --split all --size 64x32",
    )
    of_catalog(command)
    command.add_argument("--split", choices=("all", *SPLITS), default="all", help="default: all")
    command.add_argument("--size", type=_image_size, required=True, metavar="HxW", help="image size")
    command.add_argument("--masks-key", metavar="KEY", help="default: the newest masks of the samples")
    command.add_argument("--text-features-key", metavar="KEY", help="default: the newest of the samples")
    command.add_argument("--no-masks", action="store_true", help="every pixel is foreground")
    command.add_argument("--no-text", action="store_true", help="text features are zero")
    command.add_argument("--text-dim", type=int, default=512, metavar="D", help="their width then (512)")

    command = add("show", _show, "The tables of a data set.", "benchmark --catalog runs/catalog")
    command.add_argument("name", metavar="NAME", help="name of the data set")
    command.add_argument("--catalog", required=True, metavar="URI", help="folder or URI of the catalog")
    return parser


if __name__ == "__main__":
    sys.exit(main())
