"""Convert a CLIP archive as OpenAI publishes it to a folder that recipes can start from.

    python experiments/convert_clip.py --archive ViT-B-16.pt --out clips/vit_b_16
    python experiments/convert_clip.py --archive ViT-L-14.pt --out clips/vit_l_14 --json
    python experiments/train.py --recipe rgbnt201-paper --set model.clip.source=clips/vit_b_16

The archive's SHA-256 is checked first, against those that OpenAI published; --sha256 states that of another
archive. Nothing in the archive is run.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line import run_command
from stmi.clip import openai_archive


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--archive", type=Path, required=True, help="the .pt file that OpenAI serves")
    options.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    options.add_argument(
        "--sha256", metavar="HEX", help="digest the archive must have (default: any that OpenAI published)"
    )
    options.add_argument("--json", action="store_true", help="print the result as one JSON document")
    return options


def show(result: dict[str, Any]) -> None:
    """Print the result for a person."""
    name = result["published_as"] or "an archive of the stated digest"
    print(f"{result['folder']}: {name}, {result['parameters']:,} parameters, digest {result['digest']}")
    print(f"start from it with --set model.clip.source={result['folder']}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    return run_command(
        lambda: openai_archive.convert(given.archive, given.out, given.sha256), given.json, show
    )


if __name__ == "__main__":
    sys.exit(main())
