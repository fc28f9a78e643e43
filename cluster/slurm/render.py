"""Print a batch script that runs a command on Ray over a Slurm allocation.

    python cluster/slurm/render.py --nodes 4 --gpus-per-node 4 -- experiments/train.py --workers 16 | sbatch
    python cluster/slurm/render.py --nodes 2 --time 8:00:00 --out job.sh -- experiments/ablate.py --table 3
    python cluster/slurm/render.py --array 0-4 -- experiments/train.py --set seed={task} | sbatch

Ray of a job has a token, folders and ports of its own, so that several jobs may share a node. A job that
reaches its time limit makes a checkpoint and goes back into the queue, where it continues; a failing command
fails the job. The project and the Python that runs this must have the same path on all nodes.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_catalog.command_parser import CommandParser, local_path

ROOT = Path(__file__).resolve().parents[2]
TASK = "{task}"
"""In a command: the number of the task of an array."""
WARNING_SECONDS = 180
"""Between the signal and the time limit: for the step, the checkpoint and its upload."""


_NAME = r"[\w.-]+"
_NO_NAME = r"[^\w.-]"


class CommandError(ValueError):
    """A command that cannot run on an allocation."""


def render(given: argparse.Namespace) -> str:
    """The batch script of a command line.

    Raises:
        CommandError: The command is no script of the project.
    """
    if not given.command or not (ROOT / given.command[0]).is_file():
        shown = shlex.join(given.command) or "nothing"
        raise CommandError(
            f"the command is {shown}; expected a script of {ROOT} after --, such as -- experiments/train.py"
        )
    if given.array is None and any(TASK in word for word in given.command):
        raise CommandError(f"the command has {TASK}, which needs --array, for example --array 0-4")
    name = given.name or _name(given.command)
    if not re.fullmatch(_NAME, name):
        raise CommandError(
            f"--name {name!r}: expected letters, digits and . _ -, since the log is called after it"
        )
    directives = {
        "job-name": name,
        "nodes": given.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": given.cpus_per_node,
        "gpus-per-node": given.gpus_per_node or None,
        "mem": given.mem,
        "time": given.time,
        "partition": given.partition,
        "account": given.account,
        "array": given.array,
        "signal": f"B:USR1@{WARNING_SECONDS}",
        "output": f"{name}-%j.log" if given.array is None else f"{name}-%A-%a.log",
        "open-mode": "append",
    }
    lines = [f"--{key}={value}" for key, value in directives.items() if value is not None]
    # Inside the quotes of the shell, only this is not taken literally.
    command = shlex.join(given.command).replace(TASK, "'\"$SLURM_ARRAY_TASK_ID\"'")
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(Path(__file__).with_name("job.sh.j2").read_text(encoding="utf-8"))
    return template.render(
        directives=[*lines, "--requeue", *given.sbatch],
        root=shlex.quote(str(ROOT)),
        python=shlex.quote(str(Path(sys.executable).parent)),
        command=command,
    )


def _name(command: Sequence[str]) -> str:
    """The script's name and its recipe's, which may be a file."""
    shown = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shown.add_argument("--recipe", nargs="?")
    recipe = shown.parse_known_args(list(command))[0].recipe
    parts = [Path(part).stem for part in (command[0], recipe) if part]
    return "-".join(re.sub(_NO_NAME, "-", part) for part in parts)


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nodes", type=_count, default=1, metavar="N", help="nodes (default: 1)")
    options.add_argument(
        "--cpus-per-node", type=_count, default=8, metavar="N", help="CPUs of each node (default: 8)"
    )
    options.add_argument(
        "--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each node (default: 0)"
    )
    options.add_argument("--mem", metavar="SIZE", help="memory of each node, as 64G (default: the cluster's)")
    options.add_argument(
        "--time", default="24:00:00", type=_duration, help="limit of each try (default: 24:00:00)"
    )
    options.add_argument("--partition", help="where to run (default: the cluster's)")
    options.add_argument("--account", help="who pays (default: yours)")
    options.add_argument(
        "--array", metavar="TASKS", help=f"a job for each number, which replaces {TASK} (default: one job)"
    )
    options.add_argument("--name", help="what squeue shows (default: the script's name and its recipe)")
    options.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="=OPTION",
        help="another option of sbatch, such as --sbatch=--qos=low; may be repeated",
    )
    options.add_argument("--out", type=local_path, metavar="FILE", help="write it there (default: print it)")
    options.add_argument("command", nargs="*", help="script and arguments, after --")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1 on")
    return int(text)


def _duration(text: str) -> str:
    if not re.fullmatch(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text}: expected a duration as sbatch takes it, such as 8:00:00")
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    try:
        script = render(given)
        if given.out is not None:
            given.out.write_text(script, encoding="utf-8")
    except (CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.out is None:
        sys.stdout.write(script)
    return 0


if __name__ == "__main__":
    sys.exit(main())
