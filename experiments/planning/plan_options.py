"""The options of a script's `--plan`."""

import argparse
import math

from experiments.experiment_config import ConfigError
from experiments.planning.expected_time import SHOWN_BY_DEFAULT, find_hardware, known_hardware
from experiments.planning.study_time import MACHINE_SECONDS, START_SECONDS, Assumptions

DEVICES = (1, 8, 64)
"""Numbers of devices for which a plan of a study has times, unless it is asked for others."""


def add_plan_options(options: argparse.ArgumentParser) -> None:
    """Add `--plan` and what belongs to it to a script that trains a study."""
    group = options.add_argument_group("the plan of a study")
    group.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: print runs that are left, missing tables, memory, time and price; needs no data",
    )
    group.add_argument(
        "--hardware",
        action="append",
        metavar="NAME",
        help=f"with --plan, on this: {', '.join(known_hardware())}; may be repeated "
        f"(default: {SHOWN_BY_DEFAULT[0]})",
    )
    group.add_argument(
        "--devices",
        type=int,
        nargs="+",
        metavar="N",
        help="with --plan, on so many GPUs, or machines without GPU "
        f"(default: {' '.join(map(str, DEVICES))})",
    )
    group.add_argument(
        "--price",
        type=float,
        metavar="P",
        help="with --plan, of a device in an hour, in any currency (default: none)",
    )
    group.add_argument(
        "--start-seconds",
        type=float,
        metavar="S",
        help=f"with --plan, assumed from the start of a run to its first step (default: {START_SECONDS:g})",
    )
    group.add_argument(
        "--machine-seconds",
        type=float,
        metavar="S",
        help="with --plan, assumed from asking for a machine until it takes work; 0 for one that "
        f"runs already (default: {MACHINE_SECONDS:g})",
    )


class PlanChoices:
    """What the options of a plan say.

    Args:
        given: The command line's options.

    Raises:
        ConfigError: A number is impossible, or a hardware is not known.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.hardware: list[str] = given.hardware or [SHOWN_BY_DEFAULT[0]]
        self._devices: list[int] = given.devices or []
        for name in self.hardware:
            find_hardware(name)
        for number in self._devices:
            if number < 1:
                raise ConfigError(f"--devices {number}: expected a number from 1 on")
        numbers = {name: getattr(given, name) for name in ("price", "start_seconds", "machine_seconds")}
        for name, value in numbers.items():
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {value:g}: expected a number from 0 on")
        self.assumed = Assumptions(**{name: value for name, value in numbers.items() if value is not None})

    def devices(self, needed: float) -> list[int]:
        """Numbers of devices: those that were asked for, or the usual ones on which a run has room.

        Args:
            needed: Devices that a run needs.
        """
        return self._devices or [number for number in DEVICES if number >= needed] or [math.ceil(needed)]


def refuse_without_plan(options: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End with a message where an option belongs to `--plan` and that is not given.

    Raises:
        SystemExit: There is such an option.
    """
    for name in ("hardware", "devices", "price", "start_seconds", "machine_seconds"):
        if not given.plan and getattr(given, name) is not None:
            options.error(f"--{name.replace('_', '-')} belongs to --plan; add it")
