"""The commands of `python -m data_catalog`, one file each; add new ones to COMMANDS."""

from typing import Any

from data_catalog.commands import (
    captions,
    checks,
    ingest,
    masks,
    sheet,
    show,
    synthesize,
    template,
    text_features,
    verify,
    view,
)
from data_catalog.commands.command import Command

COMMANDS: tuple[Command[Any], ...] = (
    synthesize.COMMAND,
    template.COMMAND,
    ingest.COMMAND,
    masks.COMMAND,
    captions.COMMAND,
    text_features.COMMAND,
    view.COMMAND,
    sheet.COMMAND,
    show.COMMAND,
    checks.COMMAND,
    verify.COMMAND,
)
"""Every command, in the order in which one uses them."""

__all__ = ["COMMANDS", "Command"]
