"""`captions`: one caption per sample."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.captions.imported_captions import CaptionFileSettings, import_captions
from data_catalog.captions.llm.settings import ClientSettings, LlmCaptionSettings, Prices
from data_catalog.cards import card_names
from data_catalog.checks.newest_tables import find_card
from data_catalog.commands.arguments import add_samples, find_samples
from data_catalog.commands.command import Command, Result, build
from data_catalog.commands.printing import print_result
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, progress_bar
from data_catalog.tables.table import Table

_PRINTED = 5

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "readings": ("readings", "card"),
    "llm": (
        "endpoint",
        "model",
        "card",
        "filling",
        "temperature",
        "max_answer_tokens",
        "failed",
        "concurrency",
        "timeout_seconds",
        "retries",
        "reasks",
        "patience_seconds",
        "budget_usd",
        "usd_per_million_input",
        "usd_per_million_output",
    ),
    "files": ("captions", "choose"),
}
"""Captioner to the options that are its own."""

_REQUIRED = {"readings": ("readings",), "llm": ("endpoint", "model"), "files": ()}
_OF_CLIENT = ("concurrency", "timeout_seconds", "retries", "reasks", "patience_seconds", "budget_usd")
_OF_MODEL = ("filling", "temperature", "max_answer_tokens", "failed")


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
    readings = parser.add_argument_group("--captioner readings, from attribute readings in files")
    readings.add_argument("--readings", type=Path, metavar="DIR", help="one .jsonl per split")
    files = parser.add_argument_group("--captioner files, captions that are there already")
    files.add_argument("--captions", type=Path, metavar="DIR", help="default: where the source keeps them")
    files.add_argument(
        "--choose", choices=("RGB", "NIR", "TIR", "join"), help="which, where each modality has its own"
    )
    _add_llm_options(parser.add_argument_group("--captioner llm, by a multi-modal language model"))


def _add_llm_options(llm: Any) -> None:
    llm.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible; its key is read from OPENAI_API_KEY"
    )
    llm.add_argument("--model", metavar="NAME", help="as the endpoint knows it, for example gpt-4o")
    llm.add_argument(
        "--filling", choices=("llm", "rules"), help="who decides where readings differ (default: llm)"
    )
    llm.add_argument(
        "--temperature", type=_temperature, metavar="T", help="default: 0; `endpoint` leaves it to that"
    )
    llm.add_argument(
        "--max-answer-tokens", type=int, metavar="N", help="longer answers are cut (default: 1500)"
    )
    llm.add_argument(
        "--failed", choices=("stop", "unknown"), help="questions that stay unanswered (default: stop)"
    )
    llm.add_argument("--concurrency", type=int, metavar="N", help="requests at a time, at most (default: 8)")
    llm.add_argument("--timeout-seconds", type=float, metavar="S", help="limit of a request (default: 120)")
    llm.add_argument("--retries", type=int, metavar="N", help="after a fault of the endpoint (default: 6)")
    llm.add_argument("--reasks", type=int, metavar="N", help="after an unusable answer (default: 2)")
    llm.add_argument(
        "--patience-seconds",
        type=float,
        metavar="S",
        help="give up after so long without answers (default: 600)",
    )
    llm.add_argument(
        "--budget-usd",
        type=float,
        metavar="USD",
        help="stop before more than this is spent, over all runs of the job (what was in flight when one was "
        "killed is not counted)",
    )
    llm.add_argument("--usd-per-million-input", type=float, metavar="USD", help="price of tokens sent")
    llm.add_argument("--usd-per-million-output", type=float, metavar="USD", help="price of tokens answered")


def _temperature(text: str) -> float | str:
    if text == "endpoint":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no temperature; write a number, or endpoint") from None


def _run(args: argparse.Namespace) -> Result:
    _check_options(args)
    samples = find_samples(args)
    if args.captioner == "files":
        of_files = CaptionFileSettings(choose=args.choose, redact=args.redact)
        return build("captions", lambda progress: import_captions(samples, args.captions, of_files, progress))
    # A data set that has a card is captioned by it.
    own_card = find_card(samples)
    card = args.card or (CaptionSettings().card if own_card is None else own_card.name)
    if args.captioner == "llm":
        return build("captions", lambda progress: _ask(args, samples, card, progress))
    of_readings = CaptionSettings(card=card, redact=args.redact)
    return build("captions", lambda progress: make_captions(samples, args.readings, of_readings, progress))


def _ask(args: argparse.Namespace, samples: Table, card: str, progress: Progress) -> Table:
    # Its client library takes a second to import, which `show` and `--help` need not pay.
    from data_catalog.captions.llm.captioner import make_llm_captions  # noqa: PLC0415

    prices = (args.usd_per_million_input, args.usd_per_million_output)
    if (prices[0] is None) != (prices[1] is None):
        raise CatalogError("--usd-per-million-input and --usd-per-million-output: give both or none")
    given = {name: value for name in _OF_MODEL if (value := getattr(args, name)) is not None}
    if given.get("temperature") == "endpoint":
        given["temperature"] = None
    settings = LlmCaptionSettings(model=args.model, card=card, redact=args.redact, **given)
    client = ClientSettings(
        endpoint=args.endpoint,
        prices=None if prices[0] is None else Prices(prompt=prices[0], completion=prices[1]),
        **{name: value for name in _OF_CLIENT if (value := getattr(args, name)) is not None},
    )
    with progress_bar(f"asking {args.model}", "sample") as asking:
        return make_llm_captions(samples, settings, client, progress, asking)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options of another captioner, which would be ignored."""
    own = _OPTIONS[args.captioner]
    for name in _REQUIRED[args.captioner]:
        if getattr(args, name) is None:
            raise CatalogError(f"--{name} is missing; --captioner {args.captioner} needs it")
    for name in dict.fromkeys(name for names in _OPTIONS.values() for name in names):
        if name not in own and getattr(args, name) is not None:
            captioners = [captioner for captioner, names in _OPTIONS.items() if name in names]
            raise CatalogError(
                f"--{name.replace('_', '-')} is an option of --captioner {' and '.join(captioners)}, not of "
                f"{args.captioner}; leave it out or choose that captioner"
            )


def _show(result: Mapping[str, Any]) -> None:
    """Print the result, of long lists only the beginning."""
    listed = result.get("listed", {})
    shortened = {
        name: ", ".join(items[:_PRINTED]) + (", ..." if len(items) > _PRINTED else "")
        for name, items in listed.items()
    }
    print_result({**result, **({"listed": shortened} if listed else {})})


COMMAND = Command(
    name="captions",
    summary="One caption per sample: filled from readings by confidence, asked of a model, or imported.",
    example="--catalog runs/catalog --captioner readings --readings runs/benchmark/readings",
    add_options=_add_options,
    run=_run,
    show=_show,
)
