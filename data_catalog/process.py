"""What every command does first, before it imports what takes seconds."""

from data_catalog.environment import prepare_environment
from data_catalog.interrupts import end_on_interrupt


def begin_process() -> None:
    """Let Ctrl-C end this process at once, and make its environment one that the project can run in."""
    end_on_interrupt()
    prepare_environment()
