"""`captions`: one caption per sample."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.captions.caption_writer import CaptionStatistics
from data_catalog.captions.imported_captions import (
    CaptionFileSettings,
    ImportedCaptionStatistics,
    import_captions,
)
from data_catalog.captions.llm.job_statistics import LlmCaptionStatistics
from data_catalog.captions.llm.settings import ClientSettings, LlmCaptionSettings, Prices
from data_catalog.cards import card_names
from data_catalog.checks.newest_tables import find_card
from data_catalog.commands.arguments import add_samples, find_samples, given_options
from data_catalog.commands.command import BuiltTable, Command, build
from data_catalog.commands.printing import print_result
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, progress_bar
from data_catalog.records import Record
from data_catalog.tables.table import Table

_PRINTED = 5


class CaptionsResult(CaptionStatistics, LlmCaptionStatistics, ImportedCaptionStatistics, BuiltTable):
    """The captions of a data set; a statistic that the captioner does not have is null."""


def _temperature(text: str) -> float | str:
    if text == "endpoint":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no temperature; write a number, or endpoint") from None


_TITLES = {
    "readings": "from predicted attributes in files",
    "files": "captions that are there already",
    "llm": "by a multi-modal language model",
}
_OPTIONS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "readings": {
        "--readings": {
            "type": Path,
            "metavar": "DIR",
            "help": "predicted attributes, one .jsonl file per split",
        },
    },
    "files": {
        "--captions": {"type": Path, "metavar": "DIR", "help": "default: where the source keeps them"},
        "--choose": {
            "choices": ("RGB", "NIR", "TIR", "join"),
            "help": "which caption, where each modality has its own",
        },
    },
    "llm": {
        "--endpoint": {
            "metavar": "URL",
            "help": "OpenAI-compatible; its key is read from OPENAI_API_KEY",
        },
        "--model": {"metavar": "NAME", "help": "as the endpoint knows it, for example gpt-4o"},
        "--filling": {
            "choices": ("llm", "rules"),
            "help": "who decides where predictions differ (default: llm)",
        },
        "--temperature": {
            "type": _temperature,
            "metavar": "T",
            "help": "default: 0; `endpoint` leaves it to the endpoint",
        },
        "--max-answer-tokens": {
            "type": int,
            "metavar": "N",
            "help": "longer answers are cut (default: 1500)",
        },
        "--failed": {
            "choices": ("stop", "unknown"),
            "help": "what to do about questions that stay unanswered (default: stop)",
        },
        "--concurrency": {"type": int, "metavar": "N", "help": "requests at a time, at most (default: 8)"},
        "--timeout-seconds": {"type": float, "metavar": "S", "help": "limit of a request (default: 120)"},
        "--retries": {"type": int, "metavar": "N", "help": "after a fault of the endpoint (default: 6)"},
        "--reasks": {"type": int, "metavar": "N", "help": "after an unusable answer (default: 2)"},
        "--patience-seconds": {
            "type": float,
            "metavar": "S",
            "help": "give up after so long without answers (default: 600)",
        },
        "--budget-usd": {
            "type": float,
            "metavar": "USD",
            "help": "stop before more than this is spent, over all runs of the job (what was in flight when "
            "one was killed is not counted)",
        },
        "--usd-per-million-input": {"type": float, "metavar": "USD", "help": "price of tokens sent"},
        "--usd-per-million-output": {"type": float, "metavar": "USD", "help": "price of tokens answered"},
    },
}
"""Captioner to the options that it has, as `add_argument` takes them."""

_REQUIRED = {"readings": ("readings",), "llm": ("endpoint", "model"), "files": ()}


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_samples(parser)
    parser.add_argument("--captioner", choices=_OPTIONS, default="readings", help="what writes them")
    parser.add_argument(
        "--card",
        choices=card_names(),
        help="attributes and template (default: the data set's own card, or synthetic_person)",
    )
    parser.add_argument(
        "--redact", action="store_true", help="leave out licence plates and other personal text"
    )
    for captioner, options in _OPTIONS.items():
        group = parser.add_argument_group(f"--captioner {captioner}, {_TITLES[captioner]}")
        for option, arguments in options.items():
            group.add_argument(option, **arguments)


def _run(args: argparse.Namespace) -> CaptionsResult:
    shared = {"readings": ["--card"], "llm": ["--card"], "files": []}
    given = given_options(args, "captioner", {name: [*shared[name], *_OPTIONS[name]] for name in _OPTIONS})
    for name in _REQUIRED[args.captioner]:
        if name not in given:
            raise CatalogError(f"--{name} is missing; --captioner {args.captioner} needs it")
    samples = find_samples(args)
    return build("captions", lambda progress: _make(args, samples, given, progress), CaptionsResult)


def _make(args: argparse.Namespace, samples: Table, given: dict[str, Any], progress: Progress) -> Table:
    if args.captioner == "files":
        settings = CaptionFileSettings(choose=args.choose, redact=args.redact)
        return import_captions(samples, args.captions, settings, progress)
    if args.card is None:
        # A data set that has a card is captioned by it.
        own_card = find_card(samples)
        given["card"] = CaptionSettings().card if own_card is None else own_card.name
    if args.captioner == "llm":
        return _ask(samples, {**given, "redact": args.redact}, progress)
    return make_captions(
        samples, args.readings, CaptionSettings(card=given["card"], redact=args.redact), progress
    )


def _ask(samples: Table, given: dict[str, Any], progress: Progress) -> Table:
    # Its client library takes a second to import, which `show` and `--help` need not pay.
    from data_catalog.captions.llm.captioner import make_llm_captions  # noqa: PLC0415

    prompt, completion = given.get("usd_per_million_input"), given.get("usd_per_million_output")
    if (prompt is None) != (completion is None):
        raise CatalogError("--usd-per-million-input and --usd-per-million-output: give both or none")
    if prompt is not None:
        given["prices"] = Prices(prompt=prompt, completion=completion)
    if given.get("temperature") == "endpoint":
        given["temperature"] = None

    def of_model(model: type[Record]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name in model.model_fields}

    settings = LlmCaptionSettings(**of_model(LlmCaptionSettings))
    client = ClientSettings(**of_model(ClientSettings))
    with progress_bar(f"asking {settings.model}", "sample") as asking:
        return make_llm_captions(samples, settings, client, progress, asking)


def _show(result: CaptionsResult) -> None:
    """Print the result, of long lists only the beginning."""
    shown = result.model_dump(mode="json", exclude_none=True)
    if result.listed:
        shown["listed"] = {
            name: ", ".join(items[:_PRINTED]) + (", ..." if len(items) > _PRINTED else "")
            for name, items in result.listed.items()
        }
    print_result(shown)


COMMAND = Command(
    name="captions",
    summary="One caption per sample: from predicted attributes, from a language model, or imported.",
    example="--catalog runs/catalog --captioner readings --readings runs/benchmark/readings",
    add_options=_add_options,
    run=_run,
    result=CaptionsResult,
    show=_show,
)
