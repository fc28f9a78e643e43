"""`captions`: one caption per sample."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_catalog.captions.caption_statistics import CaptionStatistics
from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.captions.image_captioner import CaptionerSettings, make_image_captions
from data_catalog.captions.imported_captions import (
    CaptionFileSettings,
    import_captions,
)
from data_catalog.captions.llm.llm_settings import ClientSettings, LlmCaptionSettings, Prices
from data_catalog.cards import card_names
from data_catalog.checks.newest_tables import find_card
from data_catalog.commands.arguments import (
    OWN,
    OWN_SETTINGS,
    Option,
    add_choice,
    add_samples,
    find_samples,
    given_options,
    parse_assignments,
    setting_options,
)
from data_catalog.commands.command import BuiltTable, Command, build, print_result, says_nothing
from data_catalog.errors import CatalogError
from data_catalog.extensions import is_own, load_settings
from data_catalog.progress import Progress, progress_bar
from data_catalog.records import Record
from data_catalog.tables.table import Table

_PRINTED = 5


class CaptionsResult(CaptionStatistics, BuiltTable):
    """The captions of a data set; a statistic that the captioner does not have is null."""


def _temperature(text: str) -> float | str:
    if text == "endpoint":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a temperature; write a number, or endpoint"
        ) from None


_CARD = Option(
    "--card",
    "attributes and template (default: the data set's own card, or synthetic_person)",
    tuple(card_names()),
)
_OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "readings": (
        _CARD,
        Option("--readings", "predicted attributes, one .jsonl file per split, needed", Path, "DIR"),
    ),
    "llm": (
        _CARD,
        *setting_options(ClientSettings, "endpoint"),
        *setting_options(LlmCaptionSettings, "model", "filling", "max_answer_tokens", "failed"),
        Option("--temperature", "default: 0; `endpoint` leaves it to the endpoint", _temperature, "T"),
        *setting_options(ClientSettings, "concurrency", "timeout_seconds", "retries", "reasks"),
        *setting_options(ClientSettings, "unusable_share", "patience_seconds", "budget_usd"),
        Option("--usd-per-million-input", "price of tokens sent (default: unknown)", float, "USD"),
        Option("--usd-per-million-output", "price of tokens answered (default: unknown)", float, "USD"),
    ),
    "files": (
        Option("--captions", "folder or manifest (default: that of the samples)", Path, "PATH"),
        Option(
            "--choose",
            "which, where each modality has its own (default: none, such a data set needs it)",
            ("RGB", "NIR", "TIR", "join"),
        ),
    ),
    OWN: (OWN_SETTINGS,),
}
_ROUTES = {
    "readings": "Sentences from predicted attributes; needs the predictions in files.",
    "llm": "Written by a multi-modal language model; needs an OpenAI-compatible endpoint.",
    "files": 'Captions that exist already: JSON lists of {"item": file name, "description": text}, or a '
    "manifest's.",
    OWN: "Written by a class of your own, a subclass of CaptionerSettings; needs its module.",
}
"""What each captioner is and needs, for the help."""
_REQUIRED = {"readings": ("readings",), "llm": ("endpoint", "model")}


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_samples(parser)
    add_choice(
        parser,
        "--captioner",
        [name for name in _OPTIONS if name != OWN],
        "what writes them, a class of your own too (default: readings)",
        "readings",
    )
    _CARD.add_to(parser)
    parser.add_argument(
        "--redact", action="store_true", help="leave out licence plates and other personal text"
    )
    for captioner, options in _OPTIONS.items():
        group = parser.add_argument_group(f"--captioner {captioner}", _ROUTES[captioner])
        for option in options:
            if option is not _CARD:
                option.add_to(group)


def _run(args: argparse.Namespace) -> CaptionsResult:
    given = given_options(args, "captioner", _OPTIONS)
    for name in _REQUIRED.get(args.captioner, ()):
        if name not in given:
            raise CatalogError(f"--{name} is missing; --captioner {args.captioner} needs it")
    samples = find_samples(args)
    result = build("captions", lambda progress: _make(args, samples, given, progress), CaptionsResult)
    if result.rows and (result.empty == result.rows or result.captioned == 0):
        raise says_nothing(result, "empty captions")
    return result


def _make(args: argparse.Namespace, samples: Table, given: dict[str, Any], progress: Progress) -> Table:
    if args.captioner == "files":
        settings = CaptionFileSettings(choose=args.choose, redact=args.redact)
        return import_captions(samples, args.captions, settings, progress)
    if is_own(args.captioner):
        values = parse_assignments(given.get("set", []))
        own = load_settings(args.captioner, "captioner", CaptionerSettings, values)  # type: ignore[type-abstract]
        return make_image_captions(samples, own, args.redact, progress)
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

    def given_to(settings: type[Record]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name in settings.model_fields}

    settings = LlmCaptionSettings(**given_to(LlmCaptionSettings))
    client = ClientSettings(**given_to(ClientSettings))
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
