"""Convert a CLIP archive of OpenAI, or a CLIP's folder, to a folder from which recipes can start.

    python experiments/convert_clip.py --archive ViT-B-16.pt --out clips/vit_b_16
    python experiments/convert_clip.py --archive ViT-L-14.pt --out clips/vit_l_14 --json
    python experiments/convert_clip.py --folder clip-vit-base-patch16 --out clips/vit_b_16
    python experiments/train.py --recipe rgbnt201-paper --set model.clip.source=clips/vit_b_16

The SHA-256 of the archive is checked first, against those that OpenAI published; --sha256 names that of
another archive. A folder has the layout of Hugging Face's CLIPModel (config.json with model.safetensors or
pytorch_model.bin), or open_clip's with weights as .bin or .pt. No code in a file is run.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from data_catalog.command_parser import CommandParser, local_path
from data_catalog.records import Record, add_json_options
from experiments.command_line import run_command
from stmi.clip.clip_files import check_conversion, check_new
from stmi.errors import ClipFileError


class ConvertedClip(Record):
    """A converted CLIP."""

    folder: str
    archive_sha256: str
    """SHA-256 of the archive, or of the folder's file of weights."""
    published_as: str | None
    """OpenAI's name for the archive; None where OpenAI did not publish it."""
    digest: str
    """Digest of the converted CLIP."""
    parameters: int
    model_cfg: dict[str, Any]
    """Its architecture, as open_clip writes it."""


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=local_path, help="the .pt file from OpenAI")
    source.add_argument(
        "--folder", type=local_path, help="a CLIP's folder in Hugging Face's layout or open_clip's"
    )
    options.add_argument("--out", type=local_path, required=True, help="new folder; it must not exist")
    options.add_argument(
        "--sha256", metavar="HEX", help="expected digest of the archive (default: any that OpenAI published)"
    )
    add_json_options(options, ConvertedClip)
    return options


def show(result: ConvertedClip) -> None:
    """Print the result for people."""
    name = "" if result.published_as is None else f"{result.published_as}, "
    print(f"{result.folder}: {name}{result.parameters:,} parameters, digest {result.digest}")
    print(f"made of weights with SHA-256 {result.archive_sha256}")
    print(f"start from it with {shlex.join(['--set', f'model.clip.source={result.folder}'])}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)

    def command() -> ConvertedClip:
        if given.folder is not None:
            if given.sha256 is not None:
                raise ClipFileError("--sha256 goes with --archive; leave it out, or name an archive")
            check_new(given.out)
            from stmi.clip import foreign_folder

            return ConvertedClip.model_validate(foreign_folder.convert_folder(given.folder, given.out))
        check_conversion(given.archive, given.out)
        from stmi.clip import openai_archive

        return ConvertedClip.model_validate(openai_archive.convert(given.archive, given.out, given.sha256))

    return run_command(command, given.json, show)


if __name__ == "__main__":
    sys.exit(main())
