"""Export a trained run as one file that gives U, G and T without this project.

    python experiments/export.py --run runs/train/demo-seed0-1a2b3c4d --format onnx --out demo.onnx
    python experiments/export.py --run runs/train/demo-seed0-1a2b3c4d --format torch-export --out demo.pt2

The file takes a batch of any size: pixels (0 to 255) at the model's size, which images there are, and what
the model reads of the mask, the text feature and the camera; it says so itself in its metadata (`stmi`).
Images are resized outside it, and normalised inside. It is computed by onnxruntime, or by PyTorch, on samples
of the run's test split, and kept only if no number of a feature differs from the model's by more than 1e-4
(exit status 1 otherwise). ONNX needs optional packages: pip install 'stmi[export]'. A program that uses such
a file is tests/examples/embed_with_onnx.py.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()


from data_catalog.command_parser import CommandParser, local_path
from data_catalog.records import add_json_options
from experiments.command_line import print_notes, run_command
from experiments.experiment_config import ConfigError
from experiments.exporting.export_result import ExportResult
from experiments.run.run_folder import RunFolder
from experiments.terminal_tables import print_table, text_console, text_table

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch-export": ()}
"""Optional packages that a format needs."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, metavar="DIR", help="a finished run's folder or URI")
    parser.add_argument("--format", choices=SUFFIXES, default="onnx", help="of the file (default: onnx)")
    parser.add_argument(
        "--out", type=local_path, required=True, metavar="FILE", help="the file, .onnx or .pt2"
    )
    parser.add_argument(
        "--epoch",
        choices=("reported", "last"),
        default="reported",
        help="whose weights: of the epoch that the run reports, or of its last one (default: reported)",
    )
    parser.add_argument(
        "--catalog",
        help="folder or URI of the catalog with the run's test samples (default: where the run found them)",
    )
    add_json_options(parser, ExportResult)
    given = parser.parse_args(arguments)
    return run_command(
        lambda: _export(given), given.json, show, status=lambda result: 0 if result.is_kept else 1
    )


def _export(given: argparse.Namespace) -> ExportResult:
    """What the command line asks for.

    Raises:
        ConfigError: An argument is wrong, or an optional package is missing.
    """
    if given.out.suffix != SUFFIXES[given.format] or given.out.is_dir():
        raise ConfigError(f"--out={given.out}: expected a file that ends in {SUFFIXES[given.format]}")
    if missing := [name for name in PACKAGES[given.format] if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--format={given.format} needs {', '.join(missing)}; pip install 'stmi[export]'")
    folder = RunFolder.open(given.run, given.catalog)
    from experiments.evaluating.evaluation_target import load_run, use_processors
    from experiments.exporting.checked_export import export

    use_processors()
    target = load_run(folder, catalog=given.catalog, epoch=given.epoch)
    assert target.trained is not None
    return export(target, folder.fingerprint, target.trained.digest, given.out, given.format)


def show(result: ExportResult) -> None:
    """Print what a file takes and gives, and how it compares with the model."""
    console = text_console()
    exported = result.exported
    table = text_table("a batch of", "input", "type", "shape", "meaning", left=4)
    for name, one in exported.inputs.items():
        table.add_row(name, one.dtype, " x ".join(map(str, one.shape)), one.meaning)
    print_table(console, table)
    table = text_table(f"{result.checked_rows} test samples", "output", "width", "largest difference")
    for name, width in exported.outputs.items():
        table.add_row(name, str(width), f"{result.differences[name]:.1e}")
    print_table(console, table)
    print_notes(console, result.notes)
    end = f"written to {result.file} ({result.bytes / 1e6:.1f} MB)"
    if not result.is_kept:
        end = f"not kept: {result.file} would differ from the model by more than {result.tolerance:g}"
    console.print(end, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
