"""Train the small CLIP from which the demo starts, on procedural image-caption pairs.

Real recipes start from OpenAI's CLIP ViT-B/16. The demo starts from a CLIP of the same kind that is small
enough to ship: open_clip's model and contrastive loss, on people who are not in the benchmark (another seed
gives other identities and other scenes). A pair is one image of a person, in one modality, and a sentence
that names some of what that image shows: colours in RGB, brightness or warmth in infrared.

    python experiments/pretrain_clip.py                       # overwrites stmi/demo_clip; 45 min on two cores
    python experiments/pretrain_clip.py --out DIR --steps 50  # a short training
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from data_catalog.command_parser import CommandParser, local_path
from data_catalog.records import add_json_options
from experiments.command_line import run_command
from experiments.pretraining.pretrained_clip import HELD_OUT, PretrainedClip


def pretrain(given: argparse.Namespace) -> PretrainedClip:
    """Train the CLIP that the command line asks for."""
    from experiments.pretraining.contrastive_training import pretrain

    return pretrain(given.out, given.people, given.steps, given.batch, given.rate, given.seed)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "stmi" / "demo_clip"
    parser.add_argument(
        "--out", type=local_path, default=default, help="folder to write (default: stmi/demo_clip)"
    )
    parser.add_argument(
        "--people", type=int, default=60_000, help="rendered identities (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=5_000, help="optimisation steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=192, help="pairs in a batch (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of people, batches and weights (default: 0)"
    )
    add_json_options(parser, PretrainedClip)
    given = parser.parse_args(arguments)
    least = 2 * (HELD_OUT + given.batch)
    if given.people < least:
        parser.error(f"--people={given.people}: at least {least} are needed beside the {HELD_OUT} held out")
    return run_command(
        lambda: pretrain(given),
        given.json,
        lambda result: print("\n".join(f"{name:18} {value}" for name, value in result)),
    )


if __name__ == "__main__":
    sys.exit(main())
